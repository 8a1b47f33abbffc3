//! A file that another program keeps locked.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use mcp_task_store::{StorageBackend, StorageError, Version};

use crate::support::sqlite::Folder;
use crate::support::{keep, key};

#[tokio::test]
async fn while_another_program_holds_the_lock_writes_fail_in_time_and_reads_succeed() {
    let folder = Folder::new();
    let limit = Duration::from_millis(200);
    let store = folder.builder().busy_timeout(limit).open().await.unwrap();
    let t1 = key("alice", "t1");
    store.put(&t1, "before".into(), keep()).await.unwrap();
    let other = folder.connection();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    let began = Instant::now();
    let error = store.put(&t1, "lost".into(), keep()).await.unwrap_err();
    assert!(began.elapsed() >= limit && began.elapsed() < limit * 50, "{:?}", began.elapsed());
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    assert!(error.is_retryable() && error.to_string().contains("locked"), "{error}");
    assert_eq!(store.get(&t1).await.unwrap().data, "before");

    other.execute_batch("COMMIT").unwrap();
    let written = store.put(&t1, "after".into(), keep()).await.unwrap();
    assert_eq!(written.version.get(), 2, "the write that failed wrote nothing");
}

#[tokio::test]
async fn a_write_waits_for_the_lock_of_another_program() {
    let folder = Folder::new();
    let store = folder.backend().await;
    let other = folder.connection();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let t1 = key("alice", "t1");
    let mut put = store.put(&t1, "data".into(), keep());
    assert!((&mut put).now_or_never().is_none());
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(put.await.unwrap().version, Version::FIRST);
}

#[tokio::test]
async fn a_write_that_is_dropped_before_its_transaction_begins_is_not_applied() {
    let folder = Folder::new();
    let store = folder.backend().await;
    let other = folder.connection();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let [dropped, kept] = ["dropped", "kept"].map(|task| key("alice", task));
    let mut given_up = store.put(&dropped, "data".into(), keep());
    assert!((&mut given_up).now_or_never().is_none());
    let mut put = store.put(&kept, "data".into(), keep());
    assert!((&mut put).now_or_never().is_none());
    drop(given_up);
    other.execute_batch("COMMIT").unwrap();
    put.await.unwrap();
    assert_refused!(store.get(&dropped).await, StorageError::NotFound { .. });
}

#[tokio::test]
async fn calls_do_not_block_the_runtime() {
    let folder = Folder::new();
    let store = folder.backend().await;
    let other = folder.connection();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let t1 = key("alice", "t1");
    // This runtime has one thread.
    let (written, ()) = tokio::join!(store.put(&t1, "data".into(), keep()), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        other.execute_batch("COMMIT").unwrap();
    });
    written.unwrap();
}
