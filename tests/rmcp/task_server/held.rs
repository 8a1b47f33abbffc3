//! How each client receives the end of a call: at once, as a task, or while the call is held.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mcp_task_store::{
    Agenda, ManagerConfig, MemoryBackend, OwnerSource, PageRequest, StoredTask, TaskContext, TaskServer,
    TaskServerConfig, TaskStatus, TaskStore, TaskTools,
};
use rmcp::ErrorData;
use rmcp::model::{CallToolResult, EmptyObject, JsonObject};
use rmcp::task_manager::TaskExit;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::flaky::Flaky;
use super::raw::{Kind, RawClient};
use super::{Render, Router, Server, in_memory, nothing, until_cancelled};
use crate::support::intercept::Hooks;
use crate::support::rmcp::*;

const SECOND: Duration = Duration::from_secs(1);

fn serve_with(tasks: &Manager, tools: TaskTools, config: TaskServerConfig) -> Server<Router> {
    TaskServer::with_config(Router, tasks.clone(), OwnerSource::fixed(alice()), tools, config).unwrap()
}

fn serve(tasks: &Manager, tools: TaskTools) -> Server<Router> {
    serve_with(tasks, tools, TaskServerConfig::new())
}

/// Works for as many seconds as it has frames.
async fn slow(task: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
    for frame in 1..=render.frames {
        task.progress(frame, render.frames, format!("rendering frame {frame}"));
        sleep(SECOND).await;
    }
    Ok(text("rendered"))
}

fn slow_tools() -> TaskTools {
    TaskTools::new().tool("slow", "Takes a second for each frame", slow)
}

async fn all_tasks(tasks: &Manager) -> Vec<StoredTask> {
    tasks.store().list(&alice(), PageRequest::new(256)).await.unwrap().tasks
}

fn said_by(response: &Value) -> &str {
    assert_eq!(response["result"]["isError"], false, "{response}");
    response["result"]["content"][0]["text"].as_str().unwrap()
}

