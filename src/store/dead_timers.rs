//! The timers of the queue `dead`: each dead task has one until its record is gone.

use std::time::Duration;

use super::dead::{LONGEST, is_dead, look_after};
use super::error::TaskError;
use super::records::Records;
use crate::backend::{Agenda, Next, TaskKey};

/// A timer fires again after this time at the earliest.
const SHORTEST: Duration = Duration::from_secs(1);

/// Returns what to do with a due timer of the queue `dead`.
pub(super) async fn next<B: Agenda>(records: &Records<B>, key: &TaskKey) -> Result<Next, TaskError> {
    match records.read(key).await {
        Ok(stored) if is_dead(&stored.task) => {
            Ok(Next::After(look_after(&stored, records.engine.now()).max(SHORTEST)))
        }
        Ok(stored) if !stored.task.status.is_terminal() => {
            // The timer is scheduled before the write that ends the task. A later attempt may also be the last one.
            Ok(Next::After(look_after(&stored, records.engine.now()).max(records.config.lease)))
        }
        Ok(_) | Err(TaskError::NotFound { .. }) => Ok(Next::Remove),
        // A later version of this crate may be able to read the record.
        Err(error) if error.is_unreadable() => Ok(Next::After(LONGEST)),
        Err(error) => Err(error),
    }
}
