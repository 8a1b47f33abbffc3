//! The state of a task as the structured content of a result, for clients without tasks.

use std::collections::BTreeMap;

use rmcp::schemars::{self, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::Value;

use crate::task::StoredTask;

/// The state of a task.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TaskStateContent {
    /// The id of the task
    pub(super) task_id: String,
    /// One of working, input_required, completed, failed, cancelled
    pub(super) status: &'static str,
    /// What the operation does at the moment
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_message: Option<String>,
    /// How much of the work is done
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) progress: Option<ProgressContent>,
    /// The open questions of the operation, by key
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) input_requests: BTreeMap<String, Value>,
}

/// How much of the work is done, in a unit that the operation chooses.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
#[schemars(inline)]
pub(super) struct ProgressContent {
    #[schemars(schema_with = "units")]
    pub(super) done: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "units")]
    pub(super) total: Option<u64>,
}

/// Returns the schema of a number of units. It names no format: the official TypeScript client prints a warning for each format
/// that it does not know, for instance `uint64`.
fn units(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 0 })
}

impl TaskStateContent {
    pub(super) fn of(stored: &StoredTask) -> Self {
        let task = &stored.task;
        let progress = task.progress.as_ref();
        Self {
            task_id: task.task_id.as_str().to_owned(),
            status: task.status.as_str(),
            status_message: task.status_message.clone(),
            progress: progress.map(|progress| ProgressContent { done: progress.done, total: progress.total }),
            input_requests: task.input_requests.clone(),
        }
    }
}
