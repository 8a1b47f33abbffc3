//! How many scripts carry the writes of one moment, and what they carry.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{Agenda, NewTask, PutOptions, Queue, RedisBackend, StorageBackend, TaskStore, Version};
use tokio::time::timeout;

use super::{assert_all_succeed, assert_each_sent_once, prepared, record_key};
use crate::support::redis::{Namespace, Server};
use crate::support::tap::{Sent, Tap};
use crate::support::{in_an_hour, keep, key, owner, timers};

const PATIENCE: Duration = Duration::from_secs(60);
const MAX_RECORDS: usize = 32;
const MAX_BYTES: usize = 256 * 1024;

/// Starts a server behind a tap, and connects.
async fn tapped() -> (Server, Tap, RedisBackend) {
    let server = Server::start(&[]);
    let tap = Tap::start(server.port).await;
    let patient = RedisBackend::builder().response_timeout(PATIENCE);
    let backend = patient.connect(&tap.url()).await.unwrap();
    (server, tap, backend)
}

fn largest(scripts: &[Sent]) -> usize {
    scripts.iter().map(|script| script.records().count()).max().unwrap_or_default()
}

#[tokio::test]
async fn writes_of_one_moment_share_few_scripts_of_at_most_32_records() {
    let (_server, tap, backend) = tapped().await;
    let writes = prepared(&backend, &["alice", "bob", "carol"], 64).await;
    tap.take();
    assert_all_succeed(&backend, &writes).await;
    let scripts = tap.take();
    assert_each_sent_once(&writes, &scripts);
    // The first write of each kind may be alone.
    assert!(scripts.len() <= writes.len() / 8, "{} scripts for {} writes", scripts.len(), writes.len());
    assert!((9..=MAX_RECORDS).contains(&largest(&scripts)), "{} records in one script", largest(&scripts));
}

#[tokio::test]
async fn after_a_script_with_many_writes_the_first_write_of_the_next_moment_is_not_alone() {
    let (_server, tap, backend) = tapped().await;
    let keys: Vec<_> = (0..8).map(|number| key("alice", &number.to_string())).collect();
    let create = |key| backend.put_if_version(key, "data".into(), in_an_hour(), Version::ABSENT);
    assert!(join_all(keys.iter().map(create)).await.iter().all(Result::is_ok));
    for version in 1..=3 {
        tap.take();
        let swap = |key| backend.put_if_version(key, "data".into(), keep(), Version::from(version));
        assert!(join_all(keys.iter().map(swap)).await.iter().all(Result::is_ok));
        assert_eq!(tap.take().len(), if version == 1 { 2 } else { 1 });
    }
    backend.put_if_version(&keys[0], "data".into(), keep(), Version::from(4)).await.unwrap();
    tap.take();
    backend.put_if_version(&keys[0], "data".into(), keep(), Version::from(5)).await.unwrap();
    let [script] = tap.take().try_into().unwrap();
    assert!(script.bytes < 900, "the shortest script serves a write that is alone: {} bytes", script.bytes);
}

#[tokio::test]
async fn creates_of_one_moment_share_scripts_with_their_timers() {
    let (_server, tap, backend) = tapped().await;
    tap.take();
    let created = join_all((0..64).map(async |number| {
        let key = key(["alice", "bob"][number % 2], &number.to_string());
        let hour = Duration::from_secs(3600);
        backend.create_with_timer(&key, "data".into(), in_an_hour(), &Queue::leases(), hour).await.unwrap()
    }));
    assert!(created.await.iter().all(|written| written.version == Version::FIRST));
    let scripts = tap.take();
    assert!(scripts.len() <= 8, "{} scripts", scripts.len());
    assert!(largest(&scripts) <= MAX_RECORDS);
    assert!(scripts.iter().all(|script| script.records().count() > 0), "no timer has a script of its own");
    assert_eq!(timers(&backend, &Queue::leases()).await.len(), 64);
}

