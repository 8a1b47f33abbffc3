//! Rules of an owner's quota.

use tokio::task::JoinSet;

use super::Subject;
use super::fixtures::{after_ms, in_an_hour, keep, key, never, version};
use crate::backend::{StorageError, Version};

pub async fn at_the_quota_a_new_record_is_refused_and_nothing_is_written(store: &Subject) {
    for task in ["t1", "t2", "t3"] {
        store.put(&key("alice", task), "data".into(), in_an_hour().quota(3)).await.unwrap();
    }
    let (fourth, expired) = (key("alice", "t4"), key("alice", "expired"));
    // A write over an expired record creates a record too.
    store.put_expired(&expired).await;
    for refused in [
        store.put(&expired, "data".into(), in_an_hour().quota(3)).await,
        store.put_if_version(&expired, "data".into(), keep().quota(3), Version::ABSENT).await,
        store.put(&fourth, "data".into(), in_an_hour().quota(3)).await,
        store.put_if_version(&fourth, "data".into(), keep().quota(3), Version::ABSENT).await,
        store.put(&fourth, "data".into(), keep().quota(0)).await,
    ] {
        assert_refused!(refused, StorageError::CapacityExceeded { quota: Some(3 | 0), .. });
    }
    for absent in [&fourth, &expired] {
        assert_refused!(store.get(absent).await, StorageError::NotFound { .. });
    }
    assert_eq!(store.ids("alice").await, ["t3", "t2", "t1"]);
    store.put(&key("bob", "t1"), "data".into(), keep().quota(1)).await.unwrap();
    store.put(&fourth, "data".into(), keep().quota(4)).await.unwrap();
    store.put(&key("alice", "t5"), "data".into(), keep()).await.unwrap();
}

pub async fn a_quota_never_blocks_an_update(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "one".into(), keep()).await.unwrap();
    store.put(&key, "two".into(), keep().quota(0)).await.unwrap();
    store.put(&key, "three".into(), in_an_hour().quota(1)).await.unwrap();
    store.put_if_version(&key, "four".into(), never().quota(0), version(3)).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().data, "four");
}

pub async fn a_quota_counts_live_records_only(store: &Subject) {
    let mut last = None;
    // One write does not remove this many expired records, so the engine still holds some of them when it counts.
    for task in 0..100 {
        let key = key("alice", &format!("short-{task}"));
        last = store.put(&key, "data".into(), after_ms(20)).await.unwrap().expires_at;
    }
    store.put(&key("alice", "deleted"), "data".into(), in_an_hour()).await.unwrap();
    store.delete(&key("alice", "deleted")).await.unwrap();
    store.until(last.unwrap()).await;
    for task in ["a", "b"] {
        store.put(&key("alice", task), "data".into(), in_an_hour().quota(2)).await.unwrap();
    }
    let third = store.put(&key("alice", "c"), "data".into(), in_an_hour().quota(2)).await;
    assert_refused!(third, StorageError::CapacityExceeded { .. });
}

pub async fn racing_inserts_never_exceed_the_quota(store: &Subject) {
    let mut racing = JoinSet::new();
    for task in 0..64 {
        let backend = store.engine();
        racing.spawn(async move {
            backend.put(&key("alice", &task.to_string()), "data".into(), in_an_hour().quota(10)).await
        });
    }
    let outcomes = racing.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 10);
    assert!(outcomes.into_iter().all(|outcome| match outcome {
        Ok(written) => written.version == Version::FIRST,
        Err(error) => matches!(error, StorageError::CapacityExceeded { quota: Some(10), .. }),
    }));
    assert_eq!(store.ids("alice").await.len(), 10);
}
