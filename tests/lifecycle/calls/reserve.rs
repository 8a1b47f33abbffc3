//! A full record can still be renewed, cancelled and ended.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, Attempt, NewTask, OnWorkerLost, PayloadKind, RpcError, StoreConfig, StoredTask, TaskError,
    TaskKey, TaskStatus, TaskStore,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::common::content_bytes;
use crate::support::{Engine, MAX_VALUE_BYTES, Store, on_every_engine, owner};

type Tasks = TaskStore<Arc<dyn Agenda>>;

/// The reserve that only leases, cancels and the end of a task may use, and the room of the history.
const RESERVE: usize = 2 * 1024;
/// A full record is at most this many bytes below the limit.
const CLOSE: usize = 32;

fn pad(bytes: usize) -> [(&'static str, Value); 1] {
    [("pad", json!("x".repeat(bytes)))]
}

async fn size(store: &Store, key: &TaskKey) -> usize {
    content_bytes(&store.get(key).await.unwrap().data)
}

/// Starts a task in this process, and fills its record up to the limit.
async fn full(store: &Store, tasks: &Tasks, new: NewTask) -> Attempt<Arc<dyn Agenda>> {
    let (task, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
    let key = &task.key;
    // The ids of the last writes also use space in the record.
    for _ in 0..4 {
        attempt.set_variables(pad(1000)).await.unwrap();
    }
    let accepted = MAX_VALUE_BYTES - RESERVE;
    let fits = 1000 + accepted - size(store, key).await - CLOSE / 2;
    attempt.set_variables(pad(fits)).await.unwrap();
    assert!((accepted - CLOSE..=accepted).contains(&size(store, key).await));
    for refused in [
        attempt.set_variables(pad(fits + CLOSE)).await,
        attempt.set_status_message("x".repeat(CLOSE)).await,
        tasks.request_input(key, [("key", json!("x".repeat(CLOSE)))]).await,
        attempt.request_input("key", json!("x".repeat(CLOSE))).await,
        attempt.set_checkpoint(json!("x".repeat(CLOSE))).await,
    ] {
        assert_refused!(refused, TaskError::LimitExceeded { limit, .. } if limit == accepted.to_string());
    }
    attempt
}

fn call() -> NewTask {
    NewTask::new("tools/call")
}

fn resumable() -> NewTask {
    call().operation("render").on_worker_lost(OnWorkerLost::Resume)
}

/// How a task with a full record ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Cancelled,
    CancelledByWorker,
    FailedByWorker,
    Failed,
    Completed,
    CompletedWithAPart,
    Released,
    LostAfterCancel,
    Lost,
}

async fn end(tasks: &Tasks, attempt: Attempt<Arc<dyn Agenda>>, how: End) -> StoredTask {
    let key = attempt.key().clone();
    let error = RpcError::new(-32603, "x".repeat(200));
    match how {
        End::Cancelled => tasks.cancel(&key).await.unwrap(),
        End::CancelledByWorker => attempt.cancel().await.unwrap(),
        End::FailedByWorker => attempt.fail(error).await.unwrap(),
        End::Failed => tasks.fail(&key, error).await.unwrap(),
        End::Completed => attempt.complete(json!("done")).await.unwrap(),
        End::CompletedWithAPart => attempt.complete(json!("x".repeat(3_000))).await.unwrap(),
        End::Released => attempt.release().await.unwrap(),
        End::LostAfterCancel | End::Lost => {
            drop(attempt);
            tasks.wait(&key).await.unwrap()
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_full_record_can_be_renewed_released_claimed_cancelled_failed_completed_and_lost(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = TaskStore::new(Arc::clone(&store.backend));
    let ends = [
        (End::Cancelled, call()),
        (End::CancelledByWorker, resumable()),
        (End::FailedByWorker, call()),
        (End::Failed, resumable()),
        (End::Completed, call()),
        (End::CompletedWithAPart, resumable()),
        (End::Released, call()),
        (End::LostAfterCancel, resumable()),
        (End::Lost, call()),
    ];
    for (how, new) in ends {
        let attempt = full(&store, &tasks, new).await;
        let key = attempt.key().clone();
        // A worker renews while it works.
        for _ in 0..11 {
            attempt.renew().await.unwrap();
        }
        if how != End::Lost {
            tasks.request_cancel(&key).await.unwrap();
        }
        let ended = end(&tasks, attempt, how).await;
        assert!(ended.task.status.is_terminal(), "{how:?}");
        assert_eq!(tasks.get(&key).await.unwrap(), ended, "{how:?}");
        if how == End::CompletedWithAPart {
            assert!(ended.task.result.as_ref().unwrap().is_stored());
            let result = tasks.payload(&ended, PayloadKind::Output).await.unwrap();
            assert_eq!(result, Some(json!("x".repeat(3_000))));
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_full_record_of_a_lost_worker_can_be_claimed_and_fails_when_its_ttl_elapses(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let config = StoreConfig::new().retention(Duration::from_secs(3600));
    let tasks = TaskStore::with_config(Arc::clone(&store.backend), config);
    let attempt = full(&store, &tasks, resumable().ttl(Duration::from_secs(3))).await;
    let key = attempt.key().clone();
    let released = attempt.release().await.unwrap();
    assert_eq!(released.task.status, TaskStatus::Working);
    let (claimed, second) = tasks.claim(&key).await.unwrap().unwrap();
    assert_eq!(second.number(), 2);
    drop(second);
    let third = loop {
        // The store detects that the attempt was dropped.
        match tasks.claim(&key).await.unwrap() {
            Some((_, third)) => break third,
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    store.until(claimed.task.deadline().unwrap()).await;
    let failed = tasks.get(&key).await.unwrap();
    assert_eq!((failed.task.status, third.number()), (TaskStatus::Failed, 3));
    assert_eq!(store.get(&key).await.unwrap().version, failed.version, "the task is stored as failed");
}
