//! What one caller's record, index or permission causes fails that caller alone.

use mcp_task_store::{RedisBackend, StorageBackend, StorageError, Version};
use redis::Value;
use rstest::rstest;

use super::{Write, prepared, send_all};
use crate::support::key;
use crate::support::redis::{Server, command, rule_for};

const OWNERS: [&str; 3] = ["alice", "mallory", "bob"];

/// Sends all writes at once. Those that `fails` names get the error that they also get alone, and all others succeed.
async fn assert_fail_alone(
    backend: &RedisBackend,
    reader: &RedisBackend,
    writes: &[Write],
    fails: impl Fn(&Write) -> bool,
) {
    let mut alone = Vec::new();
    for write in writes.iter().filter(|write| fails(write)) {
        alone.push(write.send(backend).await.unwrap_err());
    }
    assert!(!alone.is_empty() && alone.len() < writes.len());
    let mut alone = alone.into_iter();
    for (write, outcome) in writes.iter().zip(send_all(backend, writes).await) {
        if fails(write) {
            let (error, alone) = (outcome.unwrap_err(), alone.next().unwrap());
            assert_eq!(error.to_string(), alone.to_string(), "{write:?}");
            assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&alone), "{write:?}");
            assert!(!error.outcome_unknown(), "{write:?}: {error:?}");
        } else {
            outcome.unwrap_or_else(|error| panic!("{write:?}: {error:?}"));
            write.assert_applied(reader).await;
        }
    }
}

#[tokio::test]
async fn an_owner_whose_keys_are_not_permitted_is_denied_alone() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let unrestricted = RedisBackend::connect(&server.url()).await.unwrap();
    let rule = rule_for(&mut admin);
    let _: Value = command(&mut admin, rule.split(' '));
    let password = rule.split(' ').find_map(|word| word.strip_prefix('>')).unwrap();
    let url = format!("redis://tasks:{password}@127.0.0.1:{}", server.port);
    let backend = RedisBackend::connect(&url).await.unwrap();
    let writes = prepared(&unrestricted, &OWNERS, 32).await;
    let permitted = ["~pmcp:*:alice", "~pmcp:*:alice:*", "~pmcp:*:bob", "~pmcp:*:bob:*"];
    let _: Value = command(&mut admin, ["ACL", "SETUSER", "tasks", "resetkeys"].into_iter().chain(permitted));
    let of_mallory = |write: &Write| write.key().owner.as_str() == "mallory";
    assert_fail_alone(&backend, &unrestricted, &writes, of_mallory).await;
    for write in writes.iter().filter(|write| of_mallory(write)) {
        assert!(matches!(write.send(&backend).await, Err(StorageError::Denied { .. })));
        write.assert_not_applied(&unrestricted).await;
    }
}

/// Damages what the writes of some callers find.
#[rstest]
#[case::the_record_is_of_another_type(&["DEL", "SET text"], "tasks")]
#[case::the_index_is_of_another_type(&["DEL", "SET text"], "idx")]
#[case::the_version_cannot_be_read(&["HSET version one"], "tasks")]
#[case::the_record_has_no_data(&["HSET version 1", "HDEL data"], "tasks")]
#[tokio::test]
async fn a_write_that_finds_something_unreadable_fails_alone(#[case] damage: &[&str], #[case] kind: &str) {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let writes = prepared(&backend, &OWNERS, 32).await;
    let is_damaged = |write: &Write| match (kind, write) {
        // A compare-and-swap does not touch the index.
        ("idx", Write::Create(key)) => key.owner.as_str() == "mallory",
        ("idx", Write::Swap(_)) => false,
        (_, write) => write.key().task.as_str().ends_with('7'),
    };
    let damaged_key = |write: &Write| match kind {
        "idx" => format!("pmcp:idx:{}", write.key().owner),
        _ => format!("pmcp:tasks:{}", write.key()),
    };
    let damaged: Vec<String> = writes.iter().filter(|write| is_damaged(write)).map(damaged_key).collect();
    for key in &damaged {
        for command_and_words in damage {
            let mut words: Vec<&str> = command_and_words.split(' ').collect();
            words.insert(1, key);
            let _: Value = command(&mut admin, words);
        }
    }
    let mut stored =
        || -> Vec<Value> { damaged.iter().map(|key| command(&mut admin, ["DUMP", key])).collect() };
    let before = stored();
    assert_fail_alone(&backend, &backend, &writes, is_damaged).await;
    assert_eq!(stored(), before, "a refused write writes nothing");
}

#[tokio::test]
async fn a_conflict_or_a_missing_record_fails_its_caller_alone() {
    let server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let mut writes = prepared(&backend, &OWNERS, 32).await;
    for number in [3, 17] {
        writes.insert(2 * number, Write::Swap(key("alice", &format!("missing-{number}"))));
        let exists = key("bob", &format!("exists-{number}"));
        backend.put(&exists, "old".into(), mcp_task_store::PutOptions::default()).await.unwrap();
        writes.insert(number, Write::Create(exists));
        let updated = key("alice", &format!("updated-{number}"));
        for _ in 0..4 {
            backend.put(&updated, "old".into(), crate::support::in_an_hour()).await.unwrap();
        }
        writes.push(Write::Swap(updated));
    }
    let fails = |write: &Write| {
        let task = write.key().task.as_str();
        ["missing", "exists", "updated"].iter().any(|kind| task.starts_with(kind))
    };
    assert_fail_alone(&backend, &backend, &writes, fails).await;
    for write in writes.iter().filter(|write| fails(write)) {
        match write.send(&backend).await.unwrap_err() {
            StorageError::NotFound { key } => assert!(key.task.as_str().starts_with("missing")),
            StorageError::VersionConflict { key, actual, .. } => {
                let version = if key.task.as_str().starts_with("exists") { 1 } else { 4 };
                assert_eq!(actual, Version::from(version));
            }
            error => panic!("{error:?}"),
        }
    }
}
