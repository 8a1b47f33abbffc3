//! The time limits of a server at their extremes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use mcp_task_store::{
    Agenda, MemoryBackend, OwnerSource, StorageError, TaskContext, TaskServer, TaskServerConfig, TaskTools,
};
use rmcp::model::CallToolResult;
use rmcp::task_manager::TaskExit;
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::raw::{Kind, RawClient};
use super::{Render, Router, Server, in_memory};
use crate::support::intercept::{Call, Hooks, Intercept, Reply};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};

/// An engine that takes its time for each call, and longer for parts.
struct Distant {
    engine: MemoryBackend,
    part_ms: AtomicU64,
}

impl Distant {
    fn new() -> Arc<Intercept<Self>> {
        Intercept::new(Self { engine: MemoryBackend::new(), part_ms: AtomicU64::new(0) })
    }
}

#[async_trait]
impl Hooks for Distant {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::new(self.engine.clone())
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        sleep(Duration::from_millis(10)).await;
        if matches!(call, Call::Part { .. }) {
            sleep(Duration::from_millis(self.part_ms.load(Relaxed))).await;
        }
        call.send(&*self.engine()).await
    }
}

/// Works for as many seconds as it has frames.
async fn slow(_: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
    sleep(Duration::from_secs(render.frames)).await;
    Ok(text("rendered"))
}

fn serve(tasks: &Manager, config: TaskServerConfig) -> Server<Router> {
    let tools = TaskTools::new().tool("slow", "Takes a second for each frame", slow);
    TaskServer::with_config(Router, tasks.clone(), OwnerSource::fixed(alice()), tools, config).unwrap()
}

