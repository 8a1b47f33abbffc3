//! Writes without a reply, writes that were given up before they were sent, and callers that leave.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{FutureExt, join_all};
use mcp_task_store::{RedisBackend, RedisBuilder, StorageBackend, StorageError, Version};
use redis::Value;
use rstest::rstest;

use super::{Write, assert_all_succeed, assert_each_sent_once, prepared, record_key, send_all, times_sent};
use crate::support::fake::{Answer, Fake, greeting};
use crate::support::redis::{Namespace, Server, command};
use crate::support::relay::Relay;
use crate::support::tap::Tap;
use crate::support::{in_an_hour, key};

const PATIENT: Duration = Duration::from_secs(60);
const BRIEF: Duration = Duration::from_millis(300);
/// Long enough that a busy machine sends what is queued.
const LIMIT: Duration = Duration::from_secs(2);
const OWNERS: [&str; 2] = ["alice", "bob"];

fn limited(limit: Duration) -> RedisBuilder {
    RedisBackend::builder().response_timeout(limit).connect_timeout(PATIENT)
}

fn is_unanswered(error: &StorageError) -> bool {
    matches!(error, StorageError::Unavailable { .. } | StorageError::TooFewReplicas { .. })
}

/// A server that receives every write and replies to none.
#[rstest]
#[case::one_server(0)]
#[case::one_that_waits_for_replicas(1)]
#[tokio::test]
async fn the_outcome_of_each_write_without_a_reply_is_unknown_and_each_was_sent_once(#[case] replicas: u32) {
    let fake = Fake::start(|_, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" => Answer::Nothing,
        _ => greeting(words),
    });
    let fake = fake.await;
    let mut builder = limited(LIMIT);
    if replicas > 0 {
        builder = builder.wait_for_replicas(replicas, Duration::from_millis(100));
    }
    let backend = builder.connect(&fake.url()).await.unwrap();
    let write = |number: usize| match key(OWNERS[number % 2], &format!("t{number:02}")) {
        key if number.is_multiple_of(3) => Write::Swap(key),
        key => Write::Create(key),
    };
    let writes: Vec<Write> = (0..64).map(write).collect();
    let outcomes = send_all(&backend, &writes).await;
    let received = fake.received("EVAL");
    for (write, outcome) in writes.iter().zip(outcomes) {
        let error = outcome.expect_err("the server replies to no write");
        let record = record_key(write.key());
        let times = received.iter().filter(|words| words.contains(&record)).count();
        assert!(is_unanswered(&error), "{write:?}: {error:?}");
        // Each connection that waits for replicas serves one write at a time. The others wait for it.
        assert!(times == 1 || replicas > 0 && times == 0, "{write:?} was sent {times} times");
        assert_eq!(error.outcome_unknown(), times == 1, "{write:?}: {error:?}");
    }
}

/// A server that applies every write, and whose replies are lost.
#[tokio::test]
async fn each_write_whose_reply_is_lost_is_applied_once() {
    let server = Server::start(&[]);
    let tap = Tap::start(server.port).await;
    let backend = limited(LIMIT).connect(&tap.url()).await.unwrap();
    let reader = limited(PATIENT).connect(&server.url()).await.unwrap();
    let writes = prepared(&reader, &OWNERS, 32).await;
    backend.get(writes[0].key()).await.unwrap();
    tap.take();
    tap.lose_replies(true);
    for (write, outcome) in writes.iter().zip(send_all(&backend, &writes).await) {
        let error = outcome.expect_err("the reply is lost");
        assert!(is_unanswered(&error) && error.outcome_unknown(), "{write:?}: {error:?}");
        assert!(error.to_string().contains("no reply within 2s"), "{write:?}: {error}");
    }
    tap.lose_replies(false);
    // The server has applied a write once a later command of the same connection has its reply.
    while let Err(error) = backend.get(writes[0].key()).await {
        assert!(error.is_retryable(), "{error:?}");
    }
    for write in &writes {
        write.assert_applied(&reader).await;
    }
    let later = prepared(&reader, &["carol"], 8).await;
    assert_all_succeed(&backend, &later).await;
    assert_each_sent_once(&[writes, later].concat(), &tap.take());
}

