//! An index that lacks members, and members without a record.

use mcp_task_store::StorageError;
use rstest::rstest;

use super::{assert_index_expires, open, redis, version};
use crate::support::{after_ms, in_an_hour, keep, key, never};

#[tokio::test]
async fn the_next_writes_rebuild_a_lost_index_and_it_is_removed_with_their_records() {
    let store = open().await;
    let mut last = None;
    for task in 0..5 {
        let key = key("alice", &task.to_string());
        last = last.max(store.put(&key, "data".into(), after_ms(300)).await.unwrap().expires_at);
    }
    let _: i64 = redis(&store).run(&["DEL", "{}:idx:alice"]);
    // These records outlive the others by far, also on a busy server.
    let written = store.put(&key("alice", "0"), "data".into(), after_ms(3_000)).await.unwrap();
    assert_eq!(written.version, version(2));
    assert_eq!(store.ids("alice").await, ["0"]);
    assert_index_expires(&store, written.expires_at.map(|at| at.timestamp_millis() - 1));
    store.until(written.expires_at.max(last).unwrap()).await;
    assert!(redis(&store).keys().is_empty());
}

/// Somebody may remove members by hand.
#[rstest]
#[case::by_creation(["ZREMRANGEBYSCORE", "{}:idx:alice", "100000000000000", "+inf"])]
#[case::by_expiry(["ZREMRANGEBYSCORE", "{}:idx:alice", "-inf", "100000000000000"])]
#[tokio::test]
async fn an_index_that_lost_half_of_its_members_is_still_removed_with_the_last_record(
    #[case] damage: [&str; 4],
) {
    let store = open().await;
    let mut last = None;
    for task in 0..5 {
        let key = key("alice", &task.to_string());
        last = last.max(store.put(&key, "data".into(), after_ms(300)).await.unwrap().expires_at);
    }
    assert_eq!(redis(&store).run::<i64>(&damage), 5);
    // These records outlive the others by far, also on a busy server.
    let written = store.put(&key("alice", "0"), "data".into(), after_ms(3_000)).await.unwrap();
    assert_eq!(written.version, version(2));
    store.until(last.unwrap()).await;
    let last = store.put(&key("alice", "new"), "data".into(), after_ms(3_000)).await.unwrap().expires_at;
    assert_eq!(store.ids("alice").await, ["new", "0"]);
    store.until(written.expires_at.max(last).unwrap()).await;
    assert!(redis(&store).keys().is_empty());
}

#[tokio::test]
async fn a_page_removes_index_members_without_a_hash() {
    let store = open().await;
    for task in 0..150 {
        let options = if task % 2 == 0 { keep() } else { in_an_hour() };
        store.put(&key("alice", &task.to_string()), "data".into(), options).await.unwrap();
    }
    for task in 1..150 {
        let _: i64 = redis(&store).run(&["DEL", &format!("{{}}:tasks:alice:{task}")]);
    }
    assert_eq!(store.ids("alice").await, ["0"]);
    assert_eq!(redis(&store).keys(), ["idx:alice", "tasks:alice:0"]);
    let members: Vec<Vec<u8>> = redis(&store).run(&["ZRANGE", "{}:idx:alice", "0", "-1"]);
    assert_eq!(members, [&b"\xff0"[..], b"0"]);
    let _: i64 = redis(&store).run(&["DEL", "{}:tasks:alice:0"]);
    assert!(store.ids("alice").await.is_empty());
    assert!(redis(&store).keys().is_empty());
}

#[tokio::test]
async fn members_without_a_hash_do_not_use_up_the_quota() {
    let store = open().await;
    for task in 0..300 {
        store.put(&key("alice", &task.to_string()), "data".into(), in_an_hour()).await.unwrap();
    }
    // The deleted hash is that of the oldest record, so the repair must go to the last page. It must not end at an
    // expired record on the first page.
    let short = store.put(&key("alice", "short"), "data".into(), after_ms(20)).await.unwrap();
    let _: i64 = redis(&store).run(&["DEL", "{}:tasks:alice:0"]);
    store.until(short.expires_at.unwrap()).await;
    store.put(&key("alice", "new"), "data".into(), in_an_hour().quota(300)).await.unwrap();
    let full = store.put(&key("alice", "one more"), "data".into(), in_an_hour().quota(300)).await;
    assert_refused!(full, StorageError::CapacityExceeded { quota: Some(300), .. });
    assert_eq!(store.ids("alice").await.len(), 300);
}

#[tokio::test]
async fn a_record_that_is_created_again_after_its_hash_was_lost_keeps_nothing_of_the_old_one() {
    let store = open().await;
    store.put(&key("alice", "t1"), "data".into(), never()).await.unwrap();
    let _: i64 = redis(&store).run(&["DEL", "{}:tasks:alice:t1"]);
    let written = store.put(&key("alice", "t1"), "data".into(), after_ms(60_000)).await.unwrap();
    assert_index_expires(&store, Some(written.expires_at.unwrap().timestamp_millis() - 1));
}

#[tokio::test]
async fn a_write_of_the_expiry_restores_a_lost_index_member() {
    let store = open().await;
    for task in ["t1", "t2"] {
        store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    let _: i64 = redis(&store).run(&["ZREM", "{}:idx:alice", "t1"]);
    store.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(store.ids("alice").await, ["t1", "t2"]);
}

#[tokio::test]
async fn a_page_leaves_out_an_index_member_that_is_not_a_task_id() {
    let store = open().await;
    store.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    let _: i64 = redis(&store).run(&["ZADD", "{}:idx:alice", "1", "", "2", &"x".repeat(300)]);
    assert_eq!(store.ids("alice").await, ["t1"]);
}
