//! The companion tools: they let the model of a client without the tasks extension wait for its tasks, list, answer and cancel
//! them.

mod answer;
mod answer_forms;
mod arguments;
mod list;
mod result;
mod tools;

use rmcp::model::{CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData};
use rmcp::service::{RequestContext, RoleServer};

use super::answers;
use super::call_error::CallError;
use super::call_settings::CallSettings;
use super::companion_names::Companion;
use crate::backend::{Agenda, OwnerId, TaskId, TaskKey};
use crate::store::TaskError;
use arguments::TaskArguments;

/// Answers a call of a companion.
pub(super) async fn answer<B: Agenda>(
    settings: CallSettings<'_, B>,
    companion: Companion,
    request: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    let owner = settings.owners.owner(context)?;
    let answered = match companion {
        Companion::Result => result::answer(settings, &owner, request, context).await,
        Companion::List => list::answer(settings, &owner, request).await.map(Into::into),
        Companion::Answer => answer::answer(settings, &owner, request).await.map(Into::into),
        Companion::Cancel => cancel(settings, &owner, request).await.map(Into::into),
    };
    match answered {
        Err(CallError::Task(TaskError::NotFound { .. })) => Ok(no_such_task().into()),
        answered => Ok(answered?),
    }
}

/// The result for a task that is unknown, has expired, or belongs to another owner. It does not say which.
fn no_such_task() -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(
        "There is no task of this id: it is wrong, or the task has expired.",
    )])
}

/// Returns the key of the task that a caller names.
fn key(owner: &OwnerId, id: &str) -> Result<TaskKey, CallError> {
    match TaskId::try_from(id) {
        Ok(task) => Ok(TaskKey { owner: owner.clone(), task }),
        // No task has such an id.
        Err(_) => Err(TaskError::NotFound { task: TaskId::random() }.into()),
    }
}

/// Asks a task to stop.
async fn cancel<B: Agenda>(
    settings: CallSettings<'_, B>,
    owner: &OwnerId,
    request: CallToolRequestParams,
) -> Result<CallToolResult, CallError> {
    let arguments: TaskArguments = arguments::decode(&request.name, request.arguments)?;
    let key = key(owner, &arguments.task_id)?;
    let stored = settings.tasks.store().request_cancel(&key).await?;
    let text = match stored.task.status {
        status if status.is_terminal() => format!("The task {} has ended: it is {status}.", key.task),
        _ => format!("The task {} was asked to stop. It may still complete.", key.task),
    };
    Ok(answers::of_state(text, &stored))
}
