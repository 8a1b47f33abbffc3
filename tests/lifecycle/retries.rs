//! Retries: what a task becomes after an error that a further attempt may avoid.

mod dead;
mod records;

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use mcp_task_store::{
    NewTask, Priority, Queue, Retry, RpcError, StoreConfig, StoredTask, TaskError, TaskKey, TaskStatus,
    TaskStore,
};
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::json;

use crate::common::{
    LONG, PATIENCE, TaskAttempt, Tasks, claim_now, has_ended, plain, record, resumable, start, until,
    waits_for_a_worker,
};
use crate::support::{Engine, Store, on_every_engine, owner, timers};

pub fn open(store: &Store) -> Tasks {
    TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().lease(LONG).retention(LONG))
}

/// Three attempts, with delays of 20 and 40 ms between them.
fn retry() -> Retry {
    Retry::exponential(3, Duration::from_millis(20), Duration::from_secs(1))
}

pub fn error() -> RpcError {
    RpcError::new(-32000, "out of paper").with_data(json!({ "tray": 2 }))
}

/// Claims a task as soon as its earliest start has come.
async fn claim(tasks: &Tasks, key: &TaskKey) -> (StoredTask, TaskAttempt) {
    let claiming = async {
        loop {
            if let Some(claimed) = tasks.claim(key).await.unwrap() {
                return claimed;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, claiming).await.expect("the task can be claimed")
}

fn message(stored: &StoredTask) -> &str {
    stored.task.status_message.as_deref().unwrap_or_default()
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_error_is_retried_after_the_delay_until_the_attempts_are_used_up(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    let (key, mut attempt) = start(&tasks, resumable().retry(retry())).await;
    let states = [
        ("attempt 1 of 3 failed: out of paper; next in 20 ms", 20, "attempt 2 of 3"),
        ("attempt 2 of 3 failed: out of paper; next in 40 ms", 40, "attempt 3 of 3"),
    ];
    for (number, (waiting, delay_ms, running)) in (1..).zip(states) {
        let earliest = store.now() + TimeDelta::milliseconds(delay_ms - 1);
        let retried = attempt.retry(error()).await.unwrap();
        let lease = retried.task.lease.as_ref().unwrap();
        assert_eq!((message(&retried), retried.task.status), (waiting, TaskStatus::Working));
        assert_eq!((&lease.holder, lease.attempt, lease.losses), (&None, number, number));
        assert_eq!(lease.delay_ms, u64::try_from(delay_ms).ok());
        assert!(lease.deadline >= earliest && retried.task.error.is_none(), "{lease:?}");
        // The keeper of a store may have written the waiting task again, with a write id of its own.
        let read = other.get(&key).await.unwrap();
        assert_eq!((&read.task.lease, message(&read)), (&retried.task.lease, waiting));
        assert_eq!(timers(&*store, &Queue::work("render", Priority::Normal).unwrap()).await.len(), 1);
        assert_refused!(attempt.complete(json!(1)).await, TaskError::LeaseLost { .. });
        assert_refused!(attempt.retry(error()).await, TaskError::LeaseLost { .. });
        let (claimed, next) = claim(&other, &key).await;
        assert_eq!((message(&claimed), next.number()), (running, number + 1));
        assert!(claimed.task.last_updated_at >= lease.deadline - TimeDelta::milliseconds(1));
        attempt = next;
    }
    let failed = attempt.retry(error()).await.unwrap();
    assert_eq!(
        (failed.task.status, message(&failed)),
        (TaskStatus::Failed, "gave up after 3 attempts: out of paper")
    );
    assert_eq!((&failed.task.error, failed.task.gave_up_after), (&Some(error()), Some(3)));
    assert_eq!((&failed.task.lease, &other.get(&key).await.unwrap()), (&None, &failed));
    assert_refused!(attempt.retry(error()).await, TaskError::InvalidTransition { .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn lost_workers_and_errors_use_up_the_same_attempts_and_releases_use_none(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let four = Retry::exponential(4, Duration::from_millis(20), Duration::from_millis(30));
    let (key, attempt) = start(&tasks, resumable().retry(four)).await;
    drop(attempt);
    let lost = until(&*store, &key, waits_for_a_worker).await;
    assert_eq!(
        lost.status_message.as_deref(),
        Some("attempt 1 of 4 failed: the worker was lost; next in 20 ms")
    );
    let (claimed, attempt) = claim(&tasks, &key).await;
    assert_eq!(message(&claimed), "attempt 2 of 4");
    let released = attempt.release().await.unwrap();
    assert_eq!(message(&released), "attempt 2 of 4");
    let retried = claim(&tasks, &key).await.1.retry(error()).await.unwrap();
    assert_eq!(message(&retried), "attempt 2 of 4 failed: out of paper; next in 30 ms");
    drop(claim(&tasks, &key).await);
    until(&*store, &key, |task| task.lease.as_ref().is_some_and(|lease| lease.losses == 3)).await;
    let (_, last) = claim(&tasks, &key).await;
    assert_eq!(last.number(), 5, "one attempt was released");
    drop(last);
    let failed = until(&*store, &key, has_ended).await;
    let gave_up = "gave up after 4 attempts: the worker was lost";
    assert_eq!((failed.status_message.as_deref(), failed.error.unwrap().code), (Some(gave_up), -32603));
    assert_eq!(failed.gave_up_after, Some(4));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_requested_cancel_wins_over_a_retry(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    for attempts in [1, 3] {
        let new = resumable().retry(Retry::exponential(attempts, LONG, LONG));
        let (key, attempt) = start(&tasks, new.clone()).await;
        other.request_cancel(&key).await.unwrap();
        let ended = attempt.retry(error()).await.unwrap();
        assert_eq!((ended.task.status, &ended.task.error), (TaskStatus::Cancelled, &None));
        assert_eq!(ended.task.gave_up_after, None);
    }
    let (key, attempt) = start(&tasks, resumable().retry(Retry::exponential(3, LONG, LONG))).await;
    let retried = attempt.retry(error()).await.unwrap();
    assert_eq!(message(&retried), "attempt 1 of 3 failed: out of paper; next in 60 min");
    let cancelled = other.request_cancel(&key).await.unwrap();
    assert_eq!(
        (cancelled.task.status, message(&cancelled)),
        (TaskStatus::Cancelled, "attempt 1 of 3 failed: out of paper")
    );
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_cancel_that_races_a_retry_or_a_release_always_ends_the_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    for round in 0..20 {
        let (key, attempt) = start(&tasks, resumable().retry(retry())).await;
        let leave = async {
            match round % 2 {
                0 => attempt.retry(error()).await,
                _ => attempt.release().await,
            }
        };
        let (left, cancelled) = tokio::join!(leave, other.request_cancel(&key));
        left.unwrap();
        cancelled.unwrap();
        assert_eq!(record(&*store, &key).await.status, TaskStatus::Cancelled, "round {round}");
        assert!(other.claim(&key).await.unwrap().is_none());
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_jittered_delay_is_chosen_once_and_is_part_of_the_whole_one(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let jittered = Retry::exponential(3, LONG, LONG).jittered();
    let mut delays = Vec::new();
    for _ in 0..8 {
        let (key, attempt) = start(&tasks, resumable().retry(jittered)).await;
        let before = store.now();
        attempt.retry(error()).await.unwrap();
        let task = record(&*store, &key).await;
        let lease = task.lease.unwrap();
        let delay = Duration::from_millis(lease.delay_ms.unwrap());
        assert!(delay <= LONG && task.retry.unwrap().jittered);
        let earliest = before + delay - TimeDelta::milliseconds(1);
        assert!(lease.deadline >= earliest && lease.deadline <= store.now() + delay, "{lease:?}");
        delays.push(delay);
    }
    delays.dedup();
    assert!(delays.len() > 1, "the delays differ: {delays:?}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_cannot_run_again_fails_with_the_error_at_once(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let (_, attempt) = start(&tasks, plain().status_message("printing")).await;
    let failed = attempt.retry(error()).await.unwrap();
    assert_eq!((failed.task.status, &failed.task.error), (TaskStatus::Failed, &Some(error())));
    assert_eq!((message(&failed), failed.task.gave_up_after), ("printing", None));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn without_a_policy_the_second_attempt_begins_at_once_and_the_third_after_10_s(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let (key, attempt) = start(&tasks, resumable()).await;
    let retried = attempt.retry(error()).await.unwrap();
    assert_eq!(message(&retried), "attempt 1 of 3 failed: out of paper; next at once");
    let (_, attempt) = tasks.claim(&key).await.unwrap().expect("the next attempt begins at once");
    let retried = attempt.retry(error()).await.unwrap();
    assert_eq!(message(&retried), "attempt 2 of 3 failed: out of paper; next in 10 s");
    let failed = claim_now(&tasks, &key).await.retry(error()).await.unwrap();
    assert_eq!((failed.task.status, failed.task.retry.as_ref()), (TaskStatus::Failed, None));
}

#[rstest]
#[case::no_attempts(resumable().retry(Retry::exponential(0, LONG, LONG)), "0 attempts")]
#[case::no_delay(resumable().retry(Retry::exponential(3, Duration::ZERO, LONG)), "not between 1 ms")]
#[case::too_long(resumable().retry(Retry::exponential(3, LONG, Duration::MAX)), "not between 1 ms")]
#[case::in_the_wrong_order(resumable().retry(Retry::exponential(3, LONG, Duration::from_secs(1))), "longest delay")]
#[case::not_resumable(plain().operation("render").retry(retry()), "cannot resume")]
#[case::two_numbers_of_attempts(resumable().max_attempts(5).retry(retry()), "max_attempts")]
#[tokio::test]
async fn an_invalid_policy_is_refused_and_nothing_is_stored(#[case] new: NewTask, #[case] reason: &str) {
    let store = Engine::Memory.open().await;
    let tasks = open(&store);
    for refused in [
        tasks.create(&owner("alice"), new.clone()).await,
        tasks.start(&owner("alice"), new.clone()).await.map(|(stored, _)| stored),
        tasks.enqueue(&owner("alice"), new.clone()).await,
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, TaskError::InvalidArgument { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{reason} in {error}");
    }
    assert!(store.ids("alice").await.is_empty());
}
