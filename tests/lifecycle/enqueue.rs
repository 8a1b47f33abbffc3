//! Tasks that are enqueued, and wait for a worker.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use mcp_task_store::{
    Agenda, NewTask, PageRequest, PayloadKind, Priority, Queue, StorageError, StoreConfig, StoredTask,
    TaskError, TaskStatus, TaskStore, UniqueEnqueue, UniqueKey, UniqueStart,
};
use rstest_reuse::apply;
use serde_json::json;

use crate::common::{
    LONG, PATIENCE, SHORT, Tasks, has_ended, plain, record, resumable, until, waits_for_a_worker,
};
use crate::support::elsewhere::elsewhere;
use crate::support::intercept::{Call, Hooks, Intercept, Reply};
use crate::support::{
    Engine, Store, in_a_process_that_dies, on_every_agenda, on_every_engine, owner, timers,
};

fn config(lease: Duration) -> StoreConfig {
    StoreConfig::new().lease(lease).retention(LONG)
}

fn tasks_on(store: &Store, lease: Duration) -> Tasks {
    TaskStore::with_config(Arc::clone(&store.backend), config(lease))
}

fn work(priority: Priority) -> Queue {
    Queue::work("render", priority).unwrap()
}

/// Returns the queues of the operation, as a worker takes from them.
fn queues() -> [Queue; 3] {
    [Priority::High, Priority::Normal, Priority::Low].map(work)
}

async fn enqueue(tasks: &Tasks, new: NewTask) -> StoredTask {
    tasks.enqueue(&owner("alice"), new).await.unwrap()
}

