//! Rules of the engine's clock and of expiry.

use std::time::{Duration, Instant};

use chrono::TimeDelta;

use super::fixtures::{PART, PATIENCE, after_ms, in_an_hour, keep, key, never, version};
use super::{Subject, fixtures};
use crate::backend::{Expiry, PageRequest, PutOptions, StorageError, Version};

pub async fn clock_decides_what_has_expired_and_now_is_not_ahead_of_it(store: &Subject) {
    if !store.has_engine_clock() {
        return;
    }
    let key = key("alice", "t1");
    let before = store.clock(&key).await.unwrap();
    let written = store.put(&key, "data".into(), after_ms(40)).await.unwrap();
    let after = store.clock(&key).await.unwrap();
    let at = written.expires_at.unwrap() - TimeDelta::milliseconds(40);
    assert!(
        before - TimeDelta::milliseconds(1) <= at && at <= after + TimeDelta::milliseconds(1),
        "{before} {at} {after}"
    );
    for _ in 0..20 {
        let estimated = store.now();
        assert!(estimated <= store.clock(&key).await.unwrap());
    }
    while store.clock(&key).await.unwrap() < written.expires_at.unwrap() {
        tokio::task::yield_now().await;
    }
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
}

pub async fn now_advances_between_calls(store: &Subject) {
    let (before, begun) = (store.now(), Instant::now());
    while store.now() < before + TimeDelta::milliseconds(5) {
        assert!(begun.elapsed() < PATIENCE, "`now` stays at {}", store.now());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub async fn an_expired_record_is_absent_for_every_call_at_once(store: &Subject) {
    let key = key("alice", "t1");
    let written = store.put(&key, "data".into(), after_ms(30).set_part(PART, "part")).await.unwrap();
    store.until(written.expires_at.unwrap()).await;
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
    assert_refused!(store.part(&key, &PART).await, StorageError::NotFound { .. });
    assert!(store.list(&key.owner, PageRequest::new(10)).await.unwrap().records.is_empty());
    let put = store.put_if_version(&key, "data".into(), keep(), Version::FIRST).await;
    assert_refused!(put, StorageError::NotFound { .. });
    assert!(!store.delete(&key).await.unwrap());
}

pub async fn a_record_never_expires_a_fraction_of_a_millisecond_early(store: &Subject) {
    let key = key("alice", "t1");
    let micros = [50_000, 60_000_000].into_iter().map(Duration::from_micros);
    // A fraction of a millisecond shows whether the engine rounds down.
    let fractions = [1_001, 50_001, 1_999].into_iter().map(Duration::from_micros);
    for after in micros.chain(fractions).chain([Expiry::MAX]) {
        let earliest = store.now() + after;
        let written = store.put(&key, "data".into(), Expiry::After(after).into()).await.unwrap();
        // The engine applied the write before it replied. So `now` lags behind the time of the write by less than a
        // minute.
        let latest = store.now() + after + TimeDelta::milliseconds(2) + TimeDelta::minutes(1);
        let at = written.expires_at.unwrap();
        assert!(earliest < at && at <= latest, "{earliest} {at} {latest}");
    }
}

pub async fn keep_leaves_the_expiry_as_it_was_and_a_new_record_never_expires(store: &Subject) {
    let key = key("alice", "t1");
    assert_eq!(store.put(&key, "data".into(), keep()).await.unwrap().expires_at, None);
    assert_eq!(store.put(&key, "data".into(), keep()).await.unwrap().expires_at, None);
    let set = store.put(&key, "data".into(), in_an_hour()).await.unwrap().expires_at;
    assert!(set.is_some());
    assert_eq!(store.put(&key, "data".into(), keep()).await.unwrap().expires_at, set);
    let kept = store.put_if_version(&key, "data".into(), keep(), version(4)).await.unwrap();
    assert_eq!(kept.expires_at, set);
    assert_eq!(store.get(&key).await.unwrap().expires_at, set);
}

pub async fn never_removes_the_expiry_and_after_sets_another(store: &Subject) {
    let key = key("alice", "t1");
    // Long enough for the next write to come in time, also on a slow disk.
    let soon = store.put(&key, "data".into(), after_ms(500)).await.unwrap().expires_at.unwrap();
    assert_eq!(store.put(&key, "data".into(), never()).await.unwrap().expires_at, None);
    store.until(soon).await;
    assert_eq!(store.get(&key).await.unwrap().expires_at, None);
    let later = store.put_if_version(&key, "data".into(), after_ms(60_000), version(2)).await.unwrap();
    let earlier = store.put_if_version(&key, "data".into(), after_ms(20), version(3)).await.unwrap();
    assert!(earlier.expires_at < later.expires_at);
    store.until(earlier.expires_at.unwrap()).await;
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
}

pub async fn an_expiry_outside_1_ms_to_100_years_is_refused_and_nothing_is_written(store: &Subject) {
    let key = key("alice", "t1");
    for legal in [Duration::from_millis(1), Expiry::MAX] {
        store.put(&key, "data".into(), Expiry::After(legal).into()).await.unwrap();
    }
    store.put(&key, "before".into(), in_an_hour()).await.unwrap();
    let before = store.get(&key).await.unwrap();
    for illegal in [Duration::ZERO, Duration::from_micros(999), Expiry::MAX + Duration::from_millis(1)] {
        let options = PutOptions::new(Expiry::After(illegal));
        for refused in [
            store.put(&key, "lost".into(), options.clone()).await,
            store.put_if_version(&key, "lost".into(), options.clone(), before.version).await,
            store
                .put_if_version(&fixtures::key("alice", "t2"), "lost".into(), options, Version::ABSENT)
                .await,
        ] {
            assert_refused!(refused, StorageError::InvalidExpiry { given } if given == illegal);
        }
    }
    assert_eq!(store.get(&key).await.unwrap(), before);
    assert_eq!(store.ids("alice").await, ["t1"]);
}

pub async fn cleanup_expired_removes_no_live_record_and_returns_how_many_it_removed(store: &Subject) {
    let put =
        async |task: &str, options| store.put(&key("alice", task), "data".into(), options).await.unwrap();
    for (task, options) in [
        ("in an hour", in_an_hour()),
        ("never", never()),
        ("extended", after_ms(20)),
        ("made permanent", after_ms(20)),
        ("expires", after_ms(20)),
        ("shortened", in_an_hour()),
    ] {
        put(task, options).await;
    }
    for (task, options) in [("in an hour", keep()), ("extended", in_an_hour()), ("made permanent", never())] {
        put(task, options).await;
    }
    let last = put("shortened", after_ms(20)).await.expires_at.unwrap();
    store.until(last).await;
    // An engine may also remove expired records when it inserts one.
    put("new", in_an_hour()).await;
    // Two records may have expired before their expiry was changed.
    let removed = store.cleanup_expired().await.unwrap();
    assert!(removed <= 4, "{removed}");
    assert_eq!(store.cleanup_expired().await.unwrap(), 0);
    let mut live = store.ids("alice").await;
    live.sort();
    assert_eq!(live, ["extended", "in an hour", "made permanent", "never", "new"]);
    for task in live {
        assert_eq!(store.get(&key("alice", &task)).await.unwrap().data, "data");
    }
}
