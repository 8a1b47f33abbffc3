//! What an error of the store means for the work of an attempt.

use crate::backend::StorageError;
use crate::store::TaskError;

/// What an error means for somebody who holds the work of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The attempt is void: the lease is lost, the task has ended, or it is gone.
    Void,
    /// The same call can never succeed: something is over a limit or makes no sense, or the record cannot be read.
    Final,
    /// Anything else may pass, unknown errors included: no finished work is lost because of one.
    Temporary,
}

pub(super) fn meaning(error: &TaskError) -> Meaning {
    match error {
        TaskError::InvalidTransition { .. } | TaskError::LeaseLost { .. } | TaskError::NotFound { .. } => {
            Meaning::Void
        }
        TaskError::CancelRequested { .. }
        | TaskError::InputKeyUsed { .. }
        | TaskError::LimitExceeded { .. }
        | TaskError::InvalidArgument { .. }
        | TaskError::Unreadable { .. }
        | TaskError::Unencodable { .. }
        | TaskError::Storage(StorageError::Corrupt { .. }) => Meaning::Final,
        _ => Meaning::Temporary,
    }
}
