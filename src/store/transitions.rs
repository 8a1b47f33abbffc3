//! The status machine: what each operation does to a task, and when it may.
//!
//! ```text
//! working        -> input_required | completed | failed | cancelled
//! input_required -> input_required (more requests) | working | completed | failed | cancelled
//! ```
//!
//! The last three are terminal and never change.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::limits::{MAX_JSON_DEPTH, check, check_depth, check_variables};
use super::{StoreConfig, TaskError};
use crate::task::{Lease, OnWorkerLost, RpcError, Task, TaskStatus};

/// What an operation made of a task.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The task is to be written.
    Made,
    /// The same, and it concerns nobody but the worker: who watches is not told, and the task counts as not updated.
    Unseen,
    /// There is nothing to write: the task is as it was.
    None,
}

fn require_open(task: &Task, action: &'static str) -> Result<(), TaskError> {
    if task.status.is_terminal() {
        return Err(TaskError::InvalidTransition { task: task.task_id.clone(), from: task.status, action });
    }
    Ok(())
}

/// Makes the task terminal. Nobody answers its open requests any more, and no attempt needs its checkpoint.
pub(super) fn end(task: &mut Task, status: TaskStatus, action: &'static str) -> Result<(), TaskError> {
    require_open(task, action)?;
    task.status = status;
    task.input_requests.clear();
    task.checkpoint = None;
    task.lease = None;
    Ok(())
}

pub(super) fn set_status_message(
    task: &mut Task,
    message: &str,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    require_open(task, "set its status message")?;
    check("bytes of a status message", message.len(), config.max_status_message_bytes)?;
    task.status_message = Some(message.to_owned());
    Ok(Change::Made)
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
        return Err(TaskError::InvalidArgument { reason: "no input request was given".to_owned() });
    }
    for (key, request) in requests {
        check_depth("depth of an input request", request, MAX_JSON_DEPTH)?;
        let used = task.input_responses.contains_key(key)
            || task.input_requests.insert(key.clone(), request.clone()).is_some();
        if used {
            return Err(TaskError::InputKeyUsed { task: task.task_id.clone(), key: key.clone() });
        }
    }
    let requested = task.input_requests.len() + task.input_responses.len();
    check("input requests of a task", requested, config.max_input_requests)?;
    task.status = TaskStatus::InputRequired;
    Ok(Change::Made)
}

/// The same for one request that an earlier attempt may have made: an equal one stays as it is, open or answered.
pub(super) fn request_input_again(
    task: &mut Task,
    key: &str,
    request: &Value,
    config: &StoreConfig,
) -> Result<Change, TaskError> {
    let before = task.input_requests.get(key).or_else(|| task.answered_requests.get(key));
    if before == Some(request) && !task.status.is_terminal() && !task.cancel_requested {
        return Ok(Change::None);
    }
    request_input(task, &[(key.to_owned(), request.clone())], config)
}

/// An answer to a request that is not open (unknown, answered, withdrawn, or of a task that has ended) has
/// no effect.
pub(super) fn deliver_inputs(
    task: &mut Task,
    responses: &BTreeMap<String, Value>,
) -> Result<Change, TaskError> {
    let mut change = Change::None;
    for (key, response) in responses {
        if let Some(request) = task.input_requests.remove(key) {
            check_depth("depth of an input response", response, MAX_JSON_DEPTH)?;
            task.input_responses.insert(key.clone(), response.clone());
            if task.on_worker_lost == OnWorkerLost::Resume {
                task.answered_requests.insert(key.clone(), request);
            }
            change = Change::Made;
        }
    }
    if change == Change::Made && task.input_requests.is_empty() {
        task.status = TaskStatus::Working;
    }
    Ok(change)
}

pub(super) fn complete(task: &mut Task, result: &Value) -> Result<Change, TaskError> {
    end(task, TaskStatus::Completed, "complete it")?;
    check_depth("depth of a result", result, MAX_JSON_DEPTH)?;
    task.result = Some(result.clone().into());
    Ok(Change::Made)
}

pub(super) fn fail(task: &mut Task, error: &RpcError) -> Result<Change, TaskError> {
    end(task, TaskStatus::Failed, "fail it")?;
    if let Some(data) = &error.data {
        check_depth("depth of error data", data, MAX_JSON_DEPTH)?;
    }
    task.error = Some(error.clone());
    Ok(Change::Made)
}

pub(super) fn cancel(task: &mut Task) -> Result<Change, TaskError> {
    end(task, TaskStatus::Cancelled, "cancel it")?;
    Ok(Change::Made)
}

/// Leaves it to the worker how the task ends, or ends it if it waits for one.
pub(super) fn request_cancel(task: &mut Task) -> Result<Change, TaskError> {
    if task.status.is_terminal() {
        return Ok(Change::None);
    }
    if waiting(task).is_some() {
        task.cancel_requested = true;
        return cancel(task);
    }
    if task.cancel_requested {
        return Ok(Change::None);
    }
    task.cancel_requested = true;
    task.input_requests.clear();
    task.status = TaskStatus::Working;
    Ok(Change::Made)
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
                "the variable {name:?} is null, which is also what JSON makes of NaN and infinity; remove_variables removes one"
            );
            return Err(TaskError::InvalidArgument { reason });
        }
        task.variables.insert(name.clone(), value.clone());
    }
    check_variables(&task.variables, config)?;
    Ok(Change::Made)
}

