//! Puts share scripts with creates while the latest puts created their records.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use mcp_task_store::{RedisBackend, StorageBackend, StorageError, TaskKey, Version};
use tokio::time::timeout;

use super::record_key;
use crate::support::redis::{Namespace, Server};
use crate::support::tap::{Sent, Tap};
use crate::support::{in_an_hour, key};

const PATIENCE: Duration = Duration::from_secs(60);

/// So many puts must have created their records.
const PUTS_TO_BATCH: usize = 8;

fn keys(name: &str, count: usize) -> Vec<TaskKey> {
    (0..count).map(|number| key(["alice", "bob"][number % 2], &format!("{name}-{number}"))).collect()
}

/// Puts new records, one after the other, until the next puts share scripts.
async fn put_new_records(backend: &RedisBackend) {
    for key in keys("earlier", PUTS_TO_BATCH) {
        backend.put(&key, "old".into(), in_an_hour()).await.unwrap();
    }
}

/// Puts all records at the same moment. Returns their versions.
async fn put_all(backend: &RedisBackend, keys: &[TaskKey]) -> Vec<Version> {
    let puts = keys.iter().map(|key| backend.put(key, "new".into(), in_an_hour()));
    join_all(puts).await.into_iter().map(|written| written.unwrap().version).collect()
}

fn times_sent(scripts: &[Sent], key: &TaskKey) -> usize {
    let key = record_key(key);
    scripts.iter().flat_map(Sent::records).filter(|record| **record == key).count()
}

#[tokio::test]
async fn puts_of_new_records_share_scripts_and_puts_over_records_do_not() {
    let server = Server::start(&[]);
    let tap = Tap::start(server.port).await;
    let backend = RedisBackend::connect(&tap.url()).await.unwrap();
    let keys = keys("new", 64);
    put_new_records(&backend).await;
    tap.take();
    assert_eq!(put_all(&backend, &keys).await, vec![Version::FIRST; keys.len()]);
    let scripts = tap.take();
    assert!(scripts.len() <= keys.len() / 8, "{} scripts", scripts.len());

    // The backend expects new records once more. The scripts leave out the records that exist.
    assert_eq!(put_all(&backend, &keys).await, vec![Version::from(2); keys.len()]);
    assert_eq!(times_sent(&tap.take(), &keys[0]), 2);
    assert_eq!(put_all(&backend, &keys).await, vec![Version::from(3); keys.len()]);
    let scripts = tap.take();
    assert!(keys.iter().all(|key| times_sent(&scripts, key) == 1), "{scripts:?}");
    for key in &keys {
        assert_eq!(backend.get(key).await.unwrap().data, "new");
    }
}

#[tokio::test]
async fn a_put_that_a_script_leaves_out_notifies_the_subscribers_of_its_record() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let t1 = key("alice", "t1");
    backend.put(&t1, "old".into(), in_an_hour()).await.unwrap();
    let mut watch = backend.watch(&t1);
    let mut notified =
        async || timeout(PATIENCE, watch.next()).await.expect("a notification").unwrap().unwrap();
    notified().await;
    put_new_records(&backend).await;
    assert_eq!(backend.put(&t1, "new".into(), in_an_hour()).await.unwrap().version, Version::from(2));
    notified().await;
    assert_eq!(backend.get(&t1).await.unwrap().data, "new");
}

#[tokio::test]
async fn puts_that_share_a_script_keep_to_the_quota() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    put_new_records(&backend).await;
    let keys: Vec<_> = (0..20).map(|number| key("carol", &number.to_string())).collect();
    let put = |key| backend.put(key, "new".into(), in_an_hour().quota(5));
    let (created, refused): (Vec<_>, Vec<_>) =
        join_all(keys.iter().map(put)).await.into_iter().partition(Result::is_ok);
    assert_eq!(created.len(), 5);
    for error in refused {
        assert!(matches!(error, Err(StorageError::CapacityExceeded { .. })), "{error:?}");
    }
}
