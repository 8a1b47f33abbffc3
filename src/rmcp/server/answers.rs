//! What a call is answered with: the end of its operation, or the state of its task.

use rmcp::model::{
    CallToolResponse, CallToolResult, ContentBlock, DetailedTask, ErrorData, JsonObject, TaskPayload,
};
use rmcp::task_manager::TaskExit;
use serde_json::{Value, json};

use super::state_content::{ProgressContent, TaskStateContent};
use crate::rmcp::operation::Outcome;
use crate::task::StoredTask;

/// Returns the answer of a call whose operation has ended before its task was stored.
pub(super) fn of_outcome(outcome: Outcome) -> Result<CallToolResponse, ErrorData> {
    match outcome {
        Outcome::Returned(Ok(result)) => Ok(result.into()),
        Outcome::Returned(Err(TaskExit::Cancelled)) => Ok(cancelled().into()),
        Outcome::Returned(Err(TaskExit::Error(error))) | Outcome::Retry(error) => Err(error),
        Outcome::Panicked(_) => Err(ErrorData::internal_error("the operation panicked", None)),
    }
}

/// Returns the answer of a call whose task has ended; `None` for an open task.
pub(super) fn of_ended(task: DetailedTask) -> Option<Result<CallToolResponse, ErrorData>> {
    match task.payload {
        TaskPayload::Completed { result } => Some(of_result(result)),
        TaskPayload::Failed { error } => Some(Err(of_error(error))),
        TaskPayload::Cancelled => Some(Ok(cancelled().into())),
        _ => None,
    }
}

fn of_result(result: JsonObject) -> Result<CallToolResponse, ErrorData> {
    match serde_json::from_value::<CallToolResult>(Value::Object(result)) {
        Ok(result) => Ok(result.into()),
        Err(error) => {
            tracing::warn!(%error, "the result of a task is no result of a tool; another server may have stored it");
            Err(ErrorData::internal_error("the result of the task cannot be read", None))
        }
    }
}

fn of_error(error: JsonObject) -> ErrorData {
    serde_json::from_value(Value::Object(error))
        .unwrap_or_else(|_| ErrorData::internal_error("the operation failed", None))
}

/// Returns the answer of a call about a task of this tool whose result the call does not have. `result_tool` waits for its result;
/// `None` if the server has no such tool.
pub(super) fn of_running(tool: &str, stored: &StoredTask, result_tool: Option<&str>) -> CallToolResult {
    let state = if stored.task.status.is_terminal() { "has ended" } else { "is still running" };
    let mut text = format!("The call of {tool:?} {state}{}", details(stored));
    text += &match result_tool {
        Some(result) => {
            format!("; call {result} with the task id {:?} to receive its result.", stored.key.task.as_str())
        }
        None => ".".to_owned(),
    };
    of_state(text, stored)
}

/// Returns the state of a task as a result, with this text for a model.
pub(super) fn of_state(text: String, stored: &StoredTask) -> CallToolResult {
    let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
    result.structured_content = Some(json!(TaskStateContent::of(stored)));
    result
}

/// Says how far the work is.
fn details(stored: &StoredTask) -> String {
    let state = TaskStateContent::of(stored);
    let mut details = Vec::from_iter(state.status_message.clone());
    if let Some(ProgressContent { done, total }) = state.progress {
        details.push(match total {
            Some(total) => format!("{done} of {total} done"),
            None => format!("{done} done"),
        });
    }
    if details.is_empty() { String::new() } else { format!(" ({})", details.join("; ")) }
}

/// The result of a call whose task was cancelled.
fn cancelled() -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text("The call was cancelled before it had a result.")])
}
