//! Cancel, requeue, delete.

use mcp_task_store::{Agenda, StoredTask, TaskError, TaskStatus, TaskStore};

/// What an operator does with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Records the request to cancel; the worker decides how the task ends.
    RequestCancel,
    /// Cancels the task at once, even while a worker works on it.
    CancelNow,
    /// Creates a task that does the work of an ended one again.
    Requeue,
    /// Deletes a task.
    Delete {
        /// Whether the action deletes open tasks too.
        force: bool,
    },
}

/// What an action did with a task.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The request to cancel is recorded.
    CancelRequested,
    /// The task is cancelled.
    Cancelled,
    /// The task had ended before the action, and stays as it is.
    AlreadyEnded,
    /// The new task.
    Requeued(Box<StoredTask>),
    /// The task is deleted.
    Deleted,
    /// The task was gone before the action.
    Gone,
}

impl Action {
    /// Returns the verb.
    pub fn verb(self) -> &'static str {
        match self {
            Self::RequestCancel | Self::CancelNow => "cancel",
            Self::Requeue => "requeue",
            Self::Delete { .. } => "delete",
        }
    }

    /// Returns whether the action suits a task. A task to which the action was applied is no longer selected.
    pub fn selects(self, stored: &StoredTask) -> bool {
        let task = &stored.task;
        let is_open = !task.status.is_terminal();
        match self {
            Self::RequestCancel => is_open && !task.cancel_requested,
            Self::CancelNow => is_open,
            Self::Requeue => !is_open && task.operation.is_some(),
            Self::Delete { force } => force || !is_open,
        }
    }

    /// Applies the action to a task. A compare-and-swap decides, so the outcome is right even if the task has changed since it
    /// was read.
    ///
    /// # Errors
    /// The errors of the call of [`TaskStore`] that the action makes, except [`NotFound`](TaskError::NotFound).
    ///
    /// # Cancellation safety
    /// If the future is dropped, the action may be applied nevertheless.
    pub async fn apply<B: Agenda>(
        self,
        store: &TaskStore<B>,
        stored: &StoredTask,
    ) -> Result<Outcome, TaskError> {
        let is_cancel = matches!(self, Self::RequestCancel | Self::CancelNow);
        if is_cancel && stored.task.status.is_terminal() {
            return Ok(Outcome::AlreadyEnded);
        }
        let applied = match self {
            Self::RequestCancel => store.request_cancel(stored).await.map(|requested| {
                match (requested.task.status, requested.task.cancel_requested) {
                    (status, _) if !status.is_terminal() => Outcome::CancelRequested,
                    (TaskStatus::Cancelled, true) => Outcome::Cancelled,
                    // A worker may also complete a task whose cancel somebody else has requested.
                    _ => Outcome::AlreadyEnded,
                }
            }),
            Self::CancelNow => match store.cancel(stored).await {
                Err(TaskError::InvalidTransition { .. }) => Ok(Outcome::AlreadyEnded),
                cancelled => cancelled.map(|_| Outcome::Cancelled),
            },
            Self::Requeue => store.requeue(&stored.key).await.map(|new| Outcome::Requeued(Box::new(new))),
            Self::Delete { .. } => store.delete(&stored.key).await.map(|()| Outcome::Deleted),
        };
        match applied {
            Err(TaskError::NotFound { .. }) => Ok(Outcome::Gone),
            applied => applied,
        }
    }
}

impl Outcome {
    /// Returns the name of the outcome for scripts and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CancelRequested => "cancel_requested",
            Self::Cancelled => "cancelled",
            Self::AlreadyEnded => "already_ended",
            Self::Requeued(_) => "requeued",
            Self::Deleted => "deleted",
            Self::Gone => "gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use mcp_task_store::{MemoryBackend, NewTask, OwnerId};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_task_that_was_completed_despite_a_requested_cancel_is_not_reported_as_cancelled() {
        let store = TaskStore::new(MemoryBackend::new());
        let alice = OwnerId::try_from("alice").unwrap();
        let (read, attempt) = store.start(&alice, NewTask::new("tools/call")).await.unwrap();
        store.request_cancel(&read.key).await.unwrap();
        attempt.complete(json!({})).await.unwrap();
        let outcome = Action::RequestCancel.apply(&store, &read).await.unwrap();
        assert_eq!(outcome.name(), "already_ended");
    }
}
