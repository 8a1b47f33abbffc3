//! How a worker leaves its task without an outcome, and what the task becomes: it waits for the next worker, or ends.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Map;

use super::{end, fail, fail_with, require_open};
use crate::backend::Expiry;
use crate::store::config::DEFAULT_MAX_ATTEMPTS;
use crate::store::durations::millis;
use crate::store::error::TaskError;
use crate::task::{EventKind, Lease, OnWorkerLost, RpcError, Task, TaskStatus};

const LOST: &str = "the worker was lost";

/// Returns the lease of an open task that waits for a worker: the lease has no holder.
pub(in crate::store) fn waiting_lease(task: &Task) -> Option<&Lease> {
    open_lease(task).filter(|lease| lease.holder.is_none())
}

/// Returns the lease of a task that has not ended.
pub(in crate::store) fn open_lease(task: &Task) -> Option<&Lease> {
    task.lease.as_ref().filter(|_| !task.status.is_terminal())
}

/// Returns whether the operation of a task without a worker may run, again or for the first time.
pub(in crate::store) fn may_run(task: &Task, lease: &Lease) -> bool {
    task.on_worker_lost == OnWorkerLost::Resume || lease.attempt == 0
}

/// How a worker left its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum WorkerExit {
    /// The worker did not renew its lease, or dropped its attempt. The exit counts against the bound of attempts.
    Lost,
    /// The worker released the task, as at a shutdown or deploy, or never began. The exit does not count.
    Released,
}

/// What happens to a task after its worker has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum AfterExit {
    /// The task waits for the next worker.
    Waits,
    /// The task is cancelled, because a cancel had been requested.
    Cancelled,
    /// The task failed, because its operation cannot run again.
    Failed,
    /// The task failed, because it has used as many attempts as its bound allows.
    GaveUp,
}

/// What an exit depends on, next to the task.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct ExitTerms {
    /// The engine's clock.
    pub(in crate::store) now: DateTime<Utc>,
    /// Chooses a jittered delay.
    pub(in crate::store) random: u64,
    pub(in crate::store) max_status_message_bytes: usize,
}

/// Takes the lease of a task from its worker. A requested cancel is never forgotten: the task becomes `cancelled`. Otherwise a
/// task whose operation may run again waits for the next worker, and any other task fails.
pub(in crate::store) fn take_lease(
    task: &mut Task,
    exit: WorkerExit,
    terms: &ExitTerms,
) -> Result<AfterExit, TaskError> {
    require_open(task, "take its lease")?;
    require_known(task)?;
    if task.lease.as_ref().is_some_and(|lease| lease.holder.is_some()) {
        task.note(match exit {
            WorkerExit::Lost => EventKind::LeaseLost,
            WorkerExit::Released => EventKind::Released,
        });
    }
    if task.cancel_requested {
        return end(task, TaskStatus::Cancelled, "cancel it").map(|()| AfterExit::Cancelled);
    }
    let Some(lease) = task.lease.as_ref().filter(|lease| may_run(task, lease)) else {
        return fail_with(task, "the worker of the task was lost").map(|_| AfterExit::Failed);
    };
    if exit == WorkerExit::Released {
        let losses = lease.losses;
        return wait_for_the_next(task, losses, Duration::ZERO, terms.now);
    }
    match attempts_left(task, lease) {
        Some(used) => retry_after(task, used, LOST, terms),
        None => {
            let used = lease.losses.saturating_add(1);
            let message = gave_up(used, Some(LOST), usize::MAX);
            give_up(task, used, &RpcError::new(-32603, message), Some(LOST), terms)
        }
    }
}

/// Gives a task back to its queue after an error of its operation. The attempt counts like a lost worker. `reason` is the
/// text of the error in the status message; `None` if the record has no room for it.
pub(in crate::store) fn retry(
    task: &mut Task,
    error: &RpcError,
    reason: Option<&str>,
    terms: &ExitTerms,
) -> Result<AfterExit, TaskError> {
    require_open(task, "retry it")?;
    require_known(task)?;
    if task.cancel_requested {
        return end(task, TaskStatus::Cancelled, "cancel it").map(|()| AfterExit::Cancelled);
    }
    let Some(lease) = task.lease.as_ref().filter(|_| task.on_worker_lost == OnWorkerLost::Resume) else {
        return fail(task, error).map(|_| AfterExit::Failed);
    };
    match attempts_left(task, lease) {
        Some(used) => {
            task.note(EventKind::AttemptFailed);
            task.note_detail(format!("error {}", error.code));
            retry_after(task, used, reason.unwrap_or_default(), terms)
        }
        None => give_up(task, lease.losses.saturating_add(1), error, reason, terms),
    }
}

