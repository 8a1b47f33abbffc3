//! Leases and attempts: who works on a task, and who works on it next.

mod delays;
mod inputs;
mod records;

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{
    MemoryBackend, NewTask, OnWorkerLost, RpcError, StorageBackend, StoreConfig, StoredTask, TaskError,
    TaskKey, TaskStatus, TaskStore, Version,
};
use rstest_reuse::apply;
use serde_json::json;

use crate::common::{LONG, SHORT, TaskAttempt, Tasks, has_ended, plain, start, until, waits_for_a_worker};
use crate::support::elsewhere::elsewhere;
use crate::support::{Engine, Store, in_a_process_that_dies, on_every_engine, owner};

fn config(lease: Duration) -> StoreConfig {
    // With this retention a test can still read a task after its TTL.
    StoreConfig::new().lease(lease).retention(LONG)
}

/// Opens two stores on one engine, as two processes do.
pub async fn open(engine: Engine, lease: Duration) -> (Store, Tasks, Tasks) {
    let store = engine.open().await;
    let tasks = || TaskStore::with_config(Arc::clone(&store.backend), config(lease));
    let (one, other) = (tasks(), tasks());
    (store, one, other)
}

fn resumable() -> NewTask {
    NewTask::new("tools/call")
        .operation("render")
        .arguments(json!({ "frames": 3 }))
        .on_worker_lost(OnWorkerLost::Resume)
}

/// Starts a task in a process that dies at once. The returned attempt can still write, as if the process had only
/// been disconnected.
pub async fn lost(store: &Store, new: NewTask) -> (TaskKey, TaskAttempt) {
    let backend = elsewhere(&store.backend);
    let begun = in_a_process_that_dies(async move {
        let tasks = TaskStore::with_config(backend, config(SHORT));
        tasks.start(&owner("alice"), new).await.unwrap()
    });
    let (stored, attempt) = begun.await;
    (stored.key, attempt)
}

