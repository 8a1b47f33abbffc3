//! The commands that the backend sends, as the server reports them with `MONITOR`.

use std::time::Duration;

use crate::support::redis::{Namespace, can_shard_publishing, connection, url};
use crate::support::{MAX_PART_BYTES, after_ms, in_an_hour, keep, key, never, owner};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mcp_task_store::{
    Agenda, Due, Next, PageRequest, PartName, Queue, StorageBackend, StorageError, Version,
};

/// The commands of one backend: those that it sent, each with the commands that its script ran.
struct Watch {
    lines: BoxStream<'static, String>,
    marker: redis::aio::MultiplexedConnection,
    prefix: String,
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

impl Watch {
    async fn start(namespace: &Namespace) -> Self {
        let client = redis::Client::open(url()).unwrap();
        let monitor = client.get_async_monitor().await.unwrap();
        Self {
            lines: monitor.into_on_message::<String>().boxed(),
            marker: client.get_multiplexed_async_connection().await.unwrap(),
            prefix: namespace.prefix.clone(),
        }
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

#[tokio::test]
async fn each_operation_sends_exactly_the_documented_commands() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let (t1, alice) = (key("alice", "t1"), owner("alice"));
    // Both connections exist before the test counts commands.
    backend.list(&alice, PageRequest::new(1)).await.unwrap();
    let mut watch = Watch::start(&namespace).await;
    let mut everything = Vec::new();
    macro_rules! sent {
        ($call:expr) => {{
            $call.await.ok();
            let sent = watch.sent().await;
            everything.extend(sent.iter().map(|sent| sent.command.clone()));
            sent
        }};
    }

    // Each write is one EVAL. It notifies subscribers before it writes. A new record has no subscribers.
    let publish = if can_shard_publishing(&mut connection(&url())) { "SPUBLISH" } else { "PUBLISH" };
    // First comes a command that changes nothing. A server that accepts no writes at the moment refuses it.
    let notify = &["HSETNX", publish][..];
    let (read, index) = (["HEXISTS", "HMGET"], ["ZCARD", "ZCOUNT", "ZRANGE", "ZRANGE"]);
    // A command that could be refused too late first runs where it has no effect.
    let written = ["ZADD", "PEXPIREAT", "HSET", "PEXPIREAT"];
    let sent = sent!(backend.put(&t1, "data".into(), in_an_hour().quota(100)));
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(sent[0].command, "EVAL");
    assert_eq!(
        sent[0].ran(),
        [&["TIME", "EXISTS", "ZCARD", "ZADD", "PEXPIREAT"][..], &written].concat(),
        "the first record of the owner"
    );
    let sent = sent!(backend.put(&key("alice", "t0"), "data".into(), in_an_hour().quota(100)));
    assert_eq!((sent.len(), sent[0].ran()), (1, [&["TIME", "EXISTS"][..], &index, &written].concat()));

    for call in 0..2 {
        let (sent, quiet) = match call {
            0 => {
                (sent!(backend.put(&t1, "data".into(), keep())), &["TIME", "EXISTS", "HEXISTS", "HMGET"][..])
            }
            _ => (
                sent!(backend.put_if_version(&t1, "data".into(), keep(), Version::from(3))),
                &["TIME", "HMGET", "HSETNX"][..],
            ),
        };
        let notify = if call == 0 { notify } else { &notify[1..] };
        assert_eq!(sent.len(), 1, "{sent:?}");
        assert_eq!((sent[0].command.as_str(), sent[0].ran()), ("EVAL", [quiet, notify, &["HSET"]].concat()));
        let hash = format!("{}:tasks:alice:t1", namespace.prefix);
        let touched = |command: &Vec<String>| command[0] != "TIME" && command[0] != publish;
        assert!(
            sent[0].ran.iter().filter(|command| touched(command)).all(|command| command[1] == hash),
            "{sent:?}"
        );
        let expires_at = backend.get(&t1).await.unwrap().expires_at.unwrap().timestamp_millis();
        let message = match call {
            0 => format!("? {hash}"),
            _ => format!("{expires_at} {hash}"),
        };
        let channel = format!("{}:watch:alice", namespace.prefix);
        assert!(sent[0].ran.contains(&vec![publish.to_owned(), channel, message]), "{sent:?}");
        watch.sent().await;
        // A quiet write notifies nobody.
        let version = Version::from(2 * call + 2);
        let sent = match call {
            0 => sent!(backend.put(&t1, "data".into(), keep().quiet())),
            _ => sent!(backend.put_if_version(&t1, "data".into(), keep().quiet(), version)),
        };
        assert_eq!((sent.len(), sent[0].ran()), (1, [quiet, &["HSET"]].concat()));
    }

    for call in 0..2 {
        let sent = match call {
            0 => sent!(backend.put(&t1, "data".into(), in_an_hour())),
            _ => sent!(backend.put_if_version(&t1, "data".into(), in_an_hour(), Version::from(6))),
        };
        assert_eq!((sent.len(), sent[0].command.as_str()), (1, "EVAL"), "{sent:?}");
        let written = ["HSET", "ZADD", "ZADD", "PEXPIREAT", "PEXPIREAT", "HSET"];
        assert_eq!(sent[0].ran(), [&["TIME", "EXISTS"][..], &read, notify, &index, &written].concat());
    }
    let sent = sent!(backend.put(&t1, "data".into(), never()));
    let written = ["HSET", "HDEL", "ZADD", "ZADD", "PERSIST", "PERSIST", "HSET", "HDEL"];
    assert_eq!(
        (sent.len(), sent[0].ran()),
        (1, [&["TIME", "EXISTS"][..], &read, notify, &index, &written].concat())
    );
    // The write that names a part writes it too, and touches no other key.
    let output = PartName::from_static("output");
    for (options, written) in [
        (keep().set_part(output.clone(), "output"), &["HSET"][..]),
        (keep().clear_part(output.clone()), &["HSET", "HDEL", "HSET", "HDEL"]),
    ] {
        let sent = sent!(backend.put(&t1, "data".into(), options));
        assert_eq!(
            (sent.len(), sent[0].ran()),
            (1, [&["TIME", "EXISTS"][..], &read, notify, written].concat())
        );
    }
    let sent = sent!(backend.put_if_version(&key("alice", "t2"), "data".into(), keep(), Version::ABSENT));
    assert_eq!((sent.len(), sent[0].command.as_str()), (1, "EVAL"), "{sent:?}");

    // A refused write is one EVAL too. It runs no command that writes.
    for (refused, first) in [
        (
            sent!(backend.put_if_version(&t1, "data".into(), in_an_hour(), Version::FIRST)),
            &["TIME", "EXISTS"][..],
        ),
        (sent!(backend.put_if_version(&t1, "data".into(), keep(), Version::ABSENT)), &["TIME", "EXISTS"]),
        (
            sent!(backend.put_if_version(&key("alice", "t3"), "data".into(), keep(), Version::FIRST)),
            &["TIME", "HMGET"],
        ),
    ] {
        let read = if first.len() == 2 && first[1] == "HMGET" { &read[..1] } else { &read };
        assert_eq!((refused.len(), refused[0].ran()), (1, [first, read].concat()), "{refused:?}");
    }

    // A get is one HMGET.
    for task in ["t1", "absent"] {
        assert_eq!(sent!(backend.get(&key("alice", task))), [Sent { command: "HMGET".into(), ran: vec![] }]);
    }

    // The read of a part is one HMGET too. It does not read the data.
    let sent = sent!(backend.part(&t1, &output));
    assert_eq!(sent, [Sent { command: "HMGET".into(), ran: vec![] }]);

    // A page is two round trips: a script that writes nothing for the ids, then their hashes.
    backend.delete(&key("alice", "t0")).await.unwrap();
    watch.sent().await;
    let sent = sent!(backend.list(&alice, PageRequest::new(10)));
    let commands: Vec<_> = sent.iter().map(|sent| sent.command.as_str()).collect();
    assert_eq!(commands, ["EVAL", "HMGET", "HMGET"]);
    assert_eq!(sent[0].ran(), ["TIME", "ZRANGE"]);

    // After a page with a member without a hash comes one reap.
    let _: i64 = namespace.run(&["DEL", "{}:tasks:alice:t1"]);
    watch.sent().await;
    let sent = sent!(backend.list(&alice, PageRequest::new(10)));
    let commands: Vec<_> = sent.iter().map(|sent| sent.command.as_str()).collect();
    assert_eq!(commands, ["EVAL", "HMGET", "HMGET", "EVAL"]);
    let reaped = ["TIME", "EXISTS", "ZRANGE", "ZREM"];
    assert_eq!(sent[3].ran(), reaped);

    let sent = sent!(backend.delete(&key("alice", "t2")));
    assert_eq!((sent.len(), sent[0].command.as_str()), (1, "EVAL"));
    assert_eq!(sent[0].ran(), ["TIME", "HGET", "ZRANGE", "ZREM", publish, "DEL", "ZREM"]);

    // The engine has nothing to clean up. It refuses oversized calls before it sends anything.
    assert!(sent!(backend.cleanup_expired()).is_empty());
    assert!(sent!(backend.put(&t1, vec![b'x'; 5000].into(), keep())).is_empty());
    let over = keep().set_part(output, vec![b'x'; MAX_PART_BYTES + 1]);
    assert!(sent!(backend.put(&t1, "data".into(), over)).is_empty());
    assert!(sent!(backend.list(&alice, PageRequest::new(257))).is_empty());

    assert!(everything.iter().all(|command| command == "EVAL" || command == "HMGET"), "{everything:?}");
}

#[tokio::test]
async fn a_page_reads_as_many_records_as_fit_and_the_sizes_of_the_others_before_it_reads_more() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    for task in 0..40 {
        backend.put(&key("alice", &task.to_string()), vec![b'x'; 100].into(), keep()).await.unwrap();
    }
    let mut watch = Watch::start(&namespace).await;
    // At first the backend expects records of the maximum size, 4096 bytes. With each page it expects half as much.
    for (max_bytes, first, read) in [(8_192, 2, 38), (8_192, 4, 36), (400, 1, 3), (1 << 20, 40, 0)] {
        backend.list(&owner("alice"), PageRequest::new(64).max_bytes(max_bytes)).await.unwrap();
        let commands: Vec<_> = watch.sent().await.into_iter().map(|sent| sent.command).collect();
        let sizes = &["HSTRLEN"; 40][first..];
        let expected = [&["EVAL"][..], &["HMGET"; 40][..first], sizes, &["HMGET"; 40][..read]].concat();
        assert_eq!(commands, expected, "{max_bytes}");
    }
}

#[tokio::test]
async fn each_call_of_the_agenda_sends_one_script_that_touches_the_timers_of_its_queues_alone() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let mut watch = Watch::start(&namespace).await;
    let publish = if can_shard_publishing(&mut connection(&url())) { "SPUBLISH" } else { "PUBLISH" };
    let [leases, work] = ["leases", "work/a"].map(|name| Queue::try_from(name).unwrap());
    let (t1, hour) = (key("alice", "t1"), Duration::from_secs(3600));
    let prefix = &namespace.prefix;
    let due = |queue: &str| format!("{prefix}:due:0:{queue}");
    let ran = |sent: &[Sent], commands: &[&str], keys: &[String]| {
        let [Sent { command, ran }] = sent else { panic!("{sent:?}") };
        assert_eq!((command.as_str(), sent[0].ran()), ("EVAL", commands.to_vec()));
        let touched = ran.iter().filter(|command| command[0] != "TIME" && command[0] != publish);
        let touched: Vec<&String> = touched.map(|command| &command[1]).collect();
        assert!(touched.iter().all(|key| keys.contains(key)), "{touched:?}");
    };

