//! The contract of `StorageBackend`, rule by rule, on every engine.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    Engine, MAX_PART_BYTES, MAX_VALUE_BYTES, Store, after_ms, in_an_hour, keep, key, never, on_every_engine,
    on_every_watch, owner,
};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{
    Agenda, Cursor, Expiry, MAX_PAGE_LIMIT, MAX_PARTS, MemoryBackend, OwnerId, PageRequest, PartName,
    PartSizes, PutOptions, StorageBackend, StorageError, TaskKey, Version,
};
use rstest::rstest;
use rstest_reuse::apply;
use tokio::task::JoinSet;

const PART: PartName = PartName::from_static("input");
const OTHER: PartName = PartName::from_static("output");

fn version(number: u64) -> Version {
    Version::from(number)
}

// get

#[apply(on_every_engine)]
#[tokio::test]
async fn get_gives_data_version_and_expiry_of_a_live_record(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    let written = store.put(&key, "data".into(), in_an_hour()).await.unwrap();
    let record = store.get(&key).await.unwrap();
    assert_eq!((record.data, record.version), ("data".into(), Version::FIRST));
    assert_eq!(record.expires_at, written.expires_at);
    assert!(record.expires_at.is_some());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn get_of_an_absent_record_is_not_found(#[case] engine: Engine) {
    let store = engine.open().await;
    assert_refused!(store.get(&key("alice", "t1")).await, StorageError::NotFound { .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn any_bytes_come_back_as_they_were_written(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    for data in [Bytes::new(), (0..=255).collect(), Bytes::from_static(b"\r\n$5\r\n\0\xff")] {
        store.put(&key, data.clone(), keep()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().data, data);
    }
}

// put

#[apply(on_every_engine)]
#[tokio::test]
async fn put_creates_at_version_1_and_counts_up_from_there(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    for expected in 1..=12 {
        let written = store.put(&key, expected.to_string().into(), keep()).await.unwrap();
        assert_eq!(written.version, version(expected));
        let record = store.get(&key).await.unwrap();
        assert_eq!((record.version, record.data), (version(expected), expected.to_string().into()));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn put_over_an_expired_record_starts_again_at_version_1(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "one".into(), never()).await.unwrap();
    store.put_expired(&key).await;
    let written = store.put(&key, "new".into(), keep()).await.unwrap();
    assert_eq!((written.version, written.expires_at), (Version::FIRST, None));
    assert_eq!(store.get(&key).await.unwrap().data, "new");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn put_over_a_deleted_record_starts_again_at_version_1(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "one".into(), keep()).await.unwrap();
    store.put(&key, "two".into(), keep()).await.unwrap();
    store.delete(&key).await.unwrap();
    assert_eq!(store.put(&key, "new".into(), keep()).await.unwrap().version, Version::FIRST);
}

// put_if_version

#[apply(on_every_engine)]
#[tokio::test]
async fn put_if_version_replaces_the_record_at_the_expected_version(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "one".into(), keep()).await.unwrap();
    for options in [keep(), in_an_hour(), never()] {
        let expected = store.get(&key).await.unwrap().version;
        let written = store.put_if_version(&key, "next".into(), options, expected).await.unwrap();
        assert_eq!(Some(written.version), expected.next());
        let record = store.get(&key).await.unwrap();
        assert_eq!((record.version, record.expires_at), (written.version, written.expires_at));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn put_if_version_at_another_version_is_a_conflict_and_writes_nothing(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "one".into(), in_an_hour()).await.unwrap();
    store.put(&key, "two".into(), keep()).await.unwrap();
    let before = store.get(&key).await.unwrap();
    for wrong in [1, 3, 20, Version::MAX.get(), u64::MAX] {
        for options in [keep(), never(), after_ms(1)] {
            assert_refused!(
                store.put_if_version(&key, "lost".into(), options, version(wrong)).await,
                StorageError::VersionConflict { expected, actual, .. }
                    if (expected, actual) == (version(wrong), version(2))
            );
        }
    }
    assert_eq!(store.get(&key).await.unwrap(), before);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn put_if_version_of_an_absent_or_expired_record_is_not_found_and_writes_nothing(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    store.put_expired(&key("alice", "expired")).await;
    for task in ["absent", "expired"] {
        let key = key("alice", task);
        let put = store.put_if_version(&key, "data".into(), keep(), Version::FIRST).await;
        assert_refused!(put, StorageError::NotFound { .. });
        assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
    }
    assert!(store.ids("alice").await.is_empty());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn put_if_version_with_0_creates_an_absent_or_expired_record(#[case] engine: Engine) {
    let store = engine.open().await;
    store.put_expired(&key("alice", "expired")).await;
    for task in ["absent", "expired"] {
        let key = key("alice", task);
        let written = store.put_if_version(&key, "data".into(), in_an_hour(), Version::ABSENT).await.unwrap();
        assert_eq!(written.version, Version::FIRST);
        assert_eq!(store.get(&key).await.unwrap().data, "data");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn put_if_version_with_0_on_a_live_record_is_a_conflict_and_writes_nothing(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "one".into(), in_an_hour()).await.unwrap();
    let before = store.get(&key).await.unwrap();
    assert_refused!(
        store.put_if_version(&key, "lost".into(), never(), Version::ABSENT).await,
        StorageError::VersionConflict { expected: Version::ABSENT, actual: Version::FIRST, .. }
    );
    assert_eq!(store.get(&key).await.unwrap(), before);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn of_many_that_race_for_one_version_exactly_one_wins(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    for expected in [Version::ABSENT, Version::FIRST, version(2)] {
        let mut racing = JoinSet::new();
        for racer in 0..32 {
            let (backend, key) = (Arc::clone(&store.backend), key.clone());
            racing.spawn(async move {
                let data = Bytes::from(racer.to_string());
                backend.put_if_version(&key, data.clone(), keep(), expected).await.map(|_| data)
            });
        }
        let mut won = Vec::new();
        for outcome in racing.join_all().await {
            match outcome {
                Ok(data) => won.push(data),
                Err(StorageError::VersionConflict { actual, .. }) => {
                    assert_eq!(Some(actual), expected.next())
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(won, [store.get(&key).await.unwrap().data]);
    }
}

// Parts

fn sizes<const N: usize>(parts: [(PartName, usize); N]) -> PartSizes {
    parts.into()
}

async fn part(store: &Store, key: &TaskKey, name: &PartName) -> Option<(Bytes, Version)> {
    store.part(key, name).await.unwrap().map(|part| (part.data, part.version))
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_part_comes_back_with_the_version_of_its_record_and_a_record_knows_names_and_sizes(
    #[case] engine: Engine,
) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    let bytes = Bytes::from_static(b"\r\n$5\r\n\0\xff");
    let options = in_an_hour().set_part(PART, bytes.clone()).set_part(OTHER, "");
    store.put(&key, "data".into(), options).await.unwrap();
    assert_eq!(part(&store, &key, &PART).await, Some((bytes.clone(), Version::FIRST)));
    assert_eq!(part(&store, &key, &OTHER).await, Some((Bytes::new(), Version::FIRST)));
    assert_eq!(part(&store, &key, &PartName::from_static("x")).await, None);
    let parts = sizes([(PART, 8), (OTHER, 0)]);
    let record = store.get(&key).await.unwrap();
    assert_eq!((record.data, &record.parts), ("data".into(), &parts));
    let page = store.list(&key.owner, PageRequest::new(9)).await.unwrap();
    assert_eq!((&page.records[0].data, &page.records[0].parts), (&"data".into(), &parts));
    // By every other write that names parts or does not.
    for (options, expected) in
        [(keep(), 1), (never(), 2), (in_an_hour(), 3), (keep().set_part(OTHER, "12"), 4)]
    {
        let written = store.put_if_version(&key, "next".into(), options, version(expected)).await.unwrap();
        assert_eq!(part(&store, &key, &PART).await, Some((bytes.clone(), written.version)));
    }
    assert_eq!(store.get(&key).await.unwrap().parts, sizes([(PART, 8), (OTHER, 2)]));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_write_changes_the_parts_that_it_names_and_no_others(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    let names = ["a", "b", "c", "d"].map(PartName::from_static);
    let [a, b, c, d] = names.clone();
    let all = names
        .iter()
        .fold(in_an_hour(), |options, name| options.set_part(name.clone(), name.as_str().to_owned()));
    store.put(&key, "1".into(), all).await.unwrap();
    store.put(&key, "2".into(), keep().clear_part(b.clone()).set_part(c.clone(), "ccc")).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().parts, sizes([(a.clone(), 1), (c.clone(), 3), (d.clone(), 1)]));
    assert_eq!(part(&store, &key, &b).await, None);
    assert_eq!(part(&store, &key, &c).await, Some(("ccc".into(), version(2))));
    // What is not there may be cleared, with each expiry, and the last one may go.
    for (number, options) in [keep(), never(), in_an_hour()].into_iter().enumerate() {
        let gone = [a.clone(), c.clone(), d.clone()][number].clone();
        store.put(&key, "n".into(), options.clear_part(gone).clear_part(b.clone())).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().parts.len(), 2 - number);
    }
    assert_eq!(store.get(&key).await.unwrap().version, version(5));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_write_that_is_refused_changes_no_part(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "data".into(), in_an_hour().set_part(PART, "old")).await.unwrap();
    let before = store.get(&key).await.unwrap();
    let options = || in_an_hour().set_part(PART, "new").set_part(OTHER, "new");
    for expected in [Version::ABSENT, version(2)] {
        let refused = store.put_if_version(&key, "lost".into(), options(), expected).await;
        assert_refused!(refused, StorageError::VersionConflict { .. });
    }
    let absent = crate::support::key("alice", "t2");
    let refused = store.put_if_version(&absent, "lost".into(), options(), Version::FIRST).await;
    assert_refused!(refused, StorageError::NotFound { .. });
    assert_refused!(
        store.put(&absent, "lost".into(), options().quota(1)).await,
        StorageError::CapacityExceeded { .. }
    );
    assert_eq!(store.get(&key).await.unwrap(), before);
    assert_eq!(part(&store, &key, &PART).await, Some(("old".into(), Version::FIRST)));
    assert_refused!(store.part(&absent, &PART).await, StorageError::NotFound { .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_that_expired_or_was_deleted_leaves_no_part_to_the_next_one(#[case] engine: Engine) {
    let store = engine.open().await;
    let [expired, deleted] = ["expired", "deleted"].map(|task| key("alice", task));
    let with_part = |options: PutOptions| options.set_part(PART, "old");
    let written = store.put(&expired, "old".into(), with_part(after_ms(1))).await.unwrap();
    store.until(written.expires_at.unwrap()).await;
    store.put(&deleted, "old".into(), with_part(in_an_hour())).await.unwrap();
    store.delete(&deleted).await.unwrap();
    for key in [expired, deleted] {
        assert_refused!(store.part(&key, &PART).await, StorageError::NotFound { .. });
        store.put(&key, "new".into(), in_an_hour().set_part(OTHER, "new").clear_part(PART)).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().parts, sizes([(OTHER, 3)]));
        assert_eq!(part(&store, &key, &PART).await, None);
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_part_over_the_maximum_or_one_too_many_is_too_large_and_nothing_is_written(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    let at_most = || keep().set_part(PART, vec![b'x'; MAX_PART_BYTES]);
    store.put(&key, "data".into(), at_most()).await.unwrap();
    assert_eq!(part(&store, &key, &PART).await.unwrap().0.len(), MAX_PART_BYTES);
    let before = store.get(&key).await.unwrap();
    let over = || keep().set_part(OTHER, vec![b'x'; MAX_PART_BYTES + 1]);
    for refused in [
        store.put(&key, "lost".into(), over()).await,
        store.put_if_version(&key, "lost".into(), over(), Version::FIRST).await,
        store.put(&crate::support::key("alice", "t2"), "lost".into(), over()).await,
    ] {
        assert_refused!(
            refused,
            StorageError::TooLarge { what, size, max: MAX_PART_BYTES }
                if what == "bytes of the part output" && size == MAX_PART_BYTES + 1
        );
    }
    let more = |count: usize| {
        let name = |number| PartName::try_from(format!("p{number}")).unwrap();
        (0..count).fold(keep(), |options, number| options.set_part(name(number), "x"))
    };
    for refused in [
        store.put(&key, "lost".into(), more(MAX_PARTS)).await,
        store.put_if_version(&key, "lost".into(), more(MAX_PARTS), Version::FIRST).await,
        store.put(&crate::support::key("alice", "t2"), "lost".into(), more(MAX_PARTS + 1)).await,
    ] {
        assert_refused!(refused, StorageError::TooLarge { size: 5, max: MAX_PARTS, .. });
    }
    assert_eq!(store.get(&key).await.unwrap(), before);
    assert_eq!(store.ids("alice").await, ["t1"]);
    // What goes makes room in the same write.
    store.put(&key, "data".into(), more(MAX_PARTS).clear_part(PART)).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().parts.len(), MAX_PARTS);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_page_ends_before_the_record_for_which_it_has_no_bytes_left(#[case] engine: Engine) {
    let (store, alice) = (engine.open().await, owner("alice"));
    let sizes = [1000, 4000, 10, 10, 4000, 4000, 10];
    for (task, size) in sizes.into_iter().enumerate() {
        let key = key("alice", &task.to_string());
        let options = in_an_hour().set_part(PART, vec![b'x'; MAX_PART_BYTES]);
        store.put(&key, vec![b'x'; size].into(), options).await.unwrap();
    }
    let (mut pages, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let mut request = PageRequest::new(256).max_bytes(4020);
        request = after.into_iter().fold(request, PageRequest::after);
        let page = store.list(&alice, request).await.unwrap();
        pages.push(page.records.iter().map(|record| record.data.len()).collect::<Vec<_>>());
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [vec![10, 4000], vec![4000, 10, 10], vec![4000], vec![1000]]);
    // A page that has no bytes holds a record all the same.
    let page = store.list(&alice, PageRequest::new(256).max_bytes(0)).await.unwrap();
    assert_eq!(page.records.len(), 1);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_long_page_ends_in_time_too_and_the_walk_misses_nothing(#[case] engine: Engine) {
    let (store, alice) = (engine.open().await, owner("alice"));
    for task in 0..150 {
        store.put(&key("alice", &task.to_string()), vec![b'x'; 100].into(), in_an_hour()).await.unwrap();
    }
    let page = store.list(&alice, PageRequest::new(256)).await.unwrap();
    assert_eq!((page.records.len(), page.next), (150, None));
    for (max_bytes, most) in [(1_000, 10), (3_200, 32), (5_000, 50), (14_999, 149), (15_000, 150)] {
        let (mut listed, mut after) = (HashSet::new(), None::<Cursor>);
        loop {
            let request = PageRequest::new(150).max_bytes(max_bytes);
            let page = store.list(&alice, after.into_iter().fold(request, PageRequest::after)).await.unwrap();
            assert!(page.records.len() <= most);
            assert!(page.next.is_none() || page.records.len() == most, "{}", page.records.len());
            listed.extend(page.records.into_iter().map(|record| record.task));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(listed.len(), 150);
    }
}

// The clock

#[apply(on_every_engine)]
#[tokio::test]
async fn clock_is_what_the_engine_decides_by_and_the_estimate_does_not_lead_it(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
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

// delete

#[apply(on_every_engine)]
#[tokio::test]
async fn delete_says_whether_there_was_a_live_record(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    assert!(!store.delete(&key).await.unwrap());
    store.put(&key, "data".into(), in_an_hour()).await.unwrap();
    assert!(store.delete(&key).await.unwrap());
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
    assert!(!store.delete(&key).await.unwrap());
    store.put_expired(&key).await;
    assert!(!store.delete(&key).await.unwrap());
}

// Expiry

#[apply(on_every_engine)]
#[tokio::test]
async fn an_expired_record_is_absent_for_every_call_at_once(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    let written = store.put(&key, "data".into(), after_ms(30)).await.unwrap();
    store.until(written.expires_at.unwrap()).await;
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
    assert!(store.list(&key.owner, PageRequest::new(10)).await.unwrap().records.is_empty());
    let put = store.put_if_version(&key, "data".into(), keep(), Version::FIRST).await;
    assert_refused!(put, StorageError::NotFound { .. });
    assert!(!store.delete(&key).await.unwrap());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_duration_counts_by_the_engines_clock_and_is_never_cut_short(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    for millis in [50, 60_000, 3_155_760_000_000] {
        let earliest = store.now() + TimeDelta::milliseconds(millis);
        let written = store.put(&key, "data".into(), after_ms(millis as u64)).await.unwrap();
        // The write was applied before its reply came, so by now the clock has passed that moment.
        let latest = store.now() + TimeDelta::milliseconds(millis + 1) + TimeDelta::minutes(1);
        let at = written.expires_at.unwrap();
        assert!(earliest < at && at <= latest, "{earliest} {at} {latest}");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn keep_leaves_the_expiry_as_it_was_and_is_never_for_a_new_record(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    assert_eq!(store.put(&key, "data".into(), keep()).await.unwrap().expires_at, None);
    assert_eq!(store.put(&key, "data".into(), keep()).await.unwrap().expires_at, None);
    let set = store.put(&key, "data".into(), in_an_hour()).await.unwrap().expires_at;
    assert!(set.is_some());
    assert_eq!(store.put(&key, "data".into(), keep()).await.unwrap().expires_at, set);
    let kept = store.put_if_version(&key, "data".into(), keep(), version(4)).await.unwrap();
    assert_eq!(kept.expires_at, set);
    assert_eq!(store.get(&key).await.unwrap().expires_at, set);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn never_takes_the_expiry_away_and_after_sets_it_anew(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    let soon = store.put(&key, "data".into(), after_ms(40)).await.unwrap().expires_at.unwrap();
    assert_eq!(store.put(&key, "data".into(), never()).await.unwrap().expires_at, None);
    store.until(soon).await;
    assert_eq!(store.get(&key).await.unwrap().expires_at, None);
    let later = store.put_if_version(&key, "data".into(), after_ms(60_000), version(2)).await.unwrap();
    let earlier = store.put_if_version(&key, "data".into(), after_ms(20), version(3)).await.unwrap();
    assert!(earlier.expires_at < later.expires_at);
    store.until(earlier.expires_at.unwrap()).await;
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_duration_outside_1_ms_to_100_years_is_refused_and_nothing_is_written(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
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
                .put_if_version(&crate::support::key("alice", "t2"), "lost".into(), options, Version::ABSENT)
                .await,
        ] {
            assert_refused!(refused, StorageError::InvalidExpiry { given } if given == illegal);
        }
    }
    assert_eq!(store.get(&key).await.unwrap(), before);
    assert_eq!(store.ids("alice").await, ["t1"]);
}

#[rstest]
#[tokio::test]
async fn cleanup_on_the_memory_engine_counts_what_it_removed() {
    let store = Engine::Memory.open().await;
    store.put(&key("alice", "lives"), "data".into(), in_an_hour()).await.unwrap();
    let mut last = None;
    for task in 0..5 {
        let key = key("bob", &task.to_string());
        last = store.put(&key, "data".into(), after_ms(20)).await.unwrap().expires_at;
    }
    store.until(last.unwrap()).await;
    assert_eq!(store.cleanup_expired().await.unwrap(), 5);
    assert_eq!(store.cleanup_expired().await.unwrap(), 0);
    assert_eq!(store.ids("alice").await, ["lives"]);
}

// Quota

#[apply(on_every_engine)]
#[tokio::test]
async fn at_the_quota_a_new_record_is_refused_and_nothing_is_written(#[case] engine: Engine) {
    let store = engine.open().await;
    for task in ["t1", "t2", "t3"] {
        store.put(&key("alice", task), "data".into(), in_an_hour().quota(3)).await.unwrap();
    }
    let fourth = key("alice", "t4");
    for refused in [
        store.put(&fourth, "data".into(), in_an_hour().quota(3)).await,
        store.put_if_version(&fourth, "data".into(), keep().quota(3), Version::ABSENT).await,
        store.put(&fourth, "data".into(), keep().quota(0)).await,
    ] {
        assert_refused!(refused, StorageError::CapacityExceeded { quota: Some(3 | 0), .. });
    }
    assert_refused!(store.get(&fourth).await, StorageError::NotFound { .. });
    assert_eq!(store.ids("alice").await, ["t3", "t2", "t1"]);
    store.put(&key("bob", "t1"), "data".into(), keep().quota(1)).await.unwrap();
    store.put(&fourth, "data".into(), keep().quota(4)).await.unwrap();
    store.put(&key("alice", "t5"), "data".into(), keep()).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_quota_never_stands_in_the_way_of_an_update(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "one".into(), keep()).await.unwrap();
    store.put(&key, "two".into(), keep().quota(0)).await.unwrap();
    store.put(&key, "three".into(), in_an_hour().quota(1)).await.unwrap();
    store.put_if_version(&key, "four".into(), never().quota(0), version(3)).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().data, "four");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_quota_counts_live_records_only(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut last = None;
    // More than a write drops in one go, so that some are still held when they are counted.
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

#[apply(on_every_engine)]
#[tokio::test]
async fn racing_inserts_never_pass_the_quota(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut racing = JoinSet::new();
    for task in 0..64 {
        let backend = Arc::clone(&store.backend);
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

// Listing

#[apply(on_every_engine)]
#[tokio::test]
async fn a_page_is_newest_first_by_creation_with_all_that_get_gives(#[case] engine: Engine) {
    let store = engine.open().await;
    for task in ["first", "second", "third"] {
        store.put(&key("alice", task), task.into(), in_an_hour()).await.unwrap();
    }
    // A write that replaces leaves a record in its place, whatever it does to the expiry.
    store.put(&key("alice", "first"), "first again".into(), keep()).await.unwrap();
    store.put(&key("alice", "second"), "second again".into(), never()).await.unwrap();
    let page = store.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    assert_eq!(page.next, None);
    assert!(page.corrupt.is_empty());
    let listed: Vec<_> = page.records.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(listed, ["third", "second", "first"]);
    assert!(page.records.is_sorted_by(|newer, older| newer.created_at > older.created_at));
    for listed in page.records {
        let record = store.get(&(owner("alice"), listed.task).into()).await.unwrap();
        assert_eq!((listed.data, listed.version), (record.data, record.version));
        assert_eq!(listed.expires_at, record.expires_at);
        assert!(listed.created_at <= store.now());
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_owner_without_records_has_one_empty_page(#[case] engine: Engine) {
    let page = engine.open().await.list(&owner("nobody"), PageRequest::new(1)).await.unwrap();
    assert!(page.records.is_empty() && page.corrupt.is_empty() && page.next.is_none());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_limit_is_1_to_256(#[case] engine: Engine) {
    let store = engine.open().await;
    for task in 0..300 {
        store.put(&key("alice", &task.to_string()), "data".into(), keep()).await.unwrap();
    }
    for limit in [1, 2, MAX_PAGE_LIMIT] {
        let page = store.list(&owner("alice"), PageRequest::new(limit)).await.unwrap();
        assert_eq!(page.records.len(), limit);
        assert!(page.next.is_some());
    }
    for limit in [0, MAX_PAGE_LIMIT + 1, usize::MAX] {
        let page = store.list(&owner("alice"), PageRequest::new(limit)).await;
        assert_refused!(page, StorageError::InvalidPage { .. });
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_cursor_that_is_malformed_or_another_owners_is_refused(#[case] engine: Engine) {
    let store = engine.open().await;
    for task in ["t1", "t2"] {
        store.put(&key("alice", task), "data".into(), keep()).await.unwrap();
        store.put(&key("bob", task), "data".into(), keep()).await.unwrap();
    }
    let page = store.list(&owner("alice"), PageRequest::new(1)).await.unwrap();
    let cursor = page.next.unwrap();
    let rest = store.list(&owner("alice"), PageRequest::new(1).after(cursor.clone())).await.unwrap();
    assert_eq!(rest.records[0].task.as_str(), "t1");
    for (lister, cursor) in [("bob", cursor.as_str()), ("alice", ""), ("alice", "1.2"), ("alice", "+inf")] {
        let page = store.list(&owner(lister), PageRequest::new(1).after(cursor)).await;
        assert_refused!(page, StorageError::InvalidPage { .. });
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_burst_of_10_000_inserts_is_listed_in_one_total_order(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut inserting = JoinSet::new();
    for lane in 0..50 {
        let backend = Arc::clone(&store.backend);
        inserting.spawn(async move {
            for task in 0..200 {
                backend
                    .put(&key("alice", &format!("{lane}-{task}")), "x".into(), in_an_hour())
                    .await
                    .unwrap();
            }
        });
    }
    inserting.join_all().await;
    let records = store.walk(&owner("alice"), MAX_PAGE_LIMIT).await;
    assert_eq!(records.len(), 10_000);
    assert!(records.is_sorted_by(|newer, older| newer.created_at > older.created_at));
    assert_eq!(records.iter().map(|record| &record.task).collect::<HashSet<_>>().len(), 10_000);
    for lane in 0..50 {
        let lane = format!("{lane}-");
        let of_lane = records.iter().filter_map(|record| record.task.as_str().strip_prefix(&lane));
        assert!(of_lane.map(|task| task.parse::<u32>().unwrap()).eq((0..200).rev()));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_walk_gives_each_record_that_lived_throughout_exactly_once(#[case] engine: Engine) {
    let store = engine.open().await;
    let alice = owner("alice");
    let options = |task: u32| if task % 5 == 1 { after_ms(100) } else { in_an_hour() };
    for task in 0..200 {
        store.put(&key("alice", &format!("{task}")), "data".into(), options(task)).await.unwrap();
    }
    // While the walk goes on, a fifth expires, a fifth is deleted, a fifth is deleted and created again, a
    // fifth is rewritten, and new ones come in.
    let (mut seen, mut request, mut step) = (Vec::new(), PageRequest::new(7), 0_u32);
    loop {
        let page = store.list(&alice, request).await.unwrap();
        seen.extend(page.records.into_iter().map(|record| record.task.to_string()));
        for task in (step * 5..step * 5 + 5).filter(|task| *task < 200) {
            let touched = key("alice", &format!("{task}"));
            match task % 5 {
                1 | 4 => {}
                2 => drop(store.delete(&touched).await.unwrap()),
                3 => {
                    store.delete(&touched).await.unwrap();
                    store.put(&touched, "again".into(), in_an_hour()).await.unwrap();
                }
                _ => drop(store.put(&touched, "rewritten".into(), never()).await.unwrap()),
            }
        }
        store.put(&key("alice", &format!("new-{step}")), "data".into(), keep()).await.unwrap();
        step += 1;
        let Some(next) = page.next else { break };
        request = PageRequest::new(7).after(next);
    }
    let throughout: HashSet<String> =
        (0..200).filter(|task| [0, 4].contains(&(task % 5))).map(|task| task.to_string()).collect();
    let mut counted = seen.clone();
    counted.retain(|task| throughout.contains(task));
    assert_eq!(counted.len(), throughout.len());
    assert_eq!(counted.into_iter().collect::<HashSet<_>>(), throughout);
    assert!(step > 10, "the walk took {step} pages");
}

// Isolation

const HOSTILE: [&str; 24] = [
    "plain",
    "a",
    "a:b",
    "b:c",
    "a:b:c",
    ":",
    "::",
    "a%3Ab",
    "%",
    "%25",
    "{a}",
    "}{",
    "{",
    "a b",
    " ",
    "line\nbreak",
    "\r\n$3\r\n",
    "\0",
    "a\0b",
    "🦀",
    "é",
    "*",
    "idx:plain",
    "tasks:plain:plain",
];

#[apply(on_every_engine)]
#[tokio::test]
async fn hostile_ids_never_collide(#[case] engine: Engine) {
    let store = engine.open().await;
    let longest = "x".repeat(256);
    let mut ids = HOSTILE.to_vec();
    ids.push(&longest);
    let keys: Vec<TaskKey> = ids.iter().flat_map(|owner| ids.iter().map(|task| key(owner, task))).collect();
    for (number, key) in keys.iter().enumerate() {
        let written = store.put(key, number.to_string().into(), in_an_hour()).await.unwrap();
        assert_eq!(written.version, Version::FIRST, "{key}");
    }
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(store.get(key).await.unwrap().data, number.to_string());
    }
    for id in &ids {
        assert_eq!(store.ids(id).await.into_iter().rev().collect::<Vec<_>>(), ids);
    }
    for key in &keys {
        assert!(store.delete(key).await.unwrap(), "{key}");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_id_of_257_bytes_or_none_makes_no_key(#[case] engine: Engine) {
    let store = engine.open().await;
    for illegal in ["", &"x".repeat(257), &"🦀".repeat(65)] {
        assert_refused!(TaskKey::new(illegal, "t1"), StorageError::InvalidKey { .. });
        assert_refused!(TaskKey::new("alice", illegal), StorageError::InvalidKey { .. });
        assert_refused!(OwnerId::try_from(illegal), StorageError::InvalidKey { .. });
    }
    store.put(&key(&"x".repeat(256), &"🦀".repeat(64)), "data".into(), keep()).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_owner_never_reaches_another_owners_records(#[case] engine: Engine) {
    let store = engine.open().await;
    let hers = key("alice", "t1");
    store.put(&hers, "hers".into(), in_an_hour()).await.unwrap();
    let foreign = key("bob", "t1");
    let never_was = key("bob", "t2");
    assert_refused!(store.get(&foreign).await, StorageError::NotFound { .. });
    let put = store.put_if_version(&foreign, "his".into(), keep(), Version::FIRST).await;
    assert_refused!(put, StorageError::NotFound { .. });
    assert!(!store.delete(&foreign).await.unwrap());
    assert!(store.ids("bob").await.is_empty());
    assert_eq!(
        store.get(&foreign).await.unwrap_err().to_string().replace("t1", "t2"),
        store.get(&never_was).await.unwrap_err().to_string()
    );
    store.put(&foreign, "his".into(), keep()).await.unwrap();
    assert_eq!(store.get(&hers).await.unwrap().data, "hers");
    assert_eq!(store.ids("alice").await, ["t1"]);
}

// Sizes, the clock, and the trait itself

#[apply(on_every_engine)]
#[tokio::test]
async fn a_value_over_the_maximum_is_refused_and_nothing_is_written(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    let largest = Bytes::from(vec![b'x'; MAX_VALUE_BYTES]);
    store.put(&key, largest.clone(), keep()).await.unwrap();
    let too_large = Bytes::from(vec![b'y'; MAX_VALUE_BYTES + 1]);
    for refused in [
        store.put(&key, too_large.clone(), keep()).await,
        store.put_if_version(&key, too_large.clone(), keep(), Version::FIRST).await,
        store
            .put_if_version(&crate::support::key("alice", "t2"), too_large.clone(), keep(), Version::ABSENT)
            .await,
    ] {
        assert_refused!(refused, StorageError::TooLarge { size: 4097, max: MAX_VALUE_BYTES, .. });
    }
    let record = store.get(&key).await.unwrap();
    assert_eq!((record.data, record.version), (largest, Version::FIRST));
    assert_eq!(store.ids("alice").await, ["t1"]);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn now_goes_on_between_calls(#[case] engine: Engine) {
    let store = engine.open().await;
    let before = store.now();
    while store.now() < before + TimeDelta::milliseconds(5) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_arc_of_a_backend_is_a_backend(#[case] engine: Engine) {
    async fn round_trip(backend: impl StorageBackend) {
        let key = key("alice", "t1");
        backend.put(&key, "data".into(), keep()).await.unwrap();
        backend.put_if_version(&key, "next".into(), keep(), Version::FIRST).await.unwrap();
        assert_eq!(backend.get(&key).await.unwrap().data, "next");
        assert_eq!(backend.list(&key.owner, PageRequest::new(1)).await.unwrap().records.len(), 1);
        assert!(backend.delete(&key).await.unwrap());
        assert_eq!(backend.cleanup_expired().await.unwrap(), 0);
        assert!(backend.now().timestamp() > 1_700_000_000);
    }
    let store = engine.open().await;
    let dynamic: Arc<dyn Agenda> = Arc::clone(&store.backend);
    round_trip(dynamic).await;
    round_trip(Arc::new(MemoryBackend::new())).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_cursor_stays_good_when_its_record_is_gone(#[case] engine: Engine) {
    let store = engine.open().await;
    for task in ["t1", "t2", "t3"] {
        store.put(&key("alice", task), "data".into(), keep()).await.unwrap();
    }
    let cursor: Cursor = store.list(&owner("alice"), PageRequest::new(2)).await.unwrap().next.unwrap();
    store.delete(&key("alice", "t2")).await.unwrap();
    let rest = store.list(&owner("alice"), PageRequest::new(2).after(cursor)).await.unwrap();
    let rest: Vec<_> = rest.records.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(rest, ["t1"]);
}

/// What is reached in the Redis engine only: states that the trait cannot make, and the keys on the server.
#[cfg(feature = "redis-tests")]
mod on_redis {
    use std::collections::BTreeMap;

    use super::*;
    use crate::support::Store;
    use crate::support::redis::Namespace;

    async fn open() -> Store {
        Engine::Redis.open().await
    }

    fn redis(store: &Store) -> &Namespace {
        store.redis.as_ref().unwrap()
    }

    /// The expiry of an index key in milliseconds since the epoch; -1 for none, -2 for no key. Redis 7 has a
    /// command for it; this works on 6.2 too.
    fn expires(store: &Store, key: &str) -> i64 {
        let script = "local t = redis.call('TIME') local left = redis.call('PTTL', KEYS[1]) \
                      return left < 0 and left or t[1] * 1000 + math.floor(t[2] / 1000) + left";
        redis(store).run(&["EVAL", script, "1", &format!("{{}}:{key}")])
    }

    fn assert_index_expires(store: &Store, at: Option<i64>) {
        let expires = expires(store, "idx:alice");
        // Reading the time and what is left takes a moment.
        assert!(at.map_or(expires == -1, |at| (expires - at).abs() <= 20), "{expires}, not {at:?}");
    }

    #[tokio::test]
    async fn keys_fields_and_expiry_are_as_documented() {
        let store = open().await;
        let never_expires = key("alice", "t1");
        store.put(&never_expires, "data".into(), keep()).await.unwrap();
        assert_eq!(redis(&store).keys(), ["idx:alice", "tasks:alice:t1"]);
        let expires = store.put(&key("alice", "a:b"), "data".into(), in_an_hour()).await.unwrap();
        assert_eq!(redis(&store).keys(), ["idx:alice", "tasks:alice:a%3Ab", "tasks:alice:t1"]);
        let fields: Vec<String> = redis(&store).run(&["HGETALL", "{}:tasks:alice:t1"]);
        assert_eq!(fields, ["version", "1", "data", "data"]);
        let at = expires.expires_at.unwrap().timestamp_millis();
        let fields: Vec<String> = redis(&store).run(&["HGETALL", "{}:tasks:alice:a%3Ab"]);
        assert_eq!(fields, ["version", "1", "data", "data", "expires_at", &at.to_string()]);
        let left: i64 = redis(&store).run(&["PTTL", "{}:tasks:alice:a%3Ab"]);
        assert!((3_590_000..=3_600_001).contains(&left));
        let members: Vec<(Vec<u8>, i64)> =
            redis(&store).run(&["ZRANGE", "{}:idx:alice", "0", "1", "WITHSCORES"]);
        assert_eq!(members, [(b"\xffa:b".to_vec(), at), (b"\xfft1".to_vec(), 9_000_000_000_000)]);
        let members: Vec<(Vec<u8>, i64)> =
            redis(&store).run(&["ZRANGE", "{}:idx:alice", "2", "-1", "WITHSCORES"]);
        let page = store.list(&owner("alice"), PageRequest::new(2)).await.unwrap();
        let created = |at: usize| page.records[at].created_at.timestamp_micros();
        assert_eq!(members, [(b"t1".to_vec(), created(1)), (b"a:b".to_vec(), created(0))]);

        let options = keep().set_part(PartName::from_static("output"), "12345").set_part(PART, "");
        store.put(&never_expires, "data".into(), options).await.unwrap();
        let fields: BTreeMap<String, String> = redis(&store).run(&["HGETALL", "{}:tasks:alice:t1"]);
        assert_eq!(fields.len(), 5);
        assert_eq!((&*fields["part:output"], &*fields["part:input"]), ("12345", ""));
        let mut parts: Vec<&str> = fields["parts"].split_inclusive(' ').collect();
        parts.sort_unstable();
        assert_eq!(parts, ["input=0 ", "output=5 "]);
    }

    #[tokio::test]
    async fn with_hash_tags_the_owner_stands_in_braces() {
        let namespace = Namespace::new();
        let backend = namespace.builder().hash_tags(true).connect(&namespace.url()).await.unwrap();
        backend.put(&key("{a}", "t1"), "data".into(), in_an_hour()).await.unwrap();
        assert_eq!(namespace.keys(), ["idx:{%7Ba%7D}", "tasks:{%7Ba%7D}:t1"]);
        assert_eq!(backend.list(&owner("{a}"), PageRequest::new(1)).await.unwrap().records.len(), 1);
        let plain = namespace.backend().await;
        assert_refused!(plain.get(&key("{a}", "t1")).await, StorageError::NotFound { .. });
    }

    #[tokio::test]
    async fn the_server_itself_never_returns_an_expired_record() {
        let store = open().await;
        for round in 0..20 {
            let key = key("alice", &round.to_string());
            let at = store.put(&key, "data".into(), after_ms(3)).await.unwrap().expires_at.unwrap();
            let redis = redis(&store);
            loop {
                // The clock is read first: a record that is found after that was returned at this time or later.
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
    async fn a_record_whose_server_side_expiry_was_removed_by_hand_expires_all_the_same() {
        let (store, key) = (open().await, key("alice", "t1"));
        let written = store.put(&key, "old".into(), after_ms(50).set_part(PART, "old")).await.unwrap();
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
    async fn a_new_record_that_never_expires_takes_no_expiry_over_from_what_lies_under_its_key() {
        let (store, key) = (open().await, key("alice", "t1"));
        let _: i64 = redis(&store).run(&["HSET", "{}:tasks:alice:t1", "by_hand", "1"]);
        let _: i64 = redis(&store).run(&["EXPIRE", "{}:tasks:alice:t1", "1000"]);
        store.put(&key, "data".into(), never()).await.unwrap();
        let left: i64 = redis(&store).run(&["TTL", "{}:tasks:alice:t1"]);
        assert_eq!(left, -1);
    }

    #[tokio::test]
    async fn nothing_is_left_when_the_last_record_is_deleted_or_has_expired() {
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
        // Not even the server's lazy expiry is waited for: what EXISTS does not see is gone.
        let held: i64 = redis(&store).run(&["EXISTS", "{}:idx:alice", "{}:tasks:alice:49"]);
        assert_eq!(held, 0);
    }

    #[tokio::test]
    async fn nothing_is_left_when_the_rest_has_expired_after_the_longest_lived_record_was_deleted() {
        let store = open().await;
        for (task, options) in [("short", after_ms(40)), ("long", after_ms(60)), ("longest", in_an_hour())] {
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
        let put = |task: &'static str, options| {
            store.put(Box::leak(Box::new(key("alice", task))), "x".into(), options)
        };
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
        // Settled again when what kept it alive is deleted or rewritten, by put and by put_if_version.
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
        // To the millisecond: time goes on between two commands of a script on some versions, so the median counts.
        let script = "return redis.call('PTTL', KEYS[1]) - redis.call('PTTL', KEYS[2])";
        let eval = ["EVAL", script, "2", "{}:idx:alice", "{}:tasks:alice:late"];
        let mut samples: Vec<i64> = std::iter::repeat_with(|| redis(&store).run(&eval)).take(9).collect();
        samples.sort_unstable();
        assert_eq!(samples[4], 0, "{samples:?}");
    }

    #[tokio::test]
    async fn an_insert_drops_due_members_in_bounded_batches() {
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
        assert!(held.windows(2).all(|pair| pair[0] - pair[1] <= 62), "{held:?}");
    }

    #[tokio::test]
    async fn an_index_that_was_lost_is_built_again_by_the_next_writes_and_goes_with_them() {
        let store = open().await;
        let mut last = None;
        for task in 0..5 {
            let key = key("alice", &task.to_string());
            last = last.max(store.put(&key, "data".into(), after_ms(300)).await.unwrap().expires_at);
        }
        let _: i64 = redis(&store).run(&["DEL", "{}:idx:alice"]);
        let written = store.put(&key("alice", "0"), "data".into(), after_ms(400)).await.unwrap();
        assert_eq!(written.version, version(2));
        assert_eq!(store.ids("alice").await, ["0"]);
        assert_index_expires(&store, written.expires_at.map(|at| at.timestamp_millis() - 1));
        store.until(written.expires_at.max(last).unwrap()).await;
        assert!(redis(&store).keys().is_empty());
    }

    /// As when somebody removes them by hand.
    #[rstest]
    #[case::by_creation(["ZREMRANGEBYSCORE", "{}:idx:alice", "100000000000000", "+inf"])]
    #[case::by_expiry(["ZREMRANGEBYSCORE", "{}:idx:alice", "-inf", "100000000000000"])]
    #[tokio::test]
    async fn an_index_with_half_of_its_members_goes_with_the_last_record_all_the_same(
        #[case] damage: [&str; 4],
    ) {
        let store = open().await;
        let mut last = None;
        for task in 0..5 {
            let key = key("alice", &task.to_string());
            last = last.max(store.put(&key, "data".into(), after_ms(300)).await.unwrap().expires_at);
        }
        assert_eq!(redis(&store).run::<i64>(&damage), 5);
        let written = store.put(&key("alice", "0"), "data".into(), after_ms(400)).await.unwrap();
        assert_eq!(written.version, version(2));
        store.until(last.unwrap()).await;
        let last = store.put(&key("alice", "new"), "data".into(), after_ms(300)).await.unwrap().expires_at;
        assert_eq!(store.ids("alice").await, ["new", "0"]);
        store.until(written.expires_at.max(last).unwrap()).await;
        assert!(redis(&store).keys().is_empty());
    }

    #[tokio::test]
    async fn cleanup_does_nothing_and_says_0() {
        let store = open().await;
        store.put_expired(&key("alice", "t1")).await;
        assert_eq!(store.cleanup_expired().await.unwrap(), 0);
    }

    #[tokio::test]
    async fn past_the_last_version_a_write_is_version_exhausted() {
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
    async fn versions_are_exact_where_a_float_is_written_with_an_exponent() {
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
        // The record stands where a clock that was a day ahead had put it.
        let ahead = (store.now() + TimeDelta::days(1)).timestamp_micros();
        let _: i64 = redis(&store).run(&["ZADD", "{}:idx:alice", &ahead.to_string(), "before"]);
        for task in ["after", "and after"] {
            store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
        }
        let records = store.walk(&owner("alice"), 1).await;
        let listed: Vec<_> = records
            .iter()
            .map(|record| (record.task.as_str(), record.created_at.timestamp_micros()))
            .collect();
        assert_eq!(listed, [("and after", ahead + 2), ("after", ahead + 1), ("before", ahead)]);
    }

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
    async fn a_damaged_record_is_corrupt_and_spoils_nothing_else(#[case] damage: &[&str]) {
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
    async fn with_a_damaged_index_a_write_that_needs_it_is_refused_whole() {
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

    #[tokio::test]
    async fn a_page_that_met_members_without_a_hash_removes_them() {
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
    async fn after_a_reap_the_index_expires_with_what_is_left() {
        let store = open().await;
        let left = store.put(&key("alice", "left"), "data".into(), after_ms(60_000)).await.unwrap();
        for (task, options) in [("day", after_ms(86_400_000)), ("never", never())] {
            store.put(&key("alice", task), "data".into(), options).await.unwrap();
            let _: i64 = redis(&store).run(&["DEL", &format!("{{}}:tasks:alice:{task}")]);
        }
        assert_eq!(store.ids("alice").await, ["left"]);
        assert_index_expires(&store, Some(left.expires_at.unwrap().timestamp_millis() - 1));
    }

    #[tokio::test]
    async fn members_without_a_hash_do_not_use_up_the_quota() {
        let store = open().await;
        for task in 0..300 {
            store.put(&key("alice", &task.to_string()), "data".into(), in_an_hour()).await.unwrap();
        }
        // The oldest one: the search has to go to the last page, and not end at what has expired on the first.
        let short = store.put(&key("alice", "short"), "data".into(), after_ms(20)).await.unwrap();
        let _: i64 = redis(&store).run(&["DEL", "{}:tasks:alice:0"]);
        store.until(short.expires_at.unwrap()).await;
        store.put(&key("alice", "new"), "data".into(), in_an_hour().quota(300)).await.unwrap();
        let full = store.put(&key("alice", "one more"), "data".into(), in_an_hour().quota(300)).await;
        assert_refused!(full, StorageError::CapacityExceeded { quota: Some(300), .. });
        assert_eq!(store.ids("alice").await.len(), 300);
    }

    #[tokio::test]
    async fn a_record_created_anew_over_a_lost_hash_leaves_no_trace_of_the_old_one() {
        let store = open().await;
        store.put(&key("alice", "t1"), "data".into(), never()).await.unwrap();
        let _: i64 = redis(&store).run(&["DEL", "{}:tasks:alice:t1"]);
        let written = store.put(&key("alice", "t1"), "data".into(), after_ms(60_000)).await.unwrap();
        assert_index_expires(&store, Some(written.expires_at.unwrap().timestamp_millis() - 1));
    }

    #[tokio::test]
    async fn a_member_that_was_lost_comes_back_when_the_expiry_is_written() {
        let store = open().await;
        for task in ["t1", "t2"] {
            store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
        }
        let _: i64 = redis(&store).run(&["ZREM", "{}:idx:alice", "t1"]);
        store.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
        assert_eq!(store.ids("alice").await, ["t1", "t2"]);
    }

    #[tokio::test]
    async fn a_member_that_is_no_task_id_spoils_no_page() {
        let store = open().await;
        store.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
        let _: i64 = redis(&store).run(&["ZADD", "{}:idx:alice", "1", "", "2", &"x".repeat(300)]);
        assert_eq!(store.ids("alice").await, ["t1"]);
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

    #[tokio::test]
    async fn a_backend_works_over_a_connection_of_the_callers() {
        let namespace = Namespace::new();
        let client = ::redis::Client::open(namespace.url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        let backend = namespace.builder().over(connection).await.unwrap();
        backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
        assert_eq!(namespace.backend().await.get(&key("alice", "t1")).await.unwrap().data, "data");
        assert_eq!(backend.list(&owner("alice"), PageRequest::new(1)).await.unwrap().records.len(), 1);
    }

    #[tokio::test]
    async fn two_prefixes_are_two_stores() {
        let (one, two) = (open().await, open().await);
        one.put(&key("alice", "t1"), "one".into(), keep()).await.unwrap();
        assert_refused!(two.get(&key("alice", "t1")).await, StorageError::NotFound { .. });
        assert!(two.ids("alice").await.is_empty());
        let illegal =
            mcp_task_store::RedisBackend::builder().prefix("a:b").connect("redis://127.0.0.1").await;
        assert_refused!(illegal, StorageError::InvalidKey { .. });
    }
}

// watch

/// The next item of a watch, which comes or the test hangs until it fails.
async fn next(watch: &mut BoxStream<'static, Result<(), StorageError>>) -> Option<Result<(), StorageError>> {
    tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("an item, or the end")
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_watch_gives_an_item_once_it_is_live_and_one_after_each_change(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t 1"));
    store.put(&key, "one".into(), never()).await.unwrap();
    let mut watch = store.backend.watch(&key);
    next(&mut watch).await.unwrap().unwrap();
    store.put(&key, "two".into(), keep()).await.unwrap();
    next(&mut watch).await.unwrap().unwrap();
    for options in [keep(), in_an_hour(), keep(), never(), keep()] {
        let version = store.get(&key).await.unwrap().version;
        store.put_if_version(&key, "next".into(), options, version).await.unwrap();
        next(&mut watch).await.unwrap().unwrap();
    }
}

#[apply(on_every_watch)]
#[tokio::test]
async fn whoever_reads_after_each_item_of_a_watch_sees_the_last_change(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "0".into(), keep()).await.unwrap();
    let backend = Arc::clone(&store.backend);
    let writer = tokio::spawn({
        let key = key.clone();
        async move {
            for number in 1..=200 {
                backend.put(&key, number.to_string().into(), keep()).await.unwrap();
            }
        }
    });
    let mut watch = store.backend.watch(&key);
    while store.get(&key).await.unwrap().data != "200" {
        next(&mut watch).await.unwrap().unwrap();
    }
    writer.await.unwrap();
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_watch_ends_when_its_record_is_deleted(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "one".into(), in_an_hour()).await.unwrap();
    let mut watch = store.backend.watch(&key);
    next(&mut watch).await.unwrap().unwrap();
    store.delete(&key).await.unwrap();
    assert!(next(&mut watch).await.is_none());
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_watch_ends_by_itself_when_its_record_expires(#[case] engine: Engine) {
    let (store, key) = (engine.open().await, key("alice", "t1"));
    store.put(&key, "one".into(), in_an_hour()).await.unwrap();
    let mut watch = store.backend.watch(&key);
    next(&mut watch).await.unwrap().unwrap();
    // Another expiry is felt as any other change is, and the watch goes by that one.
    let written = store.put(&key, "two".into(), after_ms(50)).await.unwrap();
    while next(&mut watch).await.is_some() {
        assert_refused_only_when_gone(&store, &key, written.expires_at.unwrap()).await;
    }
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
}

/// A watch must not end early: as long as it has items, the record may be there.
async fn assert_refused_only_when_gone(store: &Store, key: &TaskKey, expires_at: DateTime<Utc>) {
    if let Err(error) = store.get(key).await {
        assert!(store.now() >= expires_at - TimeDelta::milliseconds(1), "{error} before {expires_at}");
    }
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_watch_ends_when_a_quiet_write_makes_its_record_expire(#[case] engine: Engine) {
    let (store, t1) = (engine.open().await, key("alice", "t1"));
    for options in [after_ms(1), after_ms(1).quiet()] {
        store.put(&t1, "one".into(), never()).await.unwrap();
        let mut watch = store.backend.watch(&t1);
        next(&mut watch).await.unwrap().unwrap();
        store.put(&t1, "two".into(), options).await.unwrap();
        while let Some(item) = next(&mut watch).await {
            item.unwrap();
        }
    }
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_watch_of_an_absent_or_expired_record_ends_without_an_item(#[case] engine: Engine) {
    let store = engine.open().await;
    store.put_expired(&key("alice", "expired")).await;
    store.put(&key("alice", "other"), "lives".into(), keep()).await.unwrap();
    for task in ["absent", "expired"] {
        assert!(next(&mut store.backend.watch(&key("alice", task))).await.is_none(), "{task}");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_watch_hears_nothing_of_quiet_writes_other_tasks_and_other_owners(#[case] engine: Engine) {
    let (store, t1) = (engine.open().await, key("alice", "t1"));
    store.put(&t1, "one".into(), keep()).await.unwrap();
    let mut watch = store.backend.watch(&t1);
    next(&mut watch).await.unwrap().unwrap();
    for (owner, task) in [("alice", "t2"), ("bob", "t1")] {
        store.put(&key(owner, task), "data".into(), keep()).await.unwrap();
        store.delete(&key(owner, task)).await.unwrap();
    }
    store.put(&t1, "two".into(), keep().quiet()).await.unwrap();
    store.put_if_version(&t1, "three".into(), keep().quiet(), version(2)).await.unwrap();
    // Whatever had been told would have come before what is told now, as its only item.
    store.put(&t1, "four".into(), keep()).await.unwrap();
    next(&mut watch).await.unwrap().unwrap();
    assert!(watch.next().now_or_never().is_none());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_quiet_write_wakes_nobody_who_watches(#[case] engine: Engine) {
    let (store, t1, t2) = (engine.open().await, key("alice", "t1"), key("alice", "t2"));
    let mut watches = Vec::new();
    for key in [&t1, &t2] {
        store.put(key, "one".into(), keep()).await.unwrap();
        watches.push(store.backend.watch(key));
        next(watches.last_mut().unwrap()).await.unwrap().unwrap();
    }
    store.put(&t1, "two".into(), keep().quiet()).await.unwrap();
    let part = keep().set_part(PartName::from_static("part"), "part");
    store.put(&t1, "three".into(), part.quiet()).await.unwrap();
    store.put_if_version(&t1, "four".into(), keep().quiet(), version(3)).await.unwrap();
    // What is told of one owner comes in the order in which it was written.
    store.put(&t2, "two".into(), keep()).await.unwrap();
    next(&mut watches[1]).await.unwrap().unwrap();
    assert!(watches[0].next().now_or_never().is_none());
}

#[apply(on_every_watch)]
#[tokio::test]
async fn many_may_watch_and_each_is_told_until_it_leaves(#[case] engine: Engine) {
    let (store, t1, t2) = (engine.open().await, key("alice", "t1"), key("alice", "t2"));
    store.put(&t1, "one".into(), keep()).await.unwrap();
    store.put(&t2, "one".into(), keep()).await.unwrap();
    let watch = |key| store.backend.watch(key);
    let mut watches = [watch(&t1), watch(&t1), watch(&t2)];
    for watch in &mut watches {
        next(watch).await.unwrap().unwrap();
    }
    let [mut stays, leaves, mut other] = watches;
    drop(leaves);
    store.put(&t1, "two".into(), keep()).await.unwrap();
    next(&mut stays).await.unwrap().unwrap();
    drop(stays);
    let mut again = watch(&t1);
    next(&mut again).await.unwrap().unwrap();
    for (key, watch) in [(&t1, &mut again), (&t2, &mut other)] {
        store.put(key, "three".into(), keep()).await.unwrap();
        next(watch).await.unwrap().unwrap();
    }
}

/// The cases for Redis once more, each time in a process of its own, on other forms of it than one server.
#[cfg(feature = "redis-tests")]
mod elsewhere {
    use std::process::Command;

    use crate::support::cluster::Cluster;
    use crate::support::redis::{Server, command, rule_for};
    use crate::support::sentinel::{MASTER, Watched};
    use crate::support::tls::Authority;

    /// More than half of the file's cases are for Redis.
    const AT_LEAST: usize = 50;

    /// They connect to one plain server, whatever the others do.
    const CONNECT_THEMSELVES: [&str; 2] =
        ["with_hash_tags_the_owner_stands_in_braces", "a_backend_works_over_a_connection"];

    /// Runs the cases for Redis with these variables in the environment.
    fn assert_the_contract_holds(environment: &[(&str, &str)], skipped: &[&str]) {
        let mut suite = Command::new(std::env::current_exe().unwrap());
        suite.args([
            "redis",
            "--skip",
            "elsewhere",
            "--skip",
            "agenda",
            "--skip",
            "model::",
            "--test-threads",
            "4",
        ]);
        skipped.iter().for_each(|name| {
            suite.args(["--skip", name]);
        });
        let ran = suite.envs(environment.iter().copied()).output().unwrap();
        let told = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{told}\n{}", String::from_utf8_lossy(&ran.stderr));
        let summary = told.lines().find(|line| line.starts_with("test result: ok. ")).unwrap();
        let passed: usize = summary.split(' ').nth(3).unwrap().parse().unwrap();
        assert!(passed >= AT_LEAST, "{summary}");
    }

    #[test]
    fn the_contract_holds_on_a_cluster_and_again_after_a_failover() {
        let mut cluster = Cluster::start(3, 3);
        let urls = cluster.urls();
        assert_the_contract_holds(&[("REDIS_URL", &urls)], &CONNECT_THEMSELVES);
        let lost = cluster.keeper("{alice}");
        cluster.nodes[lost].kill();
        cluster.nodes.remove(lost);
        cluster.settled();
        assert_the_contract_holds(&[("REDIS_URL", &urls)], &CONNECT_THEMSELVES);
    }

    #[test]
    fn the_contract_holds_on_a_master_found_by_its_sentinels() {
        let watched = Watched::start(&[]);
        let sentinels = watched.sentinel_urls().join(",");
        let master = format!("redis://{MASTER}");
        let admin = watched.master.url();
        let environment =
            [("REDIS_URL", &*master), ("REDIS_SENTINELS", &sentinels), ("REDIS_ADMIN_URL", &admin)];
        assert_the_contract_holds(&environment, &[]);
    }

    #[test]
    fn the_contract_holds_under_the_acl_rule_of_the_readme() {
        let server = Server::start(&[]);
        // The tests have a prefix each.
        let rule = rule_for(&mut server.connection());
        let rule = rule.replace("~pmcp:", "~test-*:").replace("&pmcp:", "&test-*:");
        let user = rule.split(' ').nth(2).unwrap();
        let password = rule.split(' ').find_map(|word| word.strip_prefix('>')).unwrap();
        let _: () = command(&mut server.connection(), rule.split(' '));
        let url = format!("redis://{user}:{password}@127.0.0.1:{}", server.port);
        assert_the_contract_holds(&[("REDIS_URL", &url), ("REDIS_ADMIN_URL", &server.url())], &[]);
    }

    #[test]
    fn the_contract_holds_over_tls_with_a_client_certificate() {
        let authority = Authority::new();
        let (server, port) = authority.start_server(true);
        let url = format!("rediss://127.0.0.1:{port}");
        let folder = authority.folder().to_str().unwrap();
        let environment =
            [("REDIS_URL", &*url), ("REDIS_ADMIN_URL", &server.url()), ("REDIS_TLS_FOLDER", folder)];
        assert_the_contract_holds(&environment, &CONNECT_THEMSELVES);
    }
}
