//! Who works on a task: leases, lost workers, further attempts, and waiting for what becomes of a task.

#[macro_use]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{
    Agenda, Attempt, LocalAgenda, MemoryBackend, NewTask, OnWorkerLost, OwnerId, Page, PageRequest, Part,
    PartName, PutOptions, Record, RpcError, StorageBackend, StorageError, StoreConfig, StoredTask, TaskError,
    TaskKey, TaskStatus, TaskStore, Version, Written,
};
use rstest_reuse::apply;
use serde_json::{Value, json};
use support::{Engine, Store, on_every_engine, on_every_watch, owner};

type Tasks = TaskStore<Arc<dyn Agenda>>;
type Trying = Attempt<Arc<dyn Agenda>>;

/// A lease that is not going to lapse in a test.
const LONG: Duration = Duration::from_secs(3600);
/// One that does.
const SHORT: Duration = Duration::from_millis(50);

/// Two stores on one engine, as of two processes.
async fn open(engine: Engine, lease: Duration) -> (Store, Tasks, Tasks) {
    let store = engine.open().await;
    // A task whose TTL has elapsed can be looked at for as long as a test takes.
    let config = || StoreConfig::new().lease(lease).retention(LONG);
    let tasks = || TaskStore::with_config(Arc::clone(&store.backend), config());
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

/// Waits until the lease of a task has lapsed by the engine's clock.
async fn lapsed(store: &Store, tasks: &Tasks, key: &TaskKey) -> StoredTask {
    let stored = tasks.get(key).await.unwrap();
    store.until(stored.task.lease.as_ref().unwrap().deadline).await;
    stored
}

/// Reads a task until it is as wanted.
async fn until(tasks: &Tasks, key: &TaskKey, wanted: impl Fn(&StoredTask) -> bool) -> StoredTask {
    let reading = async {
        loop {
            let stored = tasks.get(key).await.unwrap();
            if wanted(&stored) {
                return stored;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("it comes to that")
}

async fn until_orphaned(store: &Store, tasks: &Tasks, key: &TaskKey) -> StoredTask {
    lapsed(store, tasks, key).await;
    until(tasks, key, |stored| tasks.is_orphaned(stored)).await
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
    assert_eq!((done.task.status, done.task.lease), (TaskStatus::Completed, None));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_renewal_makes_the_lease_last_longer_and_nobody_notices(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, closure()).await;
    let before = tasks.get(&key).await.unwrap();
    let (second, at_second) = start(&tasks, closure()).await;
    let watch = |key| Arc::clone(&store.backend).watch(key);
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
async fn a_lapsed_lease_is_settled_by_a_reader_who_saw_it_lapsed_a_second_before(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, SHORT).await;
    let (key, attempt) = start(&tasks, closure()).await;
    lapsed(&store, &other, &key).await;
    let first = std::time::Instant::now();
    let failed = loop {
        let before = first.elapsed();
        let stored = other.get(&key).await.unwrap();
        if stored.task.status != TaskStatus::Working {
            assert!(first.elapsed() >= Duration::from_secs(1), "settled after {before:?}");
            break stored;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let error = failed.task.error.unwrap();
    assert_eq!((failed.task.status, error.code), (TaskStatus::Failed, -32603));
    assert!(error.message.contains("worker"), "{error:?}");
    assert_eq!(failed.task.status_message, Some(error.message));
    assert_refused!(attempt.complete(json!(1)).await, TaskError::InvalidTransition { .. });
    assert_refused!(attempt.renew().await, TaskError::InvalidTransition { .. });
    assert_eq!(tasks.get(&key).await.unwrap().version, failed.version);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_page_settles_lapsed_leases_as_a_read_does(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, SHORT).await;
    let (key, _attempt) = start(&tasks, closure()).await;
    lapsed(&store, &other, &key).await;
    let listing = async {
        loop {
            let page = other.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
            if page.tasks[0].task.status == TaskStatus::Failed {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), listing).await.expect("it is settled");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_holder_may_renew_its_lapsed_lease_while_nobody_has_settled_it(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, SHORT).await;
    let (key, attempt) = start(&tasks, closure()).await;
    lapsed(&store, &other, &key).await;
    for store in [&tasks, &other] {
        assert_eq!(store.get(&key).await.unwrap().task.status, TaskStatus::Working);
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // Neither by its own change, although its store has seen the lease lapsed long ago.
    attempt.set_status_message("late").await.unwrap();
    let renewed = attempt.renew().await.unwrap();
    // For the reader it is another lease, not to be seen lapsed before a second has passed again.
    store.until(renewed.task.lease.unwrap().deadline).await;
    assert_eq!(other.get(&key).await.unwrap().task.status, TaskStatus::Working);
    attempt.complete(json!("done after all")).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_orphan_is_taken_up_once_and_every_write_of_the_lost_worker_is_refused(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, SHORT).await;
    let (key, lost) = start(&tasks, resumable()).await;
    let stored = tasks.get(&key).await.unwrap();
    assert!(other.take_up(&stored).await.unwrap().is_none(), "its lease is live");
    let orphan = until_orphaned(&store, &other, &key).await;
    assert_eq!(orphan.task.status, TaskStatus::Working, "it is not failed");
    assert_eq!(
        (orphan.task.operation.as_deref(), orphan.task.arguments.as_inline()),
        (Some("render"), Some(&json!({ "frames": 3 })))
    );
    let claims = futures_util::future::join_all((0..8).map(|_| other.take_up(&orphan))).await;
    let mut taken: Vec<Trying> = claims.into_iter().filter_map(Result::unwrap).collect();
    let (next, none) = (taken.pop().unwrap(), taken);
    assert!(none.is_empty(), "one claim of eight");
    assert_eq!(next.number(), 2);

    let before = other.get(&key).await.unwrap();
    assert!(next.holds(&before.task) && !lost.holds(&before.task));
    let error = RpcError::new(1, "late");
    for refused in [
        lost.renew().await,
        lost.hand_back().await,
        lost.set_status_message("late").await,
        lost.ask("a", json!({})).await,
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
    assert!(other.take_up(&orphan).await.unwrap().is_none(), "it has ended");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn two_processes_that_take_up_one_orphan_get_one_attempt(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    for _ in 0..20 {
        let (_key, attempt) = start(&tasks, resumable()).await;
        let orphan = attempt.hand_back().await.unwrap();
        let (one, two) = tokio::join!(tasks.take_up(&orphan), other.take_up(&orphan));
        assert_ne!(one.unwrap().is_some(), two.unwrap().is_some());
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_next_attempt_may_be_of_the_same_process_and_the_earlier_one_is_refused(#[case] engine: Engine) {
    let (_store, tasks, _) = open(engine, LONG).await;
    let (key, earlier) = start(&tasks, resumable()).await;
    let next = tasks.take_up(&earlier.hand_back().await.unwrap()).await.unwrap().unwrap();
    let stored = tasks.get(&key).await.unwrap();
    assert!(next.holds(&stored.task) && !earlier.holds(&stored.task));
    assert_refused!(earlier.renew().await, TaskError::LeaseLost { attempt: 1, .. });
    assert_refused!(earlier.complete(json!(1)).await, TaskError::LeaseLost { attempt: 1, .. });
    next.complete(json!(2)).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn what_is_not_to_resume_is_no_orphan(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (_key, attempt) = start(&tasks, closure()).await;
    let handed_back = attempt.hand_back().await.unwrap();
    assert!(!other.is_orphaned(&handed_back));
    assert!(other.take_up(&handed_back).await.unwrap().is_none());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_ttl_that_has_elapsed_is_settled_by_the_next_change_of_the_holder(#[case] engine: Engine) {
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
async fn what_was_handed_back_needs_no_second_look(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, resumable()).await;
    attempt.hand_back().await.unwrap();
    assert_refused!(attempt.complete(json!(1)).await, TaskError::LeaseLost { .. });
    let orphan = other.get(&key).await.unwrap();
    assert!(other.is_orphaned(&orphan));
    assert_eq!(other.take_up(&orphan).await.unwrap().unwrap().number(), 2);

    // What cannot resume has lost its worker.
    let (key, attempt) = start(&tasks, closure()).await;
    attempt.hand_back().await.unwrap();
    assert_eq!(other.get(&key).await.unwrap().task.status, TaskStatus::Failed);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_attempt_uses_a_key_once_and_the_next_one_finds_what_was_asked(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, first) = start(&tasks, resumable()).await;
    let (name, age) = (json!({ "ask": "name" }), json!({ "ask": "age" }));
    first.ask("name", name.clone()).await.unwrap();
    assert_refused!(first.ask("name", name.clone()).await, TaskError::InputKeyUsed { .. });
    first.ask("age", age.clone()).await.unwrap();
    other.deliver_inputs(&key, [("name", json!("Ada"))]).await.unwrap();
    let orphan = first.hand_back().await.unwrap();
    assert_eq!(orphan.task.status, TaskStatus::InputRequired);

    let second = other.take_up(&orphan).await.unwrap().unwrap();
    let answered = second.ask("name", name.clone()).await.unwrap();
    assert_eq!(answered.task.input_responses["name"], "Ada");
    assert_refused!(second.ask("name", name).await, TaskError::InputKeyUsed { .. });
    assert_refused!(second.ask("age", json!({ "ask": "years" })).await, TaskError::InputKeyUsed { .. });
    let open = second.ask("age", age.clone()).await.unwrap();
    assert_eq!((open.version, &open.task.input_requests["age"]), (answered.version, &age));
    let third = other.take_up(&second.hand_back().await.unwrap()).await.unwrap().unwrap();
    assert_refused!(third.ask("name", json!({ "ask": "title" })).await, TaskError::InputKeyUsed { .. });
    third.ask("more", json!({})).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_answer_is_no_longer_given_once_the_task_is_to_be_cancelled_or_has_ended(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    for ends in [false, true] {
        let (key, first) = start(&tasks, resumable()).await;
        first.ask("name", json!({})).await.unwrap();
        other.deliver_inputs(&key, [("name", json!("Ada"))]).await.unwrap();
        let second = other.take_up(&first.hand_back().await.unwrap()).await.unwrap().unwrap();
        if ends {
            tasks.cancel(&key).await.unwrap();
            assert_refused!(second.ask("name", json!({})).await, TaskError::InvalidTransition { .. });
        } else {
            tasks.request_cancel(&key).await.unwrap();
            assert_refused!(second.ask("name", json!({})).await, TaskError::CancelRequested { .. });
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn answered_requests_are_kept_only_for_a_task_that_may_be_asked_again(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    for (new, kept) in [(closure(), 0), (resumable(), 1)] {
        let (key, attempt) = start(&tasks, new).await;
        attempt.ask("name", json!({})).await.unwrap();
        let answered = other.deliver_inputs(&key, [("name", json!("Ada"))]).await.unwrap().task;
        assert_eq!((answered.input_responses.len(), answered.answered_requests.len()), (1, kept));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_request_to_cancel_is_left_to_a_live_worker_and_ends_a_task_that_has_lost_its(
    #[case] engine: Engine,
) {
    let (store, tasks, other) = open(engine, SHORT).await;
    let (key, _lost) = start(&tasks, resumable()).await;
    lapsed(&store, &other, &key).await;
    let cancelled = other.request_cancel(&key).await.unwrap();
    assert_eq!((cancelled.task.status, cancelled.task.cancel_requested), (TaskStatus::Cancelled, true));
    other.request_cancel(&key).await.unwrap();

    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, resumable()).await;
    let asked = other.request_cancel(&key).await.unwrap();
    assert_eq!((asked.task.status, asked.task.cancel_requested), (TaskStatus::Working, true));
    assert_refused!(attempt.ask("a", json!({})).await, TaskError::CancelRequested { .. });
    attempt.hand_back().await.unwrap();
    assert_eq!(other.request_cancel(&key).await.unwrap().task.status, TaskStatus::Cancelled);
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
    attempt.ask("name", json!({})).await.unwrap();
    assert_eq!(waiting.await.unwrap().task.status, TaskStatus::InputRequired);
    other.deliver_inputs(&key, [("name", Value::Null)]).await.unwrap();
    let (done, _) = tokio::join!(waited(&other, &key), attempt.complete(json!("done")));
    assert_eq!(done.unwrap().task.result, Some(json!("done").into()));
    // What has ended is not waited for.
    assert_eq!(waited(&other, &key).await.unwrap().task.status, TaskStatus::Completed);
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_settles_a_task_whose_worker_is_lost(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, SHORT).await;
    let (key, _lost) = start(&tasks, closure()).await;
    assert_eq!(waited(&other, &key).await.unwrap().task.status, TaskStatus::Failed);
}

#[apply(on_every_watch)]
#[tokio::test]
async fn who_watches_is_told_when_a_lease_is_handed_back(#[case] engine: Engine) {
    let (store, tasks, _) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, closure()).await;
    let mut watch = Arc::clone(&store.backend).watch(&key);
    watch.next().await.unwrap().unwrap();
    attempt.hand_back().await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
    told.expect("a wait need not last until the lease lapses").unwrap().unwrap();
}

#[apply(on_every_watch)]
#[tokio::test]
async fn a_wait_settles_a_task_whose_ttl_elapses(#[case] engine: Engine) {
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

/// An engine whose watches are as a test says, over and over.
struct Watching(MemoryBackend, fn() -> BoxStream<'static, Result<(), StorageError>>);

#[async_trait]
impl StorageBackend for Watching {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.0.get(key).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        self.0.part(key, name).await
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        self.0.clock(key).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.0.put(key, data, options).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.0.put_if_version(key, data, options, expected).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.0.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        self.0.list(owner, page).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.0.cleanup_expired().await
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.now()
    }

    fn watch(self: Arc<Self>, _: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.1()
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
    let backend = Watching(MemoryBackend::new(), || match WATCHES.fetch_add(1, Ordering::SeqCst) {
        0 => stream::iter([Ok(()), Err(away()), Ok(())]).boxed(),
        _ => stream::iter([Ok(()), Err(denied())]).boxed(),
    });
    let tasks: Tasks = TaskStore::new(Arc::new(LocalAgenda::new(backend)));
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