    // The first timer is the earliest, so the script notifies takers before it writes.
    backend.schedule(&leases, &t1, hour).await.unwrap();
    let sent = watch.sent().await;
    ran(&sent, &["TIME", "ZSCORE", "ZRANGE", "ZADD", publish, "ZADD"], &[due("leases")]);
    let message = vec![publish.to_owned(), format!("{prefix}:wake:0"), format!("? {prefix}:due:0:leases")];
    assert!(sent[0].ran.contains(&message), "{sent:?}");
    // A later one notifies nobody.
    backend.schedule(&leases, &key("bob", "t1"), 2 * hour).await.unwrap();
    ran(&watch.sent().await, &["TIME", "ZSCORE", "ZRANGE", "ZADD"], &[due("leases")]);

    // If no timer is due, the script reads only the earliest timer of each queue.
    let queues = [leases.clone(), work.clone()];
    backend.take_due(&queues, 10, hour).await.unwrap();
    ran(&watch.sent().await, &["TIME", "ZRANGE", "ZRANGE"], &[due("leases"), due("work/a")]);
    backend.schedule(&leases, &t1, Duration::ZERO).await.unwrap();
    watch.sent().await;
    let taken = backend.take_due(&queues, 10, hour).await.unwrap();
    let took = ["TIME", "ZRANGE", "ZRANGE", "ZADD", "ZRANGE", "ZCOUNT", "ZRANGE"];
    ran(&watch.sent().await, &took, &[due("leases"), due("work/a")]);

