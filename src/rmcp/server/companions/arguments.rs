//! The arguments of the companion tools.

use rmcp::model::{ErrorData, JsonObject};
use rmcp::schemars;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The arguments of a tool about one task.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TaskArguments {
    /// The id of the task
    pub(super) task_id: String,
}

/// The arguments of a list.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListArguments {
    /// The nextCursor of the previous page; leave it out for the first page
    pub(super) cursor: Option<String>,
}

/// The arguments of an answer.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AnswerArguments {
    /// The id of the task
    pub(super) task_id: String,
    /// The answers, by the key of their question
    pub(super) answers: Option<JsonObject>,
    /// The answer, if only one question is open
    pub(super) answer: Option<Value>,
}

/// Decodes the arguments of a companion's call.
///
/// # Errors
/// `-32602` (invalid params) if they do not have the type.
pub(super) fn decode<A: DeserializeOwned>(tool: &str, arguments: Option<JsonObject>) -> Result<A, ErrorData> {
    let arguments = Value::Object(arguments.unwrap_or_default());
    serde_json::from_value(arguments).map_err(|error| invalid(tool, error))
}

/// Returns the error for arguments that a companion cannot take.
pub(super) fn invalid(tool: &str, reason: impl std::fmt::Display) -> ErrorData {
    let message =
        format!("the arguments of the tool {tool:?} are invalid: {reason}; see the input schema of the tool");
    ErrorData::invalid_params(message, None)
}
