//! The errors of the lifecycle, and their JSON-RPC codes.

use crate::backend::{StorageError, TaskId};
use crate::task::TaskStatus;

/// An error of a [`TaskStore`](crate::TaskStore). A rejected call leaves the task as it was.
///
/// [`code`](Self::code) is the code of the JSON-RPC error that a server replies. [`is_retryable`](Self::is_retryable) and
/// [`outcome_unknown`](Self::outcome_unknown) say what a caller can do next.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskError, TaskStore};
/// use serde_json::json;
///
/// let store = TaskStore::new(MemoryBackend::new());
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let task = store.create(&alice, NewTask::new("tools/call")).await?;
/// store.cancel(&task).await?;
/// let error = store.complete(&task, json!({ "content": [] })).await.expect_err("the task has ended");
/// assert!(matches!(error, TaskError::InvalidTransition { .. }));
/// assert_eq!((error.code(), error.is_retryable()), (-32602, false));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The owner has no such task. The task never existed, has expired, was deleted, or belongs to another owner. The error
    /// does not say which.
    #[error("task not found: {task}", task = .task.printable())]
    NotFound {
        /// The requested id.
        task: TaskId,
    },
    /// The task's status does not allow the operation.
    #[error("task {task} is {from}: cannot {action}", task = .task.printable())]
    InvalidTransition {
        /// The task.
        task: TaskId,
        /// The status of the task.
        from: TaskStatus,
        /// The rejected operation, as in "cannot cancel it".
        action: &'static str,
    },
    /// The client requested cancellation, so the task cannot request input any more.
    #[error("a cancel of task {task} was requested: cannot request input", task = .task.printable())]
    CancelRequested {
        /// The task.
        task: TaskId,
    },
    /// An earlier input request of the task has used this key. Keys are unique for the whole life of a task.
    #[error("task {task} has used the input key {key:?} before; choose a new key", task = .task.printable())]
    InputKeyUsed {
        /// The task.
        task: TaskId,
        /// The key.
        key: String,
    },
    /// The caller no longer holds the lease of the task: the worker was declared lost, or it released the task.
    /// The worker of this attempt must stop.
    #[error("attempt {attempt} at task {task} has lost its lease; stop this worker", task = .task.printable())]
    LeaseLost {
        /// The task.
        task: TaskId,
        /// The number of the attempt.
        attempt: u32,
    },
    /// This process is shutting down and starts no more work. Another instance may accept the call.
    #[error("the server is shutting down; try again")]
    ShuttingDown,
    /// The operation panicked before its work began. The task fails.
    #[error("the operation of task {task} panicked", task = .task.printable())]
    OperationPanicked {
        /// The task.
        task: TaskId,
    },
    /// The owner has as many tasks as [`StoreConfig::max_tasks_per_owner`](crate::StoreConfig::max_tasks_per_owner) allows.
    /// Ended tasks count until their records expire. Nothing was stored. The same call succeeds once tasks have expired or
    /// were deleted.
    #[error(
        "the owner has {quota} tasks, the limit of StoreConfig::max_tasks_per_owner (ended tasks count until their \
         records expire); delete tasks, wait until some expire, or raise the limit"
    )]
    QuotaExceeded {
        /// The quota.
        quota: u64,
    },
    /// A value is larger, longer or nested more deeply than the store allows, or there are too many values.
    #[error("{what}: {actual} is over the limit of {limit}; reduce it")]
    LimitExceeded {
        /// The limited quantity and its unit.
        what: String,
        /// The quantity that the caller passed.
        actual: String,
        /// The largest quantity that is allowed.
        limit: String,
    },
    /// An argument is invalid, whatever the state of the task.
    #[error("invalid argument: {reason}")]
    InvalidArgument {
        /// Which argument, and why.
        reason: String,
    },
    /// The page limit is outside 1 to 256, or the cursor is malformed or belongs to another owner.
    #[error("invalid page: {reason}")]
    InvalidPage {
        /// What is wrong with the request.
        reason: String,
    },
    /// Every compare-and-swap of the call conflicted with another process,
    /// [`StoreConfig::max_conflicts`](crate::StoreConfig::max_conflicts) times in a row. Nothing was written. The
    /// same call may succeed later.
    #[error("other processes changed task {task} {conflicts} times in a row; try again", task = .task.printable())]
    Contended {
        /// The task.
        task: TaskId,
        /// How many compare-and-swaps of the call conflicted.
        conflicts: u32,
    },
    /// A later version of this crate has written the record, and the change would lose what this version does not understand.
    /// Nothing was written. The task can still be read and deleted.
    #[error(
        "task {task} cannot be changed by this version of mcp-task-store: a later version has written its {found}; \
         upgrade this instance",
        task = .task.printable()
    )]
    LaterVersion {
        /// The task.
        task: TaskId,
        /// The field of the record that this version does not understand, with its value.
        found: String,
    },
    /// The stored record is not the JSON of a task, or a stored payload is not JSON. Another program or a later
    /// version of this crate may have written it. [`delete`](crate::TaskStore::delete) removes the record.
    #[error(
        "the record of task {task} cannot be read; upgrade this instance if a later version wrote it, else delete the task",
        task = .task.printable()
    )]
    Unreadable {
        /// The task.
        task: TaskId,
        /// The error of the JSON parser.
        source: serde_json::Error,
    },
    /// A value of the task cannot be written as JSON. Nothing was stored.
    #[error("task {task} cannot be written as JSON", task = .task.printable())]
    Unencodable {
        /// The task.
        task: TaskId,
        /// The error of the JSON serializer.
        source: serde_json::Error,
    },
    /// The engine failed.
    #[error(transparent)]
    Storage(StorageError),
}

