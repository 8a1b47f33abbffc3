//! What a command does with a task.

use mcp_task_store::{StoredTask, TaskError, TaskKey};
use serde_json::{Value, json};

use crate::engine::Store;
use crate::key;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Records the request to cancel; the worker decides.
    RequestCancel,
    CancelNow,
    Requeue,
    /// Deletes ended tasks, and with `force` also open ones.
    Delete {
        force: bool,
    },
}

/// What an action did with a task.
pub enum Outcome {
    CancelRequested,
    Cancelled,
    AlreadyEnded,
    /// The new task.
    Requeued(Box<StoredTask>),
    Deleted,
    /// The task was gone before the action.
    Gone,
}

impl Action {
    /// Returns the verb, as the command is called.
    pub fn verb(self) -> &'static str {
        match self {
            Self::RequestCancel | Self::CancelNow => "cancel",
            Self::Requeue => "requeue",
            Self::Delete { .. } => "delete",
        }
    }

    /// Returns the verb for what was done.
    pub fn done(self) -> &'static str {
        match self {
            Self::RequestCancel => "requested to cancel",
            Self::CancelNow => "cancelled",
            Self::Requeue => "requeued",
            Self::Delete { .. } => "deleted",
        }
    }

    /// Returns whether a filter selects a task for this action. A task to which the action was applied is no longer selected.
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

    /// Applies the action to a task.
    pub async fn apply(self, store: &Store, stored: &StoredTask) -> Result<Outcome, TaskError> {
        let is_cancel = matches!(self, Self::RequestCancel | Self::CancelNow);
        if is_cancel && stored.task.status.is_terminal() {
            return Ok(Outcome::AlreadyEnded);
        }
        let applied = match self {
            Self::RequestCancel => store.request_cancel(stored).await.map(|requested| {
                match (requested.task.status.is_terminal(), requested.task.cancel_requested) {
                    (false, _) => Outcome::CancelRequested,
                    (true, true) => Outcome::Cancelled,
                    (true, false) => Outcome::AlreadyEnded,
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
    fn name(&self) -> &'static str {
        match self {
            Self::CancelRequested => "cancel_requested",
            Self::Cancelled => "cancelled",
            Self::AlreadyEnded => "already_ended",
            Self::Requeued(_) => "requeued",
            Self::Deleted => "deleted",
            Self::Gone => "gone",
        }
    }

    /// Returns the outcome in a sentence.
    pub fn sentence(&self, key: &TaskKey) -> String {
        let task = key::display(key);
        match self {
            Self::CancelRequested => {
                format!(
                    "{task}: cancel requested; its worker decides how the task ends (--now ends it at once)"
                )
            }
            Self::Cancelled => format!("{task}: cancelled"),
            Self::AlreadyEnded => format!("{task}: has already ended, and stays as it is"),
            Self::Requeued(new) => format!("{task}: requeued as {}", key::display(&new.key)),
            Self::Deleted => format!("{task}: deleted"),
            Self::Gone => format!("{task}: was deleted or has expired meanwhile"),
        }
    }
}

/// Returns the outcome for scripts.
pub fn outcome_json(action: Action, key: &TaskKey, outcome: &Result<Outcome, String>) -> Value {
    let new = match outcome {
        Ok(Outcome::Requeued(new)) => Some(&new.key.task),
        _ => None,
    };
    json!({
        "owner": key.owner,
        "taskId": key.task,
        "action": action.verb(),
        "outcome": outcome.as_ref().map_or("failed", Outcome::name),
        "newTaskId": new,
        "error": outcome.as_ref().err(),
    })
}
