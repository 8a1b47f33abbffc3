//! One call of a task tool: starts its operation, holds the call if the operation takes long, and answers it.

use std::sync::Arc;

use rmcp::model::{CallToolRequestParams, CallToolResponse, CreateTaskResult, ErrorData};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::Value;
use tokio::time::Instant;

use super::answers;
use super::client::Client;
use super::config::TaskServerConfig;
use super::held::{HeldCall, HoldEnd};
use crate::backend::Agenda;
use crate::rmcp::call_run::CallAnswer;
use crate::rmcp::calls::require_tasks;
use crate::rmcp::manager::DurableTaskManager;
use crate::rmcp::owner::OwnerSource;
use crate::rmcp::tools::TaskTool;
use crate::rmcp::{request, wire};
use crate::task::StoredTask;

/// What all calls of a server share.
pub(super) struct CallSettings<'a, B> {
    pub(super) tasks: &'a DurableTaskManager<B>,
    pub(super) owners: &'a OwnerSource,
    pub(super) config: &'a TaskServerConfig,
}

/// Starts the operation of a call, and answers the call as its client can take it.
pub(super) async fn answer<B: Agenda>(
    settings: CallSettings<'_, B>,
    tool: &TaskTool,
    request: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    if tool.is_required() {
        require_tasks(context)?;
    }
    let CallSettings { tasks, owners, config } = settings;
    let arguments = Value::Object(request.arguments.unwrap_or_default());
    let operation = tool.bind(&arguments)?;
    let owner = owners.owner(context)?;
    let client = Client::of(context);
    let held = HeldCall::new(&client, context);
    let until = Instant::now() + config.hold_limit(&client);
    let mut call = Call { tasks, tool, client, held, until };
    let new = request::keep(tool.new_task(arguments), context, tasks.extensions());
    match call.held.wait(tasks.call(&owner, new, config.call_limits(), operation)).await? {
        CallAnswer::Ended(outcome) => answers::of_outcome(outcome),
        CallAnswer::Stored(stored) => call.hold(stored).await,
    }
}

/// A call whose operation has begun.
struct Call<'a, B> {
    tasks: &'a DurableTaskManager<B>,
    tool: &'a TaskTool,
    client: Client,
    held: HeldCall<'a>,
    /// When the call must be answered.
    until: Instant,
}

impl<B: Agenda> Call<'_, B> {
    /// Holds the call of a stored task, and answers it.
    async fn hold(mut self, task: Arc<StoredTask>) -> Result<CallToolResponse, ErrorData> {
        match self.held.hold(self.tasks.store(), &task.key, self.until).await? {
            HoldEnd::Over { stored, task: detailed } => match answers::of_ended(*detailed) {
                Some(answer) => {
                    self.tasks.shorten_retention(stored);
                    answer
                }
                None => Ok(self.answer_open(&stored)),
            },
            HoldEnd::TimeElapsed => Ok(self.answer_open(&self.held.seen().unwrap_or(task))),
            HoldEnd::Cancelled => self.leave(&task).await,
        }
    }

    /// Answers the call while its task goes on.
    fn answer_open(&self, stored: &StoredTask) -> CallToolResponse {
        if self.client.has_tasks() {
            CreateTaskResult::new(wire::task(stored)).into()
        } else {
            answers::of_open(self.tool.name(), stored).into()
        }
    }

    /// Ends a call whose client takes no answer any more. Its task runs on, unless the tool says otherwise.
    async fn leave(&self, task: &StoredTask) -> Result<CallToolResponse, ErrorData> {
        if self.tool.cancels_with_request() {
            self.tasks.cancel_task(&task.key.owner, task.key.task.as_str()).await?;
        }
        Ok(self.answer_open(task))
    }
}
