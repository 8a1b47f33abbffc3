//! How long a keeper runs, and attempts that are dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mcp_task_store::{Agenda, MemoryBackend, TaskError, TaskKey, TaskStatus};
use rstest_reuse::apply;
use serde_json::json;

use super::open;
use crate::common::{LONG, SHORT, has_ended, plain, record, resumable, until, waits_for_a_worker};
use crate::support::spy::Spy;
use crate::support::{Engine, on_every_engine, owner};

#[apply(on_every_engine)]
#[tokio::test]
async fn a_dropped_attempt_is_lost_at_once(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store.backend, LONG);
    let (failed, attempt) = tasks.start(&owner("alice"), plain()).await.unwrap();
    let clone = attempt.clone();
    drop(attempt);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(record(&*store, &failed.key).await.status, TaskStatus::Working, "a clone is the same attempt");
    drop(clone);
    let task = until(&*store, &failed.key, has_ended).await;
    assert!(task.error.unwrap().message.contains("worker"));

    let (waiting, attempt) = tasks.start(&owner("alice"), resumable()).await.unwrap();
    drop(attempt);
    until(&*store, &waiting.key, waits_for_a_worker).await;
    let (_, next) = tasks.claim(&waiting.key).await.unwrap().unwrap();
    tasks.request_cancel(&waiting.key).await.unwrap();
    drop(next);
    assert_eq!(until(&*store, &waiting.key, has_ended).await.status, TaskStatus::Cancelled);

    // After the end of the task the attempt can be dropped.
    let (done, attempt) = tasks.start(&owner("alice"), plain()).await.unwrap();
    let version = attempt.complete(json!(1)).await.unwrap().version;
    drop(attempt);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(store.get(&done.key).await.unwrap().version, version);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_end_of_a_dropped_attempt_outlasts_an_outage(#[case] engine: Engine) {
    let store = engine.open().await;
    let spy = Spy::new(&store.backend);
    let tasks = open(&spy.agenda(), LONG);
    let (stored, attempt) = tasks.start(&owner("alice"), plain()).await.unwrap();
    spy.is_full.store(true, Ordering::SeqCst);
    drop(attempt);
    while spy.refused.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    spy.is_full.store(false, Ordering::SeqCst);
    until(&*store, &stored.key, has_ended).await;
}

#[tokio::test]
async fn a_keeper_ends_with_the_last_clone_of_its_store() {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = open(&engine, LONG);
    let (stored, attempt) = tasks.start(&owner("alice"), plain()).await.unwrap();
    drop(tasks);
    tokio::time::sleep(Duration::from_millis(100)).await;
    attempt.renew().await.unwrap();
    assert!(Arc::strong_count(&engine) > 1);
    drop(attempt);
    let ended = async {
        while Arc::strong_count(&engine) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the keeper ends");
    assert_eq!(
        record(&*engine, &stored.key).await.status,
        TaskStatus::Working,
        "other stores find the lost worker"
    );
}

#[test]
fn a_keeper_starts_again_at_the_next_call_after_its_runtime_has_ended() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = first.block_on(async { open(&engine, LONG) });
    let (stored, attempt) = first.block_on(tasks.start(&owner("alice"), plain())).unwrap();
    // The keeper ends with its runtime.
    drop(first);
    drop(attempt);
    runtime().block_on(async {
        let absent = TaskKey::new("alice", "absent").unwrap();
        assert_refused!(tasks.get(&absent).await, TaskError::NotFound { .. });
        until(&*engine, &stored.key, has_ended).await;
    });
}

#[test]
fn a_keeper_starts_with_the_first_create_if_its_store_was_created_outside_of_a_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let begin = async { open(&engine, SHORT).start(&owner("alice"), plain()).await.unwrap().0 };
    let orphan = runtime().block_on(begin);
    let tasks = open(&engine, LONG);
    runtime().block_on(async {
        tasks.create(&owner("alice"), plain()).await.unwrap();
        until(&*engine, &orphan.key, has_ended).await;
    });
}

#[test]
fn a_keeper_whose_runtime_does_not_run_is_replaced_at_the_next_call_on_another_runtime() {
    let runtime = |is_paused| {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(is_paused).build().unwrap()
    };
    let parked = runtime(false);
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = parked.block_on(async { open(&engine, LONG) });
    let (stored, attempt) = parked.block_on(tasks.start(&owner("alice"), plain())).unwrap();
    drop(attempt);
    let absent = TaskKey::new("alice", "absent").unwrap();
    // The test controls the time of this runtime.
    runtime(true).block_on(async {
        assert_refused!(tasks.get(&absent).await, TaskError::NotFound { .. });
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(
            record(&*engine, &stored.key).await.status,
            TaskStatus::Working,
            "the keeper still counts as alive"
        );
        tokio::time::advance(Duration::from_secs(120)).await;
        assert_refused!(tasks.get(&absent).await, TaskError::NotFound { .. });
        until(&*engine, &stored.key, has_ended).await;
    });
    // The second runtime has ended with its keeper. The first runtime runs again.
    parked.block_on(async {
        let (stored, attempt) = tasks.start(&owner("alice"), plain()).await.unwrap();
        drop(attempt);
        until(&*engine, &stored.key, has_ended).await;
    });
}
