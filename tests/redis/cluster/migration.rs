//! Calls while a slot is being migrated to another master.

use std::time::Duration;

use mcp_task_store::{PageRequest, PartName, RedisBackend, StorageBackend, StorageError, TaskKey, Version};
use rstest::rstest;

use super::connect;
use crate::support::cluster::Cluster;
use crate::support::redis::command;
use crate::support::{after_ms, in_an_hour, keep, key, never, owner};

const PART: PartName = PartName::from_static("input");

/// Returns the key of alice, as a cluster stores it.
fn alices(rest: &str) -> String {
    format!("pmcp:{}", rest.replace("alice", "{alice}"))
}

/// Returns the keys of alice on the two nodes of a migration, each with its `DUMP`.
fn held(cluster: &Cluster, from: usize, to: usize) -> Vec<(String, Vec<u8>)> {
    let mut held = Vec::new();
    for node in [from, to] {
        let mut connection = cluster.nodes[node].connection();
        let mut keys: Vec<String> = command(&mut connection, ["KEYS", "*alice*"]);
        keys.sort();
        for key in keys {
            let _: () = command(&mut connection, ["ASKING"]);
            let dump = command(&mut connection, ["DUMP", &key]);
            held.push((format!("{node} {key}"), dump));
        }
    }
    held
}

/// Asserts that a call whose keys are on two nodes can be retried, and that its outcome is known.
fn assert_try_again<T: std::fmt::Debug>(reply: Result<T, StorageError>) {
    let error = reply.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    assert!(error.to_string().contains("migrated"), "{error}");
}

/// These calls use only the hash, on whichever node it is. Returns the next version of `t1`.
async fn assert_calls_on_one_hash_succeed(backend: &RedisBackend, version: Version) -> Version {
    let (t1, t2) = (key("alice", "t1"), key("alice", "t2"));
    assert_eq!(backend.get(&t1).await.unwrap().version, version);
    let swapped = backend.put_if_version(&t1, "two".into(), keep(), version).await.unwrap();
    assert_eq!(backend.get(&t2).await.unwrap().version, Version::FIRST);
    assert_eq!(backend.part(&t2, &PART).await.unwrap().unwrap().data, "part");
    let page = backend.list(&owner("alice"), PageRequest::new(5)).await.unwrap();
    assert_eq!(page.records.len(), 2);
    swapped.version
}

/// The key of a new record is on neither node.
async fn assert_inserts_can_be_retried(backend: &RedisBackend) {
    let t9 = key("alice", "t9");
    assert_try_again(backend.put(&t9, "new".into(), in_an_hour()).await);
    assert_try_again(backend.put_if_version(&t9, "new".into(), keep(), Version::ABSENT).await);
}

async fn assert_calls_on_hash_and_index_can_be_retried(backend: &RedisBackend, version: Version) {
    let t1 = key("alice", "t1");
    assert_try_again(backend.put(&t1, "lost".into(), in_an_hour().set_part(PART, "lost")).await);
    assert_try_again(backend.put(&t1, "lost".into(), never()).await);
    assert_try_again(backend.put(&t1, "lost".into(), in_an_hour()).await);
    assert_try_again(backend.put_if_version(&t1, "lost".into(), in_an_hour(), version).await);
    assert_try_again(backend.delete(&t1).await);
}

