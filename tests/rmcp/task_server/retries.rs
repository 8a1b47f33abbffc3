//! Calls of tools whose errors are retried, as clients of each kind receive their end.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mcp_task_store::{
    Agenda, PageRequest, Retry, StoreConfig, TaskContext, TaskStatus, TaskStore, TaskTools,
};
use rmcp::ErrorData;
use rmcp::model::{CallToolResult, ErrorCode};
use rmcp::task_manager::TaskExit;
use rstest::rstest;
use serde_json::{Value, json};

use super::flaky::Flaky;
use super::raw::{Kind, RawClient};
use super::{Render, Router, in_memory, serve};
use crate::support::rmcp::*;

const RETRY: Retry = Retry::exponential(3, Duration::from_millis(10), Duration::from_millis(20));
const DOWN: ErrorCode = ErrorCode(-32050);

/// Fails in as many attempts as it has frames.
async fn fail(task: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
    if u64::from(task.attempt()) > render.frames {
        return Ok(text(format!("attempt {}", task.attempt())));
    }
    Err(ErrorData::new(DOWN, "the farm is down", None).into())
}

async fn mark(task: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
    match fail(task.clone(), render).await {
        Err(TaskExit::Error(error)) => Err(task.retry(error)),
        ended => ended,
    }
}

fn tools() -> TaskTools {
    TaskTools::new()
        .tool("accepted", "The predicate accepts its errors", fail)
        .resumable()
        .retry(RETRY)
        .retry_if(|error| error.code == DOWN)
        .tool("other", "The predicate accepts other errors", fail)
        .resumable()
        .retry(RETRY)
        .retry_if(|error| error.code == ErrorCode::INTERNAL_ERROR)
        .tool("marked", "Marks its errors", mark)
        .resumable()
        .retry(RETRY)
        .tool("unmarked", "Marks nothing", fail)
        .resumable()
        .retry(RETRY)
        .tool("once", "Marks its errors, and cannot resume", mark)
}

/// Calls a tool. Returns its result, or the error of its task or of the call.
async fn end(tasks: &Manager, kind: Kind, tool: &str, frames: u64) -> Result<String, Value> {
    let mut client = RawClient::connect(serve(Router, tasks, tools()), kind).await;
    let response = client.call(tool, json!({ "frames": frames })).await;
    if let Some(task_id) = response["result"]["taskId"].as_str() {
        let ended = ended(tasks, task_id).await;
        let error = tasks.store().get(&key(task_id)).await.unwrap().task.error.clone();
        return error.map_or_else(|| Ok(said(&ended)), |error| Err(json!(error)));
    }
    match response["result"]["content"][0]["text"].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(response["error"].clone()),
    }
}

#[rstest]
#[tokio::test]
async fn a_quick_call_with_an_error_to_retry_is_stored_and_ends_with_the_result_of_a_later_attempt(
    #[values(Kind::Tasks, Kind::Plain, Kind::Old)] kind: Kind,
    #[values("accepted", "marked")] tool: &str,
) {
    let tasks = in_memory();
    assert_eq!(within(end(&tasks, kind, tool, 2)).await.unwrap(), "attempt 3");
    until(|| tasks.running_task_count() == 0).await;
    let stored = tasks.store().list(&alice(), PageRequest::new(9)).await.unwrap().tasks;
    assert_eq!(stored.len(), 1, "the call has one task");
    assert_eq!(stored[0].task.status, TaskStatus::Completed);
}

#[rstest]
#[tokio::test]
async fn an_error_that_is_not_retried_answers_the_call_and_costs_no_call_of_the_engine(
    #[values(Kind::Tasks, Kind::Plain, Kind::Old)] kind: Kind,
    #[values("other", "unmarked", "once")] tool: &str,
) {
    let engine = Flaky::new();
    let tasks = manager(&engine.agenda(), LONG);
    let error = within(end(&tasks, kind, tool, 1)).await.unwrap_err();
    assert_eq!((&error["code"], &error["message"]), (&json!(DOWN.0), &json!("the farm is down")));
    assert_eq!(engine.calls.load(Relaxed), 0);
}

#[rstest]
#[tokio::test]
async fn a_call_whose_attempts_are_used_up_receives_the_error_and_its_task_is_dead_for_its_retention(
    #[values(Kind::Tasks, Kind::Plain, Kind::Old)] kind: Kind,
) {
    let tasks = in_memory();
    let error = within(end(&tasks, kind, "marked", 9)).await.unwrap_err();
    assert_eq!((&error["code"], &error["message"]), (&json!(DOWN.0), &json!("the farm is down")));
    until(|| tasks.running_task_count() == 0).await;
    let dead = tasks.store().dead_tasks(None).await.unwrap().tasks;
    assert_eq!((dead.len(), dead[0].task.gave_up_after), (1, Some(3)));
    let left = dead[0].expires_at.unwrap() - tasks.store().backend().now();
    assert!(left.num_minutes() > 10, "the delivery of the error does not shorten the retention: {left}");
    // An operator repairs the farm.
    let requeued = tasks.store().requeue(&dead[0].key).await.unwrap();
    ended(&tasks, requeued.key.task.as_str()).await;
    let again = tasks.store().get(&requeued.key).await.unwrap();
    assert_eq!(again.task.gave_up_after, Some(3), "the tool has run again, with the same arguments");
}

#[rstest]
#[tokio::test]
async fn a_quick_call_whose_task_is_refused_receives_the_error_of_its_operation(
    #[values(Kind::Tasks, Kind::Plain, Kind::Old)] kind: Kind,
) {
    let backend = mcp_task_store::MemoryBackend::new();
    let backend: std::sync::Arc<dyn Agenda> = std::sync::Arc::new(backend);
    let store = TaskStore::with_config(backend, StoreConfig::new().lease(LONG).max_tasks_per_owner(Some(1)));
    let tasks = mcp_task_store::DurableTaskManager::new(store);
    tasks.store().create(&alice(), mcp_task_store::NewTask::new("tools/call")).await.unwrap();
    let error = within(end(&tasks, kind, "marked", 2)).await.unwrap_err();
    assert_eq!(error["message"], "the farm is down");
    until(|| tasks.running_task_count() == 0).await;
}
