//! Writes that wait for replicas.

use std::time::Duration;

use mcp_task_store::{
    NewTask, PageRequest, StorageBackend, StorageError, StoreConfig, TaskError, TaskStore, Version,
};
use redis::Commands;
use rstest::rstest;

use super::{PATIENCE, builder};
use crate::support::redis::{Server, command};
use crate::support::{in_an_hour, keep, key, owner};

fn with_replica() -> (Server, Server) {
    let master = Server::start(&[]);
    let port = master.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]);
    master.is_replicated();
    (master, replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_has_a_confirmed_write_when_the_call_returns() {
    let (master, replica) = with_replica();
    let backend = builder().wait_for_replicas(1, PATIENCE).connect(&master.url()).await.unwrap();
    let mut at_replica = replica.connection();
    let t1 = key("alice", "t1");
    for version in 1..=50 {
        let options = if version == 1 { in_an_hour() } else { keep() };
        backend.put_if_version(&t1, "data".into(), options, Version::from(version - 1)).await.unwrap();
        let there: u64 = at_replica.hget("pmcp:tasks:alice:t1", "version").unwrap();
        assert_eq!(there, version);
    }
    // A write that the master refuses waits for no replica.
    let conflict = backend.put_if_version(&t1, "lost".into(), keep(), Version::FIRST).await;
    assert_refused!(conflict, StorageError::VersionConflict { .. });
    assert!(backend.delete(&t1).await.unwrap());
    assert!(!at_replica.exists::<_, bool>("pmcp:tasks:alice:t1").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_too_few_replicas_confirm_is_refused_with_an_unknown_outcome() {
    let (master, replica) = with_replica();
    let backend = builder().wait_for_replicas(1, PATIENCE).connect(&master.url()).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "old".into(), in_an_hour()).await.unwrap();
    replica.signal("STOP");
    let (written, read) = tokio::join!(backend.put(&t1, "new".into(), keep()), async {
        // A read does not queue behind a write that waits for replicas.
        let mut reads = 0;
        while backend.get(&t1).await.unwrap().data == "old" {}
        for _ in 0..20 {
            backend.get(&t1).await.unwrap();
            reads += 1;
        }
        reads
    });
    let error = written.unwrap_err();
    assert!(error.is_retryable() && error.outcome_unknown(), "{error:?}");
    let StorageError::TooFewReplicas { wanted, acknowledged, within, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((wanted, acknowledged, within), (1, 0, PATIENCE));
    assert_eq!(read, 20);
    let record = backend.get(&t1).await.unwrap();
    assert_eq!(
        (record.data, record.version),
        ("new".into(), Version::from(2)),
        "the master applied the write"
    );

    replica.signal("CONT");
    backend.put(&t1, "confirmed".into(), keep()).await.unwrap();
}

/// With hash tags, creates of several owners share no script. There are more creates at the same time than connections. Some exceed the time limit of a call while they wait for
/// replicas, the others while they wait for a connection.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_acknowledges_no_create_that_no_replica_confirmed() {
    let (master, replica) = with_replica();
    // A write that is about to be sent when its time limit ends may or may not be applied. So the limit ends while all
    // connections wait for a replica: no write is about to be sent then. The server checks ten times a second whether a WAIT
    // has timed out, so the first wait ends after 300 to 400 ms and the second after 600 to 800 ms.
    let builder = builder().response_timeout(PATIENCE * 5 / 3).wait_for_replicas(1, PATIENCE).hash_tags(true);
    let backend = builder.connect(&master.url()).await.unwrap();
    let store = TaskStore::with_config(backend, StoreConfig::default().max_tasks_per_owner(None));
    replica.signal("STOP");
    let new = || NewTask::new("tools/call");
    let mut creates = tokio::task::JoinSet::new();
    for number in 0..150 {
        let store = store.clone();
        creates.spawn(async move { store.create(&owner(&format!("alice-{number}")), new()).await });
    }
    let (mut few, mut unsent) = (0, 0);
    while let Some(created) = creates.join_next().await {
        let error = created.unwrap().unwrap_err();
        let TaskError::Storage(error) = error else { panic!("{error:?}") };
        assert!(error.is_retryable(), "{error:?}");
        let is_unconfirmed = matches!(error, StorageError::TooFewReplicas { .. });
        *if is_unconfirmed { &mut few } else { &mut unsent } += 1;
        assert_eq!(error.outcome_unknown(), is_unconfirmed, "{error:?}");
    }
    assert!(few > 0 && unsent > 0, "{few} were sent, {unsent} were not");
    replica.signal("CONT");
    store.create(&owner("bob"), new()).await.unwrap();
    let mut records = 0;
    for number in 0..150 {
        let page =
            store.backend().list(&owner(&format!("alice-{number}")), PageRequest::new(1)).await.unwrap();
        records += page.records.len();
    }
    assert_eq!(records, few, "the master holds the tasks of the creates that were sent, and no others");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_writers_than_connections_wait_and_succeed() {
    let (master, _replica) = with_replica();
    let backend = builder().wait_for_replicas(1, PATIENCE).connect(&master.url()).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..100 {
        let backend = backend.clone();
        writers.spawn(async move {
            backend.put(&key("alice", &writer.to_string()), "data".into(), in_an_hour()).await.unwrap();
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    let clients: String = command(&mut master.connection(), ["CLIENT", "LIST", "TYPE", "normal"]);
    assert!(clients.lines().count() < 40, "{clients}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_sent_over_a_connection_that_was_closed_while_idle() {
    let (master, _replica) = with_replica();
    let backend = builder().wait_for_replicas(1, PATIENCE).connect(&master.url()).await.unwrap();
    let put = |task: &'static str| {
        let backend = backend.clone();
        async move { backend.put(&key("alice", task), "data".into(), in_an_hour()).await }
    };
    for round in 0..10 {
        let (one, two, three) = tokio::join!(put("t1"), put("t2"), put("t3"));
        assert!(one.is_ok() && two.is_ok() && three.is_ok(), "round {round}: {one:?} {two:?} {three:?}");
        let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
        let _: i64 = command(&mut master.connection(), kill);
        // By then, all pooled connections have detected that they were closed.
        while backend.get(&key("alice", "t1")).await.is_err() {}
        backend.get(&key("alice", "t1")).await.unwrap();
    }
}

#[rstest]
#[case::no_time(Duration::ZERO)]
#[case::as_long_as_a_call(Duration::from_secs(1))]
#[tokio::test]
async fn an_invalid_time_to_wait_for_replicas_is_refused(#[case] within: Duration) {
    let master = Server::start(&[]);
    let error = builder().wait_for_replicas(1, within).connect(&master.url()).await.unwrap_err();
    assert!(matches!(error, StorageError::Backend { outcome_unknown: false, .. }), "{error:?}");
}
