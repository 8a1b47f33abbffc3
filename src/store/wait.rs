//! Determines how long a wait for the end of a task sleeps until its next read.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::scheduler::may_have_lapsed;
use crate::task::{StoredTask, TaskStatus};

/// The longest time between two reads. A notification normally arrives earlier.
const LONGEST: Duration = Duration::from_secs(3600);
/// The time between two reads of a task whose lease has lapsed, or whose TTL has elapsed while the clock cannot be read.
const SHORTEST: Duration = Duration::from_millis(100);
/// How long after a deadline the wait reads the task, because the estimate of the clock lags.
const CLOCK_LAG: Duration = Duration::from_millis(5);

/// Returns whether a wait ends: the task has ended or requires input.
pub(super) fn is_over(stored: &StoredTask) -> bool {
    stored.task.status.is_terminal() || stored.task.status == TaskStatus::InputRequired
}

/// Returns the time until the TTL of a task elapses or its lease may lapse. A lapsed lease is read once per lease
/// duration: a reader has scheduled its timer, and no reader schedules the timer again sooner.
pub(super) fn next_read_in(stored: &StoredTask, now: DateTime<Utc>) -> Duration {
    let left = |at: DateTime<Utc>| (at - now).to_std().unwrap_or_default() + CLOCK_LAG;
    let ttl = stored
        .task
        .deadline()
        .map_or(LONGEST, |deadline| if deadline <= now { SHORTEST } else { left(deadline) });
    let lease = stored.task.lease.as_ref().map_or(LONGEST, |lease| {
        if may_have_lapsed(lease, now) { lease.duration().max(SHORTEST) } else { left(lease.deadline) }
    });
    ttl.min(lease).min(LONGEST)
}
