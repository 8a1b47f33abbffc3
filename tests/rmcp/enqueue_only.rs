//! What clients see of a server that only enqueues, while a worker in another process runs the operations.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, DurableTaskManager, ManagerConfig, MemoryBackend, OwnerSource, PageRequest, StoreConfig,
    TaskContext, TaskError, TaskServer, TaskServerConfig, TaskStore, TaskTools, Worker,
};
use rmcp::RoleServer;
use rmcp::model::{CallToolResult, EmptyObject, JsonObject};
use rmcp::service::RequestContext;
use rmcp::task_manager::TaskExit;
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::json;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::support::elsewhere::elsewhere;
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};
use crate::task_server::raw::{Kind, RawClient};
use crate::task_server::{Router, Server, until_cancelled};

/// Asks the user, and says what the user has done.
async fn ask(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    let answer = task.request_input("confirm", elicitation("Publish?")).await?;
    Ok(text(answer["action"].as_str().unwrap()))
}

/// Reports ten frames, one a second.
async fn render(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    for frame in 1..=10 {
        task.progress(frame, 10, format!("frame {frame}"));
        sleep(Duration::from_secs(1)).await;
    }
    Ok(text("rendered"))
}

/// Says what the task has kept of the request.
async fn kept(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    Ok(text(json!([task.owner(), task.extensions(), task.traceparent()]).to_string()))
}

fn tools() -> TaskTools {
    TaskTools::new()
        .tool("kept", "Says what it knows", kept)
        .tool("ask", "Asks", ask)
        .tool("render", "Renders", render)
        .tool("waits", "Waits", until_cancelled::<EmptyObject>)
        .cancel_with_request()
        .tool("tasks_only", "Waits", until_cancelled::<EmptyObject>)
        .required()
}

/// Returns a server that holds its calls for an hour.
fn server(tasks: &Manager) -> Server<Router> {
    let config = TaskServerConfig::new()
        .enqueue_only()
        .answer_within(LONG)
        .hold_for(LONG)
        .hold_for_with_progress(LONG)
        .drain(Duration::from_secs(3));
    TaskServer::with_config(Router, tasks.clone(), OwnerSource::fixed(alice()), tools(), config).unwrap()
}

/// Runs the tools as a worker of another process until the test ends.
struct OtherProcess(AbortHandle);