/// Waits until the lease of a task has lapsed by the engine's clock.
async fn lapsed(store: &Store, tasks: &Tasks, key: &TaskKey) -> StoredTask {
    let stored = tasks.get(key).await.unwrap();
    store.until(stored.task.lease.as_ref().unwrap().deadline).await;
    stored
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_started_task_is_stored_with_its_lease_and_loses_it_with_its_end(#[case] engine: Engine) {
    let (store, tasks, _) = open(engine, LONG).await;
    let earliest = store.now() - TimeDelta::milliseconds(1);
    let (stored, attempt) = tasks.start(&owner("alice"), plain()).await.unwrap();
    assert_eq!((attempt.number(), attempt.key()), (1, &stored.key));
    assert_eq!(tasks.get(&stored.key).await.unwrap(), stored);
    let lease = stored.task.lease.clone().unwrap();
    assert_eq!((lease.attempt, lease.holder.is_some()), (1, true));
    let deadline = |now| now + TimeDelta::from_std(LONG).unwrap();
    assert!((deadline(earliest)..=deadline(store.now())).contains(&lease.deadline), "{lease:?}");
    assert!(attempt.holds(&stored.task));
    let done = attempt.complete(json!("done")).await.unwrap();
    assert_eq!((done.task.status, &done.task.lease), (TaskStatus::Completed, &None));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_renewal_extends_the_lease_and_notifies_no_subscriber(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, plain()).await;
    let before = tasks.get(&key).await.unwrap();
    let (second, at_second) = start(&tasks, plain()).await;
    let watch = |key| store.backend.watch(key);
    let (mut watch, mut of_second) = (watch(&key), watch(&second));
    watch.next().await.unwrap().unwrap();
    of_second.next().await.unwrap().unwrap();
    store.until(before.task.last_updated_at + TimeDelta::milliseconds(3)).await;
    let renewed = attempt.renew().await.unwrap();
    assert!(renewed.task.lease.as_ref().unwrap().deadline > before.task.lease.as_ref().unwrap().deadline);
    assert_eq!(renewed.task.last_updated_at, before.task.last_updated_at);
    assert_eq!(other.get(&key).await.unwrap(), renewed);
    // A notification of the renewal would have arrived before this one.
    at_second.set_status_message("at work").await.unwrap();
    of_second.next().await.unwrap().unwrap();
    assert!(watch.next().now_or_never().is_none());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_worker_is_lost_fails_after_its_lapsed_lease_was_observed_for_a_second(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let (key, attempt) = lost(&store, plain()).await;
    let lease =
        lapsed(&store, &TaskStore::new(Arc::clone(&store.backend)), &key).await.task.lease.clone().unwrap();
    let begun = std::time::Instant::now();
    let other = TaskStore::with_config(Arc::clone(&store.backend), config(LONG));
    let failed = until(&*store, &key, has_ended).await;
    // The observation lasts one second and a third of the observed lease, not of the observer's own lease.
    assert!(begun.elapsed() >= Duration::from_secs(1) + lease.duration() / 3, "{:?}", begun.elapsed());
    let error = failed.error.unwrap();
    assert_eq!((failed.status, error.code), (TaskStatus::Failed, -32603));
    assert!(error.message.contains("worker"), "{error:?}");
    assert_eq!(failed.status_message, Some(error.message));
    let version = other.get(&key).await.unwrap().version;
    assert_refused!(attempt.complete(json!(1)).await, TaskError::InvalidTransition { .. });
    assert_refused!(attempt.renew().await, TaskError::InvalidTransition { .. });
    assert_eq!(other.get(&key).await.unwrap().version, version);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn every_write_of_the_holder_renews_its_lease(#[case] engine: Engine) {
    let (_store, tasks, _) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, resumable()).await;
    let lease = async || tasks.get(&key).await.unwrap().task.lease.clone().unwrap();
    let mut before = lease().await;
    for step in 0..4 {
        match step {
            0 => attempt.set_status_message("half").await,
            1 => attempt.set_variables([("a", json!(1))]).await,
            2 => attempt.set_checkpoint(json!(1)).await,
            _ => attempt.request_input("name", json!({})).await,
        }
        .unwrap();
        let after = lease().await;
        assert_eq!(after.renewals, before.renewals + 1, "step {step}");
        assert!(after.deadline >= before.deadline, "step {step}");
        before = after;
    }
    // Writes of other callers do not renew the lease.
    tasks.request_cancel(&key).await.unwrap();
    assert_eq!(lease().await, before);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_that_renews_its_lapsed_lease_within_the_observation_is_not_lost(#[case] engine: Engine) {
    let store = engine.open().await;
    let (key, attempt) = lost(&store, plain()).await;
    let _other: Tasks = TaskStore::with_config(Arc::clone(&store.backend), config(LONG));
    // Each lease has lapsed long before the next renewal, and each observation takes a second.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        attempt.renew().await.unwrap();
    }
    let renewed = attempt.set_status_message("late").await.unwrap();
    assert_eq!(renewed.task.lease.as_ref().unwrap().renewals, 7);
    attempt.complete(json!("done after all")).await.unwrap();
    assert_eq!(until(&*store, &key, has_ended).await.status, TaskStatus::Completed);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_orphan_is_claimed_once_and_every_write_of_the_lost_worker_is_rejected(#[case] engine: Engine) {
    let store = engine.open().await;
    let (key, lost) = lost(&store, resumable()).await;
    let other: Tasks = TaskStore::with_config(Arc::clone(&store.backend), config(LONG));
    assert!(other.claim(&key).await.unwrap().is_none(), "the lease has a holder");
    let orphan = until(&*store, &key, waits_for_a_worker).await;
    assert_eq!(orphan.status, TaskStatus::Working, "the task has not failed");
    let claims = futures_util::future::join_all((0..8).map(|_| other.claim(&key))).await;
    let mut claimed: Vec<(StoredTask, TaskAttempt)> = claims.into_iter().filter_map(Result::unwrap).collect();
    let ((task, next), none) = (claimed.pop().unwrap(), claimed);
    assert!(none.is_empty(), "only one of eight claims succeeds");
    assert_eq!(next.number(), 2);
    assert_eq!(
        (task.task.operation.as_deref(), task.task.arguments.as_inline()),
        (Some("render"), Some(&json!({ "frames": 3 })))
    );

    let before = other.get(&key).await.unwrap();
    assert!(next.holds(&before.task) && !lost.holds(&before.task));
    let error = RpcError::new(1, "late");
    for refused in [
        lost.renew().await,
        lost.release().await,
        lost.set_status_message("late").await,
        lost.request_input("a", json!({})).await,
        lost.set_variables([("a", json!(1))]).await,
        lost.complete(json!(1)).await,
        lost.fail(error).await,
        lost.cancel().await,
    ] {
        assert_refused!(refused, TaskError::LeaseLost { attempt: 1, .. });
    }
    assert_eq!(other.get(&key).await.unwrap(), before);
    next.complete(json!("by the second")).await.unwrap();
    assert_refused!(lost.complete(json!("by the first")).await, TaskError::InvalidTransition { .. });
    assert!(other.claim(&key).await.unwrap().is_none(), "the task has ended");
    let foreign = TaskKey { owner: owner("bob"), task: key.task };
    assert!(other.claim(&foreign).await.unwrap().is_none(), "there is no such task");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn two_processes_that_claim_one_task_get_one_attempt(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    for _ in 0..20 {
        let (key, attempt) = start(&tasks, resumable()).await;
        attempt.release().await.unwrap();
        let (one, two) = tokio::join!(tasks.claim(&key), other.claim(&key));
        assert_ne!(one.unwrap().is_some(), two.unwrap().is_some());
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_next_attempt_may_be_in_the_same_process_and_the_earlier_one_is_rejected(#[case] engine: Engine) {
    let (_store, tasks, _) = open(engine, LONG).await;
    let (key, earlier) = start(&tasks, resumable()).await;
    earlier.release().await.unwrap();
    let (_, next) = tasks.claim(&key).await.unwrap().unwrap();
    let stored = tasks.get(&key).await.unwrap();
    assert!(next.holds(&stored.task) && !earlier.holds(&stored.task));
    assert_refused!(earlier.renew().await, TaskError::LeaseLost { attempt: 1, .. });
    assert_refused!(earlier.complete(json!(1)).await, TaskError::LeaseLost { attempt: 1, .. });
    next.complete(json!(2)).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_cannot_resume_fails_when_it_is_released(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, plain()).await;
    let released = attempt.release().await.unwrap();
    assert_eq!((released.task.status, released.version), (TaskStatus::Failed, Version::from(2)));
    assert!(released.task.error.as_ref().unwrap().message.contains("worker"));
    assert!(other.claim(&key).await.unwrap().is_none());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_cancel_was_requested_is_cancelled_by_its_release_and_by_the_loss_of_its_worker(
    #[case] engine: Engine,
) {
    let (store, tasks, other) = open(engine, LONG).await;
    for new in [plain(), resumable()] {
        let (key, attempt) = start(&tasks, new.clone()).await;
        other.request_cancel(&key).await.unwrap();
        assert_eq!(attempt.release().await.unwrap().task.status, TaskStatus::Cancelled);

        let (key, _lost) = lost(&store, new).await;
        other.request_cancel(&key).await.unwrap();
        assert_eq!(until(&*store, &key, has_ended).await.status, TaskStatus::Cancelled);
        assert!(other.claim(&key).await.unwrap().is_none());
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_cancel_was_requested_is_cancelled_when_its_ttl_elapses(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    // The TTL is long enough for the request on a busy machine.
    let (key, _attempt) = start(&tasks, plain().ttl(Duration::from_secs(1))).await;
    let asked = other.request_cancel(&key).await.unwrap();
    store.until(asked.task.deadline().unwrap()).await;
    assert_eq!(other.get(&key).await.unwrap().task.status, TaskStatus::Cancelled);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_ttl_has_elapsed_fails_at_the_next_change_of_the_holder(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let ttl = Duration::from_millis(50);
    let (stored, attempt) = tasks.start(&owner("alice"), plain().ttl(ttl)).await.unwrap();
    store.until(stored.task.deadline().unwrap()).await;
    let late = attempt.renew().await;
    assert_refused!(late, TaskError::InvalidTransition { from: TaskStatus::Failed, .. });
    assert_eq!(other.backend().get(&stored.key).await.unwrap().version, Version::from(2));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_released_task_can_be_claimed_at_once(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, resumable()).await;
    attempt.release().await.unwrap();
    assert_refused!(attempt.complete(json!(1)).await, TaskError::LeaseLost { .. });
    assert_eq!(other.claim(&key).await.unwrap().unwrap().1.number(), 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_requested_cancel_is_left_to_the_worker_and_ends_a_task_that_waits_for_a_worker(
    #[case] engine: Engine,
) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, resumable()).await;
    let asked = other.request_cancel(&key).await.unwrap();
    assert_eq!((asked.task.status, asked.task.cancel_requested), (TaskStatus::Working, true));
    assert_refused!(attempt.request_input("a", json!({})).await, TaskError::CancelRequested { .. });

    let (key, attempt) = start(&tasks, resumable()).await;
    attempt.release().await.unwrap();
    let cancelled = other.request_cancel(&key).await.unwrap();
    assert_eq!((cancelled.task.status, cancelled.task.cancel_requested), (TaskStatus::Cancelled, true));
    other.request_cancel(&key).await.unwrap();
}

#[test]
fn a_lease_lasts_30_seconds_unless_configured() {
    let lasts = |config| TaskStore::with_config(MemoryBackend::new(), config).lease_duration();
    assert_eq!(lasts(StoreConfig::new()), Duration::from_secs(30));
    assert_eq!(lasts(StoreConfig::new().lease(LONG)), LONG);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn only_a_task_with_an_operation_can_resume(#[case] engine: Engine) {
    let (store, tasks, _) = open(engine, LONG).await;
    let nameless = plain().on_worker_lost(OnWorkerLost::Resume);
    assert_refused!(tasks.start(&owner("alice"), nameless.clone()).await, TaskError::InvalidArgument { .. });
    assert_refused!(tasks.create(&owner("alice"), nameless).await, TaskError::InvalidArgument { .. });
    assert!(store.ids("alice").await.is_empty());
}