/// Callers may share a backend through pointers.
#[tokio::test]
async fn a_task_with_a_lease_is_created_by_one_script_with_its_timer() {
    let (_server, tap, backend) = tapped().await;
    let shared: Arc<dyn Agenda> = Arc::new(Arc::new(backend));
    let (t1, leases, hour) = (key("alice", "t1"), Queue::leases(), Duration::from_secs(3600));
    let due = "pmcp:due:0:leases".to_owned();
    tap.take();
    shared.create_with_timer(&t1, "data".into(), in_an_hour(), &leases, hour).await.unwrap();
    let [script] = tap.take().try_into().unwrap();
    assert_eq!(script.keys, ["pmcp:idx:alice".to_owned(), record_key(&t1), due.clone()]);
    let tasks = TaskStore::new(Arc::clone(&shared));
    let (started, _attempt) = tasks.start(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
    // The store also takes timers.
    let mut scripts = tap.take();
    scripts.retain(|script| script.records().count() > 0);
    let [script] = scripts.try_into().unwrap();
    assert_eq!(script.keys, ["pmcp:idx:alice".to_owned(), record_key(&started.key), due]);
    assert_eq!(timers(&shared, &leases).await.len(), 2);
}

#[tokio::test]
async fn a_script_has_at_most_256_kib_and_a_larger_record_travels_alone() {
    let (_server, tap, backend) = tapped().await;
    let sizes = [MAX_BYTES + 1, 40_000, 40_000, 1_000_000].repeat(8);
    let keys: Vec<_> = (0..sizes.len()).map(|number| key("alice", &number.to_string())).collect();
    for key in &keys {
        backend.put(key, "old".into(), in_an_hour()).await.unwrap();
    }
    tap.take();
    let swaps = keys.iter().zip(&sizes).map(|(key, size)| {
        backend.put_if_version(key, Bytes::from(vec![b'x'; *size]), keep(), Version::FIRST)
    });
    assert!(join_all(swaps).await.iter().all(Result::is_ok));
    let scripts = tap.take();
    assert_eq!(scripts.iter().map(|script| script.records().count()).sum::<usize>(), keys.len());
    for script in &scripts {
        // The text of the script and the keys are small.
        let is_alone = script.records().count() == 1;
        assert!(is_alone || script.bytes <= MAX_BYTES + 16 * 1024, "{} bytes: {script:?}", script.bytes);
    }
    for (key, size) in keys.iter().zip(sizes) {
        assert_eq!(backend.get(key).await.unwrap().data.len(), size);
    }
}

#[tokio::test]
async fn a_subscriber_of_one_of_many_tasks_receives_its_notification_and_no_other() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let keys: Vec<_> = (0..64).map(|number| key("alice", &number.to_string())).collect();
    for key in &keys {
        backend.put(key, "old".into(), in_an_hour()).await.unwrap();
    }
    let (quiet, loud) = (&keys[20], &keys[40]);
    let mut watches = [backend.watch(quiet), backend.watch(loud)];
    for watch in &mut watches {
        timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    }
    let options = |key| if key == quiet { keep().quiet() } else { keep() };
    let swap = |key| backend.put_if_version(key, "new".into(), options(key), Version::FIRST);
    assert!(join_all(keys.iter().map(swap)).await.iter().all(Result::is_ok));
    let [of_quiet, of_loud] = &mut watches;
    timeout(PATIENCE, of_loud.next()).await.expect("a notification").unwrap().unwrap();
    assert_eq!(backend.get(loud).await.unwrap().data, "new");
    // The messages of one owner arrive in their order.
    assert!(of_quiet.next().now_or_never().is_none(), "a quiet write notifies no subscriber");
    backend.put(quiet, "last".into(), PutOptions::default()).await.unwrap();
    timeout(PATIENCE, of_quiet.next()).await.expect("a notification").unwrap().unwrap();
}
