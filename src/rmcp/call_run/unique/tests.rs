//! Unique calls of several managers on one engine.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rmcp::model::{CallToolResult, ContentBlock};
use rmcp::task_manager::TaskFuture;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::Span;

use super::*;
use crate::MemoryBackend;
use crate::rmcp::context::TaskContext;
use crate::rmcp::stage::StopRequest;
use crate::store::{StoreConfig, TaskStore};
use crate::task::{StoredTask, TaskStatus};

type Manager = DurableTaskManager<MemoryBackend>;

const HOUR: Duration = Duration::from_secs(3600);
const LIMITS: CallLimits =
    CallLimits { answer_within: Duration::ZERO, hold_for: HOUR, drain: Duration::from_secs(1) };

fn manager(engine: &MemoryBackend) -> Manager {
    let store = TaskStore::with_config(engine.clone(), StoreConfig::new().lease(HOUR));
    DurableTaskManager::new(store)
}

fn alice() -> OwnerId {
    OwnerId::try_from("alice").unwrap()
}

/// The operation of a call with a key.
struct Unique<F>(F);

impl<F: FnOnce(TaskContext) -> TaskFuture> CallOperation for Unique<F> {
    fn key(&self) -> Option<&UniqueKey> {
        static KEY: LazyLock<UniqueKey> = LazyLock::new(|| UniqueKey::new("render", "scene 7"));
        Some(&KEY)
    }

    fn start(self, context: TaskContext) -> TaskFuture {
        (self.0)(context)
    }
}

/// An operation that counts its runs, and waits for the test.
#[derive(Clone)]
struct Operation {
    begun: Arc<AtomicUsize>,
    may_end: Arc<Semaphore>,
}

impl Operation {
    fn new() -> Self {
        Self { begun: Arc::default(), may_end: Arc::new(Semaphore::new(0)) }
    }

    fn begin(&self) -> impl FnOnce(TaskContext) -> TaskFuture + use<> {
        let Self { begun, may_end } = self.clone();
        move |_| {
            Box::pin(async move {
                begun.fetch_add(1, Ordering::SeqCst);
                may_end.acquire().await.unwrap().forget();
                Ok(CallToolResult::success(vec![ContentBlock::text("rendered")]))
            })
        }
    }

    async fn call(&self, manager: &Manager) -> Result<CallAnswer, TaskError> {
        let new = NewTask::new("tools/call").operation("render");
        manager.call(Span::current(), &alice(), new, LIMITS, StopRequest::new().1, Unique(self.begin())).await
    }
}

#[track_caller]
fn stored(answer: Result<CallAnswer, TaskError>) -> Arc<StoredTask> {
    match answer {
        Ok(CallAnswer::Stored(stored)) => stored,
        Ok(CallAnswer::Ended(_)) => panic!("the task was not stored"),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_calls_at_two_instances_one_runs_and_all_receive_its_task() {
    let engine = MemoryBackend::new();
    let (one, other) = (manager(&engine), manager(&engine));
    for round in 1..=3 {
        let operation = Operation::new();
        let calls = (0..16).map(|number| operation.call(if number % 2 == 0 { &one } else { &other }));
        let tasks: Vec<_> = join_all(calls).await.into_iter().map(stored).collect();
        assert!(tasks.iter().all(|task| task.key == tasks[0].key), "round {round}");
        assert_eq!(one.running_task_count() + other.running_task_count(), 1);
        operation.may_end.add_permits(16);
        let ended = timeout(HOUR, other.store().wait(&tasks[0].key)).await.unwrap().unwrap();
        assert_eq!(ended.task.status, TaskStatus::Completed);
        assert_eq!(operation.begun.load(Ordering::SeqCst), 1, "round {round}");
        for manager in [&one, &other] {
            manager.runtime().runs.is_zero().await;
        }
    }
}

#[tokio::test]
async fn a_shutdown_ends_the_run_of_a_unique_call_and_refuses_new_ones() {
    let engine = MemoryBackend::new();
    let (one, other) = (manager(&engine), manager(&engine));
    let operation = Operation::new();
    let task = stored(operation.call(&one).await);
    one.shutdown().await;
    assert_eq!(one.running_task_count(), 0);
    assert!(matches!(operation.call(&one).await, Err(TaskError::ShuttingDown)));
    let failed = other.store().get(&task.key).await.unwrap();
    assert_eq!(failed.task.status, TaskStatus::Failed, "the task cannot resume");
    let again = stored(operation.call(&other).await);
    assert_ne!(again.key, task.key);
}

#[tokio::test]
async fn a_closure_that_panics_fails_its_task_and_frees_the_key() {
    let tasks = manager(&MemoryBackend::new());
    let new = NewTask::new("tools/call");
    let panicking = |_| -> TaskFuture { panic!("no future") };
    let panicked = tasks
        .call(Span::current(), &alice(), new.clone(), LIMITS, StopRequest::new().1, Unique(panicking))
        .await;
    let Err(TaskError::OperationPanicked { task }) = panicked else { panic!("the closure has panicked") };
    tasks.runtime().runs.is_zero().await;
    let again = stored(Operation::new().call(&tasks).await);
    assert_ne!(again.key.task, task);
    let reserved = OwnerId::try_from("\0mcp/alice").unwrap();
    let refused = tasks
        .call(Span::current(), &reserved, new, LIMITS, StopRequest::new().1, Unique(Operation::new().begin()))
        .await;
    assert!(matches!(refused, Err(TaskError::InvalidArgument { .. })));
}
