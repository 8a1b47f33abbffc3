//! The status machine: what each operation does to a task, and in which status it is allowed.
//!
//! ```text
//! working        -> input_required | completed | failed | cancelled
//! input_required -> input_required (more requests) | working | completed | failed | cancelled
//! ```
//!
//! `completed`, `failed` and `cancelled` are terminal and never change. There is one exception, for SDKs that end a task in
//! two calls: an ended task may once receive the part of its outcome that is missing.

#[cfg(feature = "pmcp")]
pub(super) mod split;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::config::{DEFAULT_MAX_ATTEMPTS, MAX_JSON_DEPTH, StoreConfig};
use super::durations::millis;
use super::error::TaskError;
use super::limits::{check, check_depth, check_poll_interval, check_variables};
use super::ttl;
use crate::backend::Expiry;
use crate::task::{Lease, OnWorkerLost, RpcError, Task, TaskStatus};
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
    Ok(Change::Visible)
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
    let mut change = Change::None;
    for (key, response) in responses {
        if let Some(request) = task.input_requests.remove(key) {
            check_depth("depth of an input response", response, MAX_JSON_DEPTH)?;
            task.input_responses.insert(key.clone(), response.clone());
            if task.may_resume() {
                task.answered_requests.insert(key.clone(), request);
            }
            change = Change::Visible;
        }
    }
    if change == Change::Visible && task.input_requests.is_empty() {
        task.status = TaskStatus::Working;
    }
    Ok(change)
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

/// Returns the lease of an open task that waits for a worker: the lease has no holder.
pub(super) fn waiting_lease(task: &Task) -> Option<&Lease> {
    open_lease(task).filter(|lease| lease.holder.is_none())
}

/// Returns the lease of a task that has not ended.
pub(super) fn open_lease(task: &Task) -> Option<&Lease> {
    task.lease.as_ref().filter(|_| !task.status.is_terminal())
}

/// Returns whether the operation of a task without a worker may run, again or for the first time.
pub(super) fn may_run(task: &Task, lease: &Lease) -> bool {
    task.on_worker_lost == OnWorkerLost::Resume || lease.attempt == 0
}

/// The delay before the attempt that follows the second lost worker. Each further loss doubles it. The attempt that follows
/// the first loss begins at once: the lease that lapsed was the delay.
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(600);

/// How a worker left its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkerExit {
    /// The worker did not renew its lease, or dropped its attempt. The exit counts against the bound of attempts.
    Lost,
    /// The worker released the task, as at a shutdown or deploy, or never began. The exit does not count.
    Released,
}

/// What happens to a task after its worker has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterExit {
    /// The task waits for the next worker.
    Waits,
    /// The task is cancelled, because a cancel had been requested.
    Cancelled,
    /// The task failed, because its operation cannot run again.
    Failed,
    /// The task failed, because it has lost as many workers as its bound allows.
    GaveUp {
        /// How many workers the task has lost.
        losses: u32,
    },
}

/// Takes the lease of a task from its worker. A requested cancel is never forgotten: the task becomes `cancelled`. Otherwise a
/// task whose operation may run again waits for the next worker, and any other task fails.
pub(super) fn take_lease(
    task: &mut Task,
    exit: WorkerExit,
    now: DateTime<Utc>,
) -> Result<AfterExit, TaskError> {
    const LOST: &str = "the worker of the task was lost";
    require_open(task, "take its lease")?;
    if let Some(found) = task.forbids_leases() {
        return Err(TaskError::LaterVersion { task: task.task_id.clone(), found });
    }
    if task.cancel_requested {
        return end(task, TaskStatus::Cancelled, "cancel it").map(|()| AfterExit::Cancelled);
    }
    let Some(lease) = task.lease.as_ref().filter(|lease| may_run(task, lease)) else {
        return fail_with(task, LOST.to_owned()).map(|_| AfterExit::Failed);
    };
    let losses = lease.losses.saturating_add(u32::from(exit == WorkerExit::Lost));
    if exit == WorkerExit::Lost && losses >= task.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS) {
        let attempts = if losses == 1 { "attempt" } else { "attempts" };
        let message = format!("gave up after {losses} {attempts}: the worker was lost");
        return fail_with(task, message).map(|_| AfterExit::GaveUp { losses });
    }
    let delay = if exit == WorkerExit::Lost { delay_after(losses) } else { Duration::ZERO };
    task.lease = Some(Lease {
        holder: None,
        losses,
        deadline: now + delay,
        delay_ms: Some(millis(delay)),
        extra: Map::new(),
        ..lease.clone()
    });
    Ok(AfterExit::Waits)
}

