//! Which questions a client can answer, as it declares.

#![expect(deprecated, reason = "operations may ask for messages of a model and for roots")]

use rmcp::model::{ClientCapabilities, ElicitRequestParams, ElicitationCapability, InputRequest};

/// Returns whether a client with these capabilities answers such a request.
pub(super) fn can_answer(client: &ClientCapabilities, request: &InputRequest) -> bool {
    match request {
        InputRequest::Elicitation(request) => {
            client.elicitation.as_ref().is_some_and(|elicitation| can_elicit(elicitation, &request.params))
        }
        InputRequest::CreateMessage(request) => client.sampling.as_ref().is_some_and(|sampling| {
            let needs_tools = request.params.tools.is_some() || request.params.tool_choice.is_some();
            !needs_tools || sampling.tools.is_some()
        }),
        InputRequest::ListRoots(_) => client.roots.is_some(),
        _ => false,
    }
}

fn can_elicit(declared: &ElicitationCapability, question: &ElicitRequestParams) -> bool {
    match question {
        // A client that declares no mode has forms (MCP 2025-11-25, "Elicitation", "Capabilities").
        ElicitRequestParams::FormElicitationParams { .. } => {
            declared.form.is_some() || declared.url.is_none()
        }
        ElicitRequestParams::UrlElicitationParams { .. } => declared.url.is_some(),
        _ => false,
    }
}
