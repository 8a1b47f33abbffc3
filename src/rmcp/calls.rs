//! Answers a `tools/call` with a task, if the client supports tasks.

use rmcp::model::{CallToolResponse, ClientCapabilities, CreateTaskResult, ErrorData, Task};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::task_manager::{TaskFuture, TaskOptions};
use serde_json::Value;

use super::context::TaskContext;
use super::manager::{DurableTaskManager, closure_task};
use super::options::RegisteredOptions;
use super::request;
use crate::backend::{Agenda, OwnerId};
use crate::store::NewTask;

impl<B: Agenda> DurableTaskManager<B> {
    /// Starts a task for this `tools/call` as [`spawn`](Self::spawn) does, and returns the response to the call once
    /// the task is stored. If the client does not support tasks, this method fails before it stores or starts
    /// anything.
    ///
    /// Without this check the SDK rejects the response only after the handler has returned it. The operation would
    /// then run, and no client could read its outcome.
    ///
    /// The task also keeps the `traceparent` of the request, and its
    /// [extensions](super::ManagerConfig::extensions).
    ///
    /// # Errors
    /// `-32021` (missing required client capability) if the client has not declared the extension
    /// `io.modelcontextprotocol/tasks`; otherwise the errors of [`spawn`](Self::spawn).
    pub async fn spawn_for<F>(
        &self,
        context: &RequestContext<RoleServer>,
        owner: &OwnerId,
        name: &str,
        options: TaskOptions,
        operation: F,
    ) -> Result<CallToolResponse, ErrorData>
    where
        F: FnOnce(TaskContext) -> TaskFuture,
    {
        let task = self.start_for(context, owner, closure_task(name, options), operation).await?;
        Ok(CreateTaskResult::new(task).into())
    }

    /// Starts a task for this `tools/call` as [`spawn_registered`](Self::spawn_registered) does, and returns the
    /// response to the call once the task is stored. If the client does not support tasks, this method fails before
    /// it stores or starts anything. The task keeps the same values of the request as for [`spawn_for`](Self::spawn_for).
    ///
    /// # Errors
    /// `-32021` as for [`spawn_for`](Self::spawn_for); otherwise the errors of
    /// [`spawn_registered`](Self::spawn_registered).
    pub async fn spawn_registered_for(
        &self,
        context: &RequestContext<RoleServer>,
        owner: &OwnerId,
        name: &str,
        arguments: Value,
        options: impl Into<RegisteredOptions>,
    ) -> Result<CallToolResponse, ErrorData> {
        require_tasks(context)?;
        let (new, operation) = self.registered_task(name, &arguments, options.into())?;
        let operation = |context| operation(context, arguments);
        let task = self.start_for(context, owner, new, operation).await?;
        Ok(CreateTaskResult::new(task).into())
    }

    /// Starts the task of this `tools/call`, if the client supports tasks. The task keeps the values of the request.
    pub(super) async fn start_for(
        &self,
        context: &RequestContext<RoleServer>,
        owner: &OwnerId,
        new: NewTask,
        operation: impl FnOnce(TaskContext) -> TaskFuture,
    ) -> Result<Task, ErrorData> {
        require_tasks(context)?;
        let new = request::keep(new, context, self.extensions());
        Ok(self.start(owner, new, operation).await?)
    }
}

/// Refuses a client that does not support tasks, with the SDK's own error.
pub(super) fn require_tasks(context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
    if context.client_capabilities().is_some_and(|client| client.supports_tasks()) {
        return Ok(());
    }
    let required = ClientCapabilities::builder().enable_tasks().build();
    Err(ErrorData::missing_required_client_capability(required))
}