/// Refuses to decide about a task of which a later version of this crate knows more.
fn require_known(task: &Task) -> Result<(), TaskError> {
    match task.forbids_leases() {
        Some(found) => Err(TaskError::LaterVersion { task: task.task_id.clone(), found }),
        None => Ok(()),
    }
}

/// Returns whether the exit of this attempt, other than a release, uses up the attempts of the task.
pub(in crate::store) fn is_last_attempt(task: &Task) -> bool {
    let can_resume = task.on_worker_lost == OnWorkerLost::Resume;
    can_resume && open_lease(task).is_some_and(|lease| attempts_left(task, lease).is_none())
}

/// Returns how many attempts are used after this one; `None` if no further attempt is left.
fn attempts_left(task: &Task, lease: &Lease) -> Option<u32> {
    let used = lease.losses.saturating_add(1);
    (used < max_attempts(task)).then_some(used)
}

fn max_attempts(task: &Task) -> u32 {
    task.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS)
}

/// Makes a task wait for its next attempt. The status message says why, and when that attempt begins.
fn retry_after(task: &mut Task, used: u32, reason: &str, terms: &ExitTerms) -> Result<AfterExit, TaskError> {
    let delay = match &task.retry {
        Some(retry) => retry.delay_after(used, terms.random),
        None => delay_after(used),
    };
    let (failed, next) = (failed_attempt(used, max_attempts(task)), next_start(delay));
    task.status_message = Some(message(&failed, reason, &next, terms.max_status_message_bytes));
    wait_for_the_next(task, used, delay, terms.now)
}

fn wait_for_the_next(
    task: &mut Task,
    losses: u32,
    delay: Duration,
    now: DateTime<Utc>,
) -> Result<AfterExit, TaskError> {
    let Some(lease) = &task.lease else { return Ok(AfterExit::Failed) };
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

/// Fails a task that has used all its attempts.
fn give_up(
    task: &mut Task,
    used: u32,
    error: &RpcError,
    reason: Option<&str>,
    terms: &ExitTerms,
) -> Result<AfterExit, TaskError> {
    fail(task, error)?;
    task.note_detail(gave_up(used, None, usize::MAX));
    task.status_message = Some(gave_up(used, reason, terms.max_status_message_bytes));
    task.gave_up_after = Some(used);
    Ok(AfterExit::GaveUp)
}

fn gave_up(used: u32, reason: Option<&str>, max_bytes: usize) -> String {
    let attempts = if used == 1 { "attempt" } else { "attempts" };
    message(&format!("gave up after {used} {attempts}"), reason.unwrap_or_default(), "", max_bytes)
}

/// Joins the parts of a status message. If the message is too long, the reason is cut first.
fn message(what: &str, reason: &str, next: &str, max_bytes: usize) -> String {
    let separator = if reason.is_empty() { "" } else { ": " };
    let room = max_bytes.saturating_sub(what.len() + separator.len() + next.len());
    let mut message = format!("{what}{separator}{}{next}", cut(reason, room));
    message.truncate(cut(&message, max_bytes).len());
    message
}

/// Returns the longest start of a text that has at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

fn failed_attempt(used: u32, max: u32) -> String {
    format!("attempt {used} of {max} failed")
}

/// The part of a status message that is wrong once the next attempt has begun, or once the task has ended.
const NEXT: &str = "; next ";

fn next_start(delay: Duration) -> String {
    let seconds = delay.as_secs_f64();
    let (number, unit) = match delay.as_secs() {
        _ if delay.is_zero() => return format!("{NEXT}at once"),
        0 => (delay.as_millis().max(1) as f64, "ms"),
        1..120 => (seconds.round(), "s"),
        120..7_200 => ((seconds / 60.0).round(), "min"),
        _ => ((seconds / 3_600.0).round(), "h"),
    };
    format!("{NEXT}in {number} {unit}")
}

/// Returns the number of used attempts of a task whose status message says that it waits for its next attempt.
fn announced(task: &Task) -> Option<u32> {
    let losses = waiting_lease(task)?.losses;
    let failed = failed_attempt(losses, max_attempts(task));
    let message = task.status_message.as_deref()?;
    (losses > 0 && message.starts_with(&failed)).then_some(losses)
}

/// Replaces the status message of a task that is about to be claimed, if it says that the task waits.
pub(in crate::store) fn announce_attempt(task: &mut Task) {
    if let Some(used) = announced(task) {
        task.status_message = Some(current_attempt(used, max_attempts(task)));
    }
}

fn current_attempt(used: u32, max: u32) -> String {
    format!("attempt {} of {max}", used.saturating_add(1))
}

/// Removes from the status message of a task that is about to end what is no longer true: the start of the next attempt, and which
/// attempt runs.
pub(super) fn drop_announcement(task: &mut Task) {
    if let Some(lease) = open_lease(task)
        && task.status_message.as_deref() == Some(&*current_attempt(lease.losses, max_attempts(task)))
    {
        task.status_message = None;
    }
    if announced(task).is_none() {
        return;
    }
    if let Some(message) = &mut task.status_message
        && let Some(at) = message.rfind(NEXT)
    {
        message.truncate(at);
    }
}

/// The delay before the attempt that follows the second lost worker, for a task without a delay of its own. Each further
/// loss doubles it. The attempt that follows the first loss begins at once: the lease that lapsed was the delay.
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(600);

fn delay_after(losses: u32) -> Duration {
    let Some(doublings) = losses.checked_sub(2) else { return Duration::ZERO };
    FIRST_DELAY.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_DELAY)
}

