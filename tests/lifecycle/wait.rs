//! Waiting for the end of a task, or until it requires input.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use mcp_task_store::{
    Agenda, MemoryBackend, StorageError, StoredTask, TaskError, TaskKey, TaskStatus, TaskStore, Version,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

use super::common::{LONG, SHORT, Tasks, plain, start};
use super::leases::{lost, open};
use crate::support::intercept::{Hooks, Intercept};
use crate::support::{Engine, on_every_engine, on_every_watch, owner};

/// Waits for a task. The test fails if the wait does not end.
async fn waited(tasks: &Tasks, key: &TaskKey) -> Result<StoredTask, TaskError> {
    tokio::time::timeout(Duration::from_secs(60), tasks.wait(key)).await.expect("the wait ends")
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_ends_when_another_process_completes_the_task_or_requests_input(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, plain()).await;
    let waiting = tokio::spawn({
        let (other, key) = (other.clone(), key.clone());
        async move { waited(&other, &key).await.unwrap() }
    });
    attempt.set_status_message("at work").await.unwrap();
    attempt.request_input("name", json!({})).await.unwrap();
    assert_eq!(waiting.await.unwrap().task.status, TaskStatus::InputRequired);
    other.deliver_inputs(&key, [("name", Value::Null)]).await.unwrap();
    let (done, _) = tokio::join!(waited(&other, &key), attempt.complete(json!("done")));
    assert_eq!(done.unwrap().task.result, Some(json!("done").into()));
    // A wait for a task that has ended returns at once.
    assert_eq!(waited(&other, &key).await.unwrap().task.status, TaskStatus::Completed);
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_ends_when_the_worker_of_the_task_is_lost(#[case] engine: Engine) {
    let (store, _, other) = open(engine, SHORT).await;
    let (key, _lost) = lost(&store, plain()).await;
    assert_eq!(waited(&other, &key).await.unwrap().task.status, TaskStatus::Failed);
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_subscriber_is_notified_of_a_release(#[case] engine: Engine) {
    let (store, tasks, _) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, plain()).await;
    let mut watch = store.backend.watch(&key);
    watch.next().await.unwrap().unwrap();
    attempt.release().await.unwrap();
    let notified = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
    notified.expect("a wait does not last until the lease lapses").unwrap().unwrap();
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_ends_when_the_ttl_of_the_task_elapses(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, _attempt) = start(&tasks, plain().ttl(Duration::from_millis(300))).await;
    let failed = waited(&other, &key).await.unwrap();
    assert_eq!(failed.task.status_message.as_deref(), Some("TTL elapsed"));
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_for_a_deleted_or_unknown_task_is_not_found(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, plain()).await;
    let (waited_for, deleted) = tokio::join!(waited(&other, &key), async {
        attempt.set_status_message("at work").await.unwrap();
        tasks.delete(&key).await
    });
    deleted.unwrap();
    assert_refused!(waited_for, TaskError::NotFound { .. });
    assert_refused!(attempt.renew().await, TaskError::NotFound { .. });
    assert_refused!(waited(&other, &key).await, TaskError::NotFound { .. });
    let foreign = TaskKey { owner: owner("bob"), task: key.task };
    assert_refused!(waited(&other, &foreign).await, TaskError::NotFound { .. });
}

/// An engine whose watches a test replaces.
struct Watching {
    memory: Arc<MemoryBackend>,
    watch: fn() -> BoxStream<'static, Result<(), StorageError>>,
}

impl Hooks for Watching {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::<MemoryBackend>::clone(&self.memory)
    }

    fn watch(&self, _: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        (self.watch)()
    }
}

#[tokio::test]
async fn a_wait_outlasts_retryable_errors_and_watches_that_end_and_no_other_error() {
    static WATCHES: AtomicUsize = AtomicUsize::new(0);
    fn unavailable() -> StorageError {
        let (address, reason) = ("a server".to_owned(), "the server is down".to_owned());
        StorageError::Unavailable { address, reason, outcome_unknown: false, source: None }
    }
    fn denied() -> StorageError {
        let (address, reason) = ("a server".to_owned(), "no subscriptions".to_owned());
        StorageError::Denied { address, reason, source: None }
    }
    let watch = || match WATCHES.fetch_add(1, Ordering::SeqCst) {
        0 => stream::iter([Ok(()), Err(unavailable()), Ok(())]).boxed(),
        _ => stream::iter([Ok(()), Err(denied())]).boxed(),
    };
    let backend = Intercept::new(Watching { memory: Arc::new(MemoryBackend::new()), watch });
    let tasks: Tasks = TaskStore::new(backend);
    let (key, _attempt) = start(&tasks, plain()).await;
    let error = waited(&tasks, &key).await;
    assert_refused!(error, TaskError::Storage(StorageError::Denied { .. }));
    assert_eq!(WATCHES.load(Ordering::SeqCst), 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_wait_continues_through_renewals(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, Duration::from_millis(200)).await;
    let (key, attempt) = start(&tasks, plain()).await;
    let first = tasks.get(&key).await.unwrap().version;
    let (done, last) = tokio::join!(waited(&other, &key), async {
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            attempt.renew().await.unwrap();
        }
        attempt.complete(json!(1)).await.unwrap().version
    });
    assert_eq!(done.unwrap().version, last);
    assert_eq!(last, Version::from(first.get() + 9));
}
