//! Converts between the types of this crate and those of `pmcp`.

use chrono::SecondsFormat;
use pmcp::server::task_store::TaskStoreError;
use pmcp::types::tasks::{Task as WireTask, TaskStatus as WireStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{owner, public_text};
use crate::backend::{TaskId, TaskKey};
use crate::printable::Chain;
use crate::store::TaskError;
use crate::task::{Task, TaskStatus};

/// Returns the key of a task. For an id that no task can have, the error is `NotFound`.
pub(super) fn key(task_id: &str, owner_id: &str) -> Result<TaskKey, TaskStoreError> {
    match (owner(owner_id), TaskId::try_from(task_id)) {
        (Ok(owner), Ok(task)) => Ok(TaskKey { owner, task }),
        _ => Err(not_found(task_id)),
    }
}

pub(super) fn not_found(task_id: &str) -> TaskStoreError {
    TaskStoreError::NotFound { task_id: task_id.to_owned() }
}

pub(super) fn internal(message: String) -> TaskStoreError {
    TaskStoreError::Internal { message }
}

/// Converts an error of a call about a task. `to` is the status that the call would set, if it sets one.
pub(super) fn store_error(error: TaskError, task_id: &str, to: Option<WireStatus>) -> TaskStoreError {
    match error {
        TaskError::NotFound { .. } => not_found(task_id),
        TaskError::InvalidTransition { from, .. } => {
            let from = status(from);
            TaskStoreError::InvalidTransition { task_id: task_id.to_owned(), from, to: to.unwrap_or(from) }
        }
        TaskError::Storage(error) => {
            if error.is_unreadable() {
                tracing::error!(task = task_id, error = %Chain(&error), "a task could not be served: its record cannot be read");
            } else {
                // The store logs an outage once.
                tracing::debug!(task = task_id, error = %Chain(&error), "a task could not be served");
            }
            internal(public_text(&error).to_owned())
        }
        other => internal(other.to_string()),
    }
}

pub(super) fn to_json(what: &'static str, value: &(impl Serialize + Sync)) -> Result<Value, TaskStoreError> {
    serde_json::to_value(value).map_err(|error| internal(format!("{what} cannot be stored: {error}")))
}

pub(super) fn from_json<T: DeserializeOwned>(what: &'static str, value: Value) -> Result<T, TaskStoreError> {
    serde_json::from_value(value).map_err(|error| internal(format!("{what} cannot be read: {error}")))
}

pub(super) fn task(task: Task) -> WireTask {
    let time = |at: chrono::DateTime<chrono::Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut wire = WireTask::new(task.task_id.as_str(), status(task.status))
        .with_timestamps(time(task.created_at), time(task.last_updated_at));
    wire.ttl = task.ttl_ms;
    wire.poll_interval = task.poll_interval_ms;
    wire.status_message = task.status_message;
    wire
}

pub(super) fn status(status: TaskStatus) -> WireStatus {
    match status {
        TaskStatus::Working => WireStatus::Working,
        TaskStatus::InputRequired => WireStatus::InputRequired,
        TaskStatus::Completed => WireStatus::Completed,
        TaskStatus::Failed => WireStatus::Failed,
        TaskStatus::Cancelled => WireStatus::Cancelled,
    }
}

pub(super) fn status_from(status: WireStatus) -> TaskStatus {
    match status {
        WireStatus::Working => TaskStatus::Working,
        WireStatus::InputRequired => TaskStatus::InputRequired,
        WireStatus::Completed => TaskStatus::Completed,
        WireStatus::Failed => TaskStatus::Failed,
        WireStatus::Cancelled => TaskStatus::Cancelled,
    }
}