fn delay_after(losses: u32) -> Duration {
    let Some(doublings) = losses.checked_sub(2) else { return Duration::ZERO };
    FIRST_DELAY.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_DELAY)
}

/// Returns how long to wait until the next attempt at a task that waits for a worker may begin. If the engine's clock was set
/// back since, the wait is at most the delay that the lease states. A lease of an earlier version states none: the delay
/// then follows from the number of losses.
pub(super) fn delay_left(waiting: &Lease, now: DateTime<Utc>) -> Duration {
    let longest = waiting.delay_ms.map_or_else(|| delay_after(waiting.losses), Duration::from_millis);
    (waiting.deadline - now).to_std().unwrap_or_default().min(longest)
}

fn fail_with(task: &mut Task, message: String) -> Result<Change, TaskError> {
    let error = RpcError::new(-32603, message.clone());
    task.status_message = Some(message);
    fail(task, &error)
}

/// Fails a unique task without a worker whose key belongs to another task.
pub(super) fn replace(task: &mut Task) -> Result<Change, TaskError> {
    fail_with(task, "another task with the same unique key has replaced this task".to_owned())
}

/// Ends a task whose TTL has elapsed before it ended.
pub(super) fn expire(task: &mut Task) -> Result<Change, TaskError> {
    if task.cancel_requested {
        return cancel(task);
    }
    fail_with(task, "TTL elapsed".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_delay_doubles_with_each_loss_from_the_second_on_up_to_ten_minutes() {
        let seconds = [0, 1, 2, 3, 4, 7, 8, 9, 40, u32::MAX].map(|losses| delay_after(losses).as_secs());
        assert_eq!(seconds, [0, 0, 10, 20, 40, 320, 600, 600, 600, 600]);
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_delay_longer() {
        let lease = json!({ "attempt": 2, "durationMs": 1, "deadline": "2026-01-31T12:00:10.000Z" });
        let waiting = |losses| Lease { losses, ..serde_json::from_value(lease.clone()).unwrap() };
        let left = |losses, now: &str| delay_left(&waiting(losses), now.parse().unwrap()).as_secs();
        assert_eq!(left(2, "2026-01-31T12:00:04Z"), 6);
        assert_eq!(left(2, "2026-01-31T12:00:20Z"), 0);
        // The clock is set back by a minute, and by a day.
        assert_eq!(left(2, "2026-01-31T11:59:10Z"), 10);
        assert_eq!(left(1, "2026-01-31T11:59:10Z"), 0);
        assert_eq!(left(0, "2026-01-30T12:00:10Z"), 0);
        // A lease that states its delay has no other bound.
        let left = |delay_ms, now: &str| {
            let waiting = Lease { delay_ms: Some(delay_ms), ..waiting(2) };
            delay_left(&waiting, now.parse().unwrap()).as_millis()
        };
        assert_eq!(left(60_000, "2026-01-31T11:59:40Z"), 30_000);
        assert_eq!(left(60_000, "2026-01-31T10:00:00Z"), 60_000);
        assert_eq!(left(7, "2026-01-31T11:59:10Z"), 7);
        assert_eq!(left(0, "2026-01-31T11:59:10Z"), 0);
    }
}
