//! What a dead task is: it failed because its attempts are used up, and waits for an operator.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::backend::TaskKey;
use crate::task::{StoredTask, Task};

/// The longest time until the timer of a dead task fires.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Returns whether a task failed because its attempts are used up.
pub(super) fn is_dead(task: &Task) -> bool {
    task.status.is_terminal() && task.gave_up_after.is_some()
}

/// Returns when to look whether the record of a dead task is gone: once it may be, and at most a day ahead. The task may be
/// about to end.
pub(super) fn look_after(stored: &StoredTask, now: DateTime<Utc>) -> Duration {
    let of_task = stored.task.retention().filter(|_| !stored.task.status.is_terminal());
    let until = |expires_at: DateTime<Utc>| (expires_at - now).to_std().unwrap_or_default();
    let left = of_task.or_else(|| stored.expires_at.map(until));
    left.map_or(LONGEST, |left| left.min(LONGEST))
}

/// Logs that a task failed because its attempts are used up.
pub(super) fn log_gave_up(stored: &StoredTask) {
    if let Some(attempts) = stored.task.gave_up_after {
        let (TaskKey { owner, task: id }, operation) = (&stored.key, &stored.task.operation);
        tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, attempts, "gave up");
    }
}
