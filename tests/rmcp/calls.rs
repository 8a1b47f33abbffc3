//! A call that starts a task: which clients may make it, what it logs, and what happens when the operation panics.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::support::rmcp::*;
use crate::support::{Engine, Printed, on_every_engine, subscribe};
use mcp_task_store::{Agenda, DurableTaskManager, MemoryBackend, PageRequest, Priority, Queue, TaskError};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ErrorCode, TaskPayload,
};
use rmcp::service::ServiceError;
use rmcp::task_manager::{TaskExit, TaskFuture, TaskOptions};
use rmcp::{ClientLifecycleMode, ErrorData};
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{Instrument, Level};

// Clients

#[tokio::test]
async fn a_call_of_a_client_that_does_not_support_tasks_is_rejected_before_it_stores_or_starts_anything() {
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = manager(&backend, LONG);
    tasks.register("registered", |_, _| Box::pin(std::future::pending()));
    let closure = |_| -> TaskFuture { Box::pin(std::future::pending()) };
    let server = Responder { tasks: tasks.clone(), closure, registered: TaskOptions::new().into() };
    for lifecycle in [newest(), ClientLifecycleMode::Initialize] {
        let without = connect(server.clone(), ClientCapabilities::default(), lifecycle).await;
        for tool in ["closure", "registered"] {
            let refused = without.call_tool_once(CallToolRequestParams::new(tool)).await;
            let Err(ServiceError::McpError(error)) = refused else { panic!("{refused:?}") };
            let required = ClientCapabilities::builder().enable_tasks().build();
            assert_eq!(error, ErrorData::missing_required_client_capability(required), "the SDK's own");
            assert_eq!(error.code, ErrorCode(-32021));
        }
        without.cancel().await.unwrap();
    }
    assert_eq!(tasks.running_task_count(), 0);
    assert!(tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap().tasks.is_empty());
    for queue in [Queue::leases(), Queue::work("registered", Priority::Normal).unwrap()] {
        assert_eq!(backend.timers(&queue, None).await.unwrap().total, 0);
    }

    let with = connect(server, ClientCapabilities::builder().enable_tasks().build(), newest()).await;
    for tool in ["closure", "registered"] {
        let CallToolResponse::Task(created) =
            with.call_tool_once(CallToolRequestParams::new(tool)).await.unwrap()
        else {
            panic!("the response is not a task")
        };
        let stored = tasks.store().get(&key(&created.task.task_id)).await.unwrap();
        assert_eq!(stored.task.operation.as_deref(), Some(tool));
    }
    assert_eq!(tasks.running_task_count(), 2);
    with.cancel().await.unwrap();
}

// The log

#[tokio::test]
async fn an_operation_runs_in_a_span_of_its_task_that_is_a_child_of_the_call() {
    let printed = Printed::default();
    let _subscribed = subscribe(&printed, Level::INFO);
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let (one, other) = (manager(&backend, LONG), manager(&backend, LONG));
    let (go, wait) = oneshot::channel::<()>();
    let operation = |_| -> TaskFuture {
        tracing::info!("in the closure");
        Box::pin(async move {
            wait.await.unwrap();
            tracing::info!("in the operation");
            Ok(text("done"))
        })
    };
    let call = tracing::info_span!("call", request = 7);
    let spawned = one.spawn(&alice(), "render", TaskOptions::new(), operation).instrument(call).await;
    let closure = spawned.unwrap().task_id;
    go.send(()).unwrap();
    ended(&one, &closure).await;
    let _started = register(&one);
    let resumed = one.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap().task_id;
    within(one.shutdown()).await;
    let _started = register(&other);
    ended(&other, &resumed).await;

    let log = printed.text();
    let lines = |what: &str, task_id: &str| -> Vec<String> {
        let is_it = |line: &&str| line.ends_with(what) && line.contains(task_id);
        log.lines().filter(is_it).map(str::to_owned).collect()
    };
    for what in ["started", "in the closure", "in the operation"] {
        let lines = lines(what, &closure);
        assert_eq!(lines.len(), 1, "{what}: {log}");
        // The feature `otel` adds the kind and the name of the span.
        let span =
            format!("call{{request=7}}:task{{task={closure} owner=alice operation=\"render\" attempt=1");
        assert!(lines[0].contains(&span), "{}", lines[0]);
    }
    assert_eq!((lines("started", &resumed).len(), lines("resumed", &closure).len()), (1, 0), "{log}");
    let resumptions = lines("resumed", &resumed);
    assert_eq!(resumptions.len(), 1, "{log}");
    let span = format!("task{{task={resumed} owner=alice operation=\"wait\" attempt=2");
    assert!(resumptions[0].contains(&span), "{}", resumptions[0]);
}

