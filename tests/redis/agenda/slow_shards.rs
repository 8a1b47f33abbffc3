//! Several shards of timers on one server, of which one replies slowly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mcp_task_store::{Agenda, RedisBackend};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Commands, Pipeline, RedisFuture, Value};

use super::{NOW, PATIENCE, RESPONSE_TIMEOUT, keys, leases, take};
use crate::support::key;
use crate::support::redis::{Server, command};

/// A connection that delays the commands for one shard of timers.
#[derive(Clone)]
struct Delayed {
    connection: MultiplexedConnection,
    shard: u64,
    /// The delays in milliseconds: of a call that takes no timers, and of a call that takes timers.
    look_ms: Arc<AtomicU64>,
    take_ms: Arc<AtomicU64>,
    takes: Arc<AtomicU64>,
}

impl Delayed {
    async fn new(server: &Server, shard: u64) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        let [look_ms, take_ms, takes] = [0, 0, 0].map(|number| Arc::new(AtomicU64::new(number)));
        Self { connection, shard, look_ms, take_ms, takes }
    }

    fn delay(&self, command: &Cmd) -> Duration {
        let of_shard = format!(":due:{{{}}}:", self.shard);
        let words: Vec<_> = command
            .args_iter()
            .map(|word| match word {
                redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes),
                _ => "".into(),
            })
            .collect();
        let millis = match words.get(3) {
            Some(key) if !key.contains(&of_shard) => 0,
            Some(_) if words.last().is_some_and(|limit| limit == "0") => self.look_ms.load(Ordering::SeqCst),
            Some(_) => {
                self.takes.fetch_add(1, Ordering::SeqCst);
                self.take_ms.load(Ordering::SeqCst)
            }
            None => 0,
        };
        Duration::from_millis(millis)
    }
}

impl ConnectionLike for Delayed {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            tokio::time::sleep(self.delay(command)).await;
            self.connection.req_packed_command(command).await
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(commands, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

/// A backend with shards on one server, of which one is slow, an owner in that shard, and an owner in another shard.
async fn with_a_slow_shard() -> (Server, RedisBackend, Delayed, [String; 2]) {
    let server = Server::start(&[]);
    let delayed = Delayed::new(&server, 3).await;
    let builder = RedisBackend::builder().hash_tags(true).response_timeout(RESPONSE_TIMEOUT);
    let backend = builder.over(delayed.clone()).await.unwrap();
    let mut admin = server.connection();
    let mut owners = [None, None];
    for number in 0.. {
        let owner = format!("owner-{number}");
        backend.schedule(&leases(), &key(&owner, "t1"), NOW).await.unwrap();
        let shard: Vec<String> = admin.keys("pmcp:due:*").unwrap();
        let _: () = command(&mut admin, ["FLUSHALL"]);
        let is_slow = shard == ["pmcp:due:{3}:leases"];
        owners[usize::from(!is_slow)].get_or_insert(owner);
        if let [Some(slow), Some(other)] = &owners {
            return (server, backend, delayed, [slow.clone(), other.clone()]);
        }
    }
    unreachable!()
}

#[tokio::test]
async fn takers_wait_again_for_a_slow_shard_that_replies_again() {
    let (_server, backend, delayed, owners) = with_a_slow_shard().await;
    for owner in &owners {
        backend.schedule(&leases(), &key(owner, "t1"), NOW).await.unwrap();
    }
    delayed.look_ms.store(600, Ordering::SeqCst);
    assert_eq!(keys(&take(&backend).await), [format!("{}:t1", owners[1])]);
    delayed.look_ms.store(60, Ordering::SeqCst);
    let taken = async {
        loop {
            let taken = take(&backend).await;
            if !taken.due.is_empty() {
                return taken;
            }
            tokio::time::sleep(taken.next_in.unwrap()).await;
        }
    };
    let taken =
        tokio::time::timeout(PATIENCE, taken).await.expect("the call takes the timer of the slow shard");
    assert_eq!(keys(&taken), [format!("{}:t1", owners[0])]);
}

#[tokio::test]
async fn one_call_asks_a_shard_that_does_not_reply_only_once() {
    let (_server, backend, delayed, [slow, other]) = with_a_slow_shard().await;
    for task in 0..200 {
        backend.schedule(&leases(), &key(&slow, &task.to_string()), NOW).await.unwrap();
    }
    backend.schedule(&leases(), &key(&other, "t1"), NOW).await.unwrap();
    delayed.take_ms.store(60_000, Ordering::SeqCst);
    delayed.takes.store(0, Ordering::SeqCst);
    assert_eq!(keys(&take(&backend).await), [format!("{other}:t1")]);
    assert_eq!(delayed.takes.load(Ordering::SeqCst), 1);
}
