//! The status machine: what each operation does to a task, and in which status it is allowed.
//!
//! ```text
//! working        -> input_required | completed | failed | cancelled
//! input_required -> input_required (more requests) | working | completed | failed | cancelled
//! ```
//!
//! `completed`, `failed` and `cancelled` are terminal and never change. There is one exception, for SDKs that end a task in
//! two calls: an ended task may once receive the part of its outcome that is missing.

pub(super) mod exit;
#[cfg(feature = "pmcp")]
pub(super) mod split;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use self::exit::drop_announcement;
pub(super) use self::exit::{open_lease, waiting_lease};
use super::config::{MAX_JSON_DEPTH, StoreConfig};
use super::durations::millis;
use super::error::TaskError;
use super::limits::{check, check_depth, check_poll_interval, check_variables};
use super::ttl;
use crate::backend::Expiry;
use crate::task::history::TTL_ELAPSED;
use crate::task::{EventKind, RpcError, Task, TaskStatus};
#[cfg(feature = "rmcp")]
use crate::task::{Progress, secret::Secret};

/// How an operation changed a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The task must be written. Subscribers receive a notification.
    Visible,
    /// The task must be written, and its record has another expiry. Subscribers receive a notification.
    Lifetime(Expiry),
    /// Only the expiry of the record changes. Subscribers receive no notification, and the time of the last update stays as
    /// it is.
    #[cfg(feature = "rmcp")]
    Retention(Expiry),
    /// The task must be written. The change concerns only the worker: subscribers receive no notification, and the time of
    /// the last update stays as it is.
    Internal,
    /// The task is unchanged, so there is nothing to write.
    None,
}

impl Change {
    /// Returns whether subscribers can tell the changed task from the task before.
    pub(super) fn is_visible(self) -> bool {
        matches!(self, Self::Visible | Self::Lifetime(_))
    }
}

fn refused(task: &Task, action: &'static str) -> TaskError {
    TaskError::InvalidTransition { task: task.task_id.clone(), from: task.status, action }
}

fn require_open(task: &Task, action: &'static str) -> Result<(), TaskError> {
    if task.status.is_terminal() { Err(refused(task, action)) } else { Ok(()) }
}

/// Makes the task terminal. Removes its open requests, its checkpoint and its secret, which no client and no later attempt
/// needs.
fn end(task: &mut Task, status: TaskStatus, action: &'static str) -> Result<(), TaskError> {
    require_open(task, action)?;
    drop_announcement(task);
    task.note(match status {
        TaskStatus::Completed => EventKind::Completed,
        TaskStatus::Cancelled => EventKind::Cancelled,
        _ => EventKind::Failed,
    });
    task.status = status;
    task.input_requests.clear();
    task.checkpoint = None;
    task.adapter.secret = None;
    task.lease = None;
    Ok(())
}

pub(super) fn set_status_message(
    task: &mut Task,
    message: &str,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    require_open(task, "set its status message")?;
    check_status_message(message, config)?;
    task.status_message = Some(message.to_owned());
    Ok(Change::Visible)
}

#[cfg(feature = "rmcp")]
pub(super) fn set_progress(task: &mut Task, progress: &Progress) -> Result<Change, TaskError> {
    require_open(task, "set its progress")?;
    task.progress = Some(progress.clone());
    Ok(Change::Visible)
}

pub(super) fn check_status_message(message: &str, config: &StoreConfig) -> Result<(), TaskError> {
    check("bytes of a status message", message.len(), config.max_status_message_bytes)
}

/// Changes how long the task may run, counted from its creation. `now` is the engine's clock.
pub(super) fn set_ttl(
    task: &mut Task,
    ttl: Option<Duration>,
    now: DateTime<Utc>,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    require_open(task, "set its TTL")?;
    let expiry = ttl::expiry(ttl, now - task.created_at, task.retention(), config)?;
    let ttl_ms = ttl.map(millis);
    if task.ttl_ms == ttl_ms {
        return Ok(Change::None);
    }
    task.ttl_ms = ttl_ms;
    Ok(Change::Lifetime(expiry))
}

