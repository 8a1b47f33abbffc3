//! One tool whose calls become tasks.

use std::any::{TypeId, type_name};
use std::fmt;
use std::future::ready;

use rmcp::model::{ErrorData, Tool};
use rmcp::task_manager::{TaskExit, TaskFuture};
use serde_json::Value;

use super::arguments::{Bind, BoundOperation, Start};
use super::settings::Settings;
use super::unique_by::UniqueBy;
use crate::rmcp::call_run::CallOperation;
use crate::rmcp::context::TaskContext;
use crate::rmcp::places::Places;
use crate::store::{NewTask, UniqueKey};

/// One tool whose calls become tasks.
#[derive(Clone)]
pub(in crate::rmcp) struct TaskTool {
    /// The tool as clients see it.
    pub(super) tool: Tool,
    pub(super) settings: Settings,
    /// How to derive the key of a call, if the tool has at most one open task for each key.
    pub(super) unique_by: Option<UniqueBy>,
    /// The type of the arguments, and its name.
    pub(super) arguments: (TypeId, &'static str),
    bind: Bind,
}

impl fmt::Debug for TaskTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskTool")
            .field("name", &self.name())
            .field("settings", &self.settings)
            .field("is_unique", &self.unique_by.is_some())
            .finish_non_exhaustive()
    }
}

impl TaskTool {
    /// Creates a tool whose function takes arguments of the type `A`.
    pub(super) fn new<A: 'static>(tool: Tool, bind: Bind) -> Self {
        let arguments = (TypeId::of::<A>(), type_name::<A>());
        Self { tool, settings: Settings::default(), unique_by: None, arguments, bind }
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

    /// Returns the task of a call with these arguments, which waits for a worker.
    pub(in crate::rmcp) fn enqueued_task(&self, arguments: Value) -> NewTask {
        self.settings.enqueued_task(self.name(), arguments)
    }

    /// Decodes the arguments of a call. The operation waits for a place first, if the tool limits how many calls run at once.
    ///
    /// # Errors
    /// `-32602` (invalid params) if the arguments do not have the type that the tool's function takes.
    pub(in crate::rmcp) fn bind(&self, arguments: &Value) -> Result<BoundOperation, ErrorData> {
        let start = (self.bind)(arguments).map_err(|error| self.invalid(&error))?;
        let key = self.unique_key(arguments).map_err(|error| self.invalid(&error))?;
        let start = match self.settings.retry_if.clone() {
            Some(retry_if) => retry_if.apply(start),
            None => start,
        };
        let start = match self.settings.places.clone() {
            Some(places) => after_place(places, start),
            None => start,
        };
        Ok(BoundOperation { start, key })
    }

    /// Returns the key of a call with these arguments, if the tool has at most one open task for each key.
    fn unique_key(&self, arguments: &Value) -> Result<Option<UniqueKey>, serde_json::Error> {
        let text = self.unique_by.as_ref().map(|unique_by| unique_by(arguments)).transpose()?;
        Ok(text.map(|text| UniqueKey::new(self.name(), &text)))
    }

    fn invalid(&self, error: &serde_json::Error) -> ErrorData {
        let message = format!(
            "the arguments of the tool {:?} are invalid: {error}; see the input schema of the tool",
            self.name()
        );
        ErrorData::invalid_params(message, None)
    }

    /// Returns how many calls of the tool may run in this process at once, if the number is limited.
    pub(in crate::rmcp) fn places(&self) -> Option<&Places> {
        self.settings.places.as_ref()
    }

    /// Runs a call whose arguments are in the record of its task. The operation fails if the arguments do not have the type
    /// that the function takes, for instance because another version of the server has stored them.
    pub(in crate::rmcp) fn run(&self, context: TaskContext, arguments: &Value) -> TaskFuture {
        match self.bind(arguments) {
            Ok(operation) => operation.start(context),
            Err(error) => Box::pin(ready(Err(TaskExit::Error(error)))),
        }
    }
}

/// Lets an operation start once it has a place.
fn after_place(places: Places, start: Start) -> Start {
    Box::new(move |context| {
        Box::pin(async move {
            let _place = context.place(&places).await?;
            start(context).await
        })
    })
}
