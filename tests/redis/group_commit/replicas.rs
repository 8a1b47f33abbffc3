//! Writes of one moment that wait until replicas have confirmed them.

use std::time::Duration;

use mcp_task_store::{RedisBackend, RedisBuilder, StorageBackend, StorageError};

use super::{Write, assert_all_succeed, assert_each_sent_once, prepared, send_all};
use crate::support::in_an_hour;
use crate::support::redis::Server;
use crate::support::tap::Tap;

const OWNERS: [&str; 2] = ["alice", "bob"];
const PATIENT: Duration = Duration::from_secs(60);

fn replicated(within: Duration) -> RedisBuilder {
    RedisBackend::builder().response_timeout(PATIENT).wait_for_replicas(1, within)
}

/// Starts a master behind a tap, and its replica.
async fn start() -> (Server, Server, Tap) {
    let master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    master.is_replicated();
    let tap = Tap::start(master.port).await;
    (master, replica, tap)
}

#[tokio::test]
async fn each_of_many_writes_that_succeeds_is_on_the_replica() {
    let (_master, replica, tap) = start().await;
    let backend = replicated(PATIENT / 2).connect(&tap.url()).await.unwrap();
    let writes = prepared(&backend, &OWNERS, 32).await;
    tap.take();
    assert_all_succeed(&backend, &writes).await;
    let scripts = tap.take();
    assert_each_sent_once(&writes, &scripts);
    assert!(scripts.len() <= 16, "{} scripts for {} writes", scripts.len(), writes.len());
    let at_replica = RedisBackend::connect(&replica.url()).await.unwrap();
    for write in &writes {
        write.assert_applied(&at_replica).await;
    }
}

#[tokio::test]
async fn each_of_many_writes_that_no_replica_confirms_is_applied_once_and_its_outcome_is_unknown() {
    let (master, replica, tap) = start().await;
    let backend = replicated(Duration::from_millis(300)).connect(&tap.url()).await.unwrap();
    let reader = RedisBackend::connect(&master.url()).await.unwrap();
    let mut writes = prepared(&reader, &OWNERS, 32).await;
    // These are refused, whatever the replica does.
    let existing = crate::support::key("alice", "existing");
    reader.put(&existing, "old".into(), in_an_hour()).await.unwrap();
    writes.insert(20, Write::Create(existing));
    writes.insert(30, Write::Swap(crate::support::key("bob", "missing")));
    tap.take();
    replica.signal("STOP");
    for (write, outcome) in writes.iter().zip(send_all(&backend, &writes).await) {
        let error = outcome.expect_err("no replica confirms a write");
        match (write.key().task.as_str(), &error) {
            ("existing", StorageError::VersionConflict { .. })
            | ("missing", StorageError::NotFound { .. }) => {
                assert!(!error.outcome_unknown());
            }
            (_, StorageError::TooFewReplicas { wanted: 1, acknowledged: 0, .. }) => {
                assert!(error.outcome_unknown() && error.is_retryable());
                write.assert_applied(&reader).await;
            }
            _ => panic!("{write:?}: {error:?}"),
        }
    }
    replica.signal("CONT");
    writes.retain(|write| !["existing", "missing"].contains(&write.key().task.as_str()));
    let mut scripts = tap.take();
    scripts
        .iter_mut()
        .for_each(|script| script.keys.retain(|key| !key.ends_with("existing") && !key.ends_with("missing")));
    assert_each_sent_once(&writes, &scripts);
}
