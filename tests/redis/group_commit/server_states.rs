//! A server that accepts no writes: every caller receives its error, nothing is sent again, and nothing is written.

use std::time::Duration;

use futures_util::future::join_all;
use mcp_task_store::{RedisBackend, StorageBackend, StorageError};
use redis::{Connection, Value};
use rstest::rstest;

use super::{Write, assert_all_succeed, assert_each_sent_once, prepared, send_all, with_expired_members};
use crate::support::cluster::{eventually, info};
use crate::support::fake::{Answer, Fake, greeting};
use crate::support::key;
use crate::support::redis::{Server, command};
use crate::support::tap::Tap;

/// A state in which a server accepts no writes.
#[derive(Clone, Copy, Debug)]
enum State {
    /// `OOM`
    OutOfMemory,
    /// `READONLY`
    Replica,
    /// `NOREPLICAS`
    TooFewReplicas,
    /// `MISCONF`
    CannotSave,
}

impl State {
    fn begin(self, server: &Server, admin: &mut Connection) {
        match self {
            Self::OutOfMemory => set(admin, "maxmemory", "1"),
            Self::Replica => command(admin, ["REPLICAOF", "127.0.0.1", "1"]),
            Self::TooFewReplicas => set(admin, "min-replicas-to-write", "1"),
            Self::CannotSave => {
                // A folder where the server writes its snapshot.
                std::fs::create_dir(server.folder().join("dump.rdb")).unwrap();
                save(admin, "err");
            }
        }
    }

    fn end(self, server: &Server, admin: &mut Connection) {
        match self {
            Self::OutOfMemory => set(admin, "maxmemory", "0"),
            Self::Replica => command(admin, ["REPLICAOF", "NO", "ONE"]),
            Self::TooFewReplicas => set(admin, "min-replicas-to-write", "0"),
            Self::CannotSave => {
                std::fs::remove_dir(server.folder().join("dump.rdb")).unwrap();
                save(admin, "ok");
            }
        }
    }

    fn is_error(self, error: &StorageError) -> bool {
        match self {
            Self::OutOfMemory => matches!(error, StorageError::CapacityExceeded { quota: None, .. }),
            _ => matches!(error, StorageError::Unavailable { .. }),
        }
    }
}

fn set(admin: &mut Connection, name: &str, value: &str) {
    command(admin, ["CONFIG", "SET", name, value])
}

/// Makes the server save its data, and waits for the outcome.
fn save(admin: &mut Connection, outcome: &str) {
    let _: Value = command(admin, ["BGSAVE"]);
    let status = format!("rdb_last_bgsave_status:{outcome}");
    eventually(|| info(admin, "persistence").contains(&status));
}

#[rstest]
#[tokio::test]
async fn an_error_of_the_server_reaches_every_caller_and_nothing_is_sent_again(
    #[values(State::OutOfMemory, State::Replica, State::TooFewReplicas, State::CannotSave)] state: State,
) {
    let server = Server::start(&["--save", "3600 1"]);
    let mut admin = server.connection();
    let tap = Tap::start(server.port).await;
    let patient = RedisBackend::builder().response_timeout(Duration::from_secs(60));
    let backend = patient.connect(&tap.url()).await.unwrap();
    let reader = RedisBackend::connect(&server.url()).await.unwrap();
    let mut writes = prepared(&backend, &["alice", "bob", "carol"], 32).await;
    with_expired_members(&backend, &["alice", "bob", "carol"]).await;
    // These owners have no index yet.
    writes.extend((0..40).map(|task| Write::Create(key(["aaron", "zoe"][task % 2], &task.to_string()))));
    let size: u64 = command(&mut admin, ["DBSIZE"]);
    tap.take();
    state.begin(&server, &mut admin);
    for (write, outcome) in writes.iter().zip(send_all(&backend, &writes).await) {
        let error = outcome.expect_err("the server accepts no writes");
        assert!(state.is_error(&error), "{write:?}: {error:?}");
        assert!(error.is_retryable() && !error.outcome_unknown(), "{write:?}: {error:?}");
    }
    assert_each_sent_once(&writes, &tap.take());
    // A write that is alone gets the same error.
    for write in &writes[62..66] {
        let error = write.send(&backend).await.expect_err("the server accepts no writes");
        assert!(state.is_error(&error), "{write:?}: {error:?}");
    }
    tap.take();
    for write in &writes {
        write.assert_not_applied(&reader).await;
    }
    assert_eq!(command::<u64>(&mut admin, ["DBSIZE"]), size);
    state.end(&server, &mut admin);
    // A server that becomes a master closes its connections.
    while let Err(error) = backend.put(&key("dave", "t1"), "data".into(), crate::support::in_an_hour()).await
    {
        assert!(error.is_retryable(), "{error:?}");
    }
    assert_all_succeed(&backend, &writes).await;
}

/// A server that loads its data serves its connections only from time to time, so a fake takes its place.
#[tokio::test]
async fn a_server_that_loads_its_data_makes_every_caller_fail_and_nothing_is_sent_again() {
    let fake = Fake::start(|_, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" => Answer::Bytes(b"-LOADING Redis is loading the dataset in memory\r\n".to_vec()),
        _ => greeting(words),
    });
    let fake = fake.await;
    let backend = RedisBackend::connect(&fake.url()).await.unwrap();
    let keys: Vec<_> = (0..64).map(|number| key("alice", &format!("t{number:02}"))).collect();
    let writes = keys.iter().enumerate().map(|(number, key)| match number % 2 {
        0 => Write::Create(key.clone()),
        _ => Write::Swap(key.clone()),
    });
    let writes: Vec<Write> = writes.collect();
    for error in join_all(writes.iter().map(|write| write.send(&backend))).await {
        let error = error.expect_err("the server accepts no writes");
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    }
    let sent = fake.received("EVAL");
    for write in &writes {
        let record = super::record_key(write.key());
        assert_eq!(sent.iter().filter(|words| words.contains(&record)).count(), 1, "{write:?}");
    }
}
