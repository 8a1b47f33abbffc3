//! What a held call does when the engine fails for a short time, at the worst moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use mcp_task_store::{
    Agenda, MemoryBackend, OwnerSource, StorageError, TaskContext, TaskServer, TaskServerConfig, TaskStatus,
    TaskTools,
};
use rmcp::model::{CallToolResult, EmptyObject};
use rmcp::task_manager::TaskExit;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::flaky::Flaky;
use super::raw::{Kind, RawClient};
use super::{Router, Server, until_cancelled};
use crate::support::intercept::{Call, Hooks, Intercept, Reply};
use crate::support::rmcp::*;

const SECOND: Duration = Duration::from_secs(1);

/// An engine that fails the writes of some records.
struct Picky {
    engine: MemoryBackend,
    /// What a record must contain so that its write fails.
    fails: &'static str,
    /// How many such writes fail.
    times: AtomicUsize,
    /// How long each takes.
    takes: Duration,
    /// A failed write is applied nevertheless.
    is_applied: AtomicBool,
}

impl Picky {
    fn new(fails: &'static str, times: usize, takes: Duration) -> Arc<Intercept<Self>> {
        let (times, is_applied) = (AtomicUsize::new(times), AtomicBool::new(false));
        Intercept::new(Self { engine: MemoryBackend::new(), fails, times, takes, is_applied })
    }
}

#[async_trait]
impl Hooks for Picky {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::new(self.engine.clone())
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        let fails = match &call {
            Call::PutIfVersion { data, .. } => std::str::from_utf8(data).unwrap().contains(self.fails),
            _ => false,
        };
        let is_one_less = |left: usize| left.checked_sub(1);
        if fails && self.times.fetch_update(Relaxed, Relaxed, is_one_less).is_ok() {
            sleep(self.takes).await;
            if self.is_applied.load(Relaxed) {
                call.send(&*self.engine()).await?;
            }
            return Err(unreachable_error());
        }
        call.send(&*self.engine()).await
    }
}

fn serve(tasks: &Manager, tools: TaskTools) -> Server<Router> {
    TaskServer::new(Router, tasks.clone(), OwnerSource::fixed(alice()), tools).unwrap()
}

async fn confirms(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    Ok(text(task.request_input("confirm", elicitation("Publish?")).await?.to_string()))
}

async fn connect(tasks: &Manager) -> RawClient {
    let tools = TaskTools::new().tool("confirms", "Asks", confirms);
    RawClient::connect_with(serve(tasks, tools), Kind::Plain, json!({ "elicitation": {} })).await
}

/// Reads until the response. Checks that the client received a notification at least every five seconds.
async fn notified_response(client: &mut RawClient, id: u64) -> Value {
    let mut before = Instant::now();
    loop {
        let message = client.read().await;
        assert!(before.elapsed() <= 5 * SECOND, "{:?} before {message}", before.elapsed());
        if message["id"] == id {
            return message;
        }
        before = Instant::now();
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_reaches_its_client_although_the_engine_fails_when_it_is_sealed() {
    let engine = Picky::new("\"secret\"", 3, 8 * SECOND);
    let tasks = manager(&engine.agenda(), LONG);
    let mut client = connect(&tasks).await;
    let params = json!({ "name": "confirms", "arguments": {}, "_meta": { "progressToken": "p" } });
    let id = client.begin("tools/call", params).await;
    let asked = notified_response(&mut client, id).await;
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    assert_eq!(engine.times.load(Relaxed), 0, "no write has failed");
    tasks.shutdown().await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn an_answer_is_delivered_although_the_engine_fails_when_the_call_is_repeated(
    #[values(false, true)] is_applied: bool,
) {
    let engine = Picky::new("the-answer", 2, 8 * SECOND);
    engine.is_applied.store(is_applied, Relaxed);
    let tasks = manager(&engine.agenda(), LONG);
    let mut client = connect(&tasks).await;
    let asked = client.call("confirms", json!({})).await;
    let state = &asked["result"]["requestState"];
    let answer = json!({ "action": "accept", "content": { "name": "the-answer" } });
    let params = json!({
        "name": "confirms", "arguments": {}, "requestState": state, "inputResponses": { "confirm": answer },
        "_meta": { "progressToken": "p" },
    });
    let id = client.begin("tools/call", params).await;
    let response = notified_response(&mut client, id).await;
    let said = response["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}"));
    assert!(said.contains("the-answer"), "{response}");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn the_cancel_of_a_held_call_reaches_its_task_although_the_engine_fails(
    #[values(SECOND, 20 * SECOND)] outage: Duration,
) {
    let engine = Flaky::new();
    let tasks = manager(&engine.agenda(), LONG);
    let tools = TaskTools::new().tool("waits", "Waits", until_cancelled::<EmptyObject>).cancel_with_request();
    let mut client = RawClient::connect(serve(&tasks, tools), Kind::Plain).await;
    let id = client.begin("tools/call", json!({ "name": "waits", "arguments": {} })).await;
    sleep(3 * SECOND).await;
    engine.is_down.store(true, Relaxed);
    let cancel =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } });
    client.send(cancel).await;
    sleep(outage).await;
    engine.is_down.store(false, Relaxed);
    sleep(10 * SECOND).await;
    let tasks = tasks.store().list(&alice(), mcp_task_store::PageRequest::new(9)).await.unwrap().tasks;
    assert_eq!(tasks[0].task.status, TaskStatus::Cancelled);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn the_cancel_of_a_call_stops_its_operation_although_its_task_cannot_be_stored(
    #[values(false, true)] cancels: bool,
) {
    let engine = Flaky::new();
    engine.is_down.store(true, Relaxed);
    let tasks = manager(&engine.agenda(), LONG);
    let tools = TaskTools::new().tool("waits", "Waits", until_cancelled::<EmptyObject>);
    let tools = if cancels { tools.cancel_with_request() } else { tools };
    let mut client = RawClient::connect(serve(&tasks, tools), Kind::Plain).await;
    let id = client.begin("tools/call", json!({ "name": "waits", "arguments": {} })).await;
    sleep(3 * SECOND).await;
    let cancel =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } });
    client.send(cancel).await;
    sleep(3 * SECOND).await;
    assert_eq!(tasks.running_task_count(), usize::from(!cancels));
    sleep(60 * SECOND).await;
    assert_eq!(tasks.running_task_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_cannot_be_sealed_in_time_is_answered_with_the_state_of_its_task() {
    let engine = Picky::new("\"secret\"", usize::MAX, Duration::from_millis(10));
    let tasks = manager(&engine.agenda(), LONG);
    let tools = TaskTools::new().tool("confirms", "Asks", confirms);
    let config = TaskServerConfig::new().hold_for(10 * SECOND);
    let owners = OwnerSource::fixed(alice());
    let server = TaskServer::with_config(Router, tasks.clone(), owners, tools, config).unwrap();
    let mut client = RawClient::connect_with(server, Kind::Plain, json!({ "elicitation": {} })).await;
    let begun = Instant::now();
    let response = client.call("confirms", json!({})).await;
    assert_eq!(response["result"]["structuredContent"]["status"], "input_required", "{response}");
    assert!((10..12).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    tasks.shutdown().await;
}
