//! Waits for a task, and returns its result or its state.

use std::sync::Arc;

use rmcp::model::{CallToolRequestParams, CallToolResponse, TaskPayload};
use rmcp::service::{RequestContext, RoleServer};
use tokio::time::Instant;

use super::arguments::{TaskArguments, decode};
use super::{CompanionError, key};
use crate::backend::{Agenda, OwnerId};
use crate::rmcp::server::answers;
use crate::rmcp::server::call::CallSettings;
use crate::rmcp::server::client::Client;
use crate::rmcp::server::held::{HeldCall, HoldEnd};
use crate::rmcp::server::questions::{Asked, Questions, resume};
use crate::task::StoredTask;

/// Answers a call. It is held until the task has ended; its client is asked the questions of the task meanwhile.
pub(super) async fn answer<B: Agenda>(
    settings: CallSettings<'_, B>,
    owner: &OwnerId,
    request: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, CompanionError> {
    let CallSettings { tasks, config, .. } = settings;
    let CallToolRequestParams { name, arguments, input_responses, request_state, .. } = request;
    let key = match request_state {
        Some(state) => resume(tasks.store(), owner, &name, &state, input_responses).await?.key,
        None => key(owner, &decode::<TaskArguments>(&name, arguments)?.task_id)?,
    };
    let client = Client::of(context);
    let until = Instant::now() + config.hold_limit(&client);
    let mut held = HeldCall::new(&client, context);
    let questions =
        Questions { tasks, client: &client, context, companions: &config.companions, tool: &name };
    let still_running = |stored: &StoredTask| {
        let tool = stored.task.operation.as_deref().unwrap_or_default();
        answers::of_running(tool, stored, Some(&name)).into()
    };
    loop {
        let (stored, task) = match held.hold(tasks.store(), &key, until).await? {
            HoldEnd::Over { stored, task } => (stored, task),
            HoldEnd::TimeElapsed | HoldEnd::Cancelled => {
                let stored = match held.seen() {
                    Some(seen) => seen,
                    None => Arc::new(tasks.store().get(&key).await?),
                };
                return Ok(still_running(&stored));
            }
        };
        let TaskPayload::InputRequired { input_requests } = task.payload else {
            return answers::of_ended(*task)
                .unwrap_or_else(|| Ok(still_running(&stored)))
                .map_err(Into::into);
        };
        match questions.ask(&mut held, &stored, input_requests, until).await? {
            Asked::Answer(answer) => return Ok(*answer),
            Asked::Changed => {}
        }
    }
}
