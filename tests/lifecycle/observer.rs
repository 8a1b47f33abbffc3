//! A store that is an observer: it takes no timers, and its reads write nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use mcp_task_store::{
    Agenda, OnWorkerLost, PageRequest, RpcError, StorageError, StoreConfig, TaskFilter, TaskStatus, TaskStore,
};
use rstest_reuse::apply;

use crate::common::{LONG, SHORT, plain, record, until};
use crate::support::elsewhere::elsewhere;
use crate::support::intercept::{Call, Hooks, Intercept, Reply};
use crate::support::{Engine, in_a_process_that_dies, on_every_engine, owner};

/// Records every call that changes something in the engine.
struct Changes {
    engine: Arc<dyn Agenda>,
    seen: Mutex<Vec<Call>>,
}

impl Changes {
    fn new(engine: &Arc<dyn Agenda>) -> Arc<Intercept<Self>> {
        Intercept::new(Self { engine: Arc::clone(engine), seen: Mutex::default() })
    }

    fn seen(&self) -> Vec<Call> {
        self.seen.lock().unwrap().clone()
    }
}

#[async_trait]
impl Hooks for Changes {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        let changes = call.is_write()
            || matches!(
                call,
                Call::Schedule { .. } | Call::TakeDue { .. } | Call::Resolve { .. } | Call::CleanupExpired
            );
        if changes {
            self.seen.lock().unwrap().push(call.clone());
        }
        call.send(&*self.engine).await
    }
}

fn config() -> StoreConfig {
    StoreConfig::new().lease(SHORT).retention(LONG)
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_observer_reads_lost_and_overdue_tasks_without_a_change_of_the_engine(#[case] engine: Engine) {
    let store = engine.open().await;
    let agenda = elsewhere(&store.backend);
    let (lost, overdue) = in_a_process_that_dies(async move {
        let tasks = TaskStore::with_config(agenda, config().observer(true));
        let (lost, attempt) = tasks.start(&owner("alice"), plain()).await.unwrap();
        std::mem::forget(attempt);
        let overdue = plain().ttl(Duration::from_millis(20));
        (lost, tasks.create(&owner("alice"), overdue).await.unwrap())
    })
    .await;
    store.until(lost.task.lease.as_ref().unwrap().deadline + SHORT).await;
    store.until(overdue.task.deadline().unwrap()).await;

    let changes = Changes::new(&store.backend);
    let observer = TaskStore::with_config(changes.agenda(), config().observer(true));
    assert_eq!(observer.get(&lost.key).await.unwrap().task.status, TaskStatus::Working);
    let read = observer.get(&overdue.key).await.unwrap();
    assert_eq!(
        (read.task.status, read.task.status_message.as_deref()),
        (TaskStatus::Failed, Some("TTL elapsed"))
    );
    let page = observer.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    assert_eq!(page.tasks.iter().filter(|stored| stored.task.status == TaskStatus::Failed).count(), 1);
    let mut scan = observer.scan(TaskFilter::new().status(TaskStatus::Failed));
    let mut found = Vec::new();
    while let Some(page) = scan.next_page().await.unwrap() {
        found.extend(page.tasks.into_iter().map(|stored| stored.key));
    }
    assert_eq!(found, std::slice::from_ref(&overdue.key));
    assert_eq!(observer.wait(&overdue.key).await.unwrap().task.status, TaskStatus::Failed);
    let refused = observer.cancel(&overdue.key).await;
    refused.expect_err("the TTL of the task has elapsed");
    assert_eq!(record(&*store, &overdue.key).await, *overdue.task, "the record is as it was");
    assert!(changes.seen().is_empty(), "{:?}", changes.seen());

    // A server does what the observer leaves to it.
    let server = TaskStore::with_config(changes.agenda(), config());
    server.get(&overdue.key).await.unwrap();
    let ended = until(&*store, &overdue.key, |task| task.status == TaskStatus::Failed).await;
    assert_eq!(ended.status_message.as_deref(), Some("TTL elapsed"));
    until(&*store, &lost.key, |task| task.status == TaskStatus::Failed).await;
    assert!(changes.seen().iter().any(|call| matches!(call, Call::TakeDue { .. })));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_observer_cancels_requeues_and_deletes(#[case] engine: Engine) {
    let store = engine.open().await;
    let observer = TaskStore::with_config(Arc::clone(&store.backend), config().observer(true));
    let server = TaskStore::with_config(elsewhere(&store.backend), config().lease(LONG));
    let new = plain().operation("render").on_worker_lost(OnWorkerLost::Resume);
    let (at_work, _attempt) = server.start(&owner("alice"), new.clone()).await.unwrap();
    assert!(observer.request_cancel(&at_work.key).await.unwrap().task.cancel_requested);
    assert_eq!(observer.cancel(&at_work.key).await.unwrap().task.status, TaskStatus::Cancelled);
    let (failing, attempt) = server.start(&owner("alice"), new.max_attempts(1)).await.unwrap();
    attempt.retry(RpcError::new(-32000, "no paper")).await.unwrap();
    let requeued = observer.requeue(&failing.key).await.unwrap();
    assert!(server.claim(&requeued.key).await.unwrap().is_some(), "a worker finds the new task");
    observer.delete(&failing.key).await.unwrap();
    observer.get(&failing.key).await.expect_err("the task was deleted");
}
