//! How the command line names what was done with a task.

use mcp_task_console::operator::{Action, Outcome};
use mcp_task_store::TaskKey;
use serde_json::{Value, json};

use crate::key;

/// Returns the verb for what was done.
pub fn past_tense(action: Action) -> &'static str {
    match action {
        Action::RequestCancel => "requested to cancel",
        Action::CancelNow => "cancelled",
        Action::Requeue => "requeued",
        Action::Delete { .. } => "deleted",
    }
}

/// Returns the outcome in a sentence.
pub fn sentence(outcome: &Outcome, key: &TaskKey) -> String {
    let task = key::display(key);
    match outcome {
        Outcome::CancelRequested => {
            format!("{task}: cancel requested; its worker decides how the task ends (--now ends it at once)")
        }
        Outcome::Cancelled => format!("{task}: cancelled"),
        Outcome::AlreadyEnded => format!("{task}: has already ended, and stays as it is"),
        Outcome::Requeued(new) => format!("{task}: requeued as {}", key::display(&new.key)),
        Outcome::Deleted => format!("{task}: deleted"),
        Outcome::Gone => format!("{task}: was deleted or has expired meanwhile"),
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
