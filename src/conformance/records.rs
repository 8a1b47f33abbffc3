//! Rules of `get`, `put`, `put_if_version` and `delete`.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::fixtures::{PART, after_ms, in_an_hour, keep, key, never, part, sizes, version};
use super::{Subject, fixtures};
use crate::backend::{Agenda, PageRequest, PartSizes, PutOptions, StorageBackend, StorageError, Version};

pub async fn get_returns_data_version_and_expiry_of_a_live_record(store: &Subject) {
    let key = key("alice", "t1");
    let written = store.put(&key, "data".into(), in_an_hour()).await.unwrap();
    let record = store.get(&key).await.unwrap();
    assert_eq!((record.data, record.version), ("data".into(), Version::FIRST));
    assert_eq!(record.expires_at, written.expires_at);
    assert!(record.expires_at.is_some());
}

pub async fn get_of_an_absent_record_is_not_found(store: &Subject) {
    assert_refused!(store.get(&key("alice", "t1")).await, StorageError::NotFound { .. });
}

pub async fn any_bytes_are_read_as_they_were_written(store: &Subject) {
    let key = key("alice", "t1");
    let texts: [&[u8]; 6] = [b"", b"\r\n$5\r\n\0\xff", b" spaces ", b"lines\r\n", b"\0\0", b"007"];
    for data in texts.map(Bytes::from_static).into_iter().chain([(0..=255).collect()]) {
        store.put(&key, data.clone(), keep()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().data, data);
        let page = store.list(&key.owner, PageRequest::new(1)).await.unwrap();
        assert_eq!(page.records[0].data, data);
    }
}

pub async fn put_creates_at_version_1_and_each_write_adds_1(store: &Subject) {
    let key = key("alice", "t1");
    for expected in 1..=12 {
        let written = store.put(&key, expected.to_string().into(), keep()).await.unwrap();
        assert_eq!(written.version, version(expected));
        let record = store.get(&key).await.unwrap();
        assert_eq!((record.version, record.data), (version(expected), expected.to_string().into()));
    }
}

pub async fn put_over_an_expired_record_starts_again_at_version_1(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "one".into(), never()).await.unwrap();
    store.put_expired(&key).await;
    let written = store.put(&key, "new".into(), keep()).await.unwrap();
    assert_eq!((written.version, written.expires_at), (Version::FIRST, None));
    assert_eq!(store.get(&key).await.unwrap().data, "new");
}

pub async fn put_over_a_deleted_record_starts_again_at_version_1(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "one".into(), keep()).await.unwrap();
    store.put(&key, "two".into(), keep()).await.unwrap();
    store.delete(&key).await.unwrap();
    assert_eq!(store.put(&key, "new".into(), keep()).await.unwrap().version, Version::FIRST);
}

pub async fn put_if_version_replaces_the_record_at_the_expected_version(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "one".into(), keep()).await.unwrap();
    for options in [keep(), in_an_hour(), never()] {
        let expected = store.get(&key).await.unwrap().version;
        let written = store.put_if_version(&key, "next".into(), options, expected).await.unwrap();
        assert_eq!(Some(written.version), expected.next());
        let record = store.get(&key).await.unwrap();
        assert_eq!((record.version, record.expires_at), (written.version, written.expires_at));
    }
}

pub async fn put_if_version_at_another_version_is_a_conflict_and_writes_nothing(store: &Subject) {
    let key = key("alice", "t1");
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

pub async fn put_if_version_of_an_absent_or_expired_record_is_not_found_and_writes_nothing(store: &Subject) {
    store.put_expired(&key("alice", "expired")).await;
    for task in ["absent", "expired"] {
        let key = key("alice", task);
        let put = store.put_if_version(&key, "data".into(), keep(), Version::FIRST).await;
        assert_refused!(put, StorageError::NotFound { .. });
        assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
    }
    assert!(store.ids("alice").await.is_empty());
}

pub async fn put_if_version_with_0_creates_an_absent_or_expired_record(store: &Subject) {
    store.put(&key("alice", "live"), "data".into(), in_an_hour()).await.unwrap();
    store.put_expired(&key("alice", "expired")).await;
    for task in ["expired", "absent"] {
        let key = key("alice", task);
        let written = store.put_if_version(&key, "data".into(), in_an_hour(), Version::ABSENT).await.unwrap();
        assert_eq!(written.version, Version::FIRST);
        assert_eq!(store.get(&key).await.unwrap().data, "data");
    }
}

pub async fn put_if_version_with_0_on_a_live_record_is_a_conflict_and_writes_nothing(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "one".into(), in_an_hour()).await.unwrap();
    let before = store.get(&key).await.unwrap();
    assert_refused!(
        store.put_if_version(&key, "lost".into(), never(), Version::ABSENT).await,
        StorageError::VersionConflict { expected: Version::ABSENT, actual: Version::FIRST, .. }
    );
    assert_eq!(store.get(&key).await.unwrap(), before);
}

