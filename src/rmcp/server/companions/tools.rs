//! The companion tools as clients see them. Their descriptions are for a model.

use rmcp::handler::server::tool::schema_for_input;
use rmcp::model::{Tool, ToolAnnotations};
use rmcp::schemars::JsonSchema;

use super::arguments::{AnswerArguments, ListArguments, TaskArguments};
use crate::rmcp::server::companion_names::{Companion, Companions};

impl Companions {
    /// Returns the tools; none if they are switched off.
    pub(in crate::rmcp::server) fn tools(&self) -> Vec<Tool> {
        Companion::ALL.into_iter().filter_map(|companion| self.tool(companion)).collect()
    }

    /// Returns a tool; `None` if the companions are switched off.
    pub(in crate::rmcp::server) fn tool(&self, companion: Companion) -> Option<Tool> {
        let name = self.name(companion)?.to_owned();
        let (result, list) = (self.name(Companion::Result)?, self.name(Companion::List)?);
        let tool = match companion {
            Companion::Result => tool::<TaskArguments>(
                name,
                "Waits for a task and returns the result of its tool. Call it when a tool has returned the id of a task instead of a result. If \
                 the task still works, the answer says how far it is; then call this tool again."
                    .to_owned(),
            ),
            Companion::List => tool::<ListArguments>(
                name,
                format!("Lists your tasks, newest first: calls of tools that take long. Call it to find the id of a task. Then call {result} for its result."),
            ),
            Companion::Answer => tool::<AnswerArguments>(
                name,
                format!("Answers the open questions of a task, so that it goes on. Call it when a task has the status input_required. Then call {result}."),
            ),
            Companion::Cancel => tool::<TaskArguments>(
                name,
                format!("Asks a task to stop. Call it when nobody needs its result any more. {list} lists the ids of your tasks."),
            ),
        };
        Some(tool.with_annotations(annotations(companion)))
    }
}

fn tool<A: JsonSchema + 'static>(name: String, description: String) -> Tool {
    // The arguments are structs, so they have a schema.
    Tool::new(name, description, schema_for_input::<A>().unwrap_or_default())
}

fn annotations(companion: Companion) -> ToolAnnotations {
    let annotations = ToolAnnotations::new().open_world(false);
    match companion {
        Companion::Result | Companion::List => annotations.read_only(true),
        Companion::Answer => annotations.read_only(false).destructive(false).idempotent(true),
        Companion::Cancel => annotations.read_only(false).destructive(true).idempotent(true),
    }
}
