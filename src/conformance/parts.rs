//! Rules of the parts of a record.

use bytes::Bytes;

use super::fixtures::{OTHER, PART, after_ms, in_an_hour, keep, key, never, part, sizes, version};
use super::{Subject, fixtures};
use crate::backend::{MAX_PARTS, PageRequest, PartName, StorageError, Version};

pub async fn a_part_is_read_with_the_version_of_its_record_which_knows_its_name_and_size(store: &Subject) {
    let key = key("alice", "t1");
    let bytes = Bytes::from_static(b" \r\n$5\r\n\xff \n\0");
    let options = in_an_hour().set_part(PART, bytes.clone()).set_part(OTHER, "");
    store.put(&key, "data".into(), options).await.unwrap();
    assert_eq!(part(store, &key, &PART).await, Some((bytes.clone(), Version::FIRST)));
    assert_eq!(part(store, &key, &OTHER).await, Some((Bytes::new(), Version::FIRST)));
    assert_eq!(part(store, &key, &PartName::from_static("x")).await, None);
    let parts = sizes([(PART, bytes.len()), (OTHER, 0)]);
    let record = store.get(&key).await.unwrap();
    assert_eq!((record.data, &record.parts), ("data".into(), &parts));
    let page = store.list(&key.owner, PageRequest::new(9)).await.unwrap();
    assert_eq!((&page.records[0].data, &page.records[0].parts), (&"data".into(), &parts));
    // Other writes, with and without parts, leave this part unchanged.
    for (options, expected) in
        [(keep(), 1), (never(), 2), (in_an_hour(), 3), (keep().set_part(OTHER, "12"), 4)]
    {
        let written = store.put_if_version(&key, "next".into(), options, version(expected)).await.unwrap();
        assert_eq!(part(store, &key, &PART).await, Some((bytes.clone(), written.version)));
    }
    assert_eq!(store.get(&key).await.unwrap().parts, sizes([(PART, bytes.len()), (OTHER, 2)]));
}

pub async fn a_write_changes_the_parts_that_it_names_and_no_others(store: &Subject) {
    let key = key("alice", "t1");
    let names = ["a", "b", "c", "d"].map(PartName::from_static);
    let [a, b, c, d] = names.clone();
    let all = names
        .iter()
        .fold(in_an_hour(), |options, name| options.set_part(name.clone(), name.as_str().to_owned()));
    store.put(&key, "1".into(), all).await.unwrap();
    store.put(&key, "2".into(), keep().clear_part(b.clone()).set_part(c.clone(), "ccc")).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().parts, sizes([(a.clone(), 1), (c.clone(), 3), (d.clone(), 1)]));
    assert_eq!(part(store, &key, &b).await, None);
    assert_eq!(part(store, &key, &c).await, Some(("ccc".into(), version(2))));
    // A write may clear an absent part and the last part, with each kind of expiry.
    for (number, options) in [keep(), never(), in_an_hour()].into_iter().enumerate() {
        let gone = [a.clone(), c.clone(), d.clone()][number].clone();
        store.put(&key, "n".into(), options.clear_part(gone).clear_part(b.clone())).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().parts.len(), 2 - number);
    }
    assert_eq!(store.get(&key).await.unwrap().version, version(5));
}

pub async fn a_refused_write_changes_no_part(store: &Subject) {
    let key = key("alice", "t1");
    store.put(&key, "data".into(), in_an_hour().set_part(PART, "old")).await.unwrap();
    let before = store.get(&key).await.unwrap();
    let options = || in_an_hour().set_part(PART, "new").set_part(OTHER, "new");
    for expected in [Version::ABSENT, version(2)] {
        let refused = store.put_if_version(&key, "lost".into(), options(), expected).await;
        assert_refused!(refused, StorageError::VersionConflict { .. });
    }
    let absent = fixtures::key("alice", "t2");
    let refused = store.put_if_version(&absent, "lost".into(), options(), Version::FIRST).await;
    assert_refused!(refused, StorageError::NotFound { .. });
    assert_refused!(
        store.put(&absent, "lost".into(), options().quota(1)).await,
        StorageError::CapacityExceeded { .. }
    );
    assert_eq!(store.get(&key).await.unwrap(), before);
    assert_eq!(part(store, &key, &PART).await, Some(("old".into(), Version::FIRST)));
    assert_refused!(store.part(&absent, &PART).await, StorageError::NotFound { .. });
}

pub async fn a_new_record_has_no_part_of_an_expired_or_deleted_record(store: &Subject) {
    let with_other = in_an_hour().set_part(OTHER, "new");
    // A write may also clear a part that the new record does not have.
    for (task, options) in [("t1", with_other.clone()), ("t2", with_other.clear_part(PART))] {
        let key = key("alice", task);
        for expires in [true, false] {
            let old = if expires { after_ms(1) } else { in_an_hour() };
            let written = store.put(&key, "old".into(), old.set_part(PART, "old")).await.unwrap();
            match written.expires_at {
                Some(at) if expires => store.until(at).await,
                _ => drop(store.delete(&key).await.unwrap()),
            }
            assert_refused!(store.part(&key, &PART).await, StorageError::NotFound { .. });
            store.put(&key, "new".into(), options.clone()).await.unwrap();
            assert_eq!(store.get(&key).await.unwrap().parts, sizes([(OTHER, 3)]));
            assert_eq!(part(store, &key, &PART).await, None);
        }
    }
}

pub async fn a_part_over_the_maximum_or_one_too_many_is_too_large_and_nothing_is_written(store: &Subject) {
    let key = key("alice", "t1");
    let max = store.max_part_bytes();
    let at_most = || keep().set_part(PART, vec![b'x'; max]);
    store.put(&key, "data".into(), at_most()).await.unwrap();
    assert_eq!(part(store, &key, &PART).await.unwrap().0.len(), max);
    let before = store.get(&key).await.unwrap();
    let over = || keep().set_part(OTHER, vec![b'x'; max + 1]);
    for refused in [
        store.put(&key, "lost".into(), over()).await,
        store.put_if_version(&key, "lost".into(), over(), Version::FIRST).await,
        store.put(&fixtures::key("alice", "t2"), "lost".into(), over()).await,
    ] {
        assert_refused!(
            refused,
            StorageError::TooLarge { what, size, max: limit }
                if what == "bytes of the part output" && (size, limit) == (max + 1, max)
        );
    }
    let more = |count: usize| {
        let name = |number| PartName::try_from(format!("p{number}")).unwrap();
        (0..count).fold(keep(), |options, number| options.set_part(name(number), "x"))
    };
    for refused in [
        store.put(&key, "lost".into(), more(MAX_PARTS)).await,
        store.put_if_version(&key, "lost".into(), more(MAX_PARTS), Version::FIRST).await,
        store.put(&fixtures::key("alice", "t2"), "lost".into(), more(MAX_PARTS + 1)).await,
    ] {
        assert_refused!(refused, StorageError::TooLarge { size: 5, max: MAX_PARTS, .. });
    }
    assert_eq!(store.get(&key).await.unwrap(), before);
    assert_eq!(store.ids("alice").await, ["t1"]);
    // A part that the same write clears does not count.
    store.put(&key, "data".into(), more(MAX_PARTS).clear_part(PART)).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().parts.len(), MAX_PARTS);
}