/// Takes what is due once something is. A timer is scheduled a moment after its record is written, so it may fire that much later.
async fn until_due(store: &Store) -> Vec<mcp_task_store::Due> {
    let waiting = async {
        loop {
            let due = due(store).await;
            if !due.is_empty() {
                return due;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("a timer fires")
}

/// Takes what is due, as a worker does.
async fn due(store: &Store) -> Vec<mcp_task_store::Due> {
    store.backend.take_due(&queues(), 256, LONG).await.unwrap().due
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn an_enqueued_task_is_durable_and_due_at_once_and_another_store_runs_it(#[case] engine: Engine) {
    let store = engine.open().await;
    let (server, worker) = (tasks_on(&store, LONG), tasks_on(&store, LONG));
    let arguments = json!({ "frames": 3 });
    let task = enqueue(&server, plain().operation("render").arguments(arguments.clone())).await;
    assert_eq!(server.get(&task.key).await.unwrap(), task);
    let lease = task.task.lease.as_ref().unwrap();
    assert_eq!((&lease.holder, lease.attempt, lease.losses), (&None, 0, 0));
    let due = due(&store).await;
    assert_eq!(due.iter().map(|due| &due.key).collect::<Vec<_>>(), [&task.key]);
    let (claimed, attempt) = worker.claim(&task.key).await.unwrap().unwrap();
    assert_eq!((attempt.number(), claimed.task.status), (1, TaskStatus::Working));
    assert_eq!(worker.payload(&claimed, PayloadKind::Input).await.unwrap(), Some(arguments));
    assert!(server.claim(&task.key).await.unwrap().is_none(), "a worker has the task");
    attempt.complete(json!("done")).await.unwrap();
    assert_eq!(server.wait(&task.key).await.unwrap().task.status, TaskStatus::Completed);
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn tasks_of_a_higher_priority_are_due_first_and_those_of_one_priority_oldest_first(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = tasks_on(&store, LONG);
    let mut expected = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..3 {
        for (place, priority) in [Priority::High, Priority::Normal, Priority::Low].into_iter().enumerate() {
            let new = resumable().priority(priority);
            expected[2 - place].push(enqueue(&tasks, new).await.key);
            // Two tasks of one millisecond have no order.
            store.until(store.now() + TimeDelta::milliseconds(2)).await;
        }
    }
    expected.reverse();
    let due = due(&store).await;
    assert_eq!(due.into_iter().map(|due| due.key).collect::<Vec<_>>(), expected.concat());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_keeps_its_priority_between_attempts_and_only_another_than_normal_is_in_the_record(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = tasks_on(&store, LONG);
    let task = enqueue(&tasks, resumable().priority(Priority::High)).await;
    let normal = enqueue(&tasks, resumable()).await;
    for due in due(&store).await {
        store.backend.resolve(&due, mcp_task_store::Next::Remove).await.unwrap();
    }
    let (_, attempt) = tasks.claim(&task.key).await.unwrap().unwrap();
    attempt.release().await.unwrap();
    assert_eq!(timers(&*store, &work(Priority::High)).await.len(), 1);
    assert_eq!(timers(&*store, &work(Priority::Normal)).await.len(), 0);
    let json = |key| {
        let store = &store;
        async move { String::from_utf8(store.get(key).await.unwrap().data.to_vec()).unwrap() }
    };
    assert!(json(&task.key).await.contains(r#""priority":"high""#));
    assert!(!json(&normal.key).await.contains("priority"));
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_delayed_task_is_neither_due_nor_claimed_before_its_earliest_start(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = tasks_on(&store, LONG);
    // A record states the start in whole milliseconds.
    let begun = store.now() - TimeDelta::milliseconds(1);
    let later = Duration::from_secs(600);
    for new in [resumable().delay(later), resumable().not_before(begun + later)] {
        let task = enqueue(&tasks, new).await;
        let start = task.task.lease.as_ref().unwrap().deadline;
        assert!(start >= begun + later && start <= store.now() + later, "{start}");
        assert!(tasks.claim(&task.key).await.unwrap().is_none(), "the time has not come");
        assert!(record(&*store.backend, &task.key).await.lease.unwrap().holder.is_none());
    }
    assert_eq!(due(&store).await, []);
    assert_eq!(timers(&*store, &work(Priority::Normal)).await.len(), 2);
    let soon = Duration::from_millis(50);
    let task = enqueue(&tasks, resumable().delay(soon)).await;
    let start = task.task.lease.as_ref().unwrap().deadline;
    assert_eq!(until_due(&store).await.len(), 1);
    store.until(start).await;
    let (_, _attempt) = tasks.claim(&task.key).await.unwrap().unwrap();
    let past = enqueue(&tasks, resumable().not_before(begun - Duration::from_secs(60))).await;
    let taken = until_due(&store).await;
    let keys: Vec<_> = taken.iter().map(|due| &due.key).collect();
    assert_eq!(keys, [&past.key], "a time in the past means at once");
    assert!(tasks.claim(&past.key).await.unwrap().is_some());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_could_never_run_is_refused_and_nothing_is_stored(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, alice) = (tasks_on(&store, LONG), owner("alice"));
    let minute = Duration::from_secs(60);
    let refused = [
        (plain(), "without an operation"),
        (resumable().ttl(minute).delay(minute), "TTL"),
        (resumable().delay(Duration::MAX), "TTL"),
        (resumable().ttl(minute).not_before(store.now() + minute * 2), "TTL"),
        (plain().operation("render\0high"), "NUL"),
    ];
    for (new, expected) in refused {
        let error = tasks.enqueue(&alice, new).await.unwrap_err();
        assert!(matches!(error, TaskError::InvalidArgument { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let delayed = resumable().delay(minute);
    assert_refused!(tasks.start(&alice, delayed.clone()).await, TaskError::InvalidArgument { .. });
    assert_refused!(tasks.create(&alice, delayed).await, TaskError::InvalidArgument { .. });
    assert!(tasks.list(&alice, PageRequest::new(10)).await.unwrap().tasks.is_empty());
    for queue in queues().into_iter().chain([Queue::leases()]) {
        assert_eq!(timers(&*store, &queue).await, []);
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_task_that_cannot_resume_runs_once_and_fails_when_its_worker_is_lost(#[case] engine: Engine) {
    let store = engine.open().await;
    let server = tasks_on(&store, SHORT);
    let task = enqueue(&server, plain().operation("render")).await;
    let backend = elsewhere(&store.backend);
    let key = task.key.clone();
    let attempt = in_a_process_that_dies(async move {
        let worker = TaskStore::with_config(backend, config(SHORT));
        worker.claim(&key).await.unwrap().unwrap().1
    })
    .await;
    let ended = until(&*store.backend, &task.key, has_ended).await;
    assert_eq!(ended.status, TaskStatus::Failed);
    assert!(ended.status_message.unwrap().contains("lost"));
    drop(attempt);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_waiting_task_is_cancelled_at_once_and_fails_when_its_ttl_elapses(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = tasks_on(&store, LONG);
    let task = enqueue(&tasks, resumable()).await;
    assert_eq!(tasks.request_cancel(&task.key).await.unwrap().task.status, TaskStatus::Cancelled);
    assert!(tasks.claim(&task.key).await.unwrap().is_none());
    let task = enqueue(&tasks, resumable().ttl(Duration::from_millis(30))).await;
    assert_eq!(tasks.wait(&task.key).await.unwrap().task.status, TaskStatus::Failed);
    assert!(tasks.claim(&task.key).await.unwrap().is_none());
}

/// An engine that loses every timer of a work queue: the process dies between the create and the schedule.
struct WithoutWork(Arc<dyn Agenda>);

#[async_trait::async_trait]
impl Hooks for WithoutWork {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.0)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        match &call {
            Call::Schedule { queue, .. } if *queue != Queue::leases() => Err(unreachable()),
            _ => call.send(&*self.0).await,
        }
    }
}

fn unreachable() -> StorageError {
    StorageError::Unavailable {
        address: "the server".to_owned(),
        reason: "the connection was lost".to_owned(),
        outcome_unknown: true,
        source: None,
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_work_timer_could_not_be_set_is_acknowledged_and_a_keeper_offers_it(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let server = {
        let engine: Arc<dyn Agenda> = Intercept::new(WithoutWork(Arc::clone(&store.backend)));
        TaskStore::with_config(engine, config(SHORT))
    };
    let task = enqueue(&server, resumable()).await;
    assert_eq!(timers(&*store, &work(Priority::Normal)).await, []);
    drop(server);
    let _keeper = tasks_on(&store, SHORT);
    until_due(&store).await;
    assert!(waits_for_a_worker(&record(&*store.backend, &task.key).await));
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_key_has_one_open_task_whether_it_was_started_or_enqueued(#[case] engine: Engine) {
    let store = engine.open().await;
    let (one, other) = (tasks_on(&store, LONG), tasks_on(&store, LONG));
    let (alice, key) = (owner("alice"), UniqueKey::new("render", "scene 7"));
    let first = match one.enqueue_unique(&alice, resumable(), &key).await.unwrap() {
        UniqueEnqueue::Enqueued(task) => task,
        UniqueEnqueue::Joined(task) => panic!("joined {task:?}"),
    };
    assert_eq!(due(&store).await.len(), 1);
    match other.enqueue_unique(&alice, resumable(), &key).await.unwrap() {
        UniqueEnqueue::Joined(task) => assert_eq!(task.key, first.key),
        UniqueEnqueue::Enqueued(task) => panic!("enqueued {task:?}"),
    }
    match other.start_unique(&alice, resumable(), &key).await.unwrap() {
        UniqueStart::Joined(task) => assert_eq!(task.key, first.key),
        UniqueStart::Started { task, .. } => panic!("started {task:?}"),
    }
    let (_, attempt) = other.claim(&first.key).await.unwrap().unwrap();
    attempt.complete(json!("done")).await.unwrap();
    let second = one.enqueue_unique(&alice, resumable(), &key).await.unwrap().into_task();
    assert_ne!(second.key, first.key);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_is_refused_claims_no_key(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, alice, key) = (tasks_on(&store, LONG), owner("alice"), UniqueKey::new("render", "scene 8"));
    let refused = [plain(), resumable().poll_interval(Duration::ZERO), resumable().traceparent("invalid")];
    for new in refused {
        let enqueued = tasks.enqueue_unique(&alice, new, &key).await;
        assert_refused!(enqueued, TaskError::InvalidArgument { .. });
    }
    assert!(store.backend.owners(None).await.unwrap().owners.is_empty());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn many_claims_of_one_enqueued_task_race_and_one_wins(#[case] engine: Engine) {
    let store = engine.open().await;
    let server = tasks_on(&store, LONG);
    let workers: Vec<_> = (0..8).map(|_| tasks_on(&store, LONG)).collect();
    for _ in 0..10 {
        let task = enqueue(&server, plain().operation("render")).await;
        let claims = workers.iter().map(|worker| worker.claim(&task.key));
        let claimed = futures_util::future::join_all(claims).await;
        assert_eq!(claimed.into_iter().filter_map(|claimed| claimed.unwrap()).count(), 1);
    }
}
