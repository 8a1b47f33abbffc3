//! Waits for a task, and returns its result or its state.

use rmcp::model::{CallToolRequestParams, CallToolResponse};
use rmcp::service::{RequestContext, RoleServer};

use super::arguments::{TaskArguments, decode};
use super::key;
use crate::backend::{Agenda, OwnerId};
use crate::rmcp::server::call_error::CallError;
use crate::rmcp::server::call_settings::CallSettings;
use crate::rmcp::server::delivery::Delivery;

/// Answers a call. It is held until the task has ended; its client is asked the questions of the task meanwhile.
pub(super) async fn answer<B: Agenda>(
    settings: CallSettings<'_, B>,
    owner: &OwnerId,
    request: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, CallError> {
    let CallToolRequestParams { name, arguments, input_responses, request_state, .. } = request;
    let delivery = Delivery::begin(&settings, context, &name);
    match request_state {
        Some(state) => delivery.resume(owner, &state, input_responses).await,
        None => delivery.deliver(&key(owner, &decode::<TaskArguments>(&name, arguments)?.task_id)?).await,
    }
}
