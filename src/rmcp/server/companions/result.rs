//! Waits for a task, and returns its result or its state.

use rmcp::model::{CallToolRequestParams, CallToolResponse};
use rmcp::service::{RequestContext, RoleServer};

use super::arguments::{TaskArguments, decode};
use super::key;
use crate::backend::{Agenda, OwnerId};
use crate::rmcp::server::call_error::CallError;
use crate::rmcp::server::call_settings::CallSettings;
use crate::rmcp::server::delivery::Delivery;
use crate::rmcp::server::questions::resume;

/// Answers a call. It is held until the task has ended; its client is asked the questions of the task meanwhile.
pub(super) async fn answer<B: Agenda>(
    settings: CallSettings<'_, B>,
    owner: &OwnerId,
    request: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, CallError> {
    let CallToolRequestParams { name, arguments, input_responses, request_state, .. } = request;
    let key = match request_state {
        Some(state) => resume(settings.tasks.store(), owner, &name, &state, input_responses).await?.key,
        None => key(owner, &decode::<TaskArguments>(&name, arguments)?.task_id)?,
    };
    Delivery::begin(&settings, context, &name).deliver(&key).await
}
