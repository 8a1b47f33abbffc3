//! States of a server in which it refuses calls or does not reply.

use std::time::Duration;

use mcp_task_store::{
    Expiry, PageRequest, PartName, PutOptions, RedisBackend, StorageBackend, StorageError, TaskKey, Version,
};
use redis::{Commands, Value};
use rstest::rstest;

use super::assert_names;
use crate::support::redis::{Server, command, connection};
use crate::support::{in_an_hour, keep, key, never, owner};

#[tokio::test]
async fn writes_to_a_server_without_memory_exceed_the_capacity_and_change_nothing() {
    let server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "data".into(), in_an_hour()).await.unwrap();
    let mut admin = connection(&server.url());
    let _: Value = command(&mut admin, ["CONFIG", "SET", "maxmemory", "1"]);
    for refused in [
        backend.put(&t1, "lost".into(), keep()).await,
        backend.put(&key("alice", "t2"), "lost".into(), in_an_hour()).await,
        backend.put_if_version(&t1, "lost".into(), keep(), Version::FIRST).await,
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, StorageError::CapacityExceeded { quota: None, .. }), "{error:?}");
        assert!(!error.outcome_unknown());
    }
    assert_eq!(backend.get(&t1).await.unwrap().version, Version::FIRST);
    assert!(backend.delete(&t1).await.unwrap(), "a delete makes room");
    let keys: Vec<String> = admin.keys("*").unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn a_server_without_memory_refuses_writes_for_new_owners_and_writes_that_also_remove_data() {
    let server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let (t1, part) = (key("alice", "t1"), PartName::from_static("output"));
    backend.put(&t1, "data".into(), in_an_hour().set_part(part.clone(), "result")).await.unwrap();
    // The index member of this record stays until the next insert removes it.
    let brief = Expiry::After(Duration::from_millis(1));
    backend.put(&key("alice", "brief"), "data".into(), brief.into()).await.unwrap();
    let mut admin = connection(&server.url());
    while admin.exists("pmcp:tasks:alice:brief").unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _: Value = command(&mut admin, ["CONFIG", "SET", "maxmemory", "1"]);
    for (name, refused) in [
        ("a new owner", backend.put(&key("bob", "t1"), "lost".into(), in_an_hour()).await),
        ("a new owner, never", backend.put(&key("bob", "t1"), "lost".into(), never()).await),
        (
            "an insert that removes an expired member",
            backend.put(&key("alice", "t2"), "lost".into(), in_an_hour()).await,
        ),
        (
            "an insert that removes an expired member, never",
            backend.put(&key("alice", "t2"), "lost".into(), never()).await,
        ),
        ("a put that removes the expiry", backend.put(&t1, "lost".into(), never()).await),
        ("a put that removes a part", backend.put(&t1, "lost".into(), keep().clear_part(part.clone())).await),
    ] {
        let error = refused.map(|_| name).unwrap_err();
        assert!(matches!(error, StorageError::CapacityExceeded { quota: None, .. }), "{name}: {error:?}");
    }
    let record = backend.get(&t1).await.unwrap();
    assert_eq!((record.version, record.parts.len()), (Version::FIRST, 1));
    assert!(record.expires_at.is_some());
    let mut keys: Vec<String> = admin.keys("*").unwrap();
    keys.sort();
    assert_eq!(keys, ["pmcp:idx:alice", "pmcp:tasks:alice:t1"]);
}

#[tokio::test]
async fn a_replica_serves_reads_and_writes_to_it_are_unavailable() {
    let master = Server::start(&[]);
    let at_master = RedisBackend::connect(&master.url()).await.unwrap();
    at_master.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    let port = master.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]);
    let backend = RedisBackend::connect(&replica.url()).await.unwrap();
    // The replica copies the master's data in the background.
    while backend.get(&key("alice", "t1")).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(backend.list(&owner("alice"), PageRequest::new(1)).await.unwrap().records.len(), 1);
    for refused in [
        backend.put(&key("alice", "t1"), "lost".into(), keep()).await.map(drop),
        backend.delete(&key("alice", "t1")).await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn each_call_to_a_server_that_hangs_fails_at_the_response_timeout() {
    const LIMIT: Duration = Duration::from_millis(200);
    let server = Server::start(&[]);
    let backend = RedisBackend::builder().response_timeout(LIMIT).connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "data".into(), keep()).await.unwrap();
    server.signal("STOP");
    // Far above the limit, so that this fails only if a call ignores the limit.
    let (put, get) = tokio::time::timeout(20 * LIMIT, async {
        (backend.put(&t1, "again".into(), keep()).await, backend.get(&t1).await)
    })
    .await
    .expect("the calls return");
    let (put, get) = (put.unwrap_err(), get.unwrap_err());
    assert!(matches!(put, StorageError::Unavailable { outcome_unknown: true, .. }), "{put:?}");
    assert!(matches!(get, StorageError::Unavailable { outcome_unknown: false, .. }), "{get:?}");
    assert_names(&put, &[&format!("127.0.0.1:{}", server.port), "no reply within 200ms"]);
    server.signal("CONT");
    while let Err(error) = backend.get(&t1).await {
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn after_a_restart_of_the_server_the_same_backend_works_again() {
    let mut server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let t1: TaskKey = key("alice", "t1");
    let options = PutOptions::new(Expiry::Never);
    backend.put(&t1, "data".into(), options.clone()).await.unwrap();
    server.kill();
    let error = backend.put(&t1, "data".into(), options.clone()).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    server.start_again();
    while let Err(error) = backend.put(&t1, "data".into(), options.clone()).await {
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    }
}

/// The backend can read, and it can write once the state has passed.
#[rstest]
#[case::is_out_of_memory(&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"])]
#[case::has_too_few_replicas(
    &["CONFIG", "SET", "min-replicas-to-write", "1"],
    &["CONFIG", "SET", "min-replicas-to-write", "0"]
)]
#[case::is_a_replica(&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"])]
#[tokio::test]
async fn a_backend_connects_while_the_server(#[case] state: &[&str], #[case] passed: &[&str]) {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let _: Value = command(&mut admin, state.iter().copied());
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    let error = backend.put(&t1, "data".into(), in_an_hour()).await.unwrap_err();
    assert!(error.is_retryable() && !error.outcome_unknown(), "{error:?}");
    assert!(matches!(backend.get(&t1).await, Err(StorageError::NotFound { .. })));
    let _: Value = command(&mut admin, passed.iter().copied());
    // A server that becomes a master closes its connections.
    while let Err(error) = backend.put(&t1, "data".into(), in_an_hour()).await {
        assert!(error.is_retryable(), "{error:?}");
    }
    let keys: Vec<String> = admin.keys("*probe*").unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}
