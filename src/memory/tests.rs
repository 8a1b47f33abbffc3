use super::*;
use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::atomic::AtomicU64;

const SECOND: u64 = 1_000_000;

/// Returns an engine with a clock that the test sets. All owners share one shard, so that the tests cover writes that
/// drop records of other owners.
fn backend_and_clock() -> (MemoryBackend, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(1_000 * SECOND));
    let backend = MemoryBackend::with_clock(1, {
        let clock = Arc::clone(&clock);
        move || clock.load(Ordering::SeqCst)
    });
    (backend, clock)
}

fn key(owner: &str, task: &str) -> TaskKey {
    TaskKey::new(owner, task).unwrap()
}

fn after(millis: u64) -> PutOptions {
    Expiry::After(Duration::from_millis(millis)).into()
}

#[tokio::test]
async fn past_the_last_version_a_write_is_version_exhausted() {
    let backend = MemoryBackend::new();
    let key = key("alice", "t1");
    let put = backend.put(&key, "old".into(), PutOptions::default());
    put.await.unwrap();
    let last = Version::from(Version::MAX.get() - 1);
    backend.shard(&key.owner).live(&key, 0).unwrap().version = last;

    let options = PutOptions::default();
    let written = backend.put_if_version(&key, "last".into(), options.clone(), last).await.unwrap();
    assert_eq!(written.version, Version::MAX);
    for refused in [
        backend.put(&key, "new".into(), options.clone()).await,
        backend.put_if_version(&key, "new".into(), options.clone(), Version::MAX).await,
    ] {
        assert!(matches!(refused, Err(StorageError::VersionExhausted { .. })));
    }
    assert_eq!(backend.get(&key).await.unwrap().data, "last");
    assert!(backend.delete(&key).await.unwrap());
}

#[tokio::test]
async fn creation_times_increase_after_the_clock_steps_back() {
    let (backend, clock) = backend_and_clock();
    for (step, task) in ["first", "second", "third"].into_iter().enumerate() {
        clock.store((1_000 - step as u64) * SECOND, Ordering::SeqCst);
        backend.put(&key("alice", task), Bytes::new(), PutOptions::default()).await.unwrap();
    }
    let page = backend.list(&"alice".try_into().unwrap(), PageRequest::new(10)).await.unwrap();
    let newest_first: Vec<_> = page.records.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(newest_first, ["third", "second", "first"]);
}

#[tokio::test]
async fn a_record_expires_at_its_expires_at_to_the_millisecond() {
    let (backend, clock) = backend_and_clock();
    let key = key("alice", "t1");
    let written = backend.put(&key, Bytes::new(), after(5)).await.unwrap();
    let at = written.expires_at.unwrap().timestamp_micros() as u64;
    assert_eq!(at, 1_000 * SECOND + 6_000);
    clock.store(at - 1, Ordering::SeqCst);
    backend.get(&key).await.unwrap();
    clock.store(at, Ordering::SeqCst);
    assert!(matches!(backend.get(&key).await, Err(StorageError::NotFound { .. })));
}

#[tokio::test]
async fn the_engine_holds_nothing_of_owners_whose_records_have_expired_or_were_deleted() {
    let (backend, clock) = backend_and_clock();
    for task in 0..100 {
        backend.put(&key("expiring", &task.to_string()), Bytes::new(), after(10)).await.unwrap();
    }
    backend.put(&key("deleting", "t1"), Bytes::new(), after(10)).await.unwrap();
    assert!(backend.delete(&key("deleting", "t1")).await.unwrap());
    clock.store(1_001 * SECOND, Ordering::SeqCst);
    backend.put(&key("other", "t1"), Bytes::new(), PutOptions::default()).await.unwrap();
    let held: usize =
        lock(&backend.contents.shards[0]).owners.values().map(|owner| owner.by_expiry.len()).sum();
    assert_eq!(held, 100 - DROPPED_BY_A_WRITE);
    assert_eq!(backend.cleanup_expired().await.unwrap(), 100 - DROPPED_BY_A_WRITE as u64);
    let shard = lock(&backend.contents.shards[0]);
    assert_eq!(shard.owners.keys().map(OwnerId::as_str).collect::<Vec<_>>(), ["other"]);
    assert!(shard.by_first_expiry.is_empty());
}

