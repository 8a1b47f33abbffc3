//! One tool whose calls become tasks.

use std::fmt;
use std::future::ready;

use rmcp::model::{ErrorData, Tool};
use rmcp::task_manager::{TaskExit, TaskFuture};
use serde_json::Value;

use super::arguments::{Bind, BoundOperation};
use super::settings::Settings;
use crate::rmcp::context::TaskContext;
use crate::store::NewTask;

/// One tool whose calls become tasks.
#[derive(Clone)]
pub(in crate::rmcp) struct TaskTool {
    /// The tool as clients see it.
    pub(super) tool: Tool,
    pub(super) settings: Settings,
    bind: Bind,
}

impl fmt::Debug for TaskTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskTool")
            .field("name", &self.name())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl TaskTool {
    pub(super) fn new(tool: Tool, bind: Bind) -> Self {
        Self { tool, settings: Settings::default(), bind }
    }

    pub(in crate::rmcp) fn name(&self) -> &str {
        &self.tool.name
    }

    /// Returns the tool as clients see it.
    pub(in crate::rmcp) fn tool(&self) -> &Tool {
        &self.tool
    }

    pub(in crate::rmcp) fn is_resumable(&self) -> bool {
        self.settings.is_resumable
    }

    /// Returns whether only clients that support tasks may call the tool.
    pub(in crate::rmcp) fn is_required(&self) -> bool {
        self.settings.is_required
    }

    /// Returns whether the task of a call is asked to cancel when the client cancels the call.
    pub(in crate::rmcp) fn cancels_with_request(&self) -> bool {
        self.settings.cancels_with_request
    }

    /// Returns the task of a call with these arguments.
    pub(in crate::rmcp) fn new_task(&self, arguments: Value) -> NewTask {
        self.settings.new_task(self.name(), arguments)
    }

    /// Decodes the arguments of a call.
    ///
    /// # Errors
    /// `-32602` (invalid params) if the arguments do not have the type that the tool's function takes.
    pub(in crate::rmcp) fn bind(&self, arguments: &Value) -> Result<BoundOperation, ErrorData> {
        (self.bind)(arguments).map_err(|error| {
            let message = format!(
                "the arguments of the tool {:?} are invalid: {error}; see the input schema of the tool",
                self.name()
            );
            ErrorData::invalid_params(message, None)
        })
    }

    /// Runs a call whose arguments are in the record of its task. The operation fails if the arguments do not have the type
    /// that the function takes, for instance because another version of the server has stored them.
    pub(in crate::rmcp) fn run(&self, context: TaskContext, arguments: &Value) -> TaskFuture {
        match self.bind(arguments) {
            Ok(operation) => operation(context),
            Err(error) => Box::pin(ready(Err(TaskExit::Error(error)))),
        }
    }
}
