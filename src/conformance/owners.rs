//! Rules of ids, and of the isolation of owners.

use super::Subject;
use super::fixtures::{in_an_hour, keep, key};
use crate::backend::{OwnerId, StorageError, TaskKey, Version};

const HOSTILE: [&str; 31] = [
    "plain",
    "a",
    // Engines that compare without case, that cut spaces or that read numbers take these for other ids of this list.
    "A",
    "a ",
    " a",
    "1",
    "01",
    "1.0",
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
    // The same letter, as two characters.
    "e\u{301}",
    "*",
    "idx:plain",
    "tasks:plain:plain",
];

pub async fn hostile_ids_never_collide(store: &Subject) {
    let longest = ["x", "y"].map(|last| "x".repeat(255) + last);
    let ids: Vec<&str> = HOSTILE.into_iter().chain(longest.iter().map(String::as_str)).collect();
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

pub async fn an_id_of_0_or_257_bytes_is_refused(store: &Subject) {
    for illegal in ["", &"x".repeat(257), &"🦀".repeat(65)] {
        assert_refused!(TaskKey::new(illegal, "t1"), StorageError::InvalidKey { .. });
        assert_refused!(TaskKey::new("alice", illegal), StorageError::InvalidKey { .. });
        assert_refused!(OwnerId::try_from(illegal), StorageError::InvalidKey { .. });
    }
    store.put(&key(&"x".repeat(256), &"🦀".repeat(64)), "data".into(), keep()).await.unwrap();
}

pub async fn an_owner_never_reaches_records_of_another_owner(store: &Subject) {
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