pub(super) fn set_poll_interval(task: &mut Task, interval: Duration) -> Result<Change, TaskError> {
    require_open(task, "set its poll interval")?;
    check_poll_interval(interval)?;
    task.poll_interval_ms = Some(millis(interval));
    Ok(Change::Visible)
}

pub(super) fn request_input(
    task: &mut Task,
    requests: &[(String, Value)],
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    require_open(task, "request input")?;
    if task.cancel_requested {
        return Err(TaskError::CancelRequested { task: task.task_id.clone() });
    }
    if requests.is_empty() {
        return Err(TaskError::InvalidArgument {
            reason: "there is no input request; pass at least one".to_owned(),
        });
    }
    for (key, request) in requests {
        check_depth("depth of an input request", request, MAX_JSON_DEPTH)?;
        let is_used = task.input_responses.contains_key(key)
            || task.input_requests.insert(key.clone(), request.clone()).is_some();
        if is_used {
            return Err(TaskError::InputKeyUsed { task: task.task_id.clone(), key: key.clone() });
        }
    }
    let requested = task.input_requests.len() + task.input_responses.len();
    check("input requests of a task", requested, config.max_input_requests)?;
    task.status = TaskStatus::InputRequired;
    note_keys(
        task,
        EventKind::InputRequested,
        "requests",
        &requests.iter().map(|(key, _)| key).collect::<Vec<_>>(),
    );
    Ok(Change::Visible)
}

/// Notes requests or answers: the key of one, the number of several.
fn note_keys(task: &mut Task, kind: EventKind, plural: &str, keys: &[&String]) {
    task.note(kind);
    match keys {
        [key] => task.note_detail((*key).clone()),
        keys => task.note_detail(format!("{} {plural}", keys.len())),
    }
}

/// Makes one request that an earlier attempt may have made already. If it has, the request stays as it is, open or
/// answered.
pub(super) fn request_input_once(
    task: &mut Task,
    key: &str,
    request: &Value,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    let earlier = task.input_requests.get(key).or_else(|| task.answered_requests.get(key));
    if earlier == Some(request) && !task.status.is_terminal() && !task.cancel_requested {
        return Ok(Change::None);
    }
    request_input(task, &[(key.to_owned(), request.clone())], config)
}

/// Stores the answers to open requests. An answer to any other request has no effect: the request is unknown, answered or
/// withdrawn, or the task has ended.
pub(super) fn deliver_inputs(
    task: &mut Task,
    responses: &BTreeMap<String, Value>,
) -> Result<Change, TaskError> {
    let mut answered = Vec::new();
    for (key, response) in responses {
        if let Some(request) = task.input_requests.remove(key) {
            check_depth("depth of an input response", response, MAX_JSON_DEPTH)?;
            task.input_responses.insert(key.clone(), response.clone());
            if task.may_resume() {
                task.answered_requests.insert(key.clone(), request);
            }
            answered.push(key);
        }
    }
    if answered.is_empty() {
        return Ok(Change::None);
    }
    if task.input_requests.is_empty() {
        task.status = TaskStatus::Working;
    }
    note_keys(task, EventKind::InputAnswered, "answers", &answered);
    Ok(Change::Visible)
}

pub(super) fn complete(task: &mut Task, result: &Value) -> Result<Change, TaskError> {
    end(task, TaskStatus::Completed, "complete it")?;
    check_depth("depth of a result", result, MAX_JSON_DEPTH)?;
    task.result = Some(result.clone().into());
    Ok(Change::Visible)
}

pub(super) fn fail(task: &mut Task, error: &RpcError) -> Result<Change, TaskError> {
    end(task, TaskStatus::Failed, "fail it")?;
    if let Some(data) = &error.data {
        check_depth("depth of error data", data, MAX_JSON_DEPTH)?;
    }
    task.note_detail(format!("error {}", error.code));
    task.error = Some(error.clone());
    Ok(Change::Visible)
}

