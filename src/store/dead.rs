//! Dead tasks: they failed because their attempts are used up, and wait for an operator. The queue `dead` has a timer for each
//! of them until its record is gone.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::error::TaskError;
use super::records::Records;
use crate::backend::{Agenda, Next, StorageError, TaskKey};
use crate::task::{StoredTask, Task};

/// The longest time until the timer of a dead task fires.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

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

/// Returns what to do with a due timer of the queue `dead`.
pub(super) async fn next<B: Agenda>(records: &Records<B>, key: &TaskKey) -> Result<Next, TaskError> {
    match records.read(key).await {
        Ok(stored) if is_dead(&stored.task) => {
            Ok(Next::After(look_after(&stored, records.engine.now()).max(Duration::from_secs(1))))
        }
        Ok(stored) if !stored.task.status.is_terminal() => {
            // The timer is scheduled before the write that ends the task. A later attempt may also be the last one.
            Ok(Next::After(look_after(&stored, records.engine.now()).max(records.config.lease)))
        }
        Ok(_) | Err(TaskError::NotFound { .. }) => Ok(Next::Remove),
        // A later version of this crate may be able to read the record.
        Err(TaskError::Unreadable { .. } | TaskError::Storage(StorageError::Corrupt { .. })) => {
            Ok(Next::After(LONGEST))
        }
        Err(error) => Err(error),
    }
}

/// Logs that a task failed because its attempts are used up.
pub(super) fn log_gave_up(stored: &StoredTask) {
    if let Some(attempts) = stored.task.gave_up_after {
        let (TaskKey { owner, task: id }, operation) = (&stored.key, &stored.task.operation);
        tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, attempts, "gave up");
    }
}