pub async fn of_many_writers_that_race_for_one_version_exactly_one_wins(store: &Subject) {
    let key = key("alice", "t1");
    for expected in [Version::ABSENT, Version::FIRST, version(2)] {
        let mut racing = JoinSet::new();
        for racer in 0..32 {
            let (backend, key) = (store.engine(), key.clone());
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

pub async fn of_many_puts_that_race_each_has_a_version_of_its_own(store: &Subject) {
    let key = key("alice", "t1");
    // The first race creates the record, the second one replaces it.
    for versions in [1..=32, 33..=64] {
        let mut racing = JoinSet::new();
        for racer in versions.clone() {
            let (backend, key) = (store.engine(), key.clone());
            racing.spawn(async move {
                let data = Bytes::from(racer.to_string());
                (backend.put(&key, data.clone(), keep()).await.unwrap().version, data)
            });
        }
        let mut written = racing.join_all().await;
        written.sort();
        assert!(written.iter().map(|(version, _)| version.get()).eq(versions), "{written:?}");
        let record = store.get(&key).await.unwrap();
        assert_eq!(written.last(), Some(&(record.version, record.data)));
    }
}

/// The options of the write with this number. They set a part of so many bytes, and an expiry if the number is odd.
fn numbered(number: u64) -> PutOptions {
    let options = if number % 2 == 1 { in_an_hour() } else { never() };
    options.set_part(PART, vec![b'x'; number as usize])
}

pub async fn a_reader_never_sees_half_of_a_write(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "1".into(), numbered(1)).await.unwrap();
    let writer = tokio::spawn({
        let (backend, key) = (store.engine(), key.clone());
        async move {
            for number in 2..=200 {
                let (data, options) = (number.to_string().into(), numbered(number));
                match number % 3 {
                    0 => backend.put_if_version(&key, data, options, version(number - 1)).await.unwrap(),
                    _ => backend.put(&key, data, options).await.unwrap(),
                };
                tokio::task::yield_now().await;
            }
        }
    });
    let assert_whole = |data: Bytes, version: Version, expires: bool, parts: PartSizes| {
        let number = version.get();
        assert_eq!((data, expires), (number.to_string().into(), number % 2 == 1), "{version}");
        assert_eq!(parts, sizes([(PART, number as usize)]), "{version}");
    };
    while !writer.is_finished() {
        let record = store.get(&key).await.unwrap();
        assert_whole(record.data, record.version, record.expires_at.is_some(), record.parts);
        let page = store.list(&key.owner, PageRequest::new(1)).await.unwrap();
        let listed = page.records.into_iter().next().expect("the record is live");
        assert_whole(listed.data, listed.version, listed.expires_at.is_some(), listed.parts);
        let (part, version) = part(store, &key, &PART).await.expect("the record has the part");
        assert_eq!(part.len() as u64, version.get());
    }
    writer.await.unwrap();
}

pub async fn a_read_that_races_a_delete_finds_the_record_or_nothing(store: &Subject) {
    let key = key("alice", "t1");
    let writer = tokio::spawn({
        let (backend, key) = (store.engine(), key.clone());
        async move {
            for _ in 0..100 {
                backend.put(&key, "data".into(), keep().set_part(PART, "part")).await.unwrap();
                tokio::task::yield_now().await;
                assert!(backend.delete(&key).await.unwrap());
            }
        }
    });
    while !writer.is_finished() {
        match store.get(&key).await {
            Ok(record) => assert_eq!((record.data, record.version), ("data".into(), Version::FIRST)),
            refused => assert_refused!(refused, StorageError::NotFound { .. }),
        }
        match store.part(&key, &PART).await {
            Ok(part) => assert_eq!(part.map(|part| part.data), Some("part".into())),
            refused => assert_refused!(refused, StorageError::NotFound { .. }),
        }
        let page = store.list(&key.owner, PageRequest::new(1)).await.unwrap();
        assert!(page.corrupt.is_empty() && page.records.iter().all(|record| record.data == "data"));
    }
    writer.await.unwrap();
}

pub async fn delete_returns_whether_there_was_a_live_record(store: &Subject) {
    let key = key("alice", "t1");
    assert!(!store.delete(&key).await.unwrap());
    store.put(&key, "data".into(), in_an_hour()).await.unwrap();
    assert!(store.delete(&key).await.unwrap());
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
    assert!(!store.delete(&key).await.unwrap());
    store.put_expired(&key).await;
    assert!(!store.delete(&key).await.unwrap());
}

pub async fn data_over_the_maximum_is_too_large_and_nothing_is_written(store: &Subject) {
    let key = key("alice", "t1");
    let max = store.max_value_bytes();
    let largest = Bytes::from(vec![b'x'; max]);
    store.put(&key, largest.clone(), keep()).await.unwrap();
    let too_large = Bytes::from(vec![b'y'; max + 1]);
    for refused in [
        store.put(&key, too_large.clone(), keep()).await,
        store.put_if_version(&key, too_large.clone(), keep(), Version::FIRST).await,
        store.put_if_version(&fixtures::key("alice", "t2"), too_large.clone(), keep(), Version::ABSENT).await,
    ] {
        assert_refused!(refused, StorageError::TooLarge { size, max: limit, .. } if (size, limit) == (max + 1, max));
    }
    let record = store.get(&key).await.unwrap();
    assert_eq!((record.data, record.version), (largest, Version::FIRST));
    assert_eq!(store.ids("alice").await, ["t1"]);
}

pub async fn an_arc_of_an_engine_is_an_engine(store: &Subject) {
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
    let dynamic: Arc<dyn Agenda> = store.engine();
    round_trip(dynamic).await;
}
