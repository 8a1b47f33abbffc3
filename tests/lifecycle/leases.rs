//! Who works on a task: leases, lost workers, further attempts, and waiting for what becomes of a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::elsewhere::elsewhere;
use crate::support::intercept::{Hooks, Intercept};
use crate::support::{Engine, Store, in_a_process_that_dies, on_every_engine, on_every_watch, owner};
use chrono::TimeDelta;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{
    Agenda, Attempt, MemoryBackend, NewTask, OnWorkerLost, PutOptions, RpcError, StorageError, StoreConfig,
    StoredTask, Task, TaskError, TaskKey, TaskStatus, TaskStore, Version,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

type Tasks = TaskStore<Arc<dyn Agenda>>;
type Trying = Attempt<Arc<dyn Agenda>>;

/// A lease that is not going to lapse in a test.
const LONG: Duration = Duration::from_secs(3600);
/// One that does.
const SHORT: Duration = Duration::from_millis(50);

fn config(lease: Duration) -> StoreConfig {
    // A task whose TTL has elapsed can be looked at for as long as a test takes.
    StoreConfig::new().lease(lease).retention(LONG)
}

/// Two stores on one engine, as of two processes.
async fn open(engine: Engine, lease: Duration) -> (Store, Tasks, Tasks) {
    let store = engine.open().await;
    let tasks = || TaskStore::with_config(Arc::clone(&store.backend), config(lease));
    let (one, other) = (tasks(), tasks());
    (store, one, other)
}

fn closure() -> NewTask {
    NewTask::new("tools/call")
}

fn resumable() -> NewTask {
    NewTask::new("tools/call")
        .operation("render")
        .arguments(json!({ "frames": 3 }))
        .on_worker_lost(OnWorkerLost::Resume)
}

async fn start(tasks: &Tasks, new: NewTask) -> (TaskKey, Trying) {
    let (stored, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
    (stored.key, attempt)
}

/// Begins a task in a process that dies at once. Its attempt can still be tried, as if the process had only been cut off.
async fn lost(store: &Store, new: NewTask) -> (TaskKey, Trying) {
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

/// Looks at a record, which no store notices, until it is as wanted.
async fn until(store: &Store, key: &TaskKey, wanted: impl Fn(&Task) -> bool) -> Task {
    let reading = async {
        loop {
            let task: Task = serde_json::from_slice(&store.get(key).await.unwrap().data).unwrap();
            if wanted(&task) {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("it comes to that")
}

fn has_ended(task: &Task) -> bool {
    task.status.is_terminal()
}

fn waits_for_a_worker(task: &Task) -> bool {
    task.lease.as_ref().is_some_and(|lease| lease.holder.is_none())
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_started_task_is_stored_with_its_lease_and_loses_it_with_its_end(#[case] engine: Engine) {
    let (store, tasks, _) = open(engine, LONG).await;
    let earliest = store.now() - TimeDelta::milliseconds(1);
    let (stored, attempt) = tasks.start(&owner("alice"), closure()).await.unwrap();
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
async fn a_renewal_makes_the_lease_last_longer_and_nobody_notices(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, closure()).await;
    let before = tasks.get(&key).await.unwrap();
    let (second, at_second) = start(&tasks, closure()).await;
    let watch = |key| store.backend.watch(key);
    let (mut watch, mut of_second) = (watch(&key), watch(&second));
    watch.next().await.unwrap().unwrap();
    of_second.next().await.unwrap().unwrap();
    store.until(before.task.last_updated_at + TimeDelta::milliseconds(3)).await;
    let renewed = attempt.renew().await.unwrap();
    assert!(renewed.task.lease.as_ref().unwrap().deadline > before.task.lease.as_ref().unwrap().deadline);
    assert_eq!(renewed.task.last_updated_at, before.task.last_updated_at);
    assert_eq!(other.get(&key).await.unwrap(), renewed);
    // What would have been told of the renewal had come before this.
    at_second.set_status_message("at work").await.unwrap();
    of_second.next().await.unwrap().unwrap();
    assert!(watch.next().now_or_never().is_none());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_worker_is_lost_fails_when_its_lapsed_lease_was_observed_for_a_second(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let (key, attempt) = lost(&store, closure()).await;
    let lease =
        lapsed(&store, &TaskStore::new(Arc::clone(&store.backend)), &key).await.task.lease.clone().unwrap();
    let begun = std::time::Instant::now();
    let other = TaskStore::with_config(Arc::clone(&store.backend), config(LONG));
    let failed = until(&store, &key, has_ended).await;
    // A third of the lease that was observed, not of the observer's.
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
    // What others write does not.
    tasks.request_cancel(&key).await.unwrap();
    assert_eq!(lease().await, before);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_that_renews_its_lapsed_lease_within_the_observation_is_not_lost(#[case] engine: Engine) {
    let store = engine.open().await;
    let (key, attempt) = lost(&store, closure()).await;
    let _other: Tasks = TaskStore::with_config(Arc::clone(&store.backend), config(LONG));
    // Each lease has long lapsed when the next renewal comes, and each observation is a second long.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        attempt.renew().await.unwrap();
    }
    let renewed = attempt.set_status_message("late").await.unwrap();
    assert_eq!(renewed.task.lease.as_ref().unwrap().renewals, 7);
    attempt.complete(json!("done after all")).await.unwrap();
    assert_eq!(until(&store, &key, has_ended).await.status, TaskStatus::Completed);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_orphan_is_claimed_once_and_every_write_of_the_lost_worker_is_refused(#[case] engine: Engine) {
    let store = engine.open().await;
    let (key, lost) = lost(&store, resumable()).await;
    let other: Tasks = TaskStore::with_config(Arc::clone(&store.backend), config(LONG));
    assert!(other.claim(&key).await.unwrap().is_none(), "it has a holder");
    let orphan = until(&store, &key, waits_for_a_worker).await;
    assert_eq!(orphan.status, TaskStatus::Working, "it is not failed");
    let claims = futures_util::future::join_all((0..8).map(|_| other.claim(&key))).await;
    let mut claimed: Vec<(StoredTask, Trying)> = claims.into_iter().filter_map(Result::unwrap).collect();
    let ((task, next), none) = (claimed.pop().unwrap(), claimed);
    assert!(none.is_empty(), "one claim of eight");
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
    assert!(other.claim(&key).await.unwrap().is_none(), "it has ended");
    let gone = TaskKey { owner: owner("bob"), task: key.task };
    assert!(other.claim(&gone).await.unwrap().is_none(), "there is no such task");
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
async fn the_next_attempt_may_be_of_the_same_process_and_the_earlier_one_is_refused(#[case] engine: Engine) {
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
async fn a_task_that_cannot_resume_fails_with_its_release(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, closure()).await;
    let released = attempt.release().await.unwrap();
    assert_eq!((released.task.status, released.version), (TaskStatus::Failed, Version::from(2)));
    assert!(released.task.error.as_ref().unwrap().message.contains("worker"));
    assert!(other.claim(&key).await.unwrap().is_none());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_was_asked_to_cancel_is_cancelled_by_its_release_and_by_the_loss_of_its_worker(
    #[case] engine: Engine,
) {
    let (store, tasks, other) = open(engine, LONG).await;
    for new in [closure(), resumable()] {
        let (key, attempt) = start(&tasks, new.clone()).await;
        other.request_cancel(&key).await.unwrap();
        assert_eq!(attempt.release().await.unwrap().task.status, TaskStatus::Cancelled);

        let (key, _lost) = lost(&store, new).await;
        other.request_cancel(&key).await.unwrap();
        assert_eq!(until(&store, &key, has_ended).await.status, TaskStatus::Cancelled);
        assert!(other.claim(&key).await.unwrap().is_none());
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_was_asked_to_cancel_and_whose_ttl_elapses_is_cancelled(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    // Long enough that a busy machine requests the cancel before.
    let (key, _attempt) = start(&tasks, closure().ttl(Duration::from_secs(1))).await;
    let asked = other.request_cancel(&key).await.unwrap();
    store.until(asked.task.deadline().unwrap()).await;
    assert_eq!(other.get(&key).await.unwrap().task.status, TaskStatus::Cancelled);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_ttl_has_elapsed_fails_with_the_next_change_of_the_holder(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let ttl = Duration::from_millis(50);
    let (stored, attempt) = tasks.start(&owner("alice"), closure().ttl(ttl)).await.unwrap();
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
async fn an_attempt_uses_a_key_once_and_the_next_one_finds_what_was_asked(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, first) = start(&tasks, resumable()).await;
    let (name, age) = (json!({ "ask": "name" }), json!({ "ask": "age" }));
    first.request_input("name", name.clone()).await.unwrap();
    assert_refused!(first.request_input("name", name.clone()).await, TaskError::InputKeyUsed { .. });
    first.request_input("age", age.clone()).await.unwrap();
    other.deliver_inputs(&key, [("name", json!("Ada"))]).await.unwrap();
    let released = first.release().await.unwrap();
    assert_eq!(released.task.status, TaskStatus::InputRequired);

    let (_, second) = other.claim(&key).await.unwrap().unwrap();
    let answered = second.request_input("name", name.clone()).await.unwrap();
    assert_eq!(answered.task.input_responses["name"], "Ada");
    assert_refused!(second.request_input("name", name).await, TaskError::InputKeyUsed { .. });
    assert_refused!(
        second.request_input("age", json!({ "ask": "years" })).await,
        TaskError::InputKeyUsed { .. }
    );
    let open = second.request_input("age", age.clone()).await.unwrap();
    assert_eq!((open.version, &open.task.input_requests["age"]), (answered.version, &age));
    second.release().await.unwrap();
    let (_, third) = other.claim(&key).await.unwrap().unwrap();
    assert_refused!(
        third.request_input("name", json!({ "ask": "title" })).await,
        TaskError::InputKeyUsed { .. }
    );
    third.request_input("more", json!({})).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_answer_is_no_longer_given_once_the_task_is_to_be_cancelled_or_has_ended(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    for ends in [false, true] {
        let (key, first) = start(&tasks, resumable()).await;
        first.request_input("name", json!({})).await.unwrap();
        other.deliver_inputs(&key, [("name", json!("Ada"))]).await.unwrap();
        first.release().await.unwrap();
        let (_, second) = other.claim(&key).await.unwrap().unwrap();
        if ends {
            tasks.cancel(&key).await.unwrap();
            assert_refused!(
                second.request_input("name", json!({})).await,
                TaskError::InvalidTransition { .. }
            );
        } else {
            tasks.request_cancel(&key).await.unwrap();
            assert_refused!(second.request_input("name", json!({})).await, TaskError::CancelRequested { .. });
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn answered_requests_are_kept_only_for_a_task_that_may_be_asked_again(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    for (new, kept) in [(closure(), 0), (resumable(), 1)] {
        let (key, attempt) = start(&tasks, new).await;
        attempt.request_input("name", json!({})).await.unwrap();
        let answered = other.deliver_inputs(&key, [("name", json!("Ada"))]).await.unwrap().task;
        assert_eq!((answered.input_responses.len(), answered.answered_requests.len()), (1, kept));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_request_to_cancel_is_left_to_the_worker_and_ends_a_task_that_waits_for_one(
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
fn a_lease_lasts_30_seconds_unless_the_configuration_says_otherwise() {
    let lasts = |config| TaskStore::with_config(MemoryBackend::new(), config).lease_duration();
    assert_eq!(lasts(StoreConfig::new()), Duration::from_secs(30));
    assert_eq!(lasts(StoreConfig::new().lease(LONG)), LONG);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn only_a_task_with_an_operation_can_resume(#[case] engine: Engine) {
    let (store, tasks, _) = open(engine, LONG).await;
    let nameless = closure().on_worker_lost(OnWorkerLost::Resume);
    assert_refused!(tasks.start(&owner("alice"), nameless.clone()).await, TaskError::InvalidArgument { .. });
    assert_refused!(tasks.create(&owner("alice"), nameless).await, TaskError::InvalidArgument { .. });
    assert!(store.ids("alice").await.is_empty());
}

/// The record of a task as text, and the same with `to` in the place of `from`.
async fn rewrite(store: &Store, key: &TaskKey, from: &str, to: &str) {
    let record = store.get(key).await.unwrap();
    let json = String::from_utf8(record.data.to_vec()).unwrap();
    assert!(json.contains(from), "{from} in {json}");
    store.put(key, json.replacen(from, to, 1).into(), PutOptions::default()).await.unwrap();
}

async fn json_of(store: &Store, key: &TaskKey) -> String {
    String::from_utf8(store.get(key).await.unwrap().data.to_vec()).unwrap()
}

#[apply(on_every_engine)]
#[tokio::test]
async fn fields_of_a_later_version_stay_in_a_lease_as_long_as_the_same_attempt_holds_it(
    #[case] engine: Engine,
) {
    let (store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, resumable()).await;
    rewrite(&store, &key, r#""lease":{"#, r#""lease":{"zone":{"id":18446744073709551616},"#).await;
    attempt.renew().await.unwrap();
    // Neither do the writes of others remove them.
    other.set_variables(&key, [("a", json!(1))]).await.unwrap();
    let renewed = json_of(&store, &key).await;
    assert!(renewed.contains(r#""zone":{"id":18446744073709551616}"#), "{renewed}");
    attempt.release().await.unwrap();
    assert!(!json_of(&store, &key).await.contains("zone"), "the lease without a holder is another one");
    let (claimed, _attempt) = other.claim(&key).await.unwrap().unwrap();
    assert!(claimed.task.lease.as_ref().unwrap().extra.is_empty());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn integers_that_no_value_holds_survive_every_write_digit_by_digit(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let new = resumable().arguments(json!({ "n": "@", "text": "18446744073709551616" }));
    let (key, attempt) = start(&tasks, new).await;
    rewrite(&store, &key, r#""@""#, "-9223372036854775809").await;
    rewrite(&store, &key, r#""method""#, r#""later":[18446744073709551617,18446744073709551616],"method""#)
        .await;
    let is_whole = async |step: &str| {
        let json = json_of(&store, &key).await;
        for part in [
            r#""n":-9223372036854775809"#,
            r#""text":"18446744073709551616""#,
            r#""later":[18446744073709551617,18446744073709551616]"#,
        ] {
            assert!(json.contains(part), "{step}: {part} in {json}");
        }
    };
    attempt.renew().await.unwrap();
    is_whole("a renewal").await;
    let changed = other.set_variables(&key, [("a", json!(1))]).await.unwrap();
    other.set_status_message(&changed, "at work").await.unwrap();
    is_whole("a change of a copy").await;
    attempt.release().await.unwrap();
    let (_, next) = other.claim(&key).await.unwrap().unwrap();
    is_whole("a claim").await;
    next.complete(json!("done")).await.unwrap();
    is_whole("the end").await;
}

// Waiting

/// What a wait comes to, which it does or the test fails.
async fn waited(tasks: &Tasks, key: &TaskKey) -> Result<StoredTask, TaskError> {
    tokio::time::timeout(Duration::from_secs(60), tasks.wait(key)).await.expect("the wait ends")
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_ends_when_another_process_completes_the_task_or_asks_for_input(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, closure()).await;
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
    // What has ended is not waited for.
    assert_eq!(waited(&other, &key).await.unwrap().task.status, TaskStatus::Completed);
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_ends_when_the_worker_of_the_task_is_lost(#[case] engine: Engine) {
    let (store, _, other) = open(engine, SHORT).await;
    let (key, _lost) = lost(&store, closure()).await;
    assert_eq!(waited(&other, &key).await.unwrap().task.status, TaskStatus::Failed);
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_subscriber_is_notified_of_a_release(#[case] engine: Engine) {
    let (store, tasks, _) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, closure()).await;
    let mut watch = store.backend.watch(&key);
    watch.next().await.unwrap().unwrap();
    attempt.release().await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
    told.expect("a wait does not last until the lease lapses").unwrap().unwrap();
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_ends_when_the_ttl_of_the_task_elapses(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, _attempt) = start(&tasks, closure().ttl(Duration::from_millis(300))).await;
    let failed = waited(&other, &key).await.unwrap();
    assert_eq!(failed.task.status_message.as_deref(), Some("TTL elapsed"));
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_for_a_task_that_is_deleted_or_never_was_is_not_found(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, closure()).await;
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
async fn a_wait_outlasts_errors_that_may_pass_and_watches_that_end_and_is_ended_by_any_other_error() {
    static WATCHES: AtomicUsize = AtomicUsize::new(0);
    fn away() -> StorageError {
        let (address, reason) = ("a server".to_owned(), "it is away".to_owned());
        StorageError::Unavailable { address, reason, outcome_unknown: false, source: None }
    }
    fn denied() -> StorageError {
        let (address, reason) = ("a server".to_owned(), "no subscriptions".to_owned());
        StorageError::Denied { address, reason, source: None }
    }
    let watch = || match WATCHES.fetch_add(1, Ordering::SeqCst) {
        0 => stream::iter([Ok(()), Err(away()), Ok(())]).boxed(),
        _ => stream::iter([Ok(()), Err(denied())]).boxed(),
    };
    let backend = Intercept::new(Watching { memory: Arc::new(MemoryBackend::new()), watch });
    let tasks: Tasks = TaskStore::new(backend);
    let (key, _attempt) = start(&tasks, closure()).await;
    let error = waited(&tasks, &key).await;
    assert_refused!(error, TaskError::Storage(StorageError::Denied { .. }));
    assert_eq!(WATCHES.load(Ordering::SeqCst), 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_wait_outlasts_renewals_without_being_woken(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, Duration::from_millis(200)).await;
    let (key, attempt) = start(&tasks, closure()).await;
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
