//! Operations that end with an error to retry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use mcp_task_store::{
    Agenda, MemoryBackend, OnWorkerLost, RegisteredOptions, Retry, StorageError, Task, TaskContext,
    TaskStatus,
};
use rmcp::ErrorData;
use rmcp::model::CallToolResult;
use rmcp::task_manager::{TaskExit, TaskFuture};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::intercept::{Call, Hooks, Intercept, Reply, unavailable};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};

fn options(attempts: u32) -> RegisteredOptions {
    let retry = Retry::exponential(attempts, Duration::from_millis(10), Duration::from_millis(40));
    RegisteredOptions::new().on_worker_lost(OnWorkerLost::Resume).retry(retry)
}

fn down() -> ErrorData {
    ErrorData::internal_error("the printer is down", Some(json!({ "tray": 2 })))
}

/// Registers an operation that fails in its first attempts.
fn register_failing(tasks: &Manager, failures: u32) {
    tasks.register("print", move |task: TaskContext, _| -> TaskFuture {
        Box::pin(async move {
            if task.attempt() <= failures { Err(task.retry(down())) } else { Ok(said_by(&task)) }
        })
    });
}

fn said_by(task: &TaskContext) -> CallToolResult {
    text(format!("attempt {}", task.attempt()))
}

async fn start(tasks: &Manager, options: RegisteredOptions) -> String {
    tasks.spawn_registered(&alice(), "print", Value::Null, options).await.unwrap().task_id
}

