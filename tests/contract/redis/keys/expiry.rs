//! The expiry of records and of the index, and keys that are left behind.

use chrono::TimeDelta;
use mcp_task_store::{StorageError, Version};

use super::{OTHER, PART, assert_index_expires, open, redis, sizes};
use crate::support::{after_ms, in_an_hour, keep, key, never};

#[tokio::test]
async fn the_server_itself_never_returns_an_expired_record() {
    let store = open().await;
    for round in 0..20 {
        let key = key("alice", &round.to_string());
        let at = store.put(&key, "data".into(), after_ms(3)).await.unwrap().expires_at.unwrap();
        let redis = redis(&store);
        loop {
            // The test reads the clock first. So a record that it then finds was returned at this time or later.
            let (seconds, micros): (i64, i64) = redis.run(&["TIME"]);
            let found: i64 = redis.run(&["EXISTS", &format!("{{}}:tasks:alice:{round}")]);
            if found == 0 {
                break;
            }
            assert!(seconds * 1000 + micros / 1000 < at.timestamp_millis());
        }
    }
}

#[tokio::test]
async fn a_record_still_expires_after_its_expiry_on_the_server_was_removed_by_hand() {
    let (store, key) = (open().await, key("alice", "t1"));
    let written = store.put(&key, "old".into(), after_ms(500).set_part(PART, "old")).await.unwrap();
    let kept: i64 = redis(&store).run(&["PERSIST", "{}:tasks:alice:t1"]);
    assert_eq!(kept, 1);
    let _: i64 = redis(&store).run(&["PERSIST", "{}:idx:alice"]);
    let _: i64 = redis(&store).run(&["HSET", "{}:tasks:alice:t1", "by_hand", "1"]);
    store.until(written.expires_at.unwrap()).await;
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
    assert_refused!(store.part(&key, &PART).await, StorageError::NotFound { .. });
    assert!(store.ids("alice").await.is_empty());
    let put = store.put_if_version(&key, "lost".into(), keep(), Version::FIRST).await;
    assert_refused!(put, StorageError::NotFound { .. });
    let written = store.put(&key, "new".into(), after_ms(60_000).set_part(OTHER, "new")).await.unwrap();
    assert_eq!(written.version, Version::FIRST);
    let fields: Vec<String> = redis(&store).run(&["HKEYS", "{}:tasks:alice:t1"]);
    assert_eq!(fields, ["version", "data", "part:output", "parts", "expires_at"]);
    assert_eq!(store.get(&key).await.unwrap().parts, sizes([(OTHER, 3)]));
    assert_eq!(store.ids("alice").await, ["t1"]);
    let _: i64 = redis(&store).run(&["HSET", "{}:tasks:alice:t1", "expires_at", "1"]);
    assert!(!store.delete(&key).await.unwrap());
    assert!(redis(&store).keys().is_empty());
}

#[tokio::test]
async fn a_new_record_that_never_expires_does_not_inherit_the_expiry_of_an_expired_record() {
    let (store, key) = (open().await, key("alice", "t1"));
    let _: i64 = redis(&store).run(&["HSET", "{}:tasks:alice:t1", "by_hand", "1"]);
    let _: i64 = redis(&store).run(&["EXPIRE", "{}:tasks:alice:t1", "1000"]);
    store.put(&key, "data".into(), never()).await.unwrap();
    let left: i64 = redis(&store).run(&["TTL", "{}:tasks:alice:t1"]);
    assert_eq!(left, -1);
}

#[tokio::test]
async fn no_key_is_left_when_the_last_record_is_deleted_or_has_expired() {
    let store = open().await;
    for options in [keep(), in_an_hour()] {
        for task in ["t1", "t2"] {
            store.put(&key("alice", task), "data".into(), options.clone()).await.unwrap();
        }
        store.delete(&key("alice", "t1")).await.unwrap();
        store.delete(&key("alice", "t2")).await.unwrap();
        assert!(redis(&store).keys().is_empty());
    }
    let mut last = None;
    for task in 0..50 {
        let key = key("alice", &task.to_string());
        last = last.max(store.put(&key, "data".into(), after_ms(40 + task)).await.unwrap().expires_at);
    }
    store.until(last.unwrap() + TimeDelta::milliseconds(2)).await;
    // The test does not wait for the server to reclaim the memory. A key that `EXISTS` does not find has expired.
    let held: i64 = redis(&store).run(&["EXISTS", "{}:idx:alice", "{}:tasks:alice:49"]);
    assert_eq!(held, 0);
}

