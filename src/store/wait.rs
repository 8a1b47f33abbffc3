//! Waits for the end of a task. Determines how long a wait sleeps until its next read.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use tokio::time::timeout;
use tracing::instrument;

use super::TaskStore;
use super::error::TaskError;
use super::scheduler::may_have_lapsed;
use crate::backend::{Agenda, TaskKey};
use crate::task::{StoredTask, TaskStatus};
use crate::telemetry;

/// The longest time between two reads. A notification normally arrives earlier.
const LONGEST: Duration = Duration::from_secs(3600);
/// The time between two reads of a task whose lease has lapsed, or whose TTL has elapsed while the clock cannot be read.
const SHORTEST: Duration = Duration::from_millis(100);
/// How long after a deadline the wait reads the task, because the estimate of the clock lags.
const CLOCK_LAG: Duration = Duration::from_millis(5);

impl<B: Agenda> TaskStore<B> {
    /// Waits until a task has ended or requires input, and returns it.
    ///
    /// The call [watches](crate::StorageBackend::watch) the record, so it detects a change from any process. It also
    /// ends when the TTL elapses, and when the keeper of any store ends the task of a lost worker. The call also
    /// reads the task once per lease duration, in case the timer of the lease was lost. Use a timeout to limit the
    /// wait.
    ///
    /// # Errors
    /// [`NotFound`](TaskError::NotFound) also if the record is removed during the wait;
    /// [`Storage`](TaskError::Storage) if the engine fails. The caller can then repeat the call.
    ///
    /// # Cancellation safety
    /// Dropping the future ends the wait and changes nothing.
    #[instrument(level = "debug", skip_all, fields(owner = %key.owner.printable(), task = %key.task.printable()))]
    pub async fn wait(&self, key: &TaskKey) -> Result<StoredTask, TaskError> {
        self.wait_until(key, is_over).await
    }

    /// Waits until `is_over` returns true for the task, and returns it. Calls `is_over` with every state of the task that it
    /// reads. See [`wait`](Self::wait).
    pub(crate) async fn wait_until(
        &self,
        key: &TaskKey,
        mut is_over: impl FnMut(&StoredTask) -> bool + Send,
    ) -> Result<StoredTask, TaskError> {
        let engine = &self.0.records_only().engine;
        let mut watch = None;
        loop {
            let stored = self.get(key).await?;
            if is_over(&stored) {
                return Ok(stored);
            }
            // The watch begins only after the first read, because most calls need not wait. The first item of the
            // watch causes another read.
            let changes = watch.get_or_insert_with(|| telemetry::watched(engine.backend.watch(key)));
            match timeout(next_read_in(&stored, engine.now()), changes.next()).await {
                Ok(Some(Err(error))) if !error.is_retryable() => {
                    return Err(TaskError::from_storage(error, &key.task));
                }
                // The record was removed. Another record may already have its key.
                Ok(None) => watch = None,
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }
}

/// Returns whether a wait ends: the task has ended or requires input.
fn is_over(stored: &StoredTask) -> bool {
    stored.task.status.is_terminal() || stored.task.status == TaskStatus::InputRequired
}

/// Returns the time until the TTL of a task elapses or its lease may lapse. A lapsed lease is read once per lease
/// duration: a reader has scheduled its timer, and no reader schedules the timer again sooner.
fn next_read_in(stored: &StoredTask, now: DateTime<Utc>) -> Duration {
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
