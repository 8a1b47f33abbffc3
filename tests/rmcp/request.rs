//! What a task keeps of the request that started it.

use std::sync::Arc;

use crate::support::elsewhere::elsewhere;
use crate::support::rmcp::*;
use crate::support::{Engine, Printed, on_every_engine, subscribe};
use mcp_task_store::{Agenda, DurableTaskManager, ManagerConfig, StoreConfig, TaskContext, TaskStore};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientCapabilities, ClientConfig, JsonObject, RequestMetaObject,
};
use rmcp::service::{RequestContext, RunningService};
use rmcp::task_manager::{TaskExit, TaskFuture};
use rmcp::{RoleClient, RoleServer};
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::Level;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

/// What an operation knows of the request that started its task.
fn kept(task: &TaskContext) -> Value {
    json!([task.owner(), task.extensions(), task.traceparent()])
}

fn responder(manager: &Manager) -> Responder {
    let closure = |task| -> TaskFuture { Box::pin(async move { Ok(text(kept(&task).to_string())) }) };
    Responder { tasks: manager.clone(), closure, registered: resume() }
}

/// Registers an operation that reports what it knows of its request. The first attempt waits.
fn register_kept(manager: &Manager) -> mpsc::UnboundedReceiver<Value> {
    let (send, reports) = mpsc::unbounded_channel();
    manager.register("kept", move |task, _| {
        let send = send.clone();
        Box::pin(async move {
            send.send(kept(&task)).unwrap();
            if task.attempt() > 1 {
                return Ok(text("done"));
            }
            task.cancelled().await;
            Err(TaskExit::Cancelled)
        })
    });
    reports
}

fn keeping(store: TaskStore<Arc<dyn Agenda>>) -> Manager {
    let find = |request: &RequestContext<RoleServer>| {
        let client = request.client_info().map(|client| ("client".to_owned(), client.name.into()));
        JsonObject::from_iter(client)
    };
    DurableTaskManager::with_config(store, ManagerConfig::new().extensions(find))
}

async fn call(
    client: &RunningService<RoleClient, ClientConfig>,
    tool: &'static str,
    traceparent: Option<&str>,
) -> String {
    let mut call = CallToolRequestParams::new(tool);
    let mut meta = RequestMetaObject::new();
    if let Some(traceparent) = traceparent {
        meta.set_traceparent(traceparent);
    }
    call.meta = Some(meta);
    match client.call_tool_once(call).await.unwrap() {
        CallToolResponse::Task(created) => created.task.task_id,
        other => panic!("{other:?}"),
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn every_attempt_on_every_instance_knows_the_extensions_and_the_trace_of_the_request(
    #[case] engine: Engine,
) {
    let printed = Printed::default();
    let _subscribed = subscribe(&printed, Level::INFO);
    let store = engine.open().await;
    let config = StoreConfig::new().lease(LONG).retention(LONG);
    let one = keeping(TaskStore::with_config(elsewhere(&store.backend), config));
    let other = manager(&store.backend, LONG);
    let mut first = register_kept(&one);
    let tasks = ClientCapabilities::builder().enable_tasks().build();
    let client = connect(responder(&one), tasks, newest()).await;
    let task_id = call(&client, "kept", Some(TRACEPARENT)).await;
    let expected = json!(["alice", { "client": "test" }, TRACEPARENT]);
    assert_eq!(within(first.recv()).await.unwrap(), expected);
    let closure = call(&client, "closure", Some(TRACEPARENT)).await;
    assert_eq!(said(&ended(&other, &closure).await), expected.to_string());

    within(one.shutdown()).await;
    let mut second = register_kept(&other);
    assert_eq!(within(second.recv()).await.unwrap(), expected);
    assert_eq!(said(&ended(&other, &task_id).await), "done");
    let log = printed.text();
    for begun in ["started", "resumed"] {
        let line = log.lines().find(|line| line.ends_with(begun) && line.contains(&task_id)).unwrap();
        assert!(line.contains(&format!("traceparent=\"{TRACEPARENT}\"")), "{line}");
    }
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_task_keeps_nothing_of_a_request_by_default_and_no_malformed_traceparent() {
    let store = Engine::Memory.open().await;
    let one = manager(&store.backend, LONG);
    let tasks = ClientCapabilities::builder().enable_tasks().build();
    let client = connect(responder(&one), tasks, newest()).await;
    for traceparent in [None, Some("00-1-2-01"), Some("x\" owner=\"mallory")] {
        let task_id = call(&client, "closure", traceparent).await;
        assert_eq!(said(&ended(&one, &task_id).await), json!(["alice", {}, null]).to_string());
        let record = store.get(&key(&task_id)).await.unwrap().data;
        let record: Value = serde_json::from_slice(&record).unwrap();
        assert_eq!((&record["extensions"], &record["traceparent"]), (&Value::Null, &Value::Null));
    }
    client.cancel().await.unwrap();
}
