//! Why a call has no result.

use rmcp::model::ErrorData;

use crate::store::TaskError;

/// Why a call has no result.
pub(super) enum CallError {
    /// The error of the store.
    Task(TaskError),
    /// The error of the operation, or of another part of the server.
    Other(ErrorData),
}

impl From<TaskError> for CallError {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

impl From<ErrorData> for CallError {
    fn from(error: ErrorData) -> Self {
        Self::Other(error)
    }
}

impl From<CallError> for ErrorData {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Task(error) => error.into(),
            CallError::Other(error) => error,
        }
    }
}