/// Returns how long to wait until the next attempt at a task that waits for a worker may begin. If the engine's clock was set
/// back since, the wait is at most the delay that the lease states. A lease of an earlier version states none: the delay
/// then follows from the number of losses.
pub(in crate::store) fn delay_left(waiting: &Lease, now: DateTime<Utc>) -> Duration {
    let longest = waiting.delay_ms.map_or_else(|| delay_after(waiting.losses), Duration::from_millis);
    (waiting.deadline - now).to_std().unwrap_or_default().min(longest).min(Expiry::MAX)
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

    fn task(max_attempts: u32, losses: u32) -> Task {
        serde_json::from_value(json!({
            "taskId": "t1", "status": "working", "createdAt": "2026-01-31T12:00:00.000Z",
            "lastUpdatedAt": "2026-01-31T12:00:00.000Z", "ttlMs": null, "method": "tools/call",
            "operation": "render", "onWorkerLost": "resume", "maxAttempts": max_attempts,
            "retry": { "firstMs": 8_000, "maxMs": 60_000 }, "statusMessage": "frame 7",
            "lease": {
                "holder": "h", "attempt": 9, "losses": losses, "durationMs": 30_000, "deadline": "2026-01-31T12:00:30.000Z",
            },
        }))
        .unwrap()
    }

    fn terms(max_status_message_bytes: usize) -> ExitTerms {
        ExitTerms { now: "2026-01-31T12:00:10Z".parse().unwrap(), random: 0, max_status_message_bytes }
    }

    fn retried(task: &mut Task, message: &str, max_bytes: usize) -> AfterExit {
        let error = RpcError::new(-32000, message).with_data(json!({ "tray": 2 }));
        retry(task, &error, Some(message), &terms(max_bytes)).unwrap()
    }

    fn message_of(task: &Task) -> &str {
        task.status_message.as_deref().unwrap_or_default()
    }

    #[test]
    fn a_retried_task_waits_and_says_which_attempt_failed_and_when_the_next_one_begins() {
        let mut task = task(3, 1);
        assert_eq!(retried(&mut task, "out of paper", 4096), AfterExit::Waits);
        assert_eq!(message_of(&task), "attempt 2 of 3 failed: out of paper; next in 16 s");
        let lease = task.lease.as_ref().unwrap();
        assert_eq!((lease.attempt, lease.losses, lease.delay_ms), (9, 2, Some(16_000)));
        assert_eq!(lease.deadline, "2026-01-31T12:00:26Z".parse::<DateTime<Utc>>().unwrap());
        assert_eq!((task.status, &task.error, task.gave_up_after), (TaskStatus::Working, &None, None));
        announce_attempt(&mut task);
        assert_eq!(message_of(&task), "attempt 3 of 3");
        super::super::complete(&mut task, &json!("done")).unwrap();
        assert_eq!(task.status_message, None, "no attempt runs any more");
    }

    #[test]
    fn the_last_attempt_fails_with_the_error_of_the_operation() {
        let mut task = task(3, 2);
        assert_eq!(retried(&mut task, "out of paper", 4096), AfterExit::GaveUp);
        assert_eq!(message_of(&task), "gave up after 3 attempts: out of paper");
        let error = task.error.as_ref().unwrap();
        assert_eq!(
            (error.code, &*error.message, &error.data),
            (-32000, "out of paper", &Some(json!({ "tray": 2 })))
        );
        assert_eq!((task.status, task.gave_up_after), (TaskStatus::Failed, Some(3)));
    }

    #[test]
    fn the_message_of_the_operation_is_cut_before_everything_else() {
        let long = "ä".repeat(3_000);
        for max in [60, 61, 4096] {
            let mut task = task(3, 0);
            retried(&mut task, &long, max);
            let message = message_of(&task);
            assert!((max - 1..=max).contains(&message.len()), "{} of {max}", message.len());
            assert!(
                message.starts_with("attempt 1 of 3 failed: ä") && message.ends_with("ä; next in 8 s"),
                "{message}"
            );
        }
        for max in 0..60 {
            let mut waiting = task(3, 0);
            retried(&mut waiting, &long, max);
            let mut gave_up = task(1, 0);
            retried(&mut gave_up, &long, max);
            assert!(message_of(&waiting).len() <= max && message_of(&gave_up).len() <= max);
        }
    }

    #[test]
    fn a_message_without_room_for_the_error_names_the_attempt() {
        let error = RpcError::new(1, "x".repeat(9_000));
        let mut waiting = task(3, 0);
        retry(&mut waiting, &error, None, &terms(4096)).unwrap();
        assert_eq!(message_of(&waiting), "attempt 1 of 3 failed; next in 8 s");
        let mut last = task(1, 0);
        retry(&mut last, &error, None, &terms(4096)).unwrap();
        assert_eq!(message_of(&last), "gave up after 1 attempt");
    }

    #[test]
    fn a_task_that_ends_between_two_attempts_no_longer_announces_the_next_one() {
        for is_lost in [true, false] {
            let mut task = task(3, 0);
            match is_lost {
                true => drop(take_lease(&mut task, WorkerExit::Lost, &terms(4096)).unwrap()),
                false => drop(retried(&mut task, "out; next in line", 4096)),
            }
            super::super::cancel(&mut task).unwrap();
            let reason = if is_lost { LOST } else { "out; next in line" };
            assert_eq!(message_of(&task), format!("attempt 1 of 3 failed: {reason}"));
        }
        // A message that someone else has set stays.
        let mut task = task(3, 0);
        retried(&mut task, "out of paper", 4096);
        task.status_message = Some("paper is ordered; next week".to_owned());
        announce_attempt(&mut task);
        super::super::cancel(&mut task).unwrap();
        assert_eq!(message_of(&task), "paper is ordered; next week");
    }

    #[test]
    fn a_release_changes_no_message_and_a_requested_cancel_wins_over_a_retry() {
        let mut released = task(3, 1);
        assert_eq!(take_lease(&mut released, WorkerExit::Released, &terms(99)).unwrap(), AfterExit::Waits);
        assert_eq!((message_of(&released), released.lease.as_ref().unwrap().losses), ("frame 7", 1));
        announce_attempt(&mut released);
        assert_eq!(message_of(&released), "frame 7");
        for losses in [0, 2] {
            let mut cancelled = Task { cancel_requested: true, ..task(3, losses) };
            assert_eq!(retried(&mut cancelled, "late", 99), AfterExit::Cancelled);
            assert_eq!(
                (cancelled.status, cancelled.error, cancelled.gave_up_after),
                (TaskStatus::Cancelled, None, None)
            );
        }
        let mut once = Task { on_worker_lost: OnWorkerLost::Fail, ..task(3, 0) };
        assert_eq!(retried(&mut once, "broken", 99), AfterExit::Failed);
        assert_eq!(
            (message_of(&once), once.error.as_ref().unwrap().code, once.gave_up_after),
            ("frame 7", -32000, None)
        );
    }

    #[test]
    fn a_delay_is_written_in_the_largest_fitting_unit() {
        let next = |ms| next_start(Duration::from_millis(ms));
        let written =
            [0, 1, 250, 999, 1_000, 1_499, 8_000, 119_000, 120_000, 600_000, 7_200_000, 90_000_000].map(next);
        let expected = [
            "at once",
            "in 1 ms",
            "in 250 ms",
            "in 999 ms",
            "in 1 s",
            "in 1 s",
            "in 8 s",
            "in 119 s",
            "in 2 min",
            "in 10 min",
            "in 2 h",
            "in 25 h",
        ];
        assert_eq!(written, expected.map(|text| format!("; next {text}")));
    }
}
