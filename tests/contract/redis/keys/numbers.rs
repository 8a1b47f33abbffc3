//! Versions at their limit, and the server's clock.

use chrono::TimeDelta;
use mcp_task_store::{StorageError, Version};

use super::{open, redis, version};
use crate::support::{in_an_hour, keep, key, never, owner};

#[tokio::test]
async fn a_write_over_the_last_version_is_version_exhausted() {
    let (store, key) = (open().await, key("alice", "t1"));
    store.put(&key, "old".into(), keep()).await.unwrap();
    let near = ["HSET", "{}:tasks:alice:t1", "version", "9007199254740989"];
    let _: i64 = redis(&store).run(&near);
    let put = store.put(&key, "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(put.version.get(), 9_007_199_254_740_990);
    let last = store.put_if_version(&key, "last".into(), keep(), put.version).await.unwrap();
    assert_eq!(last.version, Version::MAX);
    let stored: String = redis(&store).run(&["HGET", "{}:tasks:alice:t1", "version"]);
    assert_eq!(stored, "9007199254740991");
    for refused in [
        store.put(&key, "new".into(), keep()).await,
        store.put_if_version(&key, "new".into(), never(), Version::MAX).await,
    ] {
        assert_refused!(refused, StorageError::VersionExhausted { .. });
    }
    assert_eq!(store.get(&key).await.unwrap().data, "last");
    assert!(store.delete(&key).await.unwrap());
}

#[tokio::test]
async fn versions_that_lua_would_write_with_an_exponent_are_exact() {
    let (store, key) = (open().await, key("alice", "t1"));
    store.put(&key, "data".into(), keep()).await.unwrap();
    for start in ["99999999999999", "999999999999999", "123456789012345"] {
        let _: i64 = redis(&store).run(&["HSET", "{}:tasks:alice:t1", "version", start]);
        let before = version(start.parse().unwrap());
        let written = store.put(&key, "data".into(), keep()).await.unwrap();
        assert_eq!(Some(written.version), before.next());
        let written = store.put_if_version(&key, "data".into(), keep(), written.version).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().version, written.version);
    }
}

#[tokio::test]
async fn creation_times_increase_after_the_servers_clock_steps_back() {
    let store = open().await;
    store.put(&key("alice", "before"), "data".into(), keep()).await.unwrap();
    // The record has the creation time of a clock that was a day ahead.
    let ahead = (store.now() + TimeDelta::days(1)).timestamp_micros();
    let _: i64 = redis(&store).run(&["ZADD", "{}:idx:alice", &ahead.to_string(), "before"]);
    for task in ["after", "and after"] {
        store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    let records = store.walk(&owner("alice"), 1).await;
    let listed: Vec<_> =
        records.iter().map(|record| (record.task.as_str(), record.created_at.timestamp_micros())).collect();
    assert_eq!(listed, [("and after", ahead + 2), ("after", ahead + 1), ("before", ahead)]);
}

#[tokio::test]
async fn now_never_leads_the_servers_clock() {
    let store = open().await;
    let mut connection = redis(&store).connection();
    for _ in 0..100 {
        store.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
        let ours = store.now().timestamp_micros();
        let (seconds, micros): (i64, i64) = ::redis::cmd("TIME").query(&mut connection).unwrap();
        assert!(ours <= seconds * 1_000_000 + micros);
    }
}
