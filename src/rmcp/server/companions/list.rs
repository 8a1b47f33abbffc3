//! Lists the tasks of the caller.

use std::fmt::Write;

use chrono::SecondsFormat;
use rmcp::model::{CallToolRequestParams, CallToolResult, ContentBlock};
use serde::Serialize;
use serde_json::json;

use super::arguments::{ListArguments, decode};
use crate::backend::{Agenda, OwnerId, PageRequest};
use crate::rmcp::server::call_error::CallError;
use crate::rmcp::server::call_settings::CallSettings;
use crate::rmcp::server::state_content::TaskStateContent;
use crate::task::StoredTask;

/// How many tasks a page has at most.
const PAGE: usize = 20;

/// A task in the list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedTask {
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<String>,
    created_at: String,
    #[serde(flatten)]
    state: TaskStateContent,
}

impl ListedTask {
    fn of(stored: &StoredTask) -> Self {
        let task = &stored.task;
        Self {
            tool: task.operation.clone(),
            created_at: task.created_at.to_rfc3339_opts(SecondsFormat::Millis, true),
            state: TaskStateContent::of(stored),
        }
    }

    fn line(&self) -> String {
        let Self { tool, created_at, state } = self;
        let tool = tool.as_ref().map(|tool| format!(", {tool}")).unwrap_or_default();
        let message = state.status_message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        format!("- {}{tool}, created {created_at}, {}{message}", state.task_id, state.status)
    }
}

/// Answers a call: returns one page of the owner's tasks, newest first.
pub(super) async fn answer<B: Agenda>(
    settings: CallSettings<'_, B>,
    owner: &OwnerId,
    request: CallToolRequestParams,
) -> Result<CallToolResult, CallError> {
    let arguments: ListArguments = decode(&request.name, request.arguments)?;
    let page = PageRequest::new(PAGE);
    let page = match arguments.cursor {
        Some(cursor) => page.after(cursor),
        None => page,
    };
    let page = settings.tasks.store().list(owner, page).await?;
    let tasks: Vec<_> = page.tasks.iter().map(ListedTask::of).collect();
    let next = page.next.as_ref().map(|cursor| cursor.as_str());
    let mut result = CallToolResult::success(vec![ContentBlock::text(text(&tasks, next))]);
    result.structured_content = Some(match next {
        Some(next) => json!({ "tasks": tasks, "nextCursor": next }),
        None => json!({ "tasks": tasks }),
    });
    Ok(result)
}

fn text(tasks: &[ListedTask], next: Option<&str>) -> String {
    let mut text = match (tasks, next) {
        ([], None) => "There are no tasks.".to_owned(),
        _ => "The tasks, newest first:".to_owned(),
    };
    for task in tasks {
        text += "\n";
        text += &task.line();
    }
    if let Some(next) = next {
        // Writing to a string does not fail.
        let _ = write!(text, "\nThere are more tasks: call this tool again with the cursor {next:?}.");
    }
    text
}
