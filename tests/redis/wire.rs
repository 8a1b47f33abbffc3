//! The commands that the backend sends, as the server reports them with `MONITOR`.

mod quota;
mod reads;
mod timers;
mod writes;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mcp_task_store::{PageRequest, PartName, RedisBackend, StorageBackend};

use crate::support::redis::{Namespace, can_shard_publishing, connection, url};
use crate::support::{MAX_PART_BYTES, keep, key, owner};

/// The commands of one backend: those that it sent, each with the commands that its script ran.
struct Monitor {
    lines: BoxStream<'static, String>,
    marker: redis::aio::MultiplexedConnection,
    prefix: String,
    /// The command that the backend publishes with on this server.
    publish: &'static str,
}

/// A command that the backend sent, and the commands that its script ran.
#[derive(Debug, PartialEq)]
struct Sent {
    command: String,
    ran: Vec<Vec<String>>,
}

impl Sent {
    fn ran(&self) -> Vec<&str> {
        self.ran.iter().map(|command| command[0].as_str()).collect()
    }
}

impl Monitor {
    async fn start(namespace: &Namespace) -> Self {
        let client = redis::Client::open(url()).unwrap();
        let monitor = client.get_async_monitor().await.unwrap();
        Self {
            lines: monitor.into_on_message::<String>().boxed(),
            marker: client.get_multiplexed_async_connection().await.unwrap(),
            prefix: namespace.prefix.clone(),
            publish: if can_shard_publishing(&mut connection(&url())) { "SPUBLISH" } else { "PUBLISH" },
        }
    }

    /// Waits for a call, and returns the commands that the backend sent for it.
    async fn sent_by(&mut self, call: impl Future) -> Vec<Sent> {
        call.await;
        self.sent().await
    }

    /// Asserts that the backend sends one script for a call, and that the script runs these commands. `PUBLISH` stands
    /// for the command that the backend publishes with on this server. Returns the commands.
    async fn assert_script(&mut self, call: impl Future, commands: &str) -> Vec<Vec<String>> {
        let mut sent = self.sent_by(call).await;
        assert_eq!(sent.len(), 1, "{sent:?}");
        let script = sent.remove(0);
        assert_eq!(script.command, "EVAL");
        let expected: Vec<&str> = commands
            .split(' ')
            .map(|command| if command == "PUBLISH" { self.publish } else { command })
            .collect();
        assert_eq!(script.ran(), expected);
        script.ran
    }

    /// Asserts that the backend sends these commands for a call.
    async fn assert_sends(&mut self, call: impl Future, commands: &[&str]) -> Vec<Sent> {
        let sent = self.sent_by(call).await;
        let names: Vec<&str> = sent.iter().map(|sent| sent.command.as_str()).collect();
        assert_eq!(names, commands);
        sent
    }

    /// Returns the commands with keys of the namespace since the last call.
    async fn sent(&mut self) -> Vec<Sent> {
        let marker = uuid::Uuid::new_v4().to_string();
        let _: String = redis::cmd("ECHO").arg(&marker).query_async(&mut self.marker).await.unwrap();
        let mut sent: Vec<Sent> = Vec::new();
        // Whether the current script is of this backend. A script runs as a whole, so its commands follow it.
        let mut ours = false;
        loop {
            let line = self.lines.next().await.unwrap();
            if line.contains(&marker) {
                return sent;
            }
            let (from, command) = line.split_once("] ").unwrap();
            let command = words(command);
            if from.ends_with(" lua") {
                if ours {
                    sent.last_mut().unwrap().ran.push(command);
                }
                continue;
            }
            ours = line.contains(&self.prefix);
            if ours {
                sent.push(Sent { command: command[0].to_uppercase(), ran: Vec::new() });
            }
        }
    }
}

/// The words of a command as `MONITOR` quotes them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut escaped) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match (&mut word, c) {
            (None, '"') => word = Some(String::new()),
            (None, _) => {}
            (Some(text), c) if escaped => {
                text.push(c);
                escaped = false;
            }
            (Some(_), '\\') => escaped = true,
            (Some(_), '"') => words.extend(word.take()),
            (Some(text), c) => text.push(c),
        }
    }
    words
}

/// Returns a backend with both of its connections, and a monitor of its commands from then on.
async fn open() -> (Namespace, RedisBackend, Monitor) {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    backend.list(&owner("alice"), PageRequest::new(1)).await.unwrap();
    let monitor = Monitor::start(&namespace).await;
    (namespace, backend, monitor)
}

/// The engine has nothing to clean up. It refuses oversized calls before it sends anything.
#[tokio::test]
async fn cleanups_and_oversized_calls_send_nothing() {
    let (_namespace, backend, mut monitor) = open().await;
    let t1 = key("alice", "t1");
    monitor.assert_sends(backend.cleanup_expired(), &[]).await;
    monitor.assert_sends(backend.put(&t1, vec![b'x'; 5000].into(), keep()), &[]).await;
    let over = keep().set_part(PartName::from_static("output"), vec![b'x'; MAX_PART_BYTES + 1]);
    monitor.assert_sends(backend.put(&t1, "data".into(), over), &[]).await;
    monitor.assert_sends(backend.list(&owner("alice"), PageRequest::new(257)), &[]).await;
}
