//! Converts between the records of the store and the types of the SDK.

use chrono::{DateTime, SecondsFormat, Utc};
use rmcp::model::{self, DetailedTask, ErrorCode, ErrorData, InputRequests, JsonObject, TaskPayload};
use rmcp::task_manager::{TaskExit, TaskOptions};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::backend::Agenda;
use crate::printable::Chain;
use crate::store::{NewTask, TaskError, TaskStore, Ttl};
use crate::task::{PayloadKind, RpcError, StoredTask, TaskStatus};

/// The method whose calls become tasks.
pub(super) const METHOD: &str = "tools/call";

pub(super) fn new_task(options: TaskOptions) -> NewTask {
    let ttl = options.ttl_ms.map_or(Ttl::Unlimited, |millis| std::time::Duration::from_millis(millis).into());
    let mut new = NewTask::new(METHOD).ttl(ttl);
    if let Some(millis) = options.poll_interval_ms {
        new = new.poll_interval(std::time::Duration::from_millis(millis));
    }
    if let Some(message) = options.status_message {
        new = new.status_message(message);
    }
    new
}

/// Converts a task, without its requests, result or error.
pub(super) fn task(stored: &StoredTask) -> model::Task {
    let task = &stored.task;
    let status = match task.status {
        TaskStatus::Working => model::TaskStatus::Working,
        TaskStatus::InputRequired => model::TaskStatus::InputRequired,
        TaskStatus::Completed => model::TaskStatus::Completed,
        TaskStatus::Failed => model::TaskStatus::Failed,
        TaskStatus::Cancelled => model::TaskStatus::Cancelled,
    };
    let (created_at, updated_at) = (rfc3339(task.created_at), rfc3339(task.last_updated_at));
    let mut wire = model::Task::new(task.task_id.as_str(), status, created_at, updated_at);
    wire.status_message.clone_from(&task.status_message);
    wire.ttl_ms = task.ttl_ms;
    wire.poll_interval_ms = task.poll_interval_ms;
    wire
}

/// Converts a task for the response to `tasks/get`. Loads the result of a completed task, and no other payload.
///
/// # Errors
/// `Unreadable` if the requests or the result in the record do not have the SDK's types, for instance because another
/// server wrote them; the errors of [`TaskStore::payload`].
pub(super) async fn detailed<B: Agenda>(
    store: &TaskStore<B>,
    stored: &StoredTask,
) -> Result<DetailedTask, TaskError> {
    let record = &stored.task;
    let payload = match record.status {
        TaskStatus::Working => TaskPayload::Working,
        TaskStatus::InputRequired => TaskPayload::InputRequired { input_requests: input_requests(stored)? },
        TaskStatus::Completed => {
            let result = store.payload(stored, PayloadKind::Output).await?;
            TaskPayload::Completed { result: read(stored, result.unwrap_or_default())? }
        }
        TaskStatus::Failed => {
            TaskPayload::Failed { error: record.error.as_ref().map(object).unwrap_or_default() }
        }
        TaskStatus::Cancelled => TaskPayload::Cancelled,
    };
    Ok(DetailedTask::new(task(stored), payload))
}

/// Converts the open requests of a task.
///
/// # Errors
/// `Unreadable` as for [`detailed`].
pub(super) fn input_requests(stored: &StoredTask) -> Result<InputRequests, TaskError> {
    let requests = stored.task.input_requests.iter();
    requests.map(|(key, request)| Ok((key.clone(), read(stored, request.clone())?))).collect()
}

fn read<T: DeserializeOwned>(stored: &StoredTask, value: Value) -> Result<T, TaskError> {
    let task = stored.key.task.clone();
    serde_json::from_value(value).map_err(|source| TaskError::Unreadable { task, source })
}

fn object(error: &RpcError) -> JsonObject {
    let mut object = JsonObject::new();
    object.insert("code".to_owned(), error.code.into());
    object.insert("message".to_owned(), error.message.clone().into());
    if let Some(data) = &error.data {
        object.insert("data".to_owned(), data.clone());
    }
    object
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

pub(super) fn rpc_error(error: ErrorData) -> RpcError {
    let mut rpc = RpcError::new(error.code.0.into(), error.message);
    rpc.data = error.data;
    rpc
}

/// Converts an error for the client, with the code of [`TaskError::code`]. If the storage has failed, the message
/// does not say why. The log has the reason.
impl From<TaskError> for ErrorData {
    fn from(error: TaskError) -> Self {
        let code = ErrorCode(i32::try_from(error.code()).unwrap_or(ErrorCode::INTERNAL_ERROR.0));
        match error {
            TaskError::Storage(_)
            | TaskError::LaterVersion { .. }
            | TaskError::Unreadable { .. }
            | TaskError::Unencodable { .. } => {
                if is_unreadable(&error) {
                    tracing::warn!(error = %Chain(&error), "a task could not be served: its record cannot be read");
                } else {
                    tracing::debug!(error = %Chain(&error), "a task could not be served");
                }
                let message = if error.is_retryable() {
                    "the tasks cannot be reached at the moment; try again"
                } else {
                    "the task cannot be served"
                };
                Self::new(code, message, None)
            }
            other => Self::new(code, other.to_string(), None),
        }
    }
}

/// Returns whether the record or one of its payloads cannot be read or written as JSON. Trying again does not help.
pub(super) fn is_unreadable(error: &TaskError) -> bool {
    error.is_unreadable() || matches!(error, TaskError::Unencodable { .. })
}

/// Converts an error into the end of an operation. An operation that must stop ends as `Cancelled`.
pub(super) fn exit(error: TaskError) -> TaskExit {
    match error {
        TaskError::CancelRequested { .. }
        | TaskError::LeaseLost { .. }
        | TaskError::NotFound { .. }
        | TaskError::InvalidTransition { .. } => TaskExit::Cancelled,
        TaskError::InputKeyUsed { .. }
        | TaskError::LimitExceeded { .. }
        | TaskError::InvalidArgument { .. } => {
            TaskExit::Error(ErrorData::internal_error(error.to_string(), None))
        }
        other => TaskExit::Error(other.into()),
    }
}