#[tokio::test]
async fn inserts_of_one_owner_drop_the_expired_records_of_all_owners() {
    let clock = Arc::new(AtomicU64::new(1_000 * SECOND));
    let backend = MemoryBackend::with_clock(SHARDS, {
        let clock = Arc::clone(&clock);
        move || clock.load(Ordering::SeqCst)
    });
    for owner in 0..200 {
        backend.put(&key(&owner.to_string(), "t1"), Bytes::new(), after(10)).await.unwrap();
    }
    clock.store(1_001 * SECOND, Ordering::SeqCst);
    for task in 0..2 * SHARDS {
        backend.put(&key("alice", &task.to_string()), Bytes::new(), after(10)).await.unwrap();
    }
    assert_eq!(backend.contents.shards.iter().map(|shard| lock(shard).owners.len()).sum::<usize>(), 1);
}

#[tokio::test]
async fn no_entry_of_a_record_remains_after_its_last_watch_is_dropped() {
    let (backend, _) = backend_and_clock();
    let (backend, key) = (backend, key("alice", "t1"));
    let watches = [0, 1].map(|_| backend.watch(&key));
    assert!(!backend.shard(&key.owner).watchers.is_empty());
    drop(watches);
    assert!(backend.shard(&key.owner).watchers.is_empty());
}

/// The test empties an index by hand. The index stays empty as long as no write changes it.
#[tokio::test]
async fn a_write_that_keeps_an_expiry_does_not_touch_the_index() {
    let (backend, _) = backend_and_clock();
    let (first, later) = (key("alice", "first"), key("alice", "later"));
    backend.put(&first, Bytes::new(), after(1_000)).await.unwrap();
    backend.shard(&first.owner).by_first_expiry.clear();
    for options in [after(2_000), Expiry::Never.into(), after(3_000)] {
        backend.put(&later, Bytes::new(), options).await.unwrap();
    }
    assert!(backend.delete(&later).await.unwrap());
    backend.shard(&first.owner).owners.get_mut(&first.owner).unwrap().by_expiry.clear();
    backend.put(&first, Bytes::new(), Expiry::Keep.into()).await.unwrap();
    let shard = backend.shard(&first.owner);
    assert!(shard.by_first_expiry.is_empty() && shard.owners[&first.owner].by_expiry.is_empty());
}

/// Asserts that every index matches the records.
fn assert_indexes_match(shard: &Shard, now_ms: u64) {
    let mut first_expiries = BTreeSet::new();
    for (id, owner) in &shard.owners {
        assert!(!owner.tasks.is_empty());
        let created = owner.tasks.iter().map(|(task, stored)| (stored.created_at, task.clone()));
        assert_eq!(owner.by_creation, created.collect());
        let expiring =
            owner.tasks.iter().filter_map(|(task, stored)| Some((stored.expires_at?, task.clone())));
        assert_eq!(owner.by_expiry, expiring.collect());
        let due = owner.tasks.values().filter(|stored| !stored.is_live(now_ms));
        assert_eq!(owner.due(now_ms).count(), due.count());
        first_expiries.extend(owner.first_expiry().map(|at| (at, id.clone())));
    }
    assert_eq!(shard.by_first_expiry, first_expiries);
}

proptest! {
    #[test]
    fn the_indexes_match_the_records_after_every_write(calls in vec((0..3_u8, 95..99_u8, 0..9_u64, 0..3_000_u64), 1..60)) {
        let (backend, clock) = backend_and_clock();
        // So many records expire at once that the engine still holds some of them during the calls.
        for task in 0..99 {
            backend.write(&key("0", &task.to_string()), Bytes::new(), after(1), WriteMode::Upsert).unwrap();
        }
        for (owner, task, call, micros) in calls {
            clock.fetch_add(micros, Ordering::SeqCst);
            let key = key(&owner.to_string(), &task.to_string());
            let put = |options| assert!(backend.write(&key, Bytes::new(), options, WriteMode::Upsert).is_ok());
            match call {
                0 => drop(backend.delete(&key).now_or_never()),
                1 => put(Expiry::Never.into()),
                2 => put(Expiry::Keep.into()),
                millis => put(after(millis)),
            }
            assert_indexes_match(&backend.shard(&key.owner), backend.now_ms());
        }
    }
}
