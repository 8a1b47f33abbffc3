//! Stored bytes that were moved, altered or not encrypted are refused, and so is a record whose key is missing.

use bytes::Bytes;
use futures_util::StreamExt;
use mcp_task_store::{
    Agenda, PageRequest, PartName, PutOptions, StorageBackend, StorageError, TaskKey, Version,
};
use rstest_reuse::apply;

use crate::support::encryption::encrypted;
use crate::support::{Engine, Store, in_an_hour, keep, key, on_every_engine};

const INPUT: PartName = PartName::from_static("input");
const OUTPUT: PartName = PartName::from_static("output");

/// Reads the stored bytes of a part.
async fn stored_part(store: &Store, key: &TaskKey, name: &PartName) -> Bytes {
    store.part(key, name).await.unwrap().unwrap().data
}

fn assert_corrupt<T: std::fmt::Debug>(result: Result<T, StorageError>, of: &TaskKey, says: &str) {
    match result {
        Err(StorageError::Corrupt { key, reason, .. }) if key == *of && reason.contains(says) => {}
        other => panic!("expected that {of} is corrupt, {says:?}, got {other:?}"),
    }
}

/// Asserts that a page of the owner has exactly this corrupt record.
async fn assert_listed_as_corrupt(engine: &impl Agenda, of: &TaskKey, says: &str) {
    let page = engine.list(&of.owner, PageRequest::new(10)).await.unwrap();
    let [corrupt] = &page.corrupt[..] else { panic!("{page:?}") };
    assert!(corrupt.task == of.task && corrupt.reason.contains(says), "{corrupt:?}");
    assert!(page.records.iter().all(|record| record.task != of.task));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn data_and_parts_that_were_moved_are_refused(#[case] engine: Engine) {
    let store = engine.open().await;
    let encrypted = encrypted(&store, &["k1"]);
    let [t1, t2, foreign] = [("alice", "t1"), ("alice", "t2"), ("bob", "t1")].map(|(o, t)| key(o, t));
    for (number, key) in [&t1, &t2, &foreign].into_iter().enumerate() {
        let options = in_an_hour()
            .set_part(INPUT, format!("input {number}"))
            .set_part(OUTPUT, format!("output {number}"));
        encrypted.put(key, format!("data {number}").into(), options).await.unwrap();
    }
    let moved = "moved here from another record or part";
    for from in [&t2, &foreign] {
        let (data, part) = (store.get(from).await.unwrap().data, stored_part(&store, from, &INPUT).await);
        let original = store.get(&t1).await.unwrap().data;
        store.put(&t1, data, keep()).await.unwrap();
        assert_corrupt(encrypted.get(&t1).await, &t1, moved);
        assert_listed_as_corrupt(&encrypted, &t1, moved).await;

        let kept = stored_part(&store, &t1, &INPUT).await;
        store.put(&t1, original.clone(), keep().set_part(INPUT, part)).await.unwrap();
        assert!(encrypted.get(&t1).await.is_ok());
        assert_corrupt(encrypted.part(&t1, &INPUT).await, &t1, moved);
        assert_eq!(encrypted.part(&t1, &OUTPUT).await.unwrap().unwrap().data, "output 0");
        store.put(&t1, original, keep().set_part(INPUT, kept)).await.unwrap();
    }
    // A part as another part, as the data, and the data as a part.
    let (data, input) = (store.get(&t1).await.unwrap().data, stored_part(&store, &t1, &INPUT).await);
    store
        .put(&t1, input.clone(), keep().set_part(OUTPUT, input).set_part(INPUT, data.clone()))
        .await
        .unwrap();
    assert_corrupt(encrypted.get(&t1).await, &t1, moved);
    assert_corrupt(encrypted.part(&t1, &INPUT).await, &t1, moved);
    assert_corrupt(encrypted.part(&t1, &OUTPUT).await, &t1, moved);
    // The other records are not affected.
    assert_eq!(encrypted.get(&t2).await.unwrap().data, "data 1");
    assert_eq!(encrypted.part(&foreign, &OUTPUT).await.unwrap().unwrap().data, "output 2");
}

/// Exchanges the values of a column of the only two rows of a table.
fn exchange(store: &Store, table: &str, column: &str) {
    let connection = store.sqlite.as_ref().unwrap().connection();
    let rows = format!("SELECT rowid, {column} FROM {table} ORDER BY rowid");
    let mut rows = connection.prepare(&rows).unwrap();
    let rows: Vec<(i64, Vec<u8>)> =
        rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    let [(first, of_first), (second, of_second)] = &rows[..] else { panic!("{} rows", rows.len()) };
    for (row, value) in [(first, of_second), (second, of_first)] {
        let sql = format!("UPDATE {table} SET {column} = ?2 WHERE rowid = ?1");
        assert_eq!(connection.execute(&sql, (row, value)).unwrap(), 1);
    }
}

#[tokio::test]
async fn rows_that_were_exchanged_in_a_sqlite_file_are_refused() {
    let store = Engine::Sqlite.open().await;
    let encrypted = encrypted(&store, &["k1"]);
    let keys = ["t1", "t2"].map(|task| key("alice", task));
    for key in &keys {
        encrypted.put(key, key.to_string().into(), in_an_hour().set_part(OUTPUT, "part")).await.unwrap();
    }
    exchange(&store, "records", "data");
    for key in &keys {
        assert_corrupt(encrypted.get(key).await, key, "moved here");
        assert_eq!(encrypted.part(key, &OUTPUT).await.unwrap().unwrap().data, "part");
    }
    exchange(&store, "parts", "data");
    for key in &keys {
        assert_corrupt(encrypted.part(key, &OUTPUT).await, key, "moved here");
    }
    exchange(&store, "records", "data");
    assert_eq!(encrypted.get(&keys[0]).await.unwrap().data, "alice:t1");
}

#[tokio::test]
async fn hash_fields_that_were_exchanged_in_a_redis_are_refused() {
    let store = Engine::Redis.open().await;
    let encrypted = encrypted(&store, &["k1"]);
    let keys = ["t1", "t2"].map(|task| key("alice", task));
    for key in &keys {
        encrypted.put(key, key.to_string().into(), in_an_hour().set_part(OUTPUT, "part")).await.unwrap();
    }
    let namespace = store.redis.as_ref().unwrap();
    let mut connection = namespace.connection();
    for field in ["data", "part:output"] {
        let [first, second] = ["t1", "t2"].map(|task| namespace.key(&format!("{{}}:tasks:alice:{task}")));
        let mut read =
            |key: &str| -> Vec<u8> { redis::cmd("HGET").arg(key).arg(field).query(&mut connection).unwrap() };
        let (of_first, of_second) = (read(&first), read(&second));
        for (key, value) in [(first, of_second), (second, of_first)] {
            let added: i64 =
                redis::cmd("HSET").arg(key).arg(field).arg(value).query(&mut connection).unwrap();
            assert_eq!(added, 0, "the field exists");
        }
    }
    for key in &keys {
        assert_corrupt(encrypted.get(key).await, key, "moved here");
        assert_corrupt(encrypted.part(key, &OUTPUT).await, key, "moved here");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_stored_record_with_any_byte_changed_or_missing_is_refused(#[case] engine: Engine) {
    let store = engine.open().await;
    let encrypted = encrypted(&store, &["k1"]);
    let t1 = key("alice", "t1");
    encrypted.put(&t1, "data".into(), in_an_hour()).await.unwrap();
    let good = store.get(&t1).await.unwrap().data;
    for at in 0..good.len() {
        let mut changed = good.to_vec();
        changed[at] ^= 0x55;
        for damaged in [Bytes::from(changed), good.slice(..at)] {
            store.put(&t1, damaged, keep()).await.unwrap();
            match encrypted.get(&t1).await.unwrap_err() {
                StorageError::Corrupt { key, .. } | StorageError::MissingKey { key, .. } => {
                    assert_eq!(key, t1)
                }
                error => panic!("byte {at}: {error:?}"),
            }
        }
    }
    store.put(&t1, good, keep()).await.unwrap();
    assert_eq!(encrypted.get(&t1).await.unwrap().data, "data");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_whose_key_is_missing_is_not_absent_and_is_readable_once_the_key_is_there(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let (before, after) = (encrypted(&store, &["old"]), encrypted(&store, &["new"]));
    let t1 = key("alice", "t1");
    before.put(&t1, "data".into(), in_an_hour().set_part(OUTPUT, "part")).await.unwrap();
    for error in [after.get(&t1).await.unwrap_err(), after.part(&t1, &OUTPUT).await.unwrap_err()] {
        let StorageError::MissingKey { key, key_id } = &error else { panic!("{error:?}") };
        assert_eq!((key, &**key_id), (&t1, "old"));
        assert!(!error.is_retryable() && !error.outcome_unknown());
    }
    assert_listed_as_corrupt(&after, &t1, r#"the key "old""#).await;
    // Nobody who cannot read the record creates it, or replaces it without its version.
    let created = after.put_if_version(&t1, "new".into(), keep(), Version::ABSENT).await;
    assert_refused!(created, StorageError::VersionConflict { .. });
    let queue = mcp_task_store::Queue::leases();
    let created = after.create_with_timer(&t1, "new".into(), keep(), &queue, std::time::Duration::ZERO).await;
    assert_refused!(created, StorageError::VersionConflict { .. });
    // Subscribers of an unreadable record receive its changes, which contain no data.
    let mut watch = after.watch(&t1);
    watch.next().await.unwrap().unwrap();

    let both = encrypted(&store, &["new", "old"]);
    assert_eq!(both.get(&t1).await.unwrap().data, "data");
    assert_eq!(both.part(&t1, &OUTPUT).await.unwrap().unwrap().data, "part");
    // The next write of the data uses the current key. The part stays under the old one.
    both.put(&t1, "next".into(), keep()).await.unwrap();
    assert_eq!(after.get(&t1).await.unwrap().data, "next");
    assert_refused!(after.part(&t1, &OUTPUT).await, StorageError::MissingKey { .. });
    watch.next().await.unwrap().unwrap();
    // A record that cannot be read can be deleted.
    assert!(encrypted(&store, &["other"]).delete(&t1).await.unwrap());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn another_key_with_the_same_id_reads_nothing(#[case] engine: Engine) {
    let store = engine.open().await;
    let of = |byte| {
        let keyring = mcp_task_store::Keyring::new([("k1", vec![byte; 32])]).unwrap();
        mcp_task_store::Encrypted::new(std::sync::Arc::clone(&store.backend), keyring)
    };
    let t1 = key("alice", "t1");
    of(1).put(&t1, "data".into(), keep()).await.unwrap();
    assert_corrupt(of(2).get(&t1).await, &t1, "compare the keyrings of all instances");
    assert_eq!(of(1).get(&t1).await.unwrap().data, "data");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_that_is_not_encrypted_is_refused(#[case] engine: Engine) {
    let store = engine.open().await;
    let encrypted = encrypted(&store, &["k1"]);
    let [plain, short, long] = ["plain", "short", "long"].map(|task| key("alice", task));
    store.put(&plain, r#"{"taskId":"plain"}"#.into(), in_an_hour()).await.unwrap();
    assert_corrupt(encrypted.get(&plain).await, &plain, "its data is not encrypted; ");
    assert_listed_as_corrupt(&encrypted, &plain, "is not encrypted").await;
    store.delete(&plain).await.unwrap();
    // Part sizes show that a part is shorter than an envelope. A longer one is refused when it is read.
    for (key, part) in [(&short, "\"part\"".to_owned()), (&long, format!("\"{}\"", "x".repeat(80)))] {
        encrypted.put(key, "data".into(), in_an_hour()).await.unwrap();
        let data = store.get(key).await.unwrap().data;
        store.put(key, data, keep().set_part(OUTPUT, part)).await.unwrap();
        assert_corrupt(encrypted.part(key, &OUTPUT).await, key, "its part output is not encrypted; ");
    }
    assert_corrupt(encrypted.get(&short).await, &short, "its part output is not encrypted; ");
    assert_listed_as_corrupt(&encrypted, &short, "its part output is not encrypted").await;
    assert!(encrypted.get(&long).await.is_ok());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_older_ciphertext_of_the_same_record_is_accepted(#[case] engine: Engine) {
    // The guide says so: a write does not know its version, so the version cannot be authenticated.
    let store = engine.open().await;
    let encrypted = encrypted(&store, &["k1"]);
    let t1 = key("alice", "t1");
    encrypted.put(&t1, "older".into(), keep()).await.unwrap();
    let older = store.get(&t1).await.unwrap().data;
    encrypted.put(&t1, "newer".into(), keep()).await.unwrap();
    store.put(&t1, older, PutOptions::default()).await.unwrap();
    assert_eq!(encrypted.get(&t1).await.unwrap().data, "older");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn hostile_ids_are_bound_without_collision(#[case] engine: Engine) {
    let store = engine.open().await;
    let encrypted = encrypted(&store, &["k1"]);
    let longest = "x".repeat(256);
    let ids = [("a", "b:c"), ("a:b", "c"), ("a\0", "b"), ("a", "\0b"), ("🦀", "{}"), (&*longest, &*longest)];
    let keys = ids.map(|(owner, task)| key(owner, task));
    for key in &keys {
        encrypted.put(key, key.to_string().into(), keep()).await.unwrap();
    }
    let stored: Vec<Bytes> = {
        let mut stored = Vec::new();
        for key in &keys {
            stored.push(store.get(key).await.unwrap().data);
        }
        stored
    };
    for (at, key) in keys.iter().enumerate() {
        for (from, data) in stored.iter().enumerate() {
            store.put(key, data.clone(), keep()).await.unwrap();
            assert_eq!(encrypted.get(key).await.is_ok(), at == from, "{key} from {}", keys[from]);
        }
    }
}
