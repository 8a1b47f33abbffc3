//! What an error of the store means for the work of an attempt.

use crate::backend::StorageError;
use crate::store::TaskError;

/// What an error means for an attempt that has something to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// The attempt is void: its lease is lost, the task has ended, or the record no longer exists.
    Void,
    /// The same call never succeeds: a value is over a limit or invalid, or the record cannot be read.
    Permanent,
    /// A later call may succeed. Unknown errors belong to this class, so that none of them costs finished work.
    Transient,
}

impl ErrorClass {
    pub(super) fn of(error: &TaskError) -> Self {
        match error {
            TaskError::InvalidTransition { .. }
            | TaskError::LeaseLost { .. }
            | TaskError::NotFound { .. } => Self::Void,
            TaskError::CancelRequested { .. }
            | TaskError::InputKeyUsed { .. }
            | TaskError::LimitExceeded { .. }
            | TaskError::InvalidArgument { .. }
            | TaskError::Unreadable { .. }
            | TaskError::Unencodable { .. }
            | TaskError::Storage(StorageError::Corrupt { .. }) => Self::Permanent,
            _ => Self::Transient,
        }
    }
}
