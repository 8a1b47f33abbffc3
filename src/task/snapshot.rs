//! A task as it was read: a copy that cannot be edited, and that knows what it is a copy of.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::Task;
use crate::backend::{TaskKey, Version};

/// How long a copy saves the read. See [`Snapshot`].
const FRESH: Duration = Duration::from_secs(1);

/// A task as it was read or written, which cannot be changed. Cheap to clone.
///
/// It dereferences to the [`Task`]. `Task::clone(&snapshot)` and [`into_task`](Self::into_task) give a task of one's own,
/// which no call of the store takes for a copy:
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
/// A call that takes a [`StoredTask`] writes over its version without reading the task first only if all of this holds:
///
/// * the same store read it, under the key and the version that the `StoredTask` still has;
/// * that was less than a second ago;
/// * the engine has not [reconnected](crate::StorageBackend::generation) since.
///
/// Otherwise the call reads the task. A version alone does not identify content: after a failover to a replica that
/// lagged, or the restore of an older snapshot, the record counts from a lower version again, and other writes reach the
/// number that the copy has. A compare-and-swap with that number would overwrite an acknowledged write. A proxy can hide
/// the reconnect, which is what the limit of one second is for.
#[derive(Clone)]
pub struct Snapshot(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    task: Task,
    key: TaskKey,
    version: Version,
    origin: Origin,
}

/// Where and when a task was read or written. Taken before the call of the engine: what happens meanwhile makes the copy
/// older, never younger.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// The store.
    pub(crate) store: u64,
    /// The engine's generation.
    pub(crate) generation: u64,
    pub(crate) at: Instant,
}

impl Snapshot {
    /// Returns the task, to be changed.
    pub fn into_task(self) -> Task {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => inner.task,
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

/// As the task.
impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.task.serialize(serializer)
    }
}

/// By the tasks alone.
impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.task == other.0.task
    }
}

/// A task with the version under which it was read or written.
///
/// Given to a call of [`TaskStore`](crate::TaskStore) in place of a key, it [may save](Snapshot) the call a read.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredTask {
    /// Whose task it is, and which.
    pub key: TaskKey,
    /// The task.
    pub task: Snapshot,
    /// The version of its record.
    pub version: Version,
    /// When the record goes, result and all, by the engine's clock; `None` for never.
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
        let inner = Inner { task, key: key.clone(), version, origin };
        Self { key: key.clone(), task: Snapshot(Arc::new(inner)), version, expires_at }
    }

    /// The task of a copy that has not left the store yet, to be changed and written.
    pub(crate) fn task_mut(&mut self) -> &mut Task {
        &mut Arc::make_mut(&mut self.task.0).task
    }

    /// The same record with a changed task, which no write may be made of.
    pub(crate) fn showing(&self, task: Task) -> Self {
        let origin = Origin { store: u64::MAX, ..self.task.0.origin };
        Self::new(&self.key, task, self.version, self.expires_at, origin)
    }

    /// Whether a write may be made of this copy, without a read: `now` is the store's and the engine's state now.
    pub(crate) fn is_fresh(&self, now: Origin) -> bool {
        let Inner { key, version, origin, .. } = &*self.task.0;
        (key, *version) == (&self.key, self.version)
            && (origin.store, origin.generation) == (now.store, now.generation)
            && now.at.saturating_duration_since(origin.at) < FRESH
    }
}
