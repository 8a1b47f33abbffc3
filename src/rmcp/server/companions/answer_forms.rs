//! The forms of an answer that a model gives.

#![expect(deprecated, reason = "operations may ask for messages of a model and for roots")]

use rmcp::model::{CreateMessageResult, ElicitRequestParams, ElicitResult, InputRequest, ListRootsResult};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Returns the answer to a request in the form of the protocol. A model may leave out what is always the same: it may answer
/// a form with the content, and a request for a message with its text.
///
/// # Errors
/// What is wrong with the answer, as the end of a sentence.
pub(super) fn answer_to(request: &InputRequest, answer: Value) -> Result<Value, String> {
    match request {
        InputRequest::Elicitation(request) => elicited(&request.params, answer),
        InputRequest::CreateMessage(_) => checked::<CreateMessageResult>(message(answer)),
        InputRequest::ListRoots(_) => checked::<ListRootsResult>(answer),
        _ => Ok(answer),
    }
}

fn elicited(question: &ElicitRequestParams, answer: Value) -> Result<Value, String> {
    let is_content = answer.is_object() && answer.get("action").is_none();
    match question {
        ElicitRequestParams::FormElicitationParams { .. } if is_content => {
            Ok(json!({ "action": "accept", "content": answer }))
        }
        _ => checked::<ElicitResult>(answer),
    }
}

fn message(answer: Value) -> Value {
    match answer {
        Value::String(text) => json!({
            "role": "assistant",
            "content": { "type": "text", "text": text },
            "model": "the model that has called the tool",
        }),
        answer => answer,
    }
}

/// Returns the answer if it has the type that the operation expects.
fn checked<T: DeserializeOwned>(answer: Value) -> Result<Value, String> {
    match T::deserialize(&answer) {
        Ok(_) => Ok(answer),
        Err(error) => Err(format!("is no answer to such a question: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(request: Value) -> InputRequest {
        serde_json::from_value(request).unwrap()
    }

    #[test]
    fn an_answer_may_leave_out_what_is_always_the_same() {
        let form = request(json!({
            "method": "elicitation/create",
            "params": { "message": "Publish?", "requestedSchema": { "type": "object", "properties": {} } },
        }));
        let accepted = json!({ "action": "accept", "content": { "confirm": true } });
        assert_eq!(answer_to(&form, json!({ "confirm": true })).unwrap(), accepted);
        assert_eq!(answer_to(&form, accepted.clone()).unwrap(), accepted);
        assert_eq!(answer_to(&form, json!({ "action": "decline" })).unwrap(), json!({ "action": "decline" }));
        for wrong in [json!("yes"), json!({ "action": "yes" }), json!(null)] {
            assert!(answer_to(&form, wrong).unwrap_err().starts_with("is no answer"));
        }

        let sampling = request(json!({
            "method": "sampling/createMessage", "params": { "messages": [], "maxTokens": 10 },
        }));
        let answered = answer_to(&sampling, json!("Paris")).unwrap();
        assert_eq!(answered["content"], json!({ "type": "text", "text": "Paris" }));
        assert!(answer_to(&sampling, json!({ "text": "Paris" })).is_err());

        let roots = request(json!({ "method": "roots/list" }));
        let listed = json!({ "roots": [{ "uri": "file:///films" }] });
        assert_eq!(answer_to(&roots, listed.clone()).unwrap(), listed);
        assert!(answer_to(&roots, json!(["file:///films"])).is_err());
    }

    #[test]
    fn a_page_to_open_has_no_content() {
        let page = request(json!({
            "method": "elicitation/create",
            "params": { "mode": "url", "message": "Pay", "url": "https://example.com", "elicitationId": "1" },
        }));
        assert!(answer_to(&page, json!({ "action": "accept" })).is_ok());
        assert!(answer_to(&page, json!({ "paid": true })).is_err());
    }
}
