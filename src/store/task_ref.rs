//! How a caller names the task of a call. Also a page of tasks.

use crate::backend::{Cursor, TaskId, TaskKey};
use crate::task::StoredTask;

/// The task of a call.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStore};
///
/// let store = TaskStore::new(MemoryBackend::new());
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let created = store.create(&alice, NewTask::new("tools/call")).await?;
/// // This call saves the read.
/// store.set_status_message(&created, "rendering").await?;
/// // This call reads the task first.
/// store.set_status_message(&created.key, "encoding").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub enum TaskRef<'a> {
    /// The key of the task. The call reads the task first.
    Key(&'a TaskKey),
    /// The task as an earlier call returned it. The call reads the task only if the task has changed since, or [may
    /// have changed](crate::Snapshot).
    Stored(&'a StoredTask),
}

impl<'a> From<&'a TaskKey> for TaskRef<'a> {
    fn from(key: &'a TaskKey) -> Self {
        Self::Key(key)
    }
}

impl<'a> From<&'a StoredTask> for TaskRef<'a> {
    fn from(stored: &'a StoredTask) -> Self {
        Self::Stored(stored)
    }
}

impl<'a> TaskRef<'a> {
    pub(super) fn key(self) -> &'a TaskKey {
        match self {
            Self::Key(key) => key,
            Self::Stored(stored) => &stored.key,
        }
    }
}

/// One page of an owner's tasks, newest first by creation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskPage {
    /// The tasks. A page may have fewer tasks than the limit, or none, before the end of the walk.
    pub tasks: Vec<StoredTask>,
    /// The ids of tasks whose record cannot be read. [`delete`](crate::TaskStore::delete) removes such a task.
    pub unreadable: Vec<TaskId>,
    /// The position of the next page. Only `None` ends the walk.
    pub next: Option<Cursor>,
}
