//! One call of a task tool.

use rmcp::model::{CallToolRequestParams, CallToolResponse, CreateTaskResult, ErrorData};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::Value;

use crate::backend::Agenda;
use crate::rmcp::calls::require_tasks;
use crate::rmcp::manager::DurableTaskManager;
use crate::rmcp::owner::OwnerSource;
use crate::rmcp::tools::TaskTool;

/// Starts the task of a call, and returns it once it is stored.
pub(super) async fn answer<B: Agenda>(
    tool: &TaskTool,
    tasks: &DurableTaskManager<B>,
    owners: &OwnerSource,
    request: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    if tool.is_required() {
        require_tasks(context)?;
    }
    let arguments = Value::Object(request.arguments.unwrap_or_default());
    let operation = tool.bind(&arguments)?;
    let owner = owners.owner(context)?;
    let task = tasks.start_for(context, &owner, tool.new_task(arguments), operation).await?;
    if tool.cancels_with_request() && context.ct.is_cancelled() {
        // The client takes no answer any more, so it does not learn the id of the task.
        tasks.cancel_task(&owner, &task.task_id).await?;
    }
    Ok(CreateTaskResult::new(task).into())
}
