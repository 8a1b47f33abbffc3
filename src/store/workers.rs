//! The workers that serve a store. Each announces itself in an expiring record of a reserved owner.

use std::pin::pin;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tracing::instrument;

use super::TaskStore;
use super::deadline::CallTarget;
use super::error::TaskError;
use crate::backend::{Agenda, Cursor, ListedRecord, OwnerId, PageRequest, TaskId, TaskKey};
use crate::task::rfc3339_millis;

#[cfg(feature = "rmcp")]
mod announcement;

#[cfg(feature = "rmcp")]
pub(crate) use announcement::Announcement;

/// The reserved owner of the records of workers.
const WORKERS: &str = "\0mcp/workers";

/// How many workers a page has.
const PER_PAGE: usize = 100;

/// How many announcements in a row a worker may miss before it counts as lost.
const MISSED: u32 = 3;
/// How late the last of them may be.
const LATENESS: Duration = Duration::from_secs(1);

/// What a worker last said about itself: a process that runs tasks, as a `DurableTaskManager` or a `Worker`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The id that the worker writes into its [leases](crate::Lease). The managers of one store share it.
    pub holder: String,
    /// The name of the host.
    pub host: String,
    /// The id of the process.
    pub process_id: u32,
    /// The version of this library.
    pub version: String,
    /// The operations that the worker runs, by name; 32 at most.
    pub operations: Vec<String>,
    /// How many operations the worker runs.
    pub operation_count: usize,
    /// How many claimed tasks the worker runs at once.
    pub capacity: usize,
    /// Tasks that the worker runs; 16 at most.
    pub tasks: Vec<WorkerTask>,
    /// How many tasks the worker runs.
    pub task_count: usize,
    /// When the worker first announced itself, by the clock of the engine.
    #[serde(with = "rfc3339_millis")]
    pub started_at: DateTime<Utc>,
    /// When the worker last announced itself, by the clock of the engine.
    #[serde(with = "rfc3339_millis")]
    pub last_seen_at: DateTime<Utc>,
    /// How often the worker announces itself, in milliseconds.
    pub period_ms: u64,
}

impl WorkerStatus {
    /// Returns whether the worker has missed three announcements in a row. A worker that shuts down removes its record, so the process
    /// of a lost worker has crashed, hangs, or does not reach the engine.
    pub fn is_lost(&self, now: DateTime<Utc>) -> bool {
        let silence = (now - self.last_seen_at).to_std().unwrap_or_default();
        silence > Duration::from_millis(self.period_ms).saturating_mul(MISSED).saturating_add(LATENESS)
    }
}

/// A task that a worker runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct WorkerTask {
    /// The owner of the task.
    pub owner: OwnerId,
    /// The id of the task.
    pub task_id: TaskId,
    /// The number of the attempt.
    pub attempt: u32,
}

impl WorkerTask {
    /// Returns the key of the task.
    pub fn key(&self) -> TaskKey {
        TaskKey { owner: self.owner.clone(), task: self.task_id.clone() }
    }
}

/// One page of [`TaskStore::workers`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WorkerPage {
    /// The workers of this page, those that started last first.
    pub workers: Vec<WorkerStatus>,
    /// How many records of this page are not readable as workers, for example those of a later version of this crate.
    pub unreadable: usize,
    /// The cursor of the next page; `None` if there are no more pages.
    pub next: Option<Cursor>,
}

impl<B: Agenda> TaskStore<B> {
    /// Reads one page of the workers that run tasks of this store. For operators.
    ///
    /// A `DurableTaskManager` announces itself a second after it has registered its first operation or started its first task, and again
    /// each time a third of a lease has passed, at least 1 s and at most 20 s. A shutdown removes its record. The record of a
    /// [lost](WorkerStatus::is_lost) worker stays for an hour. Workers of your own, which use [`Attempt`](crate::Attempt) without a
    /// manager, do not appear.
    ///
    /// # Errors
    /// [`InvalidPage`](TaskError::InvalidPage) for a cursor that is malformed; [`Storage`](TaskError::Storage) if the engine fails.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mcp_task_store::TaskError> {
    /// use mcp_task_store::{MemoryBackend, StorageBackend, TaskStore};
    ///
    /// let store = TaskStore::new(MemoryBackend::new());
    /// let now = store.backend().now();
    /// let mut cursor = None;
    /// loop {
    ///     let page = store.workers(cursor.as_ref()).await?;
    ///     for worker in page.workers.iter().filter(|worker| worker.is_lost(now)) {
    ///         println!("lost: process {} on {}", worker.process_id, worker.host);
    ///     }
    ///     cursor = page.next;
    ///     if cursor.is_none() {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[instrument(level = "debug", skip_all)]
    pub async fn workers(&self, after: Option<&Cursor>) -> Result<WorkerPage, TaskError> {
        let records = self.0.records();
        let owner = OwnerId::try_from(WORKERS).map_err(TaskError::Storage)?;
        let request = PageRequest::new(PER_PAGE);
        let request = after.into_iter().cloned().fold(request, PageRequest::after);
        let list = pin!(records.engine.runtime_page(&owner, request));
        let page = records.deadline().limit("workers", CallTarget::Store, list).await?;
        let listed = page.records.len() + page.corrupt.len();
        let workers: Vec<_> = page.records.iter().filter_map(decode).collect();
        Ok(WorkerPage { unreadable: listed - workers.len(), workers, next: page.next })
    }
}

fn decode(record: &ListedRecord) -> Option<WorkerStatus> {
    serde_json::from_slice(&record.data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_lost_once_it_has_missed_three_announcements() {
        let at = |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap();
        let announced = serde_json::json!({
            "holder": "h", "host": "a", "processId": 7, "version": "9.0.0", "operations": ["render"], "operationCount": 1,
            "capacity": 4, "tasks": [{ "owner": "alice", "taskId": "t1", "attempt": 2 }], "taskCount": 1,
            "startedAt": at(-60), "lastSeenAt": at(0), "periodMs": 10_000, "addedLater": true,
        });
        let worker: WorkerStatus = serde_json::from_value(announced).unwrap();
        for (seconds, is_lost) in [(-5, false), (0, false), (31, false), (32, true)] {
            assert_eq!(worker.is_lost(at(seconds)), is_lost, "{seconds}");
        }
        assert_eq!(worker.tasks[0].key(), TaskKey::new("alice", "t1").unwrap());
    }
}
