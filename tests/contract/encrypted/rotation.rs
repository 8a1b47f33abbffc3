//! `Rotation` encrypts the stored records under the current key.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{
    Agenda, Encrypted, FailedRotation, PartName, PutOptions, Rotation, RotationPosition, StorageBackend,
    StorageError, TaskKey, Version,
};
use rstest_reuse::apply;

use crate::support::encryption::encrypted;
use crate::support::{Engine, after_ms, in_an_hour, keep, key, on_every_engine, owner};

const INPUT: PartName = PartName::from_static("input");
const OUTPUT: PartName = PartName::from_static("output");

type Store = Encrypted<Arc<dyn Agenda>>;

/// Rotates everything. Returns how many records were rotated and were current, and those that failed.
///
/// A walk over the owners of Redis may visit an owner twice. The second visit finds current records, and those that failed.
async fn run(mut rotation: Rotation<'_, Arc<dyn Agenda>>) -> (u64, u64, Vec<FailedRotation>) {
    let (mut failed, mut visits) = (BTreeMap::new(), 0);
    while let Some(page) = rotation.step().await.unwrap() {
        assert_eq!(page.counts.failed as usize, page.failed.len());
        visits += page.counts.failed;
        failed.extend(page.failed.into_iter().map(|failed| (failed.key.clone(), failed)));
    }
    let counts = rotation.counts();
    assert_eq!(counts.failed, visits);
    (counts.rotated, counts.current, failed.into_values().collect())
}

#[apply(on_every_engine)]
#[tokio::test]
async fn every_record_and_part_is_readable_with_the_new_key_alone(#[case] engine: Engine) {
    let store = engine.open().await;
    let old = encrypted(&store, &["old"]);
    let owners = ["alice", "a:b", "\0mcp/slots/x"];
    for owner in owners {
        for task in 0..5 {
            let options = match task {
                0 => keep(),
                1 => in_an_hour(),
                2 => in_an_hour().set_part(INPUT, "input"),
                _ => keep().set_part(INPUT, "input").set_part(OUTPUT, vec![b'x'; 10_000]),
            };
            let key = key(owner, &task.to_string());
            old.put(&key, format!("{owner} {task}").into(), options).await.unwrap();
        }
    }
    let both = encrypted(&store, &["new", "old"]);
    // Data under the new key, and a part under the old one.
    let mixed = key("alice", "3");
    both.put(&mixed, "alice 3".into(), keep().set_part(INPUT, "input")).await.unwrap();
    both.put(&key("alice", "current"), "current".into(), keep()).await.unwrap();

    let mut before = Vec::new();
    for owner in owners {
        for task in 0..5 {
            let key = key(owner, &task.to_string());
            before.push((key.clone(), both.get(&key).await.unwrap()));
        }
    }
    let (rotated, current, failed) = run(both.rotation()).await;
    assert!(rotated == 15 && current >= 1, "{rotated} rotated, {current} current");
    assert!(failed.is_empty(), "{failed:?}");
    let new = encrypted(&store, &["new"]);
    for (key, before) in before {
        let after = new.get(&key).await.unwrap();
        assert_eq!((&after.data, after.expires_at), (&before.data, before.expires_at));
        assert_eq!((&after.parts, Some(after.version)), (&before.parts, before.version.next()));
        for name in before.parts.keys() {
            let part = new.part(&key, name).await.unwrap().unwrap();
            assert_eq!(part.data.len(), before.parts[name]);
            assert!(part.data == "input" || part.data.iter().all(|byte| *byte == b'x'));
        }
    }
    // A second run finds nothing to do.
    assert_eq!(run(new.rotation()).await.0, 0);
    assert!(run(both.rotation()).await.1 >= 16);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_rotation_loses_no_write_of_concurrent_writers(#[case] engine: Engine) {
    let store = engine.open().await;
    let old = encrypted(&store, &["old"]);
    let keys: Vec<TaskKey> = (0..8).map(|task| key("alice", &task.to_string())).collect();
    for key in &keys {
        old.put(key, "0".into(), keep().set_part(INPUT, "0")).await.unwrap();
    }
    // Each writer increments a counter in its record by compare-and-swap, and sometimes its part.
    let is_over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = keys
        .iter()
        .cloned()
        .map(|key| {
            let (writer, is_over) = (encrypted(&store, &["new", "old"]), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut increments = 0_u64;
                while !is_over.load(Ordering::Relaxed) || increments < 20 {
                    increments += increment(&writer, &key, increments.is_multiple_of(3)).await;
                }
                increments
            })
        })
        .collect();
    let both = encrypted(&store, &["new", "old"]);
    let mut rounds = 0;
    // A record whose writer was faster each time fails in one round, and is rotated in a later one.
    loop {
        let (_, current, failed) = run(both.rotation().owner(owner("alice"))).await;
        for failed in &failed {
            assert!(matches!(failed.error, StorageError::VersionConflict { .. }), "{failed:?}");
        }
        rounds += 1;
        if current == 8 {
            break;
        }
        assert!(rounds < 1000, "no round finds every record under the new key");
    }
    is_over.store(true, Ordering::Relaxed);
    let new = encrypted(&store, &["new"]);
    for (key, writer) in keys.iter().zip(writers) {
        let increments = writer.await.unwrap();
        assert_eq!(new.get(key).await.unwrap().data, increments.to_string());
        assert!(new.part(key, &INPUT).await.unwrap().is_some());
    }
}

