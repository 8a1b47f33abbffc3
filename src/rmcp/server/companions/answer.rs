//! Answers the open questions of a task.

use rmcp::model::{CallToolRequestParams, CallToolResult, InputRequest, InputRequests, InputResponses};
use serde_json::Value;

use super::answer_forms::answer_to;
use super::arguments::{AnswerArguments, decode, invalid};
use super::key;
use crate::backend::{Agenda, OwnerId};
use crate::rmcp::server::answers::of_state;
use crate::rmcp::server::call_error::CallError;
use crate::rmcp::server::call_settings::CallSettings;
use crate::rmcp::server::companion_names::{Companion, Companions};
use crate::rmcp::server::questions::in_text;
use crate::rmcp::wire;
use crate::task::StoredTask;

/// Answers a call: delivers the answers, and returns the state of the task.
pub(super) async fn answer<B: Agenda>(
    settings: CallSettings<'_, B>,
    owner: &OwnerId,
    request: CallToolRequestParams,
) -> Result<CallToolResult, CallError> {
    let tool = &request.name;
    let arguments: AnswerArguments = decode(tool, request.arguments)?;
    let store = settings.tasks.store();
    let stored = store.get(&key(owner, &arguments.task_id)?).await?;
    let open = wire::input_requests(&stored)?;
    let given = match (arguments.answers, arguments.answer) {
        (Some(answers), None) if !answers.is_empty() => InputResponses::from_iter(answers),
        (None, Some(answer)) => match the_only(&open) {
            Some(key) => [(key.clone(), answer)].into(),
            None => return Ok(refused("Answer its questions by their keys.", &open, &stored)),
        },
        _ => return Err(invalid(tool, "pass either answers or answer").into()),
    };
    let mut responses = InputResponses::new();
    for (key, answer) in given {
        let Some(request) = open.get(&key) else {
            return Ok(refused(&format!("It has no open question {key:?}."), &open, &stored));
        };
        let response = response(tool, &key, request, answer)?;
        responses.insert(key, response);
    }
    let stored = store.deliver_inputs(&stored, responses).await?;
    delivered(&stored, &settings.config.companions)
}

/// Returns the key of the open question, if there is only one.
fn the_only(open: &InputRequests) -> Option<&String> {
    let mut keys = open.keys();
    keys.next().filter(|_| keys.next().is_none())
}

/// Returns an answer of a model in the form of the protocol.
fn response(tool: &str, key: &str, request: &InputRequest, answer: Value) -> Result<Value, CallError> {
    answer_to(request, answer)
        .map_err(|mistake| invalid(tool, format!("the answer to {key:?} {mistake}")).into())
}

/// Returns the result of a call whose answers fit no open question.
fn refused(mistake: &str, open: &InputRequests, stored: &StoredTask) -> CallToolResult {
    let (id, status) = (&stored.key.task, stored.task.status);
    let text = if open.is_empty() {
        format!("The task {id} has no open question: it is {status}.")
    } else {
        let keys: Vec<_> = open.keys().map(|key| format!("{key:?}")).collect();
        format!("The task {id} received no answer. {mistake} Its open questions are {}.", keys.join(", "))
    };
    let mut result = of_state(text, stored);
    result.is_error = Some(true);
    result
}

/// Returns the result of a call whose answers were delivered: what follows.
fn delivered(stored: &StoredTask, companions: &Companions) -> Result<CallToolResult, CallError> {
    let open = wire::input_requests(stored)?;
    if !open.is_empty() {
        return Ok(in_text(stored, &open, companions));
    }
    let id = stored.key.task.as_str();
    let next = companions
        .name(Companion::Result)
        .map(|tool| format!(" Call {tool} with the taskId {id:?} for its result."));
    let text = format!("The task {id} has the answer.{}", next.unwrap_or_default());
    Ok(of_state(text, stored))
}
