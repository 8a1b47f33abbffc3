//! Parents, links and errors of the spans of one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use mcp_task_store::{
    Agenda, Expiry, NewTask, OwnerSource, PutOptions, StorageError, TaskContext, TaskServer,
    TaskServerConfig, TaskStore, TaskTools,
};
use opentelemetry::trace::{SpanId, SpanKind};
use rmcp::ErrorData;
use rmcp::model::{CallToolResult, EmptyObject};
use rmcp::task_manager::{TaskExit, TaskFuture};
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, info_span};

use super::recorder::{Recorder, error, id, links};
use super::{TRACE, TRACEPARENT};
use crate::support::intercept::{Call, Hooks, Reply};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};
use crate::task_server::raw::{Kind, RawClient};
use crate::task_server::{Router, until_cancelled};

/// Registers an operation whose first attempt waits until it must stop. Later ones complete.
fn register_with(tasks: &Manager) {
    tasks.register("render", |context: TaskContext, _: Value| -> TaskFuture {
        Box::pin(async move {
            if context.attempt() == 1 {
                context.cancelled().await;
            }
            Ok(text("rendered"))
        })
    });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_without_a_traceparent_continues_the_trace_of_the_current_span(#[case] engine: Engine) {
    let recorder = Recorder::start(LevelFilter::INFO);
    let store = engine.open().await;
    let tasks = manager(&store.backend, LONG);
    tasks.register("render", |_: TaskContext, _: Value| -> TaskFuture { Box::pin(async { Ok(text("")) }) });
    let request = info_span!("request");
    let task = tasks.enqueue(&alice(), "render", Value::Null, resume()).instrument(request.clone()).await;
    let task = task.unwrap().task_id;
    drop(request);
    ended(&tasks, &task).await;
    tasks.shutdown().await;

    let (request, enqueue) = (recorder.one("request"), recorder.one("enqueue render"));
    let attempt = recorder.one("process render");
    assert_eq!((enqueue.span_kind.clone(), enqueue.parent_span_id), (SpanKind::Producer, id(&request)));
    assert_eq!((attempt.span_kind.clone(), attempt.parent_span_id), (SpanKind::Consumer, id(&enqueue)));
    assert!(attempt.parent_span_is_remote);
    assert_eq!(links(&attempt), []);
    assert_eq!((error(&enqueue), error(&attempt)), (None, None));
    let stored = TaskStore::new(store.backend.clone()).get(&key(&task)).await.unwrap();
    let traceparent = format!("00-{}-{}-01", request.span_context.trace_id(), id(&enqueue));
    assert_eq!(stored.task.traceparent, Some(traceparent));
    // A subscriber at info level receives no calls of the engine.
    assert!(recorder.spans().iter().all(|span| span.span_kind != SpanKind::Client));
}

#[tokio::test]
async fn a_task_keeps_a_traceparent_of_another_trace_and_refuses_an_invalid_one() {
    let recorder = Recorder::start(LevelFilter::INFO);
    let store = TaskStore::new(Engine::Memory.open().await.backend.clone());
    let new = || NewTask::new("tools/call").operation("render");
    let enqueue = async {
        let stored = store.enqueue(&alice(), new().traceparent(TRACEPARENT)).await.unwrap();
        store.enqueue(&alice(), new().traceparent("00-1-2-01")).await.unwrap_err();
        store.create(&alice(), new().traceparent("00-1-2-01")).await.unwrap_err();
        let created = store.create(&alice(), new().traceparent(TRACEPARENT)).await.unwrap();
        [stored, created].map(|stored| stored.task.traceparent.clone().unwrap())
    };
    let [enqueued, created] = enqueue.instrument(info_span!("elsewhere")).await;
    let enqueue = &recorder.named("enqueue render")[0];
    assert_eq!(enqueued, format!("00-{TRACE}-{}-01", id(enqueue)));
    assert_eq!(created, TRACEPARENT);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_attempt_links_to_the_one_that_was_released_before_it(#[case] engine: Engine) {
    let recorder = Recorder::start(LevelFilter::INFO);
    let (_store, one, other) = open(engine, LONG).await;
    register_with(&one);
    let request = info_span!("request");
    let spawn = async { one.spawn_registered(&alice(), "render", Value::Null, resume()).await };
    let task = spawn.instrument(request.clone()).await.unwrap().task_id;
    one.shutdown().await;
    drop(request);
    register_with(&other);
    ended(&other, &task).await;
    other.shutdown().await;

    let request = recorder.one("request");
    let attempts = recorder.named("process render");
    let [first, second] = &attempts[..] else { panic!("{attempts:#?}") };
    assert_eq!([first.parent_span_id, second.parent_span_id], [id(&request), id(&request)]);
    assert_eq!(links(first), []);
    assert_eq!(links(second), [id(first), id(&request)]);
}

async fn fails(_: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    Err(ErrorData::invalid_params("the-secret-of-the-tool", None).into())
}

async fn says_that_it_fails(_: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    Ok(CallToolResult::error(text("the-secret-of-the-tool").content))
}

async fn succeeds(_: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    Ok(text("done"))
}

async fn panics(_: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    panic!("an operation of a test panics")
}

/// Serves a client that answers within this time.
async fn client(answer_within: Duration) -> RawClient {
    let tools = TaskTools::new()
        .tool("fails", "Fails", fails)
        .tool("says", "Says that it fails", says_that_it_fails)
        .tool("succeeds", "Succeeds", succeeds)
        .tool("panics", "Panics", panics)
        .tool("waits", "Waits", until_cancelled::<EmptyObject>);
    let store = Engine::Memory.open().await;
    let config = TaskServerConfig::new().answer_within(answer_within);
    let owner = OwnerSource::fixed(alice());
    let server =
        TaskServer::with_config(Router, manager(&store.backend, LONG), owner, tools, config).unwrap();
    RawClient::connect(server, Kind::Tasks).await
}

#[rstest]
#[case::success("succeeds", None, None)]
#[case::error("fails", Some("-32602"), Some("-32602"))]
#[case::error_as_a_result("says", Some("tool_error"), Some("tool_error"))]
#[case::panic("panics", Some("-32603"), Some("panic"))]
#[tokio::test]
async fn the_spans_of_a_call_and_of_its_attempt_say_whether_they_failed(
    #[case] tool: &str,
    #[case] of_call: Option<&str>,
    #[case] of_attempt: Option<&str>,
) {
    let recorder = Recorder::start(LevelFilter::INFO);
    let mut client = client(LONG).await;
    client.call(tool, json!({})).await;
    until(|| recorder.spans().len() >= 2).await;
    let (call, attempt) =
        (recorder.one(&format!("tools/call {tool}")), recorder.one(&format!("process {tool}")));
    assert_eq!((call.span_kind.clone(), call.parent_span_id), (SpanKind::Server, SpanId::INVALID));
    assert_eq!(attempt.parent_span_id, id(&call));
    assert_eq!(error(&call).as_deref(), of_call);
    assert_eq!(error(&attempt).as_deref(), of_attempt);
    assert!(!format!("{call:?}{:?}", attempt.attributes).contains("the-secret-of-the-tool"));
}

#[tokio::test]
async fn the_span_of_a_call_ends_with_the_call_although_its_operation_goes_on() {
    let recorder = Recorder::start(LevelFilter::INFO);
    let mut client = client(Duration::ZERO).await;
    let called = client.call("waits", json!({})).await;
    assert_eq!(called["result"]["resultType"], "task", "{called}");
    let call = recorder.one("tools/call waits");
    assert_eq!(recorder.named("process waits").len(), 0);
    let task = called["result"]["taskId"].as_str().unwrap();
    client.request("tasks/cancel", json!({ "taskId": task })).await;
    until(|| !recorder.named("process waits").is_empty()).await;
    assert_eq!(recorder.one("process waits").parent_span_id, id(&call));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_that_does_not_exist_is_no_error_of_the_engine(#[case] engine: Engine) {
    let recorder = Recorder::start(LevelFilter::DEBUG);
    let store = engine.open().await;
    let missing = async { store.get(&key("missing")).await };
    let missing = missing.instrument(info_span!("request")).await;
    assert!(matches!(missing, Err(StorageError::NotFound { .. })));
    let request = recorder.one("request");
    let calls: Vec<_> = recorder
        .spans()
        .into_iter()
        .filter(|span| span.parent_span_id == id(&request))
        .inspect(|span| assert_eq!((span.span_kind.clone(), error(span)), (SpanKind::Client, None)))
        .collect();
    // The memory of the process is no database.
    let expected = if matches!(engine, Engine::Memory) { 0 } else { 1 };
    assert_eq!(calls.len(), expected, "{calls:#?}");
}

#[tokio::test]
async fn a_call_that_no_server_answers_is_an_error_of_the_engine() {
    let mut server = crate::support::redis::Server::start(&[]);
    let backend = mcp_task_store::RedisBackend::connect(&server.url()).await.unwrap();
    server.kill();
    let recorder = Recorder::start(LevelFilter::DEBUG);
    let get = mcp_task_store::StorageBackend::get(&backend, &key("missing")).await;
    assert!(matches!(get, Err(StorageError::Unavailable { .. })), "{get:?}");
    let get = recorder.one(&format!("get 127.0.0.1:{}", server.port));
    assert_eq!(error(&get).as_deref(), Some("unavailable"));
}

#[tokio::test]
async fn the_background_tasks_have_traces_of_their_own_and_end_the_span_of_each_round() {
    let recorder = Recorder::start(LevelFilter::DEBUG);
    let request = info_span!("request");
    let begin = async {
        let tasks = manager(&Engine::Memory.open().await.backend, LONG);
        tasks.register("render", |_: TaskContext, _: Value| -> TaskFuture {
            Box::pin(async { Ok(text("")) })
        });
        let task = tasks.enqueue(&alice(), "render", Value::Null, resume()).await.unwrap().task_id;
        ended(&tasks, &task).await;
        tasks
    };
    let _tasks = begin.instrument(request.clone()).await;
    drop(request);
    let has_ended = |name| !recorder.named(name).is_empty();
    until(|| ["request", "work", "keeper"].into_iter().all(has_ended)).await;
    for round in ["work", "keeper"].map(|name| recorder.named(name)).concat() {
        assert_eq!(round.parent_span_id, SpanId::INVALID, "{round:?}");
    }
}

/// An engine on which another process writes the record between the next read and the next write.
struct Forestalled {
    memory: Arc<dyn Agenda>,
    is_armed: AtomicBool,
}

#[async_trait]
impl Hooks for Forestalled {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.memory)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        if let Call::PutIfVersion { key, expected, .. } = &call
            && self.is_armed.swap(false, Ordering::AcqRel)
        {
            let record = self.memory.get(key).await?;
            self.memory.put_if_version(key, record.data, PutOptions::new(Expiry::Keep), *expected).await?;
        }
        call.send(&*self.memory).await
    }
}

#[tokio::test]
async fn a_claim_that_another_process_forestalls_is_no_attempt() {
    let recorder = Recorder::start(LevelFilter::INFO);
    let memory = Engine::Memory.open().await.backend.clone();
    let engine = Intercept::new(Forestalled { memory, is_armed: AtomicBool::new(false) });
    let tasks = manager(&engine.agenda(), LONG);
    let task = tasks.enqueue(&alice(), "render", Value::Null, resume()).await.unwrap().task_id;
    engine.is_armed.store(true, Ordering::Release);
    tasks.register("render", |_: TaskContext, _: Value| -> TaskFuture { Box::pin(async { Ok(text("")) }) });
    ended(&tasks, &task).await;
    tasks.shutdown().await;
    let (claim, attempt) = (recorder.one("claim"), recorder.one("process render"));
    assert_eq!(claim.parent_span_id, attempt.parent_span_id);
}
