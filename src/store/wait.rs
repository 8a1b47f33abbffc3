//! Waiting until a task needs somebody.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use tokio::time::timeout;
use tracing::instrument;

use super::{TaskError, TaskStore};
use crate::backend::{Agenda, TaskKey};
use crate::task::{StoredTask, TaskStatus};

/// As long as it takes, but no timer counts to the end of time.
const FOREVER: Duration = Duration::from_secs(3600);
/// Between two looks at a task whose lease has lapsed, or whose TTL has elapsed while the clock cannot be asked.
const LEAST: Duration = Duration::from_millis(100);
/// Between two looks at a clock that lags.
const SHORTLY: Duration = Duration::from_millis(5);

impl<B: Agenda> TaskStore<B> {
    /// Waits until a task has ended or needs input, whichever process makes it so, and returns it. It receives each
    /// change by [watching](crate::StorageBackend::watch) the record. A TTL that elapses meanwhile ends the task, and the keepers
    /// of the stores end a task whose worker is lost, so that a lost worker keeps nobody waiting. In case its timer was lost,
    /// the call reads the task once a lease. To wait for a limited time, put it under a timeout.
    ///
    /// # Errors
    /// [`NotFound`](TaskError::NotFound) also when the record goes meanwhile; [`Storage`](TaskError::Storage) when the
    /// engine cannot be asked any more, after which the same call may be made again.
    ///
    /// # Cancellation safety
    /// Dropping the future ends the wait and changes nothing.
    #[instrument(level = "debug", skip_all, fields(owner = %key.owner.printable(), task = %key.task.printable()))]
    pub async fn wait(&self, key: &TaskKey) -> Result<StoredTask, TaskError> {
        let mut watch = None;
        loop {
            let stored = self.get(key).await?;
            if stored.task.status.is_terminal() || stored.task.status == TaskStatus::InputRequired {
                return Ok(stored);
            }
            // Begun only now, as most often there is nothing to wait for. Its first item leads to another look.
            let changes = watch.get_or_insert_with(|| self.0.backend.watch(key));
            match timeout(self.until_the_next_read(&stored), changes.next()).await {
                Ok(Some(Err(error))) if !error.is_retryable() => {
                    return Err(TaskError::from_storage(error, &key.task));
                }
                // The record is gone, or there is another of this name by now.
                Ok(None) => watch = None,
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }

    /// How long it takes until the TTL of a task elapses, or its lease may have lapsed. Once it has, whoever read it has
    /// scheduled it, and nobody schedules it again within the next lease.
    fn until_the_next_read(&self, stored: &StoredTask) -> Duration {
        let now = self.now();
        let left = |at: DateTime<Utc>| (at - now).to_std().unwrap_or_default() + SHORTLY;
        let ttl = stored
            .task
            .deadline()
            .map_or(FOREVER, |deadline| if deadline <= now { LEAST } else { left(deadline) });
        let lease = stored.task.lease.as_ref().map_or(FOREVER, |lease| {
            if lease.may_have_lapsed(now) { lease.duration().max(LEAST) } else { left(lease.deadline) }
        });
        ttl.min(lease).min(FOREVER)
    }
}