#[rstest]
#[case::to_another_master(false, ["", "tasks:alice:t1", "idx:alice", "tasks:alice:t2"])]
#[case::to_a_master_without_slots(true, ["", "idx:alice", "tasks:alice:t2", "tasks:alice:t1"])]
#[tokio::test(flavor = "multi_thread")]
async fn while_a_slot_is_being_migrated_calls_on_one_hash_succeed_and_others_can_be_retried(
    #[case] is_new: bool,
    #[case] stages: [&str; 4],
) {
    let mut cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    let (t1, t2, t9) = (key("alice", "t1"), key("alice", "t2"), key("alice", "t9"));
    for task in [&t1, &t2] {
        backend.put(task, "one".into(), in_an_hour().set_part(PART, "part")).await.unwrap();
    }
    let from = cluster.master_for("{alice}");
    let to = if is_new { cluster.add_master() } else { (from + 1) % 3 };
    let slot = cluster.slot("{alice}");
    cluster.set_slot(to, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", to);
    let mut version = Version::FIRST;

    let (mut is_t1_there, mut is_index_there) = (false, false);
    for (stage, moved) in stages.into_iter().enumerate() {
        if !moved.is_empty() {
            cluster.migrate(from, to, &alices(moved));
            is_t1_there |= moved.ends_with("t1");
            is_index_there |= moved.starts_with("idx");
        }
        version = assert_calls_on_one_hash_succeed(&backend, version).await;
        let before = held(&cluster, from, to);
        assert_inserts_can_be_retried(&backend).await;
        if is_t1_there != is_index_there {
            assert_calls_on_hash_and_index_can_be_retried(&backend, version).await;
        }
        assert_eq!(held(&cluster, from, to), before, "stage {stage}");
        if is_t1_there == is_index_there {
            let options = in_an_hour().set_part(PART, "three");
            version = backend.put(&t1, "three".into(), options).await.unwrap().version;
        }
    }

    cluster.set_slot(to, &slot, "NODE", to);
    cluster.set_slot(from, &slot, "NODE", to);
    backend.put(&t9, "new".into(), in_an_hour()).await.unwrap();
    let swapped = backend.put_if_version(&t1, "last".into(), in_an_hour(), version).await.unwrap();
    assert_eq!(backend.get(&t1).await.unwrap().version, swapped.version);
    assert!(backend.delete(&t2).await.unwrap());
    assert_eq!(backend.list(&owner("alice"), PageRequest::new(5)).await.unwrap().records.len(), 2);
    // A new backend reads the same.
    assert_eq!(connect(&cluster).await.get(&t9).await.unwrap().data, "new");
}

/// Begins the migration of the slot of an owner.
fn begin_migration(cluster: &Cluster, owner: &str) {
    let tag = format!("{{{owner}}}");
    let (slot, from) = (cluster.slot(&tag), cluster.master_for(&tag));
    let to = (from + 1) % 3;
    cluster.set_slot(to, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", to);
}

async fn until_expired(backend: &RedisBackend, key: &TaskKey) {
    while backend.get(key).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ids(backend: &RedisBackend, id: &str) -> Vec<String> {
    let page = backend.list(&owner(id), PageRequest::new(5)).await.unwrap();
    page.records.iter().map(|record| record.task.to_string()).collect()
}

// A script cannot write to a key that it has removed while the slot is being migrated.

#[tokio::test(flavor = "multi_thread")]
async fn in_a_migrating_slot_a_put_removes_the_only_index_member_that_has_an_expiry() {
    let cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    let (stays, goes) = (key("alice", "stays"), key("alice", "goes"));
    backend.put(&stays, "one".into(), never()).await.unwrap();
    backend.put(&goes, "one".into(), after_ms(20)).await.unwrap();
    until_expired(&backend, &goes).await;
    begin_migration(&cluster, "alice");
    assert_eq!(backend.put(&stays, "two".into(), never()).await.unwrap().version, Version::from(2));
    assert_eq!(ids(&backend, "alice").await, ["stays"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_migrating_slot_a_delete_removes_the_only_index_member_that_has_an_expiry() {
    let cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    let (stays, goes) = (key("bob", "stays"), key("bob", "goes"));
    backend.put(&stays, "one".into(), never()).await.unwrap();
    backend.put(&goes, "one".into(), in_an_hour()).await.unwrap();
    begin_migration(&cluster, "bob");
    assert!(backend.delete(&goes).await.unwrap());
    assert_eq!(ids(&backend, "bob").await, ["stays"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_migrating_slot_a_put_over_an_expired_record_that_the_server_holds_writes_nothing_to_the_index()
{
    let cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    let old = key("carol", "expired");
    backend.put(&old, "one".into(), after_ms(500)).await.unwrap();
    let mut connection = cluster.nodes[cluster.master_for("{carol}")].connection();
    for key in ["pmcp:tasks:{carol}:expired", "pmcp:idx:{carol}"] {
        assert_eq!(command::<i64>(&mut connection, ["PERSIST", key]), 1);
    }
    until_expired(&backend, &old).await;
    begin_migration(&cluster, "carol");
    let mut index = || command::<Vec<u8>>(&mut connection, ["DUMP", "pmcp:idx:{carol}"]);
    let before = index();
    assert_try_again(backend.put(&old, "two".into(), in_an_hour()).await);
    assert_eq!(index(), before);
    assert!(matches!(backend.get(&old).await, Err(StorageError::NotFound { .. })));
}