/// Returns what a tool has said.
fn said_by(response: &Value) -> &str {
    response["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}"))
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn limits_of_any_length_are_taken(
    #[values(Kind::Tasks, Kind::Plain, Kind::Old)] kind: Kind,
    #[values(Duration::from_millis(200), Duration::MAX)] answer_within: Duration,
    #[values(false, true)] asks_for_progress: bool,
) {
    let tasks = in_memory();
    let config = TaskServerConfig::new().answer_within(answer_within).drain(Duration::MAX);
    let config = config.hold_for(Duration::MAX).hold_for_with_progress(Duration::MAX);
    let mut client = RawClient::connect(serve(&tasks, config), kind).await;
    let mut params = json!({ "name": "slow", "arguments": { "frames": 3 } });
    if asks_for_progress {
        params["_meta"] = json!({ "progressToken": 7 });
    }
    let id = client.begin("tools/call", params).await;
    let response = tokio::time::timeout(LONG, client.response(id)).await.expect("the call has no answer");
    if kind == Kind::Tasks && answer_within != Duration::MAX {
        let task_id = response["result"]["taskId"].as_str().unwrap_or_else(|| panic!("{response}"));
        assert_eq!(said(&ended(&tasks, task_id).await), "rendered");
    } else {
        assert_eq!(said_by(&response), "rendered");
    }
    let late = client.begin("tools/call", json!({ "name": "slow", "arguments": { "frames": 1 } })).await;
    sleep(Duration::from_millis(500)).await;
    let (response, shut_down) =
        tokio::join!(client.response(late), tokio::time::timeout(LONG, tasks.shutdown()));
    shut_down.expect("the shutdown does not end");
    assert_eq!(response["id"], late, "every call is answered: {response}");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_call_that_is_held_no_longer_than_its_operation_runs_in_memory_is_stored_nevertheless(
    #[values(Kind::Tasks, Kind::Plain)] kind: Kind,
    #[values((200, 0), (200, 100), (60_000, 2_000))] (answer_within, hold_for): (u64, u64),
) {
    let tasks = manager(&Distant::new().agenda(), LONG);
    let config = TaskServerConfig::new().answer_within(Duration::from_millis(answer_within));
    let mut client =
        RawClient::connect(serve(&tasks, config.hold_for(Duration::from_millis(hold_for))), kind).await;
    let response = client.call("slow", json!({ "frames": 5 })).await;
    if kind == Kind::Tasks && answer_within > 5_000 {
        return assert_eq!(said_by(&response), "rendered");
    }
    let task_id = match kind {
        Kind::Tasks => &response["result"]["taskId"],
        _ => &response["result"]["structuredContent"]["taskId"],
    };
    let task_id = task_id.as_str().unwrap_or_else(|| panic!("{response}"));
    assert_eq!(said(&ended(&tasks, task_id).await), "rendered");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_call_that_is_held_for_no_time_receives_the_result_of_a_task_that_has_ended(
    #[values(Kind::Plain, Kind::Old)] kind: Kind,
) {
    let tasks = manager(&Distant::new().agenda(), LONG);
    let config = TaskServerConfig::new().hold_for(Duration::ZERO).hold_for_with_progress(Duration::ZERO);
    let mut client = RawClient::connect(serve(&tasks, config), kind).await;
    let response = client.call("slow", json!({ "frames": 5 })).await;
    assert!(said_by(&response).contains("is still running"), "{response}");
    let task_id = response["result"]["structuredContent"]["taskId"].as_str().unwrap();
    let running = client.call("task_result", json!({ "taskId": task_id })).await;
    assert!(said_by(&running).contains("is still running"), "{running}");
    ended(&tasks, task_id).await;
    let response = client.call("task_result", json!({ "taskId": task_id })).await;
    assert_eq!(said_by(&response), "rendered");
}

/// The result of this operation is too large for the record, so it is a part.
async fn large(_: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
    sleep(Duration::from_secs(render.frames)).await;
    Ok(text("x".repeat(3 * 1024 * 1024)))
}

#[rstest]
#[case::it_arrives_soon(1_500, true)]
#[case::it_does_not_arrive(8_000, false)]
#[tokio::test(start_paused = true)]
async fn a_call_whose_time_ends_while_the_result_arrives_does_not_say_that_the_task_runs(
    #[case] part_ms: u64,
    #[case] has_result: bool,
) {
    let engine = Distant::new();
    engine.part_ms.store(part_ms, Relaxed);
    let tasks = manager(&engine.agenda(), LONG);
    let tools = TaskTools::new().tool("large", "Returns much", large);
    let config = TaskServerConfig::new().hold_for(Duration::from_millis(5_500));
    let owners = OwnerSource::fixed(alice());
    let server = TaskServer::with_config(Router, tasks, owners, tools, config).unwrap();
    let mut client = RawClient::connect(server, Kind::Plain).await;
    let response = client.call("large", json!({ "frames": 5 })).await;
    if has_result {
        return assert_eq!(said_by(&response).len(), 3 * 1024 * 1024);
    }
    assert_eq!(response["result"]["structuredContent"]["status"], "completed", "{response}");
    let (text, task_id) = (said_by(&response), &response["result"]["structuredContent"]["taskId"]);
    assert!(text.contains("has ended; call task_result"), "{text}");
    let response = client.call("task_result", json!({ "taskId": task_id })).await;
    assert!(said_by(&response).contains("has ended"), "the part still takes too long: {response}");
    engine.part_ms.store(0, Relaxed);
    let response = client.call("task_result", json!({ "taskId": task_id })).await;
    assert_eq!(said_by(&response).len(), 3 * 1024 * 1024);
}

/// Calls the tool, and waits for the result of its task as well. `before_the_end` is called meanwhile. Returns both responses.
async fn held_calls(
    tasks: &Manager,
    kind: Kind,
    ttl: Duration,
    before_the_end: impl AsyncFnOnce(&mcp_task_store::StoredTask),
) -> (Value, Value) {
    let tools = TaskTools::new().tool("slow", "Takes a second for each frame", slow).ttl(ttl);
    let server = TaskServer::new(Router, tasks.clone(), OwnerSource::fixed(alice()), tools).unwrap();
    let mut client = RawClient::connect(server, kind).await;
    let call = client.begin("tools/call", json!({ "name": "slow", "arguments": { "frames": 30 } })).await;
    let stored = loop {
        let mut page = tasks.store().list(&alice(), mcp_task_store::PageRequest::new(1)).await.unwrap().tasks;
        if let Some(stored) = page.pop() {
            break stored;
        }
        sleep(Duration::from_millis(10)).await;
    };
    let arguments = json!({ "taskId": stored.key.task.as_str() });
    let waits = client.begin("tools/call", json!({ "name": "task_result", "arguments": arguments })).await;
    before_the_end(&stored).await;
    let begun = tokio::time::Instant::now();
    let (one, other) = (client.read().await, client.read().await);
    assert!(begun.elapsed() <= Duration::from_secs(6), "{:?}", begun.elapsed());
    let (of_call, of_result) = if one["id"] == call { (one, other) } else { (other, one) };
    assert_eq!((&of_call["id"], &of_result["id"]), (&json!(call), &json!(waits)));
    (of_call, of_result)
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_held_call_is_answered_when_the_ttl_of_its_task_elapses(
    #[case] engine: Engine,
    #[values(Kind::Plain, Kind::Old)] kind: Kind,
) {
    let (_store, tasks, _) = open(engine, LONG).await;
    let (of_call, of_result) = held_calls(&tasks, kind, Duration::from_secs(1), async |_| {}).await;
    assert_eq!(of_call["error"], of_result["error"], "{of_call}");
    assert!(of_call["error"]["message"].as_str().unwrap().contains("TTL"), "{of_call}");
    until(|| tasks.running_task_count() == 0).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_held_call_is_answered_when_the_record_of_its_task_is_deleted(
    #[case] engine: Engine,
    #[values(Kind::Plain, Kind::Old)] kind: Kind,
) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let delete = async |stored: &mcp_task_store::StoredTask| {
        sleep(Duration::from_millis(200)).await;
        other.store().delete(&stored.key).await.unwrap();
    };
    let (of_call, of_result) = held_calls(&tasks, kind, Duration::from_secs(60), delete).await;
    assert_eq!(of_call["error"]["code"], -32602, "{of_call}");
    assert!(said_by(&of_result).starts_with("There is no task"), "{of_result}");
    tasks.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_declares_tasks_when_it_initializes_polls_its_tasks() {
    let tasks = in_memory();
    let capabilities = json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } });
    let server = serve(&tasks, TaskServerConfig::new());
    let mut client = RawClient::connect_with(server, Kind::Old, capabilities).await;
    let response = client.call("slow", json!({ "frames": 3 })).await;
    let task_id = response["result"]["taskId"].as_str().unwrap_or_else(|| panic!("{response}"));
    sleep(Duration::from_secs(5)).await;
    let polled = client.request("tasks/get", json!({ "taskId": task_id })).await;
    assert_eq!(polled["result"]["status"], "completed", "{polled}");
}

/// Blocks its thread, and ignores the signal to stop.
async fn blocks(_: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
    tokio::time::sleep(Duration::from_millis(50)).await;
    std::thread::sleep(Duration::from_millis(render.frames));
    Ok(text("blocked"))
}

#[rstest]
#[tokio::test]
async fn a_call_whose_operation_blocks_its_thread_is_answered_once(
    #[values(Kind::Tasks, Kind::Plain, Kind::Old)] kind: Kind,
) {
    let tasks = in_memory();
    let tools = TaskTools::new().tool("blocks", "Blocks", blocks);
    let config = TaskServerConfig::new().hold_for(Duration::from_millis(300));
    let owners = OwnerSource::fixed(alice());
    let server = TaskServer::with_config(Router, tasks.clone(), owners, tools, config).unwrap();
    let mut client = RawClient::connect(server, kind).await;
    let response = client.call("blocks", json!({ "frames": 600 })).await;
    assert_eq!(said_by(&response), "blocked", "the outcome is there before anything else can run");
    until(|| tasks.running_task_count() == 0).await;
    assert!(client.messages.is_empty(), "{:?}", client.messages);
}