pub(super) fn remove_variables(task: &mut Task, names: &[String]) -> Result<Change, TaskError> {
    require_open(task, "remove its variables")?;
    let before = task.variables.len();
    task.variables.retain(|name, _| !names.contains(name));
    Ok(if task.variables.len() < before { Change::Made } else { Change::None })
}

/// Only the next attempt reads it.
pub(super) fn set_checkpoint(task: &mut Task, checkpoint: &Value) -> Result<Change, TaskError> {
    require_open(task, "set its checkpoint")?;
    check_depth("depth of a checkpoint", checkpoint, MAX_JSON_DEPTH)?;
    task.checkpoint = Some(checkpoint.clone().into());
    Ok(Change::Unseen)
}

/// Every change of the holder renews its lease. This one does nothing else.
pub(super) fn renew(task: &Task) -> Result<Change, TaskError> {
    require_open(task, "renew its lease")?;
    Ok(Change::Unseen)
}

/// The lease of an open task that waits for a worker: it has no holder.
pub(super) fn waiting(task: &Task) -> Option<&Lease> {
    task.lease.as_ref().filter(|lease| lease.holder.is_none() && !task.status.is_terminal())
}

/// Whether the operation of a task without a worker may run: again, or for the first time.
pub(super) fn may_run(task: &Task, lease: &Lease) -> bool {
    task.on_worker_lost == OnWorkerLost::Resume || lease.attempt == 0
}

/// How many lost workers a task survives whose record does not say otherwise.
pub(super) const DEFAULT_MAX_ATTEMPTS: u32 = 3;
/// How long after the second lost worker the next attempt begins, and twice as long after each more. After the first it
/// begins at once: the lease that lapsed was the delay.
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(600);

/// Why a task has no worker any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// Nobody heard of the worker for a lease, or it dropped its attempt. It counts against the bound of attempts.
    Lost,
    /// It gave the task back, as at a shutdown or deploy, or never began.
    Released,
}

/// What becomes of a task without its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It waits for the next worker.
    Waits,
    /// A cancel had been requested.
    Cancelled,
    /// Its operation cannot run again.
    Failed,
    /// Its operation has lost as many workers as it may.
    GaveUp {
        /// How many.
        losses: u32,
    },
}

/// Takes the lease of a task from its worker. A cancel that was requested is never forgotten; a task whose operation may
/// run again waits for the next worker; any other fails.
pub(super) fn lose_worker(task: &mut Task, gone: Gone, now: DateTime<Utc>) -> Result<Then, TaskError> {
    const LOST: &str = "the worker of the task was lost";
    require_open(task, "take its lease")?;
    if task.cancel_requested {
        return end(task, TaskStatus::Cancelled, "cancel it").map(|()| Then::Cancelled);
    }
    let Some(lease) = task.lease.as_ref().filter(|lease| may_run(task, lease)) else {
        return fail_with(task, LOST.to_owned()).map(|_| Then::Failed);
    };
    let losses = lease.losses.saturating_add(u32::from(gone == Gone::Lost));
    if gone == Gone::Lost && losses >= task.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS) {
        let attempts = if losses == 1 { "attempt" } else { "attempts" };
        let message = format!("gave up after {losses} {attempts}: the worker was lost");
        return fail_with(task, message).map(|_| Then::GaveUp { losses });
    }
    let delay = if gone == Gone::Lost { delay_after(losses) } else { Duration::ZERO };
    task.lease =
        Some(Lease { holder: None, losses, deadline: now + delay, extra: Map::new(), ..lease.clone() });
    Ok(Then::Waits)
}

fn delay_after(losses: u32) -> Duration {
    let Some(doublings) = losses.checked_sub(2) else { return Duration::ZERO };
    FIRST_DELAY.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_DELAY)
}

/// How long to wait until the next attempt at a task that waits for a worker may begin. If the engine's clock was set back
/// since, that is at most the delay after so many losses.
pub(super) fn delay_left(waiting: &Lease, now: DateTime<Utc>) -> Duration {
    (waiting.deadline - now).to_std().unwrap_or_default().min(delay_after(waiting.losses))
}

fn fail_with(task: &mut Task, message: String) -> Result<Change, TaskError> {
    let error = RpcError::new(-32603, message.clone());
    task.status_message = Some(message);
    fail(task, &error)
}

/// What becomes of a task whose TTL has elapsed before it ended.
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
    fn the_delay_doubles_with_each_loss_from_the_second_on_and_ends_at_ten_minutes() {
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
        // By a minute, and by a day.
        assert_eq!(left(2, "2026-01-31T11:59:10Z"), 10);
        assert_eq!(left(1, "2026-01-31T11:59:10Z"), 0);
        assert_eq!(left(0, "2026-01-30T12:00:10Z"), 0);
    }
}