#[tokio::test]
async fn the_runtime_logs_no_warning_during_an_outage_of_the_engine() {
    let printed = Printed::default();
    let _subscribed = subscribe(&printed, Level::INFO);
    let gate = Intercept::new(Gate::of(Arc::new(MemoryBackend::new())));
    let backend: Arc<dyn Agenda> = gate.agenda();
    let one = manager(&backend, SHORT);
    let _started = register(&one);
    let (finish, finished) = oneshot::channel::<()>();
    let ends = spawn(&one, |context| async move {
        finished.await.unwrap();
        context.set_status_message("nearly done");
        Ok(text("done"))
    })
    .await;
    let asks_id = spawn(&one, |context| async move {
        tokio::time::sleep(SHORT / 2).await;
        Ok(text(context.request_input("a", elicitation("A?")).await?.to_string()))
    })
    .await;
    gate.set_closed(true);
    finish.send(()).unwrap();
    tokio::time::sleep(SHORT * 3).await;
    let _ = ErrorData::from(one.get_task(&alice(), &ends).await.unwrap_err());
    gate.set_closed(false);
    assert_eq!(said(&ended(&one, &ends).await), "done");
    crate::support::rmcp::asks(&one, &asks_id).await;
    let log = printed.text();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("mcp_task_store::rmcp"))
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        // A busy machine may run a timer later than a third of this lease.
        .filter(|line| !line.contains("mcp_task_store::rmcp::renewal_delay"))
        .collect();
    assert!(lines.is_empty(), "{lines:#?}");
}

// Panics

/// The payload of a panic. Its destructor panics, too.
struct PanickingPayload;

impl Drop for PanickingPayload {
    fn drop(&mut self) {
        panic!("on purpose: the destructor of a payload panics");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Panics {
    InTheClosure,
    InTheFuture,
}

fn panic_now(drop_panics: bool) -> ! {
    if drop_panics { std::panic::panic_any(PanickingPayload) } else { panic!("on purpose") }
}

fn panicking(panics: Panics, drop_panics: bool) -> TaskFuture {
    if panics == Panics::InTheClosure {
        panic_now(drop_panics);
    }
    Box::pin(async move {
        tokio::task::yield_now().await;
        panic_now(drop_panics)
    })
}

/// Returns the id of the task whose operation panicked, from the result or from the error of the spawn.
fn panicked<T: std::fmt::Debug>(
    panics: Panics,
    spawned: Result<T, TaskError>,
    task_id: fn(T) -> String,
) -> String {
    match (panics, spawned) {
        (Panics::InTheFuture, Ok(task)) => task_id(task),
        (Panics::InTheClosure, Err(error @ TaskError::OperationPanicked { .. })) => {
            assert_eq!((error.code(), error.is_retryable()), (-32603, false));
            let TaskError::OperationPanicked { task } = error else { unreachable!() };
            task.as_str().to_owned()
        }
        other => panic!("{other:?}"),
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_panic_of_an_operation_fails_its_task_at_once_even_if_dropping_the_panic_payload_panics(
    #[case] engine: Engine,
    #[values(Panics::InTheClosure, Panics::InTheFuture)] panics: Panics,
    #[values(false, true)] drop_panics: bool,
) {
    let (_store, one, other) = open(engine, LONG).await;
    for manager in [&one, &other] {
        manager.register("panic", move |_, _| panicking(panics, drop_panics));
    }
    let spawned =
        one.spawn(&alice(), "test", TaskOptions::new(), move |_| panicking(panics, drop_panics)).await;
    let closure = panicked(panics, spawned, |task| task.task_id);
    let spawned = one.spawn_registered(&alice(), "panic", Value::Null, resume()).await;
    let registered = panicked(panics, spawned, |task| task.task_id);

    // A third instance starts the task and releases it. The operation panics on the instance that claims it.
    let third = DurableTaskManager::new(other.store().clone());
    third.register("panic", |_, _| Box::pin(std::future::pending()));
    let claimed = third.spawn_registered(&alice(), "panic", Value::Null, resume()).await.unwrap().task_id;
    within(third.shutdown()).await;

    for task_id in [closure, registered, claimed] {
        let TaskPayload::Failed { error } = ended(&other, &task_id).await else {
            panic!("the task has not failed")
        };
        assert_eq!(Value::from(error), json!({ "code": -32603, "message": "the operation panicked" }));
    }
    until(|| one.running_task_count() == 0 && other.running_task_count() == 0).await;
    // The process continues.
    let after = spawn(&one, |_| async { Ok(text("still here")) }).await;
    assert_eq!(said(&ended(&other, &after).await), "still here");
}

/// An operation whose destructor panics.
struct PanicsOnDrop {
    ends: bool,
}

impl Future for PanicsOnDrop {
    type Output = Result<CallToolResult, TaskExit>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.ends { Poll::Ready(Ok(text("done"))) } else { Poll::Pending }
    }
}

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        std::panic::panic_any(PanickingPayload);
    }
}

#[tokio::test]
async fn an_operation_whose_destructor_panics_loses_neither_its_outcome_nor_its_release() {
    let (_store, one, other) = open(Engine::Memory, LONG).await;
    one.register("panics_on_drop", |_, ends| Box::pin(PanicsOnDrop { ends: ends == true }));
    let done = one.spawn_registered(&alice(), "panics_on_drop", json!(true), resume()).await.unwrap().task_id;
    assert_eq!(said(&ended(&one, &done).await), "done");
    let released =
        one.spawn_registered(&alice(), "panics_on_drop", json!(false), resume()).await.unwrap().task_id;
    within(one.shutdown()).await;
    let lease = other.store().get(&key(&released)).await.unwrap().task.lease.clone().unwrap();
    assert_eq!((lease.holder, lease.losses), (None, 0), "the lease was released");
    other.register("panics_on_drop", |context, _| {
        Box::pin(async move { Ok(text(format!("attempt {}", context.attempt()))) })
    });
    assert_eq!(said(&ended(&other, &released).await), "attempt 2");
}