async fn record(tasks: &Manager, task_id: &str) -> Task {
    tasks.store().get(&key(task_id)).await.unwrap().task.into_task()
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_marked_error_is_retried_on_any_instance_until_the_operation_succeeds(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    register_failing(&one, 2);
    register_failing(&other, 2);
    let task_id = start(&one, options(3)).await;
    assert_eq!(said(&ended(&other, &task_id).await), "attempt 3");
    let task = record(&one, &task_id).await;
    assert_eq!((task.status_message.as_deref(), task.gave_up_after), (None, None));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_last_attempt_fails_with_the_error_of_the_operation(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    register_failing(&one, 9);
    let task_id = start(&one, options(2)).await;
    ended(&other, &task_id).await;
    let task = record(&other, &task_id).await;
    let error = task.error.as_ref().unwrap();
    assert_eq!((error.code, &*error.message), (-32603, "the printer is down"));
    assert_eq!((&error.data, task.gave_up_after), (&Some(json!({ "tray": 2 })), Some(2)));
    assert_eq!(task.status_message.as_deref(), Some("gave up after 2 attempts: the printer is down"));
}

/// How an operation ends.
type End = fn(&TaskContext) -> Result<CallToolResult, TaskExit>;

#[apply(on_every_engine)]
#[tokio::test]
async fn only_the_marked_error_itself_is_retried(#[case] engine: Engine) {
    let (_store, one, _) = open(engine, LONG).await;
    let ends: [(&str, End); 4] = [
        ("not_marked", |_| Err(down().into())),
        ("another_error", |task| {
            task.retry(down());
            Err(ErrorData::internal_error("broken", None).into())
        }),
        ("cancelled", |task| {
            task.retry(down());
            Err(TaskExit::Cancelled)
        }),
        ("succeeds", |task| {
            task.retry(down());
            Ok(said_by(task))
        }),
    ];
    let expected = [TaskStatus::Failed, TaskStatus::Failed, TaskStatus::Cancelled, TaskStatus::Completed];
    for ((name, end), expected) in ends.into_iter().zip(expected) {
        one.register(name, move |task: TaskContext, _| -> TaskFuture { Box::pin(async move { end(&task) }) });
        let spawned = one.spawn_registered(&alice(), name, Value::Null, options(3)).await;
        let task_id = spawned.unwrap().task_id;
        ended(&one, &task_id).await;
        let task = record(&one, &task_id).await;
        assert_eq!((task.status, task.gave_up_after), (expected, None), "{name}");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_panic_is_not_retried(#[case] engine: Engine) {
    let (_store, one, _) = open(engine, LONG).await;
    one.register("print", |task: TaskContext, _| -> TaskFuture {
        Box::pin(async move {
            task.retry(down());
            panic!("a defect of the operation")
        })
    });
    let task_id = start(&one, options(3)).await;
    ended(&one, &task_id).await;
    let task = record(&one, &task_id).await;
    assert_eq!((task.status, &*task.error.unwrap().message), (TaskStatus::Failed, "the operation panicked"));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_closure_that_marks_its_error_fails_at_once(#[case] engine: Engine) {
    let (_store, one, _) = open(engine, LONG).await;
    let task_id = spawn(&one, |task| async move { Err(task.retry(down())) }).await;
    ended(&one, &task_id).await;
    let task = record(&one, &task_id).await;
    assert_eq!((task.status, &*task.error.unwrap().message), (TaskStatus::Failed, "the printer is down"));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_cancel_that_was_requested_before_the_error_ends_the_task(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    one.register("print", |task: TaskContext, _| -> TaskFuture {
        Box::pin(async move {
            task.cancelled().await;
            Err(task.retry(down()))
        })
    });
    let task_id = start(&one, options(3)).await;
    other.cancel_task(&alice(), &task_id).await.unwrap();
    ended(&other, &task_id).await;
    assert_eq!(record(&other, &task_id).await.status, TaskStatus::Cancelled);
}

/// Loses the replies of writes, or fails every call.
struct Losing {
    memory: Arc<MemoryBackend>,
    /// Applies the next conditional write that gives a task back, and loses its reply. Every call fails from then on.
    loses_reply: AtomicBool,
    is_down: AtomicBool,
    refused: AtomicUsize,
}

#[async_trait]
impl Hooks for Losing {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::<MemoryBackend>::clone(&self.memory)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        if self.is_down.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(unavailable("the server is down", false));
        }
        let gives_back = matches!(&call, Call::PutIfVersion { data, .. } if String::from_utf8_lossy(data).contains("delayMs"));
        let reply = call.send(&*self.engine()).await;
        if gives_back && self.loses_reply.swap(false, Ordering::SeqCst) {
            self.is_down.store(true, Ordering::SeqCst);
            return Err(unavailable("the reply was lost", true));
        }
        reply
    }
}

#[tokio::test]
async fn a_retry_is_written_again_while_the_engine_fails_and_counts_once_whether_or_not_a_reply_was_lost() {
    for loses_reply in [true, false] {
        let losing = Intercept::new(Losing {
            memory: Arc::new(MemoryBackend::new()),
            loses_reply: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
        });
        let tasks = manager(&losing.agenda(), LONG);
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (fail, fails) = tokio::sync::watch::channel(false);
        tasks.register("print", move |task: TaskContext, _| -> TaskFuture {
            let (begun, mut fails) = (begun.clone(), fails.clone());
            Box::pin(async move {
                begun.send(task.attempt()).unwrap();
                fails.wait_for(|fails| *fails).await.unwrap();
                if task.attempt() == 1 { Err(task.retry(down())) } else { Ok(said_by(&task)) }
            })
        });
        // A second loss would end the task.
        let task_id = start(&tasks, options(2)).await;
        assert_eq!(within(begins.recv()).await, Some(1));
        match loses_reply {
            true => losing.loses_reply.store(true, Ordering::SeqCst),
            false => losing.is_down.store(true, Ordering::SeqCst),
        }
        fail.send_replace(true);
        within(async {
            while losing.refused.load(Ordering::SeqCst) < 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        losing.is_down.store(false, Ordering::SeqCst);
        assert_eq!(
            within(begins.recv()).await,
            Some(2),
            "the next attempt begins long before the lease lapses"
        );
        assert_eq!(said(&ended(&tasks, &task_id).await), "attempt 2");
        assert_eq!(record(&tasks, &task_id).await.gave_up_after, None, "the error counts once");
    }
}
