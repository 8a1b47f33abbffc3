//! The audit log: one line for each attempt to change a task.

use axum::http::Uri;
use mcp_task_store::TaskKey;

use crate::text;

/// How many characters of an id a line shows.
const MAX_CHARS: usize = 300;

/// Notes an attempt. `who` is the visitor, or says that none was admitted.
pub(crate) fn note(who: &str, action: &str, key: Option<&TaskKey>, outcome: &str, is_refused: bool) {
    // The values are quoted, and have no characters that act on a terminal, so that none can pass for another line or field.
    let who = text::cut(who, MAX_CHARS);
    let owner = key.map(|key| text::cut(key.owner.as_str(), MAX_CHARS)).unwrap_or_default();
    let task = key.map(|key| text::cut(key.task.as_str(), MAX_CHARS)).unwrap_or_default();
    let (who, owner, task) = (who.as_str(), owner.as_str(), task.as_str());
    match is_refused {
        true => {
            tracing::warn!(target: "mcp_task_console::audit", who, action, owner, task, outcome, "refused")
        }
        false => tracing::info!(target: "mcp_task_console::audit", who, action, owner, task, outcome, "done"),
    }
}

/// Returns the action that a path of the console is for.
pub(crate) fn action_of(path: &str) -> Option<&'static str> {
    ["cancel", "requeue", "delete", "answer"]
        .into_iter()
        .find(|action| path.strip_prefix("/task/") == Some(action))
}

/// Returns the task that the query of an action names.
pub(crate) fn key_of(uri: &Uri) -> Option<TaskKey> {
    let ids = axum::extract::Query::<crate::pages::task::Ids>::try_from_uri(uri).ok()?;
    TaskKey::new(&ids.owner, &ids.id).ok()
}