#[tokio::test]
async fn no_key_is_left_when_the_other_records_have_expired_after_a_delete_of_the_longest_lived_one() {
    let store = open().await;
    for (task, options) in [("short", after_ms(400)), ("long", after_ms(600)), ("longest", in_an_hour())] {
        store.put(&key("alice", task), "data".into(), options).await.unwrap();
    }
    let last = store.get(&key("alice", "long")).await.unwrap().expires_at.unwrap();
    assert!(store.delete(&key("alice", "longest")).await.unwrap());
    store.until(last + TimeDelta::milliseconds(2)).await;
    let held: i64 =
        redis(&store).run(&["EXISTS", "{}:idx:alice", "{}:tasks:alice:short", "{}:tasks:alice:long"]);
    assert_eq!(held, 0);
}

#[tokio::test]
async fn the_index_expires_with_the_longest_lived_record() {
    let store = open().await;
    let ms = |written: mcp_task_store::Written| Some(written.expires_at.unwrap().timestamp_millis() - 1);
    let put = async |task: &str, options| store.put(&key("alice", task), "x".into(), options).await;
    let hour = ms(put("hour", in_an_hour()).await.unwrap());
    assert_index_expires(&store, hour);
    put("minute", after_ms(60_000)).await.unwrap();
    assert_index_expires(&store, hour);
    let day = ms(put("day", after_ms(86_400_000)).await.unwrap());
    assert_index_expires(&store, day);
    put("never", never()).await.unwrap();
    assert_index_expires(&store, None);
    put("day", after_ms(86_400_000)).await.unwrap();
    assert_index_expires(&store, None);
    // The expiry is set again when the longest-lived record is deleted, or rewritten by `put` or `put_if_version`.
    let day = ms(put("day", after_ms(86_400_000)).await.unwrap());
    assert!(store.delete(&key("alice", "never")).await.unwrap());
    assert_index_expires(&store, day);
    put("day", never()).await.unwrap();
    assert_index_expires(&store, None);
    let version = store.get(&key("alice", "day")).await.unwrap().version;
    let two = after_ms(7_200_000);
    let two = ms(store.put_if_version(&key("alice", "day"), "x".into(), two, version).await.unwrap());
    assert_index_expires(&store, two);
    put("day", after_ms(1_000)).await.unwrap();
    assert_index_expires(&store, hour);
    assert!(store.delete(&key("alice", "minute")).await.unwrap());
    assert_index_expires(&store, hour);
    let late = after_ms(30_000);
    let late = ms(store.put(&key("alice", "late"), "x".into(), late).await.unwrap());
    assert!(store.delete(&key("alice", "hour")).await.unwrap());
    assert_index_expires(&store, late);
    // The expiry is exact to the millisecond. On some versions the clock advances between two commands of a script, so
    // the median counts.
    let script = "return redis.call('PTTL', KEYS[1]) - redis.call('PTTL', KEYS[2])";
    let eval = ["EVAL", script, "2", "{}:idx:alice", "{}:tasks:alice:late"];
    let mut samples: Vec<i64> = std::iter::repeat_with(|| redis(&store).run(&eval)).take(9).collect();
    samples.sort_unstable();
    assert_eq!(samples[4], 0, "{samples:?}");
}

#[tokio::test]
async fn an_insert_removes_members_of_expired_records_in_bounded_batches() {
    let store = open().await;
    store.put(&key("alice", "stays"), "data".into(), in_an_hour()).await.unwrap();
    let mut last = None;
    for task in 0..100 {
        let key = key("alice", &task.to_string());
        last = last.max(store.put(&key, "data".into(), after_ms(30)).await.unwrap().expires_at);
    }
    store.until(last.unwrap()).await;
    let mut held = vec![redis(&store).run::<i64>(&["ZCARD", "{}:idx:alice"])];
    for round in 0..4 {
        store.put(&key("alice", &format!("new-{round}")), "data".into(), in_an_hour()).await.unwrap();
        held.push(redis(&store).run::<i64>(&["ZCARD", "{}:idx:alice"]));
    }
    assert_eq!(held.last(), Some(&10), "two members for each record");
    // A create removes the members of at most 64 records, and adds two members.
    assert!(held.windows(2).all(|pair| pair[0] - pair[1] <= 126), "{held:?}");
}

#[tokio::test]
async fn cleanup_does_nothing_and_returns_0() {
    let store = open().await;
    store.put_expired(&key("alice", "t1")).await;
    assert_eq!(store.cleanup_expired().await.unwrap(), 0);
}

#[tokio::test]
async fn after_a_reap_the_index_expires_with_the_remaining_records() {
    let store = open().await;
    let left = store.put(&key("alice", "left"), "data".into(), after_ms(60_000)).await.unwrap();
    for (task, options) in [("day", after_ms(86_400_000)), ("never", never())] {
        store.put(&key("alice", task), "data".into(), options).await.unwrap();
        let _: i64 = redis(&store).run(&["DEL", &format!("{{}}:tasks:alice:{task}")]);
    }
    assert_eq!(store.ids("alice").await, ["left"]);
    assert_index_expires(&store, Some(left.expires_at.unwrap().timestamp_millis() - 1));
}