#[rstest]
#[tokio::test]
async fn a_call_that_ends_soon_is_answered_directly_and_costs_no_call_of_the_engine(
    #[values(Kind::Tasks, Kind::Plain, Kind::Old)] kind: Kind,
) {
    let engine = Flaky::new();
    let tasks = manager(&engine.agenda(), LONG);
    let tools = TaskTools::new().tool("nothing", "Does nothing", nothing).resumable();
    let mut client = RawClient::connect(serve(&tasks, tools), kind).await;
    assert_eq!(said_by(&client.call("nothing", json!({})).await), "nothing");
    assert_eq!(engine.calls.load(Relaxed), 0);
    until(|| tasks.running_task_count() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_with_tasks_receives_the_task_of_a_slow_call_after_answer_within() {
    let tasks = in_memory();
    let mut client = RawClient::connect(serve(&tasks, slow_tools()), Kind::Tasks).await;
    let begun = Instant::now();
    let response = client.call("slow", json!({ "frames": 3 })).await;
    assert_eq!(response["result"]["resultType"], "task", "{response}");
    assert!((200..300).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let task_id = response["result"]["taskId"].as_str().unwrap();
    assert_eq!(said(&ended(&tasks, task_id).await), "rendered");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_slow_call_of_a_client_without_tasks_is_held_and_receives_the_result(
    #[values(Kind::Plain, Kind::Old)] kind: Kind,
) {
    let tasks = in_memory();
    let mut client = RawClient::connect(serve(&tasks, slow_tools()), kind).await;
    let response = client.call("slow", json!({ "frames": 40 })).await;
    assert_eq!(said_by(&response), "rendered");
    assert!(client.messages.is_empty(), "the client has not asked for progress: {:?}", client.messages);

    until(|| tasks.running_task_count() == 0).await;
    let [stored] = &all_tasks(&tasks).await[..] else { panic!("the call has one task") };
    assert_eq!(stored.task.status, TaskStatus::Completed);
    let left = (stored.expires_at.unwrap() - tasks.store().backend().now()).num_seconds();
    assert!((240..=300).contains(&left), "the record of a delivered result expires in {left} s");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_call_that_takes_longer_is_answered_with_the_state_and_the_id_of_its_task(
    #[values(Kind::Plain, Kind::Old)] kind: Kind,
) {
    let tasks = in_memory();
    let mut client = RawClient::connect(serve(&tasks, slow_tools()), kind).await;
    let begun = Instant::now();
    let response = client.call("slow", json!({ "frames": 240 })).await;
    assert!((50..52).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let state = &response["result"]["structuredContent"];
    let task_id = state["taskId"].as_str().unwrap();
    let done = state["progress"]["done"].as_u64().unwrap();
    assert!((49..=51).contains(&done), "{state}");
    assert_eq!(state["status"], "working");
    assert_eq!(
        said_by(&response),
        format!(
            "The call of \"slow\" is still running (rendering frame {done}; {done} of 240 done); call task_result with the task id \"{task_id}\" to receive its result."
        )
    );
    assert_eq!(said(&ended_within_an_hour(&tasks, task_id).await), "rendered");
}

/// Waits for the end of a task in paused time.
async fn ended_within_an_hour(tasks: &Manager, task_id: &str) -> rmcp::model::TaskPayload {
    let key = key(task_id);
    tokio::time::timeout(3600 * SECOND, tasks.store().wait(&key)).await.unwrap().unwrap();
    tasks.get_task(&alice(), task_id).await.unwrap().payload
}

#[tokio::test(start_paused = true)]
async fn a_held_call_receives_the_error_the_cancel_or_the_panic_of_its_operation() {
    async fn fails(_: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
        sleep(SECOND * u32::try_from(render.frames).unwrap()).await;
        let data = json!({ "scene": 7 });
        Err(ErrorData::new(rmcp::model::ErrorCode(-32050), "no such scene", Some(data)).into())
    }
    async fn stops(_: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
        sleep(SECOND * u32::try_from(render.frames).unwrap()).await;
        Err(TaskExit::Cancelled)
    }
    async fn panics(_: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
        sleep(SECOND * u32::try_from(render.frames).unwrap()).await;
        panic!("a secret of the server")
    }
    let tools = TaskTools::new().tool("fails", "", fails).tool("stops", "", stops).tool("panics", "", panics);
    let tasks = in_memory();
    let mut client = RawClient::connect(serve(&tasks, tools), Kind::Plain).await;
    // The answer is the same whether the task was stored or not.
    for frames in [0, 3] {
        let arguments = json!({ "frames": frames });
        let failed = client.call("fails", arguments.clone()).await;
        let expected = json!({ "code": -32050, "message": "no such scene", "data": { "scene": 7 } });
        assert_eq!(failed["error"], expected);
        let stopped = client.call("stops", arguments.clone()).await;
        assert_eq!(stopped["result"]["isError"], true, "{stopped}");
        let panicked = client.call("panics", arguments).await;
        assert_eq!(panicked["error"], json!({ "code": -32603, "message": "the operation panicked" }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_is_held_while_the_engine_fails() {
    let engine = Flaky::new();
    let tasks = manager(&engine.agenda(), LONG);
    let mut client = RawClient::connect(serve(&tasks, slow_tools()), Kind::Plain).await;
    for down_at in [2 * SECOND, Duration::ZERO] {
        let id = client.begin("tools/call", json!({ "name": "slow", "arguments": { "frames": 12 } })).await;
        let outage = async {
            sleep(down_at).await;
            engine.is_down.store(true, Relaxed);
            // Another process can still write, so the held call is notified of a change that it cannot read.
            let elsewhere = TaskStore::new(engine.engine());
            let newest = elsewhere.list(&alice(), PageRequest::new(1)).await.unwrap().tasks;
            for stored in newest.iter().filter(|stored| !stored.task.status.is_terminal()) {
                elsewhere.set_poll_interval(&stored.key, 7 * SECOND).await.unwrap();
            }
            sleep(5 * SECOND).await;
            engine.is_down.store(false, Relaxed);
        };
        let (response, ()) = tokio::join!(client.response(id), outage);
        assert_eq!(said_by(&response), "rendered");
    }
    tokio::time::timeout(3600 * SECOND, tasks.shutdown()).await.unwrap();
    let statuses: Vec<_> = all_tasks(&tasks).await.iter().map(|stored| stored.task.status).collect();
    assert_eq!(statuses, [TaskStatus::Completed; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_task_cannot_be_stored_fails_at_hold_for_and_its_operation_stops() {
    let engine = Flaky::new();
    let tasks = manager(&engine.agenda(), LONG);
    engine.is_down.store(true, Relaxed);
    let config = TaskServerConfig::new().hold_for(30 * SECOND);
    let mut client = RawClient::connect(serve_with(&tasks, slow_tools(), config), Kind::Tasks).await;
    let begun = Instant::now();
    let response = client.call("slow", json!({ "frames": 240 })).await;
    assert_eq!(response["error"]["code"], -32603, "{response}");
    assert!((30..32).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    engine.is_down.store(false, Relaxed);
    tokio::time::timeout(3600 * SECOND, tasks.shutdown()).await.unwrap();
    assert!(all_tasks(&tasks).await.is_empty());
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_held_call_that_its_client_cancels_lets_its_task_run_on_unless_the_tool_says_otherwise(
    #[values(false, true)] cancels: bool,
    #[values(Kind::Plain, Kind::Old)] kind: Kind,
    #[values(50, 3000)] cancel_after_ms: u64,
) {
    let tasks = in_memory();
    let tools = TaskTools::new().tool("waits", "Waits", until_cancelled::<EmptyObject>);
    let tools = if cancels { tools.cancel_with_request() } else { tools };
    let mut client = RawClient::connect(serve(&tasks, tools), kind).await;
    let id = client.begin("tools/call", json!({ "name": "waits", "arguments": {} })).await;
    sleep(Duration::from_millis(cancel_after_ms)).await;
    let cancel =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } });
    client.send(cancel).await;
    sleep(20 * SECOND).await;
    let stored = all_tasks(&tasks).await;
    if cancels && cancel_after_ms < 200 {
        assert!(stored.is_empty(), "the operation has stopped before its task was needed: {stored:?}");
        return until(|| tasks.running_task_count() == 0).await;
    }
    let [stored] = &stored[..] else { panic!("the call has one task") };
    let expected = if cancels { TaskStatus::Cancelled } else { TaskStatus::Working };
    assert_eq!(stored.task.status, expected);
    tasks.cancel_task(&alice(), stored.key.task.as_str()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_operation_and_the_task_of_a_call_have_what_its_request_says() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    async fn repeats(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
        sleep(SECOND).await;
        let locale = task.extensions()["locale"].as_str().unwrap().to_owned();
        Ok(text(format!("{} {locale} {:?}", task.owner(), task.traceparent())))
    }
    let store = TaskStore::new(Arc::new(MemoryBackend::new()) as Arc<dyn Agenda>);
    let config = ManagerConfig::new().extensions(|request| {
        let locale = request.meta.get("locale").cloned();
        JsonObject::from_iter(locale.map(|locale| ("locale".to_owned(), locale)))
    });
    let tasks = Manager::with_config(store, config);
    let tools = TaskTools::new().tool("repeats", "Repeats", repeats);
    let mut client = RawClient::connect(serve(&tasks, tools), Kind::Plain).await;
    let meta = json!({ "traceparent": PARENT, "locale": "fr" });
    let params = json!({ "name": "repeats", "arguments": {}, "_meta": meta });
    let response = client.request("tools/call", params).await;
    assert_eq!(said_by(&response), format!("alice fr Some({PARENT:?})"));
    let [stored] = &all_tasks(&tasks).await[..] else { panic!("the call has one task") };
    assert_eq!(stored.task.traceparent.as_deref(), Some(PARENT));
    assert_eq!(stored.task.extensions["locale"], "fr");
}

#[tokio::test(start_paused = true)]
async fn a_held_call_is_answered_soon_after_a_shutdown_has_begun() {
    let tasks = in_memory();
    let tools = slow_tools().resumable().tool("once", "Takes a second for each frame", slow);
    let server = serve(&tasks, tools);
    let (mut resumable, mut once) = (
        RawClient::connect(server.clone(), Kind::Plain).await,
        RawClient::connect(server, Kind::Plain).await,
    );
    let arguments = json!({ "frames": 240 });
    let resumable = async { (resumable.call("slow", arguments.clone()).await, Instant::now()) };
    let shutdown = async {
        sleep(2 * SECOND).await;
        tasks.shutdown().await;
        Instant::now()
    };
    let begun = Instant::now();
    let ((resumable, answered), once, shut_down) =
        tokio::join!(resumable, once.call("once", arguments.clone()), shutdown);
    assert!((10..13).contains(&(answered - begun).as_secs()), "{:?}", answered - begun);
    assert!(shut_down >= answered - Duration::from_millis(1), "the shutdown waits for the call");
    assert!(said_by(&resumable).contains("still running"), "another instance continues: {resumable}");
    assert_eq!(once["error"]["code"], -32603, "{once}");
}