impl OtherProcess {
    fn start(engine: &Arc<dyn Agenda>) -> Self {
        let config = StoreConfig::new().lease(LONG).retention(LONG);
        let worker = Worker::new(TaskStore::with_config(elsewhere(engine), config)).operations(tools());
        Self(tokio::spawn(worker.run_until(std::future::pending())).abort_handle())
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn in_memory() -> Arc<dyn Agenda> {
    Arc::new(MemoryBackend::new())
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_question_of_the_worker_reaches_a_client_without_tasks(#[case] engine: Engine) {
    let opened = engine.open().await;
    let tasks = manager(&opened.backend, LONG);
    let _worker = OtherProcess::start(&opened.backend);

    let mut plain =
        RawClient::connect_with(server(&tasks), Kind::Plain, json!({ "elicitation": { "form": {} } })).await;
    let asked = within(plain.call("ask", json!({}))).await;
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    let repeated = json!({
        "name": "ask",
        "arguments": {},
        "requestState": asked["result"]["requestState"],
        "inputResponses": { "confirm": { "action": "accept" } },
    });
    let response = within(plain.request("tools/call", repeated)).await;
    assert_eq!(response["result"]["content"][0]["text"], "accept", "{response}");

    let mut old =
        RawClient::connect_with(server(&tasks), Kind::Old, json!({ "elicitation": { "form": {} } })).await;
    let call = old.begin("tools/call", json!({ "name": "ask", "arguments": {} })).await;
    let asked = within(old.read()).await;
    assert_eq!(asked["method"], "elicitation/create", "{asked}");
    old.send(json!({ "jsonrpc": "2.0", "id": asked["id"], "result": { "action": "decline" } })).await;
    let response = within(old.response(call)).await;
    assert_eq!(response["result"]["content"][0]["text"], "decline", "{response}");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn the_progress_of_the_worker_reaches_the_client_of_a_held_call(
    #[values(Kind::Plain, Kind::Old)] kind: Kind,
) {
    let engine = in_memory();
    let tasks = manager(&engine, LONG);
    let _worker = OtherProcess::start(&engine);
    let mut client = RawClient::connect(server(&tasks), kind).await;
    let call = json!({ "name": "render", "arguments": {}, "_meta": { "progressToken": "p1" } });
    let call = client.begin("tools/call", call).await;
    let response = client.response(call).await;
    assert_eq!(response["result"]["content"][0]["text"], "rendered", "{response}");
    let said: Vec<_> = client.messages.iter().map(|sent| &sent["params"]["message"]).collect();
    assert!(said.iter().any(|message| message.as_str() == Some("frame 5")), "{said:?}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_cancelled_call_cancels_its_operation_in_the_worker_or_its_task_that_waits(
    #[case] engine: Engine,
    #[values(true, false)] has_worker: bool,
) {
    let opened = engine.open().await;
    let tasks = manager(&opened.backend, LONG);
    let _worker = has_worker.then(|| OtherProcess::start(&opened.backend));
    let mut client = RawClient::connect(server(&tasks), Kind::Plain).await;
    let call = client.begin("tools/call", json!({ "name": "waits", "arguments": {} })).await;
    let stored = async {
        loop {
            let page = tasks.store().list(&alice(), PageRequest::new(1)).await.unwrap();
            if let Some(stored) = page.tasks.into_iter().next()
                && stored.task.lease.as_ref().is_some_and(|lease| lease.holder.is_some() == has_worker)
            {
                return stored;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let stored = within(stored).await;
    client
        .send(
            json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": call } }),
        )
        .await;
    let ended = within(tasks.store().wait(&stored.key)).await.unwrap();
    assert_eq!(ended.task.status, mcp_task_store::TaskStatus::Cancelled);
}

#[tokio::test]
async fn a_companion_lists_and_cancels_a_task_that_no_worker_has_claimed() {
    let tasks = manager(&in_memory(), LONG);
    let config =
        TaskServerConfig::new().enqueue_only().hold_for(Duration::ZERO).answer_within(Duration::ZERO);
    let owners = OwnerSource::fixed(alice());
    let server = TaskServer::with_config(Router, tasks.clone(), owners, tools(), config).unwrap();
    let mut client = RawClient::connect(server, Kind::Plain).await;
    let response = within(client.call("render", json!({}))).await;
    let id = response["result"]["structuredContent"]["taskId"].clone();
    assert_eq!(response["result"]["structuredContent"]["status"], "working", "{response}");
    let listed = within(client.call("task_list", json!({}))).await;
    assert!(listed["result"].to_string().contains(id.as_str().unwrap()), "{listed}");
    let response = within(client.call("task_cancel", json!({ "taskId": id }))).await;
    assert_eq!(response["result"]["structuredContent"]["status"], "cancelled", "{response}");
}

#[tokio::test]
async fn a_tool_that_requires_tasks_stores_nothing_for_a_client_without() {
    let tasks = manager(&in_memory(), LONG);
    let mut client = RawClient::connect(server(&tasks), Kind::Plain).await;
    let response = within(client.call("tasks_only", json!({}))).await;
    assert!(response["error"]["code"].is_number(), "{response}");
    assert!(tasks.store().list(&alice(), PageRequest::new(1)).await.unwrap().tasks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_answers_the_held_calls_with_their_tasks_which_the_workers_run_on() {
    let engine = in_memory();
    let tasks = manager(&engine, LONG);
    let mut client = RawClient::connect(server(&tasks), Kind::Tasks).await;
    let call = client.begin("tools/call", json!({ "name": "render", "arguments": {} })).await;
    sleep(Duration::from_secs(60)).await;
    let begun = tokio::time::Instant::now();
    tasks.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let response = client.response(call).await;
    let id = response["result"]["taskId"].as_str().unwrap();
    let refused = client.call("render", json!({})).await;
    assert!(refused["error"]["code"].is_number(), "{refused}");
    let (_worker, other) = (OtherProcess::start(&engine), manager(&engine, LONG));
    assert_eq!(said(&ended(&other, id).await), "rendered");
}

#[tokio::test]
async fn the_worker_knows_what_the_server_keeps_of_the_request() {
    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
    let engine = in_memory();
    let find = |_: &RequestContext<RoleServer>| JsonObject::from_iter([("locale".to_owned(), "de".into())]);
    let store = TaskStore::with_config(Arc::clone(&engine), StoreConfig::new().lease(LONG));
    let tasks = DurableTaskManager::with_config(store, ManagerConfig::new().extensions(find));
    let _worker = OtherProcess::start(&engine);
    let mut client = RawClient::connect(server(&tasks), Kind::Plain).await;
    let call = json!({ "name": "kept", "arguments": {}, "_meta": { "traceparent": TRACEPARENT } });
    let response = within(client.request("tools/call", call)).await;
    let expected = json!(["alice", { "locale": "de" }, TRACEPARENT]).to_string();
    assert_eq!(response["result"]["content"][0]["text"], expected, "{response}");
}

#[tokio::test]
async fn nothing_is_enqueued_once_a_shutdown_has_begun() {
    let engine = in_memory();
    let tasks = manager(&engine, LONG);
    let mut client = RawClient::connect(server(&tasks), Kind::Plain).await;
    within(tasks.shutdown()).await;
    let enqueued = tasks.enqueue(&alice(), "kept", json!({}), resume()).await;
    assert!(matches!(enqueued, Err(TaskError::ShuttingDown)), "{enqueued:?}");
    let response = within(client.call("kept", json!({}))).await;
    assert_eq!(response["error"]["code"], -32603, "{response}");
    assert!(tasks.store().list(&alice(), PageRequest::new(1)).await.unwrap().tasks.is_empty());
}