/// A connection that breaks while the writes are under way.
#[tokio::test]
async fn a_write_whose_connection_breaks_is_sent_at_most_once_and_its_outcome_is_known_if_it_was_not_sent() {
    let fake = Fake::start(|_, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" => Answer::Close,
        _ => greeting(words),
    });
    let fake = fake.await;
    let backend = limited(PATIENT).connect(&fake.url()).await.unwrap();
    let mut sent = 0;
    for round in 0..8 {
        let write = |number: usize| match key(OWNERS[number % 2], &format!("{round}-{number:02}")) {
            key if number.is_multiple_of(2) => Write::Swap(key),
            key => Write::Create(key),
        };
        let writes: Vec<Write> = (0..64).map(write).collect();
        let outcomes = send_all(&backend, &writes).await;
        let received = fake.received("EVAL");
        for (write, outcome) in writes.iter().zip(outcomes) {
            let error = outcome.expect_err("the server replies to no write");
            let record = record_key(write.key());
            let times = received.iter().filter(|words| words.contains(&record)).count();
            assert!(times <= 1, "{write:?} was sent {times} times");
            assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
            assert!(times == 0 || error.outcome_unknown(), "{write:?}: {error:?}");
            sent += times;
        }
    }
    assert!(sent >= 8, "the first write of each round reaches the server: {sent}");
}

/// A server behind a tap, behind a relay whose connections can be held back.
struct Behind {
    server: Server,
    tap: Tap,
    relay: Relay,
}

impl Behind {
    async fn start() -> Self {
        let server = Server::start(&[]);
        let tap = Tap::start(server.port).await;
        let relay = Relay::start(tap.port).await;
        Self { server, tap, relay }
    }

