//! Tasks for one `tools/call`, only for a client that knows what to do with a task.

use rmcp::model::{CallToolResponse, ClientCapabilities, CreateTaskResult, ErrorData};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::task_manager::{TaskFuture, TaskOptions};
use serde_json::Value;

use super::context::TaskContext;
use super::manager::{DurableTaskManager, RegisteredOptions};
use crate::backend::{Agenda, OwnerId};

impl<B: Agenda> DurableTaskManager<B> {
    /// Begins a task for this `tools/call`, as [`spawn`](Self::spawn), and returns the answer to the call once the task is
    /// stored. A call of a client that does not support tasks is refused before anything is stored or started.
    ///
    /// The SDK refuses the handle of a task for such a client only after the handler has returned it: the operation would run
    /// although nobody can ever read its outcome.
    ///
    /// # Errors
    /// `-32021` (missing required client capability), as the SDK's own, for a client that has not declared the extension
    /// `io.modelcontextprotocol/tasks`; those of [`spawn`](Self::spawn).
    pub async fn spawn_for<F>(
        &self,
        context: &RequestContext<RoleServer>,
        owner: &OwnerId,
        name: &str,
        options: TaskOptions,
        make_future: F,
    ) -> Result<CallToolResponse, ErrorData>
    where
        F: FnOnce(TaskContext) -> TaskFuture,
    {
        require_tasks(context)?;
        let task = self.spawn(owner, name, options, make_future).await?;
        Ok(CreateTaskResult::new(task).into())
    }

    /// The same for a registered operation, as [`spawn_registered`](Self::spawn_registered).
    ///
    /// # Errors
    /// As [`spawn_for`](Self::spawn_for) and [`spawn_registered`](Self::spawn_registered).
    pub async fn spawn_registered_for(
        &self,
        context: &RequestContext<RoleServer>,
        owner: &OwnerId,
        name: &str,
        arguments: Value,
        options: impl Into<RegisteredOptions>,
    ) -> Result<CallToolResponse, ErrorData> {
        require_tasks(context)?;
        let task = self.spawn_registered(owner, name, arguments, options).await?;
        Ok(CreateTaskResult::new(task).into())
    }
}

/// Refuses a request of a client that does not support tasks, as the SDK does.
fn require_tasks(context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
    if context.client_capabilities().is_some_and(|client| client.supports_tasks()) {
        return Ok(());
    }
    let required = ClientCapabilities::builder().enable_tasks().build();
    Err(ErrorData::missing_required_client_capability(required))
}
