//! Rules of `watch`.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};

use super::Subject;
use super::fixtures::{after_ms, in_an_hour, keep, key, never, version};
use crate::backend::{PartName, StorageError, TaskKey};

type Watch = BoxStream<'static, Result<(), StorageError>>;

/// Returns the next item of a watch. Fails if the watch has no item and does not end.
async fn next(watch: &mut Watch) -> Option<Result<(), StorageError>> {
    tokio::time::timeout(Duration::from_secs(60), watch.next()).await.expect("an item, or the end")
}

/// Asserts that a record whose watch has not ended is live, or has expired within the last moments.
async fn assert_refused_only_when_gone(store: &Subject, key: &TaskKey, expires_at: DateTime<Utc>) {
    if let Err(error) = store.get(key).await {
        assert!(store.now() >= expires_at - TimeDelta::milliseconds(1), "{error} before {expires_at}");
    }
}

pub async fn a_watch_has_an_item_once_it_is_live_and_one_after_each_change(store: &Subject) {
    let key = key("alice", "t 1");
    store.put(&key, "one".into(), never()).await.unwrap();
    let mut watch = store.watch(&key);
    next(&mut watch).await.unwrap().unwrap();
    store.put(&key, "two".into(), keep()).await.unwrap();
    next(&mut watch).await.unwrap().unwrap();
    for options in [keep(), in_an_hour(), keep(), never(), keep()] {
        let version = store.get(&key).await.unwrap().version;
        store.put_if_version(&key, "next".into(), options, version).await.unwrap();
        next(&mut watch).await.unwrap().unwrap();
    }
}

pub async fn a_read_after_each_item_of_a_watch_sees_the_last_change(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "0".into(), keep()).await.unwrap();
    let backend = store.engine();
    let writer = tokio::spawn({
        let key = key.clone();
        async move {
            for number in 1..=200 {
                backend.put(&key, number.to_string().into(), keep()).await.unwrap();
            }
        }
    });
    let mut watch = store.watch(&key);
    while store.get(&key).await.unwrap().data != "200" {
        next(&mut watch).await.unwrap().unwrap();
    }
    writer.await.unwrap();
}

pub async fn a_watch_ends_when_its_record_is_deleted(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "one".into(), in_an_hour()).await.unwrap();
    let mut watch = store.watch(&key);
    next(&mut watch).await.unwrap().unwrap();
    store.delete(&key).await.unwrap();
    assert!(next(&mut watch).await.is_none());
}

pub async fn a_watch_ends_when_its_record_expires_and_no_earlier(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "one".into(), in_an_hour()).await.unwrap();
    let mut watch = store.watch(&key);
    next(&mut watch).await.unwrap().unwrap();
    // A write with another expiry has an item like any other change. The watch ends by the new expiry.
    let written = store.put(&key, "two".into(), after_ms(50)).await.unwrap();
    while next(&mut watch).await.is_some() {
        assert_refused_only_when_gone(store, &key, written.expires_at.unwrap()).await;
    }
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
}

pub async fn a_watch_ends_when_a_quiet_write_makes_its_record_expire(store: &Subject) {
    let t1 = key("alice", "t1");
    for options in [after_ms(1), after_ms(1).quiet()] {
        store.put(&t1, "one".into(), never()).await.unwrap();
        let mut watch = store.watch(&t1);
        next(&mut watch).await.unwrap().unwrap();
        store.put(&t1, "two".into(), options).await.unwrap();
        while let Some(item) = next(&mut watch).await {
            item.unwrap();
        }
    }
}

pub async fn a_watch_of_an_absent_or_expired_record_ends_without_an_item(store: &Subject) {
    store.put_expired(&key("alice", "expired")).await;
    store.put(&key("alice", "other"), "lives".into(), keep()).await.unwrap();
    for task in ["absent", "expired"] {
        assert!(next(&mut store.watch(&key("alice", task))).await.is_none(), "{task}");
    }
}

pub async fn a_notified_watch_has_no_item_for_quiet_writes_other_tasks_and_other_owners(store: &Subject) {
    if !store.has_notified_watch() {
        return;
    }
    let t1 = key("alice", "t1");
    store.put(&t1, "one".into(), keep()).await.unwrap();
    let mut watch = store.watch(&t1);
    next(&mut watch).await.unwrap().unwrap();
    for (owner, task) in [("alice", "t2"), ("bob", "t1")] {
        store.put(&key(owner, task), "data".into(), keep()).await.unwrap();
        store.delete(&key(owner, task)).await.unwrap();
    }
    store.put(&t1, "two".into(), keep().quiet()).await.unwrap();
    store.put_if_version(&t1, "three".into(), keep().quiet(), version(2)).await.unwrap();
    // An item for one of those writes would arrive before the item for this write.
    store.put(&t1, "four".into(), keep()).await.unwrap();
    next(&mut watch).await.unwrap().unwrap();
    assert!(watch.next().now_or_never().is_none());
}

pub async fn a_quiet_write_notifies_no_watch(store: &Subject) {
    if !store.has_notified_watch() {
        return;
    }
    let (t1, t2) = (key("alice", "t1"), key("alice", "t2"));
    let mut watches = Vec::new();
    for key in [&t1, &t2] {
        store.put(key, "one".into(), keep()).await.unwrap();
        watches.push(store.watch(key));
        next(watches.last_mut().unwrap()).await.unwrap().unwrap();
    }
    store.put(&t1, "two".into(), keep().quiet()).await.unwrap();
    let part = keep().set_part(PartName::from_static("part"), "part");
    store.put(&t1, "three".into(), part.quiet()).await.unwrap();
    store.put_if_version(&t1, "four".into(), keep().quiet(), version(3)).await.unwrap();
    // Notifications of one owner arrive in the order of the writes.
    store.put(&t2, "two".into(), keep()).await.unwrap();
    next(&mut watches[1]).await.unwrap().unwrap();
    assert!(watches[0].next().now_or_never().is_none());
}

pub async fn each_of_many_watches_has_items_until_it_is_dropped(store: &Subject) {
    let (t1, t2) = (key("alice", "t1"), key("alice", "t2"));
    store.put(&t1, "one".into(), keep()).await.unwrap();
    store.put(&t2, "one".into(), keep()).await.unwrap();
    let watch = |key| store.watch(key);
    let mut watches = [watch(&t1), watch(&t1), watch(&t2)];
    for watch in &mut watches {
        next(watch).await.unwrap().unwrap();
    }
    let [mut stays, leaves, mut other] = watches;
    drop(leaves);
    let mut took = Vec::new();
    for _ in 0..5 {
        let since = Instant::now();
        store.put(&t1, "two".into(), keep()).await.unwrap();
        next(&mut stays).await.unwrap().unwrap();
        took.push(since.elapsed());
    }
    took.sort();
    // The median, because the machine may stall once. A watch that lost its notifications reads once a second.
    assert!(!store.notifies_watch() || took[2] < Duration::from_millis(500), "{took:?}");
    drop(stays);
    let mut again = watch(&t1);
    next(&mut again).await.unwrap().unwrap();
    for (key, watch) in [(&t1, &mut again), (&t2, &mut other)] {
        store.put(key, "three".into(), keep()).await.unwrap();
        next(watch).await.unwrap().unwrap();
    }
}