    /// Closes the connections of all backends.
    fn close_connections(&self) {
        let _: Value =
            command(&mut self.server.connection(), ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }

    /// Closes the connections, and waits until this backend has detected that.
    async fn disconnect(&self, backend: &RedisBackend) {
        let before = backend.generation();
        self.close_connections();
        while backend.generation() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn writes_given_up_while_there_is_no_connection_were_not_sent_and_say_so() {
    let behind = Behind::start().await;
    let backend = limited(BRIEF).connect(&behind.relay.url()).await.unwrap();
    let writes = prepared(&limited(PATIENT).connect(&behind.server.url()).await.unwrap(), &OWNERS, 16).await;
    backend.get(writes[0].key()).await.unwrap();
    // New connections are accepted, and the server's replies do not arrive in time.
    behind.relay.slow_new_connections(20 * BRIEF);
    behind.disconnect(&backend).await;
    behind.tap.take();
    for (write, outcome) in writes.iter().zip(send_all(&backend, &writes).await) {
        let error = outcome.expect_err("there is no connection");
        assert!(
            matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }),
            "{write:?}: {error:?}"
        );
        assert!(error.is_retryable());
    }
    behind.relay.pass_new_connections();
    // Ends the attempt to connect that is under way.
    behind.close_connections();
    while let Err(error) = backend.get(writes[0].key()).await {
        assert!(error.is_retryable(), "{error:?}");
    }
    // A write that had waited for the connection would have been sent before this read.
    assert!(times_sent(&behind.tap.take()).is_empty());
    let reader = limited(PATIENT).connect(&behind.server.url()).await.unwrap();
    for write in &writes {
        write.assert_not_applied(&reader).await;
    }
    assert_all_succeed(&backend, &writes).await;
}

#[tokio::test]
async fn callers_that_leave_before_their_writes_are_sent_write_nothing_and_disturb_no_other() {
    let behind = Behind::start().await;
    let backend = limited(PATIENT).connect(&behind.relay.url()).await.unwrap();
    let reader = limited(PATIENT).connect(&behind.server.url()).await.unwrap();
    let writes = prepared(&reader, &OWNERS, 32).await;
    backend.get(writes[0].key()).await.unwrap();
    behind.relay.slow_new_connections(BRIEF);
    behind.disconnect(&backend).await;
    behind.tap.take();
    // The first write, the last one, and every third leave. The rest stay.
    let leaves = |number: usize| number.is_multiple_of(3);
    let mut calls: Vec<_> = writes.iter().map(|write| write.send(&backend).boxed()).collect();
    for call in &mut calls {
        assert!(call.now_or_never().is_none(), "there is no connection");
    }
    // The queue is drained meanwhile. The writes wait for the connection.
    tokio::task::yield_now().await;
    let mut staying = Vec::new();
    for (number, call) in calls.into_iter().enumerate() {
        if leaves(number) { drop(call) } else { staying.push(call) }
    }
    for outcome in join_all(staying).await {
        outcome.unwrap();
    }
    let scripts = behind.tap.take();
    let sent = times_sent(&scripts);
    for (number, write) in writes.iter().enumerate() {
        if leaves(number) {
            assert!(!sent.contains_key(&*record_key(write.key())), "{write:?} was sent");
            write.assert_not_applied(&reader).await;
        } else {
            assert_eq!(sent.get(&*record_key(write.key())), Some(&1), "{write:?}");
            write.assert_applied(&reader).await;
        }
    }
}

/// Callers leave while their writes are queued, and the connection works.
#[tokio::test]
async fn callers_that_leave_the_queue_write_nothing_and_disturb_no_other() {
    let behind = Behind::start().await;
    let backend = limited(PATIENT).connect(&behind.relay.url()).await.unwrap();
    let writes = prepared(&backend, &OWNERS, 32).await;
    behind.tap.take();
    let mut calls: Vec<_> = writes.iter().map(|write| write.send(&backend).boxed()).collect();
    for call in &mut calls {
        assert!(call.now_or_never().is_none(), "no reply can have arrived");
    }
    // The first write is sent at once, and the others wait for the next turn of the scheduler.
    let leaves = |number: usize| number > 0 && number.is_multiple_of(2);
    let mut staying = Vec::new();
    for (number, call) in calls.into_iter().enumerate() {
        if leaves(number) { drop(call) } else { staying.push(call) }
    }
    for outcome in join_all(staying).await {
        outcome.unwrap();
    }
    let scripts = behind.tap.take();
    let sent = times_sent(&scripts);
    for (number, write) in writes.iter().enumerate() {
        let times = sent.get(&*record_key(write.key())).copied().unwrap_or_default();
        assert_eq!(times, usize::from(!leaves(number)), "{write:?}");
        match leaves(number) {
            true => write.assert_not_applied(&backend).await,
            false => write.assert_applied(&backend).await,
        }
    }
}

fn creates(name: &str, count: usize) -> Vec<Write> {
    (0..count).map(|task| Write::Create(key("alice", &format!("{name}-{task}")))).collect()
}

/// The connection is not broken, and no runtime has shut down. An error that says so would also prevent the probe of a silent
/// connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_without_a_reply_names_the_time_limit() {
    let fake = Fake::start(|_, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" => Answer::Nothing,
        _ => greeting(words),
    });
    let fake = fake.await;
    let limit = Duration::from_millis(50);
    for round in 0..10 {
        // The first round of a connection ends before the backend probes it.
        let backend = limited(limit).connect(&fake.url()).await.unwrap();
        let calls = creates(&round.to_string(), 64).into_iter().map(|write| {
            let backend = backend.clone();
            tokio::spawn(async move { write.send(&backend).await })
        });
        for outcome in join_all(calls).await {
            let text = outcome.unwrap().unwrap_err().to_string();
            assert!(text.contains(" within 50ms"), "round {round}: {text}");
        }
    }
}

/// The bytes of a record, which say how many writes hold them.
struct Data {
    _held: Arc<()>,
}

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        b"data"
    }
}

/// Callers that leave at once, on a thread that never gives the queue a turn.
#[tokio::test]
async fn writes_that_were_given_up_leave_the_queue() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    // From now on, a write is queued even if it is alone.
    assert_all_succeed(&backend, &creates("first", 8)).await;
    let (given_up, held) = (creates("given-up", 1), Arc::new(()));
    for _ in 0..10_000 {
        let data = Bytes::from_owner(Data { _held: Arc::clone(&held) });
        let create = backend.put_if_version(given_up[0].key(), data, in_an_hour(), Version::ABSENT);
        assert!(create.now_or_never().is_none());
    }
    assert!(Arc::strong_count(&held) < 100, "the queue holds {} writes", Arc::strong_count(&held) - 1);
    assert_all_succeed(&backend, &creates("later", 8)).await;
    given_up[0].assert_not_applied(&backend).await;
}
