//! Records and indexes that somebody damaged by hand.

use mcp_task_store::{PageRequest, StorageError, Version};
use rstest::rstest;

use super::{PART, open, redis};
use crate::support::{in_an_hour, keep, key, never, owner};

#[rstest]
#[case::no_version(&["HDEL", "{}:tasks:alice:bad", "version"])]
#[case::version_is_text(&["HSET", "{}:tasks:alice:bad", "version", "one"])]
#[case::version_is_zero(&["HSET", "{}:tasks:alice:bad", "version", "0"])]
#[case::version_is_a_float(&["HSET", "{}:tasks:alice:bad", "version", "1e3"])]
#[case::version_is_too_large(&["HSET", "{}:tasks:alice:bad", "version", "9007199254740992"])]
#[case::version_is_far_too_large(&["HSET", "{}:tasks:alice:bad", "version", "18446744073709551616"])]
#[case::version_is_no_text(&["EVAL", "redis.call('HSET', KEYS[1], 'version', '7\\255\\n\"\\0')", "1", "{}:tasks:alice:bad"])]
#[case::no_data(&["HDEL", "{}:tasks:alice:bad", "data"])]
#[case::text_in_expires_at(&["HSET", "{}:tasks:alice:bad", "expires_at", "tomorrow"])]
#[case::a_float_in_expires_at(&["HSET", "{}:tasks:alice:bad", "expires_at", "1e3"])]
#[case::a_space_in_expires_at(&["HSET", "{}:tasks:alice:bad", "expires_at", " 4000000000000"])]
#[case::expires_at_is_too_large(&["HSET", "{}:tasks:alice:bad", "expires_at", "9007199254740992"])]
#[case::expires_at_is_no_text(&["EVAL", "redis.call('HSET', KEYS[1], 'expires_at', '7\\255\\n')", "1", "{}:tasks:alice:bad"])]
#[case::text_in_parts(&["HSET", "{}:tasks:alice:bad", "parts", "input"])]
#[case::no_space_behind_a_part(&["HSET", "{}:tasks:alice:bad", "parts", "input=1"])]
#[case::parts_are_no_text(&["EVAL", "redis.call('HSET', KEYS[1], 'parts', 'a\\255=1 ')", "1", "{}:tasks:alice:bad"])]
#[case::nothing_in_expires_at(&["HSET", "{}:tasks:alice:bad", "expires_at", ""])]
#[case::a_string(&["SET", "{}:tasks:alice:bad", "text"])]
#[case::a_list(&["EVAL", "redis.call('DEL', KEYS[1]) redis.call('RPUSH', KEYS[1], 'a')", "1", "{}:tasks:alice:bad"])]
#[tokio::test]
async fn a_damaged_record_is_corrupt_and_affects_no_other_record(#[case] damage: &[&str]) {
    let (store, bad) = (open().await, key("alice", "bad"));
    for task in ["older", "bad", "newer"] {
        store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    let _: ::redis::Value = redis(&store).run(damage);
    let dump = || redis(&store).run::<Option<Vec<u8>>>(&["DUMP", "{}:tasks:alice:bad"]);
    let damaged = dump();
    let stored_at = redis(&store).key("{}:tasks:alice:bad");
    for error in [
        store.get(&bad).await.unwrap_err(),
        store.put(&bad, "new".into(), keep()).await.unwrap_err(),
        store.put(&bad, "new".into(), keep().set_part(PART, "new")).await.unwrap_err(),
        store.put(&bad, "new".into(), in_an_hour()).await.unwrap_err(),
        store.put_if_version(&bad, "new".into(), keep(), Version::ABSENT).await.unwrap_err(),
        store.put_if_version(&bad, "new".into(), keep(), Version::FIRST).await.unwrap_err(),
    ] {
        let StorageError::Corrupt { key, reason, .. } = &error else { panic!("{error:?}") };
        assert!(*key == bad && reason.contains(&stored_at), "{error:?}");
        assert!(!error.is_retryable() && !error.outcome_unknown());
    }
    assert_eq!(dump(), damaged);
    let page = store.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    let good: Vec<_> = page.records.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(good, ["newer", "older"]);
    assert_eq!(page.corrupt.len(), 1);
    assert_eq!(page.corrupt[0].task.as_str(), "bad");
    store.put(&key("alice", "newer"), "again".into(), never()).await.unwrap();
    assert!(store.delete(&bad).await.unwrap());
    assert_eq!(store.put(&bad, "new".into(), keep()).await.unwrap().version, Version::FIRST);
    assert_eq!(store.ids("alice").await, ["bad", "newer", "older"]);
}

#[tokio::test]
async fn a_write_that_needs_a_damaged_index_is_refused_and_changes_nothing() {
    let (store, key) = (open().await, key("alice", "t1"));
    store.put(&key, "data".into(), in_an_hour()).await.unwrap();
    let _: ::redis::Value = redis(&store).run(&["SET", "{}:idx:alice", "text"]);
    let before = store.get(&key).await.unwrap();
    for refused in [
        store.put(&key, "lost".into(), never()).await,
        store.put(&crate::support::key("alice", "t2"), "lost".into(), in_an_hour()).await,
        store.put(&crate::support::key("alice", "t2"), "lost".into(), never()).await,
        store.put_if_version(&key, "lost".into(), in_an_hour(), Version::FIRST).await,
    ] {
        assert_refused!(refused, StorageError::Corrupt { .. });
    }
    assert_refused!(store.delete(&key).await, StorageError::Corrupt { .. });
    assert_eq!(store.get(&key).await.unwrap(), before);
    assert_refused!(store.get(&crate::support::key("alice", "t2")).await, StorageError::NotFound { .. });
    store.put(&key, "kept".into(), keep()).await.unwrap();
}
