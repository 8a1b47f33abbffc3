//! Rules of states that only the [`Hooks`](super::Hooks) of an engine can create.

use chrono::TimeDelta;

use super::Subject;
use super::fixtures::{after_ms, in_an_hour, keep, key, never, owner};
use crate::backend::{PageRequest, StorageError, Version};

pub async fn a_write_past_the_last_version_is_version_exhausted(store: &Subject) {
    let t1 = key("alice", "t1");
    store.put(&t1, "old".into(), keep()).await.unwrap();
    let near = Version::from(Version::MAX.get() - 2);
    if !store.set_version(&t1, near).await {
        return;
    }
    let put = store.put(&t1, "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(Some(put.version), near.next());
    let last = store.put_if_version(&t1, "last".into(), keep(), put.version).await.unwrap();
    assert_eq!(last.version, Version::MAX);
    for refused in [
        store.put(&t1, "new".into(), keep()).await,
        store.put_if_version(&t1, "new".into(), never(), Version::MAX).await,
    ] {
        assert_refused!(refused, StorageError::VersionExhausted { .. });
    }
    assert_eq!(store.get(&t1).await.unwrap().data, "last");
    assert!(store.delete(&t1).await.unwrap());
}

pub async fn a_damaged_record_is_corrupt_until_it_is_deleted_and_a_page_lists_the_other_records(
    store: &Subject,
) {
    let bad = key("alice", "bad");
    for task in ["older", "bad", "newer"] {
        store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    if !store.damage(&bad).await {
        return;
    }
    for error in [
        store.get(&bad).await.unwrap_err(),
        store.put(&bad, "new".into(), keep()).await.unwrap_err(),
        store.put_if_version(&bad, "new".into(), in_an_hour(), Version::FIRST).await.unwrap_err(),
    ] {
        assert!(matches!(&error, StorageError::Corrupt { key, .. } if *key == bad), "{error:?}");
        assert!(!error.is_retryable() && !error.outcome_unknown());
    }
    let page = store.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    let good: Vec<_> = page.records.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(good, ["newer", "older"]);
    let corrupt: Vec<_> = page.corrupt.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(corrupt, ["bad"]);
    assert!(store.delete(&bad).await.unwrap());
    assert_eq!(store.put(&bad, "new".into(), keep()).await.unwrap().version, Version::FIRST);
}

pub async fn creation_times_increase_after_the_clock_of_the_engine_steps_back(store: &Subject) {
    let before = key("alice", "before");
    store.put(&before, "data".into(), keep()).await.unwrap();
    if !store.step_clock_back(&before, TimeDelta::days(1)).await {
        return;
    }
    for task in ["after", "and after"] {
        store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    let records = store.walk(&owner("alice"), 1).await;
    let listed: Vec<_> = records.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(listed, ["and after", "after", "before"]);
    assert!(records.is_sorted_by(|newer, older| newer.created_at > older.created_at));
}

pub async fn the_engine_holds_nothing_of_an_owner_without_live_records(store: &Subject) {
    if store.left_behind().await.is_none() {
        return store.skip("the hooks cannot list what the engine holds");
    }
    for options in [keep(), in_an_hour()] {
        for task in ["t1", "t2"] {
            store.put(&key("alice", task), "data".into(), options.clone()).await.unwrap();
        }
        assert!(!store.left_behind().await.unwrap().is_empty());
        for task in ["t1", "t2"] {
            store.delete(&key("alice", task)).await.unwrap();
        }
        assert_eq!(store.left_behind().await.unwrap(), Vec::<String>::new());
    }
    let mut last = None;
    for task in 0..10 {
        let key = key("alice", &task.to_string());
        last = last.max(store.put(&key, "data".into(), after_ms(40 + task)).await.unwrap().expires_at);
    }
    store.until(last.unwrap() + TimeDelta::milliseconds(2)).await;
    store.cleanup_expired().await.unwrap();
    assert_eq!(store.left_behind().await.unwrap(), Vec::<String>::new());
}
