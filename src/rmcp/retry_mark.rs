//! Marks the error of an operation that the runtime retries. The SDK's `TaskExit` has no variant for it, so the context keeps a mark.

use std::sync::{Arc, Mutex, PoisonError};

use rmcp::ErrorData;
use rmcp::task_manager::TaskExit;

/// The last error that an operation has marked. Clones share it.
#[derive(Clone, Default)]
pub(super) struct RetryMark(Arc<Mutex<Option<ErrorData>>>);

impl RetryMark {
    pub(super) fn set(&self, error: ErrorData) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// Returns whether the operation has returned the marked error.
    pub(super) fn is_on(&self, exit: &TaskExit) -> bool {
        let marked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        matches!((exit, &*marked), (TaskExit::Error(error), Some(marked)) if error == marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_error_that_was_marked_last_has_the_mark() {
        let error = |message: &'static str| ErrorData::internal_error(message, None);
        let mark = RetryMark::default();
        assert!(!mark.is_on(&TaskExit::Error(error("down"))));
        mark.set(error("busy"));
        mark.clone().set(error("down"));
        assert!(mark.is_on(&TaskExit::Error(error("down"))));
        assert!(!mark.is_on(&TaskExit::Error(error("busy"))) && !mark.is_on(&TaskExit::Cancelled));
        assert!(!mark.is_on(&TaskExit::Error(ErrorData::internal_error("down", Some(1.into())))));
    }
}
