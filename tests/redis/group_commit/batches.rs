//! How many scripts carry the writes of one moment, and what they carry.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{PutOptions, RedisBackend, StorageBackend, Version};
use tokio::time::timeout;

use super::{assert_all_succeed, assert_each_sent_once, prepared};
use crate::support::redis::{Namespace, Server};
use crate::support::tap::{Sent, Tap};
use crate::support::{in_an_hour, keep, key};

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