impl TaskError {
    /// Returns the code of the JSON-RPC error that a server replies.
    ///
    /// -32602 (invalid params) is for mistakes of the caller, including the id of an unknown, expired or foreign task
    /// (MCP Tasks extension, SEP-2663, "Protocol Errors"). -32603 (internal error) is for every other error, such as
    /// a failed storage engine or a full quota.
    pub fn code(&self) -> i64 {
        match self {
            Self::NotFound { .. }
            | Self::InvalidTransition { .. }
            | Self::CancelRequested { .. }
            | Self::InputKeyUsed { .. }
            | Self::LimitExceeded { .. }
            | Self::InvalidArgument { .. }
            | Self::InvalidPage { .. } => -32602,
            Self::LeaseLost { .. }
            | Self::QuotaExceeded { .. }
            | Self::ShuttingDown
            | Self::OperationPanicked { .. }
            | Self::Contended { .. }
            | Self::LaterVersion { .. }
            | Self::Unreadable { .. }
            | Self::Unencodable { .. }
            | Self::Storage(_) => -32603,
        }
    }

    /// Returns whether the same call may succeed later, with the same arguments.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Contended { .. } | Self::QuotaExceeded { .. } | Self::ShuttingDown => true,
            Self::Storage(error) => error.is_retryable(),
            _ => false,
        }
    }

    /// Returns whether the engine may have applied the change although the call failed.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Storage(error) if error.outcome_unknown())
    }

    /// Returns whether this process cannot read the record of the task, although the engine works. Another instance may be able to: a
    /// later version of this crate, or an instance with other encryption keys.
    pub(crate) fn is_unreadable(&self) -> bool {
        match self {
            Self::Unreadable { .. } => true,
            Self::Storage(error) => error.is_unreadable(),
            _ => false,
        }
    }

    /// Converts the error of an engine's call about `task`.
    pub(super) fn from_storage(error: StorageError, task: &TaskId) -> Self {
        match error {
            StorageError::NotFound { .. } => Self::NotFound { task: task.clone() },
            StorageError::CapacityExceeded { quota: Some(quota), .. } => Self::QuotaExceeded { quota },
            StorageError::InvalidPage { reason } => Self::InvalidPage { reason },
            StorageError::TooLarge { what, size, max } => Self::LimitExceeded {
                what: format!("{what} in the record of the task"),
                actual: size.to_string(),
                limit: max.to_string(),
            },
            StorageError::InvalidExpiry { given } => Self::InvalidArgument {
                reason: format!(
                    "the TTL and the retention add up to {given:?}, which is not between 1 ms and 100 years; choose another TTL or another \
                     StoreConfig::retention"
                ),
            },
            other => Self::Storage(other),
        }
    }
}
