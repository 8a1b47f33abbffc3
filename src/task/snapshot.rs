//! A task as a call read it: an immutable copy, with the origin of the copy.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::Task;
use crate::backend::{TaskKey, Version, Written};

/// How old a copy may be to save the read. See [`Snapshot`].
const FRESH: Duration = Duration::from_secs(1);

/// An immutable copy of a task, as a call read or wrote it. Cheap to clone.
///
/// It dereferences to the [`Task`]. `Task::clone(&snapshot)` and [`into_task`](Self::into_task) return a task that the caller can
/// change. No call of the store accepts such a task in place of a [`StoredTask`]:
///
/// ```
/// # use mcp_task_store::{StoredTask, Task, TaskStatus};
/// fn show(stored: &StoredTask) -> Task {
///     let mut shown = Task::clone(&stored.task);
///     shown.status_message = Some("queued".to_owned());
///     shown
/// }
/// ```
///
/// ```compile_fail
/// # use mcp_task_store::{StoredTask, TaskStatus};
/// fn edit(stored: &mut StoredTask) {
///     stored.task.status = TaskStatus::Working;
/// }
/// ```
///
/// # When a copy saves the read
/// A call that takes a [`StoredTask`] writes without a read only if all of this is true:
///
/// * The same store has read or written the task, and the `StoredTask` still has the key and the version of that
///   call.
/// * That call began less than a second ago.
/// * The engine has not [reconnected](crate::StorageBackend::generation) since.
///
/// Otherwise the call reads the task. A version alone does not identify the content of a record. After a failover to
/// a replica that lagged, or the restore of an older snapshot, the versions of the record continue from a lower
/// version, and other writes reach the version of the copy. A compare-and-swap with that version would overwrite an
/// acknowledged write. A proxy can hide a reconnect from the engine, so a copy saves the read only for one second.
#[derive(Clone)]
pub struct Snapshot(Arc<TaskAtVersion>);

#[derive(Clone)]
struct TaskAtVersion {
    task: Task,
    key: TaskKey,
    version: Version,
    origin: Origin,
}

/// Where and when a task was read or written. The store determines the origin before it calls the engine, so no copy
/// is older than its origin states.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// The client of the engine, by its number in this process.
    pub(crate) client: u64,
    /// The engine's generation.
    pub(crate) generation: u64,
    pub(crate) at: Instant,
}

impl Snapshot {
    /// Returns a task that the caller can change.
    pub fn into_task(self) -> Task {
        match Arc::try_unwrap(self.0) {
            Ok(read) => read.task,
            Err(shared) => shared.task.clone(),
        }
    }
}

impl Deref for Snapshot {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.0.task
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.task.fmt(f)
    }
}

/// Serializes the task.
impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.task.serialize(serializer)
    }
}

/// Compares only the tasks.
impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.task == other.0.task
    }
}

/// A task, with the version of its record when a call read or wrote it.
///
/// Calls of [`TaskStore`](crate::TaskStore) take a `StoredTask` in place of a key. This [can save](Snapshot) a read.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStatus, TaskStore};
///
/// let store = TaskStore::new(MemoryBackend::new());
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let stored = store.create(&alice, NewTask::new("tools/call")).await?;
/// assert_eq!((stored.task.status, stored.version.get()), (TaskStatus::Working, 1));
/// let cancelled = store.cancel(&stored).await?;
/// assert_eq!((cancelled.task.status, cancelled.version.get()), (TaskStatus::Cancelled, 2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredTask {
    /// The owner and the id of the task.
    pub key: TaskKey,
    /// The task.
    pub task: Snapshot,
    /// The version of the task's record.
    pub version: Version,
    /// When the record expires, with its result, by the engine's clock; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
}

impl StoredTask {
    pub(crate) fn new(
        key: &TaskKey,
        task: Task,
        version: Version,
        expires_at: Option<DateTime<Utc>>,
        origin: Origin,
    ) -> Self {
        let read = TaskAtVersion { task, key: key.clone(), version, origin };
        Self { key: key.clone(), task: Snapshot(Arc::new(read)), version, expires_at }
    }

    /// Returns the task for a change and a write. Copies that a caller holds stay as they are.
    pub(crate) fn task_mut(&mut self) -> &mut Task {
        &mut Arc::make_mut(&mut self.task.0).task
    }

    /// Returns this task as a write stored it.
    pub(crate) fn written(mut self, written: Written, origin: Origin) -> Self {
        let stored = Arc::make_mut(&mut self.task.0);
        (stored.version, stored.origin) = (written.version, origin);
        Self { version: written.version, expires_at: written.expires_at, ..self }
    }

    /// Returns this copy for a caller, although no write has stored its change. No call writes over it without a read.
    pub(crate) fn unwritten(mut self) -> Self {
        Arc::make_mut(&mut self.task.0).origin.client = u64::MAX;
        self
    }

    /// Returns whether a call may write over this copy without a read. `now` is the origin of a copy that would be
    /// read now.
    pub(crate) fn is_fresh(&self, now: Origin) -> bool {
        let TaskAtVersion { key, version, origin, .. } = &*self.task.0;
        (key, *version) == (&self.key, self.version)
            && (origin.client, origin.generation) == (now.client, now.generation)
            && now.at.saturating_duration_since(origin.at) < FRESH
    }
}
