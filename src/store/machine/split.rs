//! The transitions of SDKs that set a status, a result, an error and a status message in separate calls.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Change, check_status_message, complete, end, refused, request_input, require_open};
use crate::store::config::{MAX_JSON_DEPTH, StoreConfig};
use crate::store::error::TaskError;
use crate::store::limits::check_depth;
use crate::task::{EventKind, RpcError, Task, TaskStatus};

/// Sets the status and the status message. A task may enter any other status until it has ended. If the task has
/// already ended with this status, the call only adds a missing status message.
pub(in crate::store) fn set_status(
    task: &mut Task,
    status: TaskStatus,
    message: Option<&str>,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    use TaskStatus::{Completed, Failed, InputRequired, Working};
    match (task.status, status) {
        (Completed, Completed) | (Failed, Failed) => {
            if task.status_message.is_some() || message.is_none() {
                return Ok(Change::None);
            }
        }
        (from, to) if from.is_terminal() || from == to => {
            return Err(refused(task, "change its status"));
        }
        (_, Working) => withdraw_requests(task),
        (_, InputRequired) => reopen_requests(task, config)?,
        (_, ended) => end(task, ended, "end it")?,
    }
    replace_status_message(task, message, config)
}

/// Replaces the status message of an open task, or removes it.
pub(in crate::store) fn set_status_message(
    task: &mut Task,
    message: Option<&str>,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    require_open(task, "set its status message")?;
    replace_status_message(task, message, config)
}

fn replace_status_message(
    task: &mut Task,
    message: Option<&str>,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    check_status_message(message.unwrap_or_default(), config)?;
    task.status_message = message.map(str::to_owned);
    Ok(Change::Visible)
}

/// Completes a task, or adds the result to a task that was completed without a result. Never replaces a result:
/// only the caller can load it and compare.
pub(in crate::store) fn set_result(task: &mut Task, result: &Value) -> Result<Change, TaskError> {
    match (task.status, &task.result) {
        (TaskStatus::Completed, Some(_)) => return Ok(Change::None),
        (TaskStatus::Completed, None) => {
            check_depth("depth of a result", result, MAX_JSON_DEPTH)?;
            task.result = Some(result.clone().into());
        }
        _ => {
            complete(task, result)?;
            // The message describes a step of the work. The SDK's second call sets the message of the end.
            task.status_message = None;
        }
    }
    Ok(Change::Visible)
}

/// Fails a task, or adds the error to a task that failed without an error.
pub(in crate::store) fn set_error(task: &mut Task, error: &Value) -> Result<Change, TaskError> {
    match (task.status, task.error_as_set()) {
        (TaskStatus::Failed, Some(stored)) if stored == *error => return Ok(Change::None),
        (TaskStatus::Failed, None) => {}
        _ => {
            end(task, TaskStatus::Failed, "end it")?;
            task.note_detail(format!("error {}", nearest_rpc_error(error).code));
            task.status_message = None;
        }
    }
    check_depth("depth of an error", error, MAX_JSON_DEPTH)?;
    task.error = Some(nearest_rpc_error(error));
    if task.error_as_set().as_ref() != Some(error) {
        task.adapter.error = Some(error.clone());
    }
    Ok(Change::Visible)
}

/// Returns the JSON-RPC error object that is closest to an error of any form.
fn nearest_rpc_error(error: &Value) -> RpcError {
    serde_json::from_value(error.clone()).unwrap_or_else(|_| {
        let message = error.get("message").unwrap_or(error).as_str();
        RpcError::new(-32603, message.unwrap_or("the task failed"))
    })
}

/// Adds requests to the client under new keys, and reopens withdrawn requests. `requests` may be empty.
pub(in crate::store) fn record_input_requests(
    task: &mut Task,
    requests: &BTreeMap<String, Value>,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    let mut recorded = task.all_requests();
    if task.status == TaskStatus::InputRequired && !recorded.is_empty() {
        let reason = format!("task {} already has open input requests; wait for their answers", task.task_id);
        return Err(TaskError::InvalidArgument { reason });
    }
    if task.status != TaskStatus::Working {
        return Err(refused(task, "request input"));
    }
    for (key, request) in requests {
        let is_used = recorded.insert(key.clone(), request.clone()).is_some();
        if is_used || task.input_responses.contains_key(key) {
            return Err(TaskError::InputKeyUsed { task: task.task_id.clone(), key: key.clone() });
        }
    }
    task.adapter.requests = Some(recorded);
    reopen_requests(task, config)?;
    Ok(Change::Visible)
}

/// Stores the answers to open requests of a task that requires input, and keeps the requests.
pub(in crate::store) fn deliver_inputs(
    task: &mut Task,
    responses: &BTreeMap<String, Value>,
) -> Result<Change, TaskError> {
    if task.status != TaskStatus::InputRequired {
        return Err(refused(task, "deliver inputs"));
    }
    let requests = task.all_requests();
    let change = super::deliver_inputs(task, responses)?;
    task.adapter.requests = Some(requests);
    Ok(change)
}

/// Moves the task to `working` without answers to its open requests. A later change can reopen these requests.
fn withdraw_requests(task: &mut Task) {
    let requests = task.all_requests();
    if !requests.is_empty() {
        task.adapter.requests = Some(requests);
    }
    task.input_requests.clear();
    task.status = TaskStatus::Working;
}

/// Moves the task to `input_required`, and opens every request that has no answer.
fn reopen_requests(task: &mut Task, config: &StoreConfig) -> Result<(), TaskError> {
    if task.cancel_requested {
        return Err(refused(task, "request input"));
    }
    let mut open = task.all_requests();
    open.retain(|key, _| !task.input_responses.contains_key(key));
    task.input_requests.clear();
    if open.is_empty() {
        task.status = TaskStatus::InputRequired;
        task.note(EventKind::InputRequested);
        return Ok(());
    }
    request_input(task, &open.into_iter().collect::<Vec<_>>(), config).map(drop)
}
