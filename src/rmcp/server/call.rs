//! One call of a task tool: starts its operation, and answers the call.

use std::convert::Infallible;
use std::future::pending;

use rmcp::model::{CallToolRequestParams, CallToolResponse, ErrorData};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::Value;
use tracing::{Instrument, Span};

use super::answers;
use super::call_settings::CallSettings;
use super::delivery::Delivery;
use crate::backend::Agenda;
use crate::rmcp::call_run::{CallAnswer, CallOperation};
use crate::rmcp::calls::require_tasks;
use crate::rmcp::operation::TOOL_ERROR;
use crate::rmcp::request;
use crate::rmcp::stage::StopRequest;
use crate::rmcp::tools::TaskTool;
use crate::spans;

/// Answers a call as its client can take it. A call that repeats an earlier one continues it. Any other call starts an operation.
///
/// The call has a span of its own. The span of the operation is a child of the current one: a span ends with its last child, and the
/// operation can run for much longer than the call.
pub(super) async fn answer<B: Agenda>(
    settings: CallSettings<'_, B>,
    tool: &TaskTool,
    request: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    let caller = Span::current();
    let span = spans::tool_call(tool.name(), request::traceparent(context));
    let answer = answer_in_span(&caller, settings, tool, request, context).instrument(span.clone()).await;
    match &answer {
        Err(error) => spans::failed(&span, &error.code.0),
        Ok(CallToolResponse::Complete(result)) if result.is_error == Some(true) => {
            spans::failed(&span, &TOOL_ERROR);
        }
        Ok(_) => {}
    }
    answer
}

async fn answer_in_span<B: Agenda>(
    caller: &Span,
    settings: CallSettings<'_, B>,
    tool: &TaskTool,
    request: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    if tool.is_required() {
        require_tasks(context)?;
    }
    let CallSettings { tasks, owners, config } = settings;
    let delivery = Delivery::begin(&settings, context, tool.name());
    let mut delivery = delivery.cancels_with_request(tool.cancels_with_request());
    let CallToolRequestParams { arguments, input_responses, request_state, .. } = request;
    if let Some(state) = request_state {
        let owner = owners.owner(context)?;
        return Ok(delivery.resume(&owner, &state, input_responses).await?);
    }
    let arguments = Value::Object(arguments.unwrap_or_default());
    let operation = tool.bind(&arguments)?;
    let owner = owners.owner(context)?;
    if config.only_enqueues {
        let new = request::keep(tool.enqueued_task(arguments), context, tasks.extensions());
        let enqueue = tasks.enqueue_call(&owner, new, operation.key(), config.call_limits());
        let stored = delivery.held.wait(enqueue).await?;
        return Ok(delivery.deliver_stored(stored).await?);
    }
    let new = request::keep(tool.new_task(arguments), context, tasks.extensions());
    let (stop, signal) = StopRequest::new();
    let answered = async {
        tokio::select! {
            biased;
            answer = tasks.call(caller.clone(), &owner, new, config.call_limits(), signal, operation) => answer,
            never = stop_if_cancelled(&stop, tool, context) => match never {},
        }
    };
    match delivery.held.wait(answered).await? {
        CallAnswer::Ended(outcome) => answers::of_outcome(outcome),
        CallAnswer::Stored(stored) => Ok(delivery.deliver_stored(stored).await?),
    }
}

/// Asks the operation to stop when the client cancels the call, if the tool says so. Once the task is stored, the record has the
/// request to cancel instead.
async fn stop_if_cancelled(
    stop: &StopRequest,
    tool: &TaskTool,
    context: &RequestContext<RoleServer>,
) -> Infallible {
    if tool.cancels_with_request() {
        context.ct.cancelled().await;
        stop.send();
    }
    pending().await
}
