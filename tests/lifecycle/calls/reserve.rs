//! A record that is full can still be renewed, cancelled and ended.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, Attempt, NewTask, OnWorkerLost, PayloadKind, RpcError, StoreConfig, TaskError, TaskKey,
    TaskStatus, TaskStore,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, MAX_VALUE_BYTES, Store, on_every_engine, owner};

type Tasks = TaskStore<Arc<dyn Agenda>>;

/// What only leases, cancels and the end of a task may use.
const RESERVE: usize = 1024;
/// How close to the maximum a record is filled.
const CLOSE: usize = 32;

fn pad(bytes: usize) -> [(&'static str, Value); 1] {
    [("pad", json!("x".repeat(bytes)))]
}

async fn size(store: &Store, key: &TaskKey) -> usize {
    store.get(key).await.unwrap().data.len()
}

/// A task that this process works on, filled up to what is accepted.
async fn full(store: &Store, tasks: &Tasks, new: NewTask) -> Attempt<Arc<dyn Agenda>> {
    let (task, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
    let key = &task.key;
    // The ids of the last writes take their room, too.
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

#[apply(on_every_engine)]
#[tokio::test]
async fn a_full_record_can_be_renewed_released_claimed_cancelled_failed_completed_and_lost(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = TaskStore::new(Arc::clone(&store.backend));
    for step in 0..9 {
        let new = if step % 2 == 0 { call() } else { resumable() };
        let attempt = full(&store, &tasks, new).await;
        let key = attempt.key().clone();
        // A worker renews for as long as it works.
        for _ in 0..11 {
            attempt.renew().await.unwrap();
        }
        if step < 8 {
            tasks.request_cancel(&key).await.unwrap();
        }
        let ended = match step {
            0 => tasks.cancel(&key).await.unwrap(),
            1 => attempt.cancel().await.unwrap(),
            2 => attempt.fail(RpcError::new(-32603, "x".repeat(200))).await.unwrap(),
            3 => tasks.fail(&key, RpcError::new(-32603, "x".repeat(200))).await.unwrap(),
            4 => attempt.complete(json!("done")).await.unwrap(),
            5 => attempt.complete(json!("x".repeat(3_000))).await.unwrap(),
            6 => attempt.release().await.unwrap(),
            _ => {
                drop(attempt);
                tasks.wait(&key).await.unwrap()
            }
        };
        assert!(ended.task.status.is_terminal(), "{step}");
        assert_eq!(tasks.get(&key).await.unwrap(), ended, "{step}");
        if step == 5 {
            // There was no room for it in the data.
            assert!(ended.task.result.as_ref().unwrap().is_stored());
            let result = tasks.payload(&ended, PayloadKind::Output).await.unwrap();
            assert_eq!(result, Some(json!("x".repeat(3_000))));
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_full_record_of_a_lost_worker_goes_to_the_next_one_and_fails_with_its_ttl(#[case] engine: Engine) {
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
        // The store finds that nobody holds the attempt.
        match tasks.claim(&key).await.unwrap() {
            Some((_, third)) => break third,
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    store.until(claimed.task.deadline().unwrap()).await;
    let failed = tasks.get(&key).await.unwrap();
    assert_eq!((failed.task.status, third.number()), (TaskStatus::Failed, 3));
    assert_eq!(store.get(&key).await.unwrap().version, failed.version, "it is stored so");
}
