//! The commands of inserts at the quota.

use mcp_task_store::{StorageBackend, StorageError};

use super::Monitor;
use crate::support::redis::Namespace;
use crate::support::{after_ms, keep, key};

#[tokio::test]
async fn at_the_quota_a_refused_insert_is_sent_once_more_only_if_a_reap_made_room() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    for task in ["t1", "t2"] {
        backend.put(&key("alice", task), "data".into(), keep()).await.unwrap();
    }
    let mut monitor = Monitor::start(&namespace).await;
    let refused = backend.put(&key("alice", "t3"), "data".into(), keep().quota(2)).await;
    assert!(matches!(refused, Err(StorageError::CapacityExceeded { .. })));
    let commands: Vec<_> = monitor.sent().await.into_iter().map(|sent| sent.command).collect();
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
    let mut monitor = Monitor::start(namespace).await;
    store.put(&key("alice", "new"), "data".into(), keep().quota(2)).await.unwrap();
    let commands: Vec<_> = monitor.sent().await.into_iter().map(|sent| sent.command).collect();
    assert_eq!(commands, ["EVAL"], "the script itself distinguishes live and expired members");
}