pub(super) fn cancel(task: &mut Task) -> Result<Change, TaskError> {
    end(task, TaskStatus::Cancelled, "cancel it")?;
    Ok(Change::Visible)
}

/// Records that a cancel was requested. The worker decides how the task ends. A task that waits for a worker is
/// cancelled now.
pub(super) fn request_cancel(task: &mut Task) -> Result<Change, TaskError> {
    if task.status.is_terminal() {
        return Ok(Change::None);
    }
    if waiting_lease(task).is_some() {
        task.cancel_requested = true;
        return cancel(task);
    }
    if task.cancel_requested {
        return Ok(Change::None);
    }
    task.cancel_requested = true;
    task.note(EventKind::CancelRequested);
    task.input_requests.clear();
    task.status = TaskStatus::Working;
    Ok(Change::Visible)
}

pub(super) fn set_variables(
    task: &mut Task,
    variables: &BTreeMap<String, Value>,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    require_open(task, "set its variables")?;
    for (name, value) in variables {
        if value.is_null() {
            let reason = format!(
                "the variable {name:?} is null (JSON has no NaN and no infinity; serde_json writes null for them); use remove_variables to remove a variable"
            );
            return Err(TaskError::InvalidArgument { reason });
        }
        task.variables.insert(name.clone(), value.clone());
    }
    check_variables(&task.variables, config)?;
    Ok(Change::Visible)
}

pub(super) fn remove_variables(task: &mut Task, names: &[String]) -> Result<Change, TaskError> {
    require_open(task, "remove its variables")?;
    let before = task.variables.len();
    task.variables.retain(|name, _| !names.contains(name));
    Ok(if task.variables.len() < before { Change::Visible } else { Change::None })
}

/// Stores a checkpoint. Only the next attempt reads it, so subscribers receive no notification.
pub(super) fn set_checkpoint(task: &mut Task, checkpoint: &Value) -> Result<Change, TaskError> {
    require_open(task, "set its checkpoint")?;
    check_depth("depth of a checkpoint", checkpoint, MAX_JSON_DEPTH)?;
    task.checkpoint = Some(checkpoint.clone().into());
    Ok(Change::Internal)
}

/// Gives an open task a secret, unless it has one. Only servers read it, so subscribers receive no notification.
#[cfg(feature = "rmcp")]
pub(super) fn add_secret(task: &mut Task, secret: &Secret) -> Result<Change, TaskError> {
    require_open(task, "add a secret")?;
    if task.adapter.secret.is_some() {
        return Ok(Change::None);
    }
    task.adapter.secret = Some(secret.clone());
    Ok(Change::Internal)
}

/// Renews the lease. Every change of the holder renews its lease, so this function changes nothing itself.
pub(super) fn renew(task: &Task) -> Result<Change, TaskError> {
    require_open(task, "renew its lease")?;
    Ok(Change::Internal)
}

/// Fails a task for a reason of the store, which the history shows.
fn fail_with(task: &mut Task, message: &'static str) -> Result<Change, TaskError> {
    task.status_message = Some(message.to_owned());
    let failed = fail(task, &RpcError::new(-32603, message))?;
    task.note_detail(message);
    Ok(failed)
}

/// Fails a unique task without a worker whose key belongs to another task.
pub(super) fn replace(task: &mut Task) -> Result<Change, TaskError> {
    let replaced = fail_with(task, "another task with the same unique key has replaced this task")?;
    task.note_detail("replaced by another task");
    Ok(replaced)
}

/// Ends a task whose TTL has elapsed before it ended.
pub(super) fn expire(task: &mut Task) -> Result<Change, TaskError> {
    if task.cancel_requested {
        return cancel(task);
    }
    fail_with(task, TTL_ELAPSED)
}