    // A void token writes nothing, and notifies nobody.
    let void = Due::new(leases.clone(), t1.clone(), "1");
    backend.resolve(&void, Next::After(Duration::ZERO)).await.unwrap();
    ran(&watch.sent().await, &["TIME", "ZSCORE"], &[due("leases")]);
    backend.resolve(&taken.due[0], Next::Remove).await.unwrap();
    ran(&watch.sent().await, &["TIME", "ZSCORE", "ZREM"], &[due("leases")]);

    // The backend sends no call that it refuses itself.
    backend.schedule(&leases, &t1, Duration::MAX).await.unwrap_err();
    backend.take_due(&[], 10, hour).await.unwrap();
    assert!(watch.sent().await.is_empty());
}

#[tokio::test]
async fn at_the_quota_a_refused_insert_is_sent_once_more_only_if_a_reap_made_room() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    for task in ["t1", "t2"] {
        backend.put(&key("alice", task), "data".into(), keep()).await.unwrap();
    }
    let mut watch = Watch::start(&namespace).await;
    let refused = backend.put(&key("alice", "t3"), "data".into(), keep().quota(2)).await;
    assert!(matches!(refused, Err(StorageError::CapacityExceeded { .. })));
    let commands: Vec<_> = watch.sent().await.into_iter().map(|sent| sent.command).collect();
    // The insert, the ids of the owner, and an `EXISTS` of their hashes.
    assert_eq!(commands, ["EVAL", "EVAL", "EXISTS"]);
}

#[tokio::test]
async fn members_of_expired_records_do_not_count_even_before_they_are_removed() {
    let store = Namespace::new().store().await;
    let namespace = store.redis.as_ref().unwrap();
    let mut last = None;
    for task in 0..100 {
        let key = key("alice", &task.to_string());
        last = store.put(&key, "data".into(), after_ms(20)).await.unwrap().expires_at;
    }
    store.put(&key("alice", "lives"), "data".into(), keep()).await.unwrap();
    store.until(last.unwrap()).await;
    let mut watch = Watch::start(namespace).await;
    store.put(&key("alice", "new"), "data".into(), keep().quota(2)).await.unwrap();
    let commands: Vec<_> = watch.sent().await.into_iter().map(|sent| sent.command).collect();
    assert_eq!(commands, ["EVAL"], "the script itself notify the live from the expired");
}
