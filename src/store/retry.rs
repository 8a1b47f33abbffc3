//! The policy of retries: how many attempts a task has, and how long it waits between them.

use std::time::Duration;

use super::durations::millis;
use super::error::TaskError;
use crate::backend::Expiry;
use crate::task::retry::RetryDelay;

/// How often a task that can resume is attempted, and how long it waits before each further attempt.
///
/// The delay counts after an error that is [retried](crate::Attempt::retry), and after a lost worker. The record of the task
/// states it, so it holds on every instance.
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// use mcp_task_store::{NewTask, OnWorkerLost, Retry};
///
/// // Waits up to 1 s, 2 s, 4 s and 8 s before the four further attempts.
/// let retry = Retry::exponential(5, Duration::from_secs(1), Duration::from_secs(60)).jittered();
/// let new = NewTask::new("tools/call")
///     .operation("render")
///     .on_worker_lost(OnWorkerLost::Resume)
///     .retry(retry);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Retry {
    attempts: u32,
    first: Duration,
    max: Duration,
    is_jittered: bool,
}

impl Retry {
    /// Returns a policy with `attempts` attempts in all, at least 1. The task waits for `first` before its second attempt. The
    /// delay doubles with each further attempt, up to `max`. Both are at least 1 ms, and at most 100 years. Delays are rounded up
    /// to whole milliseconds.
    ///
    /// The call that uses the policy checks it.
    pub const fn exponential(attempts: u32, first: Duration, max: Duration) -> Self {
        Self { attempts, first, max, is_jittered: false }
    }

    /// Makes each delay a random part of the whole one, between zero and all of it ("full jitter"). Then tasks that failed at the
    /// same time, for example because a service was down, do not return to it at the same time.
    ///
    /// The delay is chosen once for each attempt. The record states the start of the next attempt.
    pub const fn jittered(self) -> Self {
        Self { is_jittered: true, ..self }
    }

    /// Returns the policy of a record.
    pub(super) fn of(delay: &RetryDelay, attempts: u32) -> Self {
        let (first, max) = (Duration::from_millis(delay.first_ms), Duration::from_millis(delay.max_ms));
        Self { attempts, first, max, is_jittered: delay.jittered }
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(super) fn delay(&self) -> RetryDelay {
        RetryDelay::new(millis(self.first), millis(self.max), self.is_jittered)
    }

    /// # Errors
    /// `InvalidArgument` for a policy without attempts, or with a delay that is out of range.
    pub(super) fn check(&self) -> Result<(), TaskError> {
        let invalid = |reason: String| Err(TaskError::InvalidArgument { reason });
        let Self { attempts, first, max, .. } = self;
        let range = Duration::from_millis(1)..=Expiry::MAX;
        if *attempts == 0 {
            return invalid("a retry with 0 attempts never runs the operation; choose 1 or more".to_owned());
        }
        if let Some(delay) = [first, max].into_iter().find(|delay| !range.contains(*delay)) {
            return invalid(format!(
                "a delay of {delay:?} between two attempts is not between 1 ms and 100 years; choose another"
            ));
        }
        if first > max {
            return invalid(format!(
                "the first delay of a retry, {first:?}, is longer than its longest delay, {max:?}; exchange the two or raise the longest one"
            ));
        }
        Ok(())
    }
}
