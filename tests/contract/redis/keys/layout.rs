//! The documented layout of keys, fields and index members.

use std::collections::BTreeMap;

use mcp_task_store::{PageRequest, PartName, StorageBackend, StorageError};

use super::{PART, open, redis};
use crate::support::redis::Namespace;
use crate::support::{in_an_hour, keep, key, owner};

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
    let members: Vec<(Vec<u8>, i64)> = redis(&store).run(&["ZRANGE", "{}:idx:alice", "0", "1", "WITHSCORES"]);
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
async fn with_hash_tags_the_owner_is_in_braces_in_each_key() {
    let namespace = Namespace::new();
    let backend = namespace.builder().hash_tags(true).connect(&namespace.url()).await.unwrap();
    backend.put(&key("{a}", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(namespace.keys(), ["idx:{%7Ba%7D}", "tasks:{%7Ba%7D}:t1"]);
    assert_eq!(backend.list(&owner("{a}"), PageRequest::new(1)).await.unwrap().records.len(), 1);
    let plain = namespace.backend().await;
    assert_refused!(plain.get(&key("{a}", "t1")).await, StorageError::NotFound { .. });
}

#[tokio::test]
async fn two_prefixes_are_two_stores() {
    let (one, two) = (open().await, open().await);
    one.put(&key("alice", "t1"), "one".into(), keep()).await.unwrap();
    assert_refused!(two.get(&key("alice", "t1")).await, StorageError::NotFound { .. });
    assert!(two.ids("alice").await.is_empty());
    let illegal = mcp_task_store::RedisBackend::builder().prefix("a:b").connect("redis://127.0.0.1").await;
    assert_refused!(illegal, StorageError::InvalidKey { .. });
}
