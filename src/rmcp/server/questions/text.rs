//! The open questions of a task as text, for the model of a client that cannot answer them itself.

#![expect(deprecated, reason = "operations may ask for messages of a model and for roots")]

use std::fmt::Write;

use rmcp::model::{
    CallToolResult, CreateMessageRequestParams, ElicitRequestParams, InputRequest, InputRequests,
};
use serde::Serialize;

use crate::rmcp::server::answers::of_state;
use crate::task::StoredTask;

/// Returns a result that states the questions, and how to answer them: with the tool `answer_tool`, if the server has it.
pub(super) fn questions(
    stored: &StoredTask,
    requests: &InputRequests,
    answer_tool: Option<&str>,
) -> CallToolResult {
    let id = stored.key.task.as_str();
    let mut text = format!("The task {id} goes on once these questions have an answer:\n");
    for (key, request) in requests {
        // Writing to a string does not fail.
        let _ = writeln!(text, "- {key:?}: {}", question(request));
    }
    text += &match answer_tool {
        Some(tool) => format!(
            "Ask the user, unless you know the answer for sure. Then call {tool} with the taskId {id:?} and the answers by \
             key."
        ),
        None => "This client cannot answer them: it declares neither tasks nor what the questions need."
            .to_owned(),
    };
    of_state(text, stored)
}

/// Returns a result that says that the client is being asked, and how to wait for what follows: with the tool `result_tool`, if the
/// server has it.
pub(super) fn being_asked(stored: &StoredTask, result_tool: Option<&str>) -> CallToolResult {
    let id = stored.key.task.as_str();
    let mut text = format!("The task {id} has asked the user, and waits for the answer.");
    if let Some(tool) = result_tool {
        text += &format!(" Call {tool} with the taskId {id:?} to wait for its result.");
    }
    of_state(text, stored)
}

/// Returns a question and the form of its answer.
fn question(request: &InputRequest) -> String {
    match request {
        InputRequest::Elicitation(request) => elicitation(&request.params),
        InputRequest::CreateMessage(request) => sampling(&request.params),
        InputRequest::ListRoots(_) => {
            "Which folders may the server use? Answer with {\"roots\": [{\"uri\": \"file:///…\"}]}."
                .to_owned()
        }
        other => format!("Answer this request with its result: {}", json(other)),
    }
}

fn elicitation(question: &ElicitRequestParams) -> String {
    const DECLINE: &str = "{\"action\": \"decline\"}";
    match question {
        ElicitRequestParams::FormElicitationParams { message, requested_schema, .. } => format!(
            "{message} Answer with {{\"action\": \"accept\", \"content\": …}}, where the content has the schema {}, or with \
             {DECLINE}.",
            json(requested_schema)
        ),
        ElicitRequestParams::UrlElicitationParams { message, url, .. } => format!(
            "{message} The user must open {url}. Answer with {{\"action\": \"accept\"}} once the user agrees, or with {DECLINE}."
        ),
        other => format!("Answer this request with its result: {}", json(other)),
    }
}

fn sampling(asked: &CreateMessageRequestParams) -> String {
    let system = asked.system_prompt.as_ref().map(|prompt| format!(" The system prompt is {prompt:?}."));
    format!(
        "Write the next message of this conversation, and answer with its text: {}{}",
        json(&asked.messages),
        system.unwrap_or_default()
    )
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