/// Adds 1 to the counter in a record, or nothing if another writer is faster. Returns how much it has added.
async fn increment(store: &Store, key: &TaskKey, sets_part: bool) -> u64 {
    let record = store.get(key).await.unwrap();
    let count: u64 = std::str::from_utf8(&record.data).unwrap().parse().unwrap();
    let next = (count + 1).to_string();
    let options = if sets_part { keep().set_part(INPUT, next.clone()) } else { keep() };
    match store.put_if_version(key, next.into(), options, record.version).await {
        Ok(_) => 1,
        Err(StorageError::VersionConflict { .. }) => 0,
        Err(error) => panic!("{error:?}"),
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn subscribers_receive_nothing_and_an_earlier_version_conflicts(#[case] engine: Engine) {
    let store = engine.open().await;
    let t1 = key("alice", "t1");
    encrypted(&store, &["old"]).put(&t1, "data".into(), in_an_hour()).await.unwrap();
    let both = encrypted(&store, &["new", "old"]);
    let mut watch = both.watch(&t1);
    watch.next().await.unwrap().unwrap();
    assert_eq!(run(both.rotation()).await.0, 1);
    // The next write is the first item, so the rotation had none before.
    assert!(watch.next().now_or_never().is_none());
    let stale = both.put_if_version(&t1, "stale".into(), keep(), Version::FIRST).await;
    assert_refused!(stale, StorageError::VersionConflict { actual, .. } if actual == Version::from(2));
    both.put_if_version(&t1, "next".into(), keep(), Version::from(2)).await.unwrap();
    watch.next().await.unwrap().unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn plain_records_are_encrypted_only_when_told(#[case] engine: Engine) {
    let store = engine.open().await;
    let plain = key("alice", "plain");
    store.put(&plain, r#"{"a":1}"#.into(), in_an_hour().set_part(OUTPUT, "[1]")).await.unwrap();
    let largest = key("alice", "largest");
    store.put(&largest, vec![b' '; 4096].into(), keep()).await.unwrap();
    let expires_at = store.get(&plain).await.unwrap().expires_at;

    let encrypted = encrypted(&store, &["k1"]);
    let (rotated, _, failed) = run(encrypted.rotation()).await;
    assert_eq!((rotated, failed.len()), (0, 2));
    for failed in failed {
        assert!(failed.error.to_string().contains("is not encrypted"), "{failed:?}");
    }
    let (rotated, _, failed) = run(encrypted.rotation().encrypt_plain_records()).await;
    assert_eq!(rotated, 1);
    // The envelope does not fit into the maximum of the engine.
    let [FailedRotation { key, error, .. }] = &failed[..] else { panic!("{failed:?}") };
    assert_eq!(*key, largest);
    assert!(matches!(error, StorageError::TooLarge { .. }), "{error:?}");

    let record = encrypted.get(&plain).await.unwrap();
    assert_eq!((record.data, record.expires_at), (r#"{"a":1}"#.into(), expires_at));
    assert_eq!(record.parts[&OUTPUT], 3);
    assert_eq!(encrypted.part(&plain, &OUTPUT).await.unwrap().unwrap().data, "[1]");
    assert!(!store.get(&plain).await.unwrap().data.ends_with(b"}"));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_that_cannot_be_decrypted_stays_as_it_is_and_does_not_stop_the_rotation(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let [lost, altered, good] = ["lost", "altered", "good"].map(|task| key("alice", task));
    encrypted(&store, &["lost"]).put(&lost, "data".into(), keep()).await.unwrap();
    let old = encrypted(&store, &["old"]);
    for key in [&altered, &good] {
        old.put(key, "data".into(), keep()).await.unwrap();
    }
    let moved = store.get(&good).await.unwrap().data;
    store.put(&altered, moved, keep()).await.unwrap();
    let before = [store.get(&lost).await.unwrap(), store.get(&altered).await.unwrap()];

    let both = encrypted(&store, &["new", "old"]);
    for plain in [false, true] {
        let rotation = both.rotation();
        let rotation = if plain { rotation.encrypt_plain_records() } else { rotation };
        let (rotated, _, failed) = run(rotation).await;
        assert_eq!(
            rotated,
            u64::from(!plain),
            "only the first rotation finds the good record under the old key"
        );
        let failed: HashSet<_> =
            failed.iter().map(|failed| (failed.key.task.as_str(), variant(&failed.error))).collect();
        assert_eq!(failed, HashSet::from([("lost", "missing"), ("altered", "corrupt")]));
    }
    assert_eq!([store.get(&lost).await.unwrap(), store.get(&altered).await.unwrap()], before);
}

fn variant(error: &StorageError) -> &'static str {
    match error {
        StorageError::MissingKey { .. } => "missing",
        StorageError::Corrupt { .. } => "corrupt",
        _ => "another",
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_rotation_that_resumes_at_a_position_reads_no_earlier_page_and_misses_no_record(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let old = encrypted(&store, &["old"]);
    let count = 600_u64;
    for task in 0..count {
        old.put(&key("alice", &task.to_string()), "data".into(), keep()).await.unwrap();
    }
    old.put(&key("bob", "t1"), "data".into(), keep()).await.unwrap();
    let both = encrypted(&store, &["new", "old"]);
    let (mut rotated, mut steps, mut position) = (0, 0, None::<String>);
    loop {
        // Each step is of another process, which has only the text of the position.
        let mut rotation = both.rotation();
        if let Some(position) = &position {
            rotation = rotation.resume(position.parse::<RotationPosition>().unwrap());
        }
        let Some(page) = rotation.step().await.unwrap() else { break };
        let is_new = page.counts.current == 0 || matches!(engine, Engine::Redis);
        assert!(is_new, "a step reads only records that no earlier step has rotated");
        rotated += page.counts.rotated;
        steps += 1;
        assert!(steps < 1000, "the rotation does not advance");
        if rotated == count + 1 {
            break;
        }
        let next = rotation.position().to_string();
        assert_ne!(position.as_ref(), Some(&next), "the rotation advances");
        position = Some(next);
    }
    assert!(steps >= 4, "{steps}");
    let (rotated, current, failed) = run(both.rotation()).await;
    assert!(rotated == 0 && current > count && failed.is_empty(), "{rotated} rotated, {current} current");
    for text in ["", "[]", "{", r#"{"owners":1}"#, r#"{"owner":""}"#, r#"{"more":null}"#] {
        assert_refused!(text.parse::<RotationPosition>(), StorageError::InvalidPage { .. });
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn records_that_end_during_the_rotation_are_left_out(#[case] engine: Engine) {
    let store = engine.open().await;
    let old = encrypted(&store, &["old"]);
    let mut last = None;
    for task in 0..20 {
        let key = key("alice", &task.to_string());
        last = old.put(&key, "data".into(), after_ms(30)).await.unwrap().expires_at;
    }
    old.put(&key("alice", "stays"), "data".into(), keep()).await.unwrap();
    store.until(last.unwrap()).await;
    let both = encrypted(&store, &["new", "old"]);
    assert_eq!(run(both.rotation()).await.0, 1);
    let (rotated, current, failed) = run(both.rotation().owner(owner("nobody"))).await;
    assert_eq!((rotated, current, failed.len()), (0, 0, 0));
}

#[tokio::test]
async fn an_engine_that_cannot_list_owners_rotates_one_owner() {
    let store = Engine::Polled.open().await;
    let t1 = key("alice", "t1");
    encrypted(&store, &["old"]).put(&t1, "data".into(), PutOptions::default()).await.unwrap();
    let both = encrypted(&store, &["new", "old"]);
    assert_refused!(both.rotation().step().await, StorageError::Backend { .. });
    assert_eq!(run(both.rotation().owner(owner("alice"))).await.0, 1);
    assert_eq!(encrypted(&store, &["new"]).get(&t1).await.unwrap().data, "data");
}
