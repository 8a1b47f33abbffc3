//! What can go wrong in the lifecycle, and its JSON-RPC code.

use crate::backend::{StorageError, TaskId};
use crate::task::TaskStatus;

/// An error of a [`TaskStore`](crate::TaskStore). A call that is refused leaves the task as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The owner has no such task: it never was, has expired, was deleted, or is somebody else's. These
    /// cannot be told apart.
    #[error("task not found: {task}", task = .task.printable())]
    NotFound {
        /// The id that was asked for.
        task: TaskId,
    },
    /// The task's status does not allow it.
    #[error("task {task} is {from}: cannot {action}", task = .task.printable())]
    InvalidTransition {
        /// The task.
        task: TaskId,
        /// The status that it has.
        from: TaskStatus,
        /// What was to be done.
        action: &'static str,
    },
    /// Cancellation was requested, so the client is not asked any more.
    #[error("task {task} was asked to cancel: cannot request input", task = .task.printable())]
    CancelRequested {
        /// The task.
        task: TaskId,
    },
    /// A key of an input request was used before in this task. Keys are unique for its whole life.
    #[error("task {task} has used the input key {key:?} before", task = .task.printable())]
    InputKeyUsed {
        /// The task.
        task: TaskId,
        /// The key.
        key: String,
    },
    /// The caller does not hold the lease of the task any more: the worker was declared lost, or it released the task.
    /// The worker of this attempt must stop.
    #[error("attempt {attempt} at task {task} has lost its lease", task = .task.printable())]
    LeaseLost {
        /// The task.
        task: TaskId,
        /// The attempt that came too late.
        attempt: u32,
    },
    /// This process is about to end and begins no more work; another instance may.
    #[error("the server is shutting down; try again")]
    ShuttingDown,
    /// The operation panicked before its work began. The task fails.
    #[error("the operation of task {task} panicked", task = .task.printable())]
    OperationPanicked {
        /// The task.
        task: TaskId,
    },
    /// The owner has as many tasks as it may have, finished ones that are still kept included:
    /// [`StoreConfig::max_tasks_per_owner`](crate::StoreConfig::max_tasks_per_owner). Nothing was stored. The same call
    /// succeeds once tasks have expired or were deleted.
    #[error(
        "the owner has {quota} tasks, the limit of StoreConfig::max_tasks_per_owner, finished ones that are still kept \
         included; delete tasks, wait until some expire, or raise the limit"
    )]
    QuotaExceeded {
        /// The quota.
        quota: u64,
    },
    /// Something is larger, longer or more than the store allows.
    #[error("{what}: {actual} is over the limit of {limit}")]
    LimitExceeded {
        /// What is limited, and its unit.
        what: String,
        /// What was given.
        actual: String,
        /// What is allowed.
        limit: String,
    },
    /// Something that was given makes no sense.
    #[error("invalid argument: {reason}")]
    InvalidArgument {
        /// What, and why.
        reason: String,
    },
    /// A page limit outside 1 to 256, or a cursor that is malformed or another owner's.
    #[error("invalid page: {reason}")]
    InvalidPage {
        /// What is wrong with the request.
        reason: String,
    },
    /// Other processes changed the task each time before this call could:
    /// [`StoreConfig::max_conflicts`](crate::StoreConfig::max_conflicts) times. Nothing was written. The same call may
    /// succeed later.
    #[error("task {task} was changed by others {conflicts} times in a row; try again", task = .task.printable())]
    Contended {
        /// The task.
        task: TaskId,
        /// How many compare-and-swaps of the call lost.
        conflicts: u32,
    },
    /// The stored record is not the JSON of a task, or a stored payload is not JSON. Another program or a later version
    /// of this crate may have written it. The record can be deleted.
    #[error("the record of task {task} cannot be read; delete the task, or check which program wrote it", task = .task.printable())]
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
    /// The code of the JSON-RPC error that a server replies: -32602 (invalid params) for what the caller got
    /// wrong, unknown, expired and foreign tasks included (MCP Tasks extension, SEP-2663, "Protocol
    /// Errors"); -32603 (internal error) for the storage and the quota.
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
            | Self::Unreadable { .. }
            | Self::Unencodable { .. }
            | Self::Storage(_) => -32603,
        }
    }

    /// Whether the same call may succeed later with nothing changed by the caller.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Contended { .. } | Self::QuotaExceeded { .. } | Self::ShuttingDown => true,
            Self::Storage(error) => error.is_retryable(),
            _ => false,
        }
    }

    /// Whether the change may have been made although the call failed.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Storage(error) if error.outcome_unknown())
    }

    /// What an engine's error means for a call about `task`.
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
                    "TTL and retention add up to {given:?}, not to 1 ms to 100 years; choose another TTL or another \
                     StoreConfig::retention"
                ),
            },
            other => Self::Storage(other),
        }
    }
}
