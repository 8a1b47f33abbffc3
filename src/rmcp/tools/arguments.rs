//! Passes the arguments of a call to a function that takes a type of its own.

use std::sync::Arc;

use rmcp::model::CallToolResult;
use rmcp::task_manager::{TaskExit, TaskFuture};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::rmcp::call_run::CallOperation;
use crate::rmcp::context::TaskContext;
use crate::store::UniqueKey;

/// Starts an operation with the arguments of its call.
pub(super) type Start = Box<dyn FnOnce(TaskContext) -> TaskFuture + Send>;

/// Decodes the arguments of a call for an operation.
pub(super) type Bind = Arc<dyn Fn(&Value) -> Result<Start, serde_json::Error> + Send + Sync>;

/// An operation and the arguments of its call.
pub(in crate::rmcp) struct BoundOperation {
    pub(super) start: Start,
    pub(super) key: Option<UniqueKey>,
}

impl CallOperation for BoundOperation {
    fn key(&self) -> Option<&UniqueKey> {
        self.key.as_ref()
    }

    fn start(self, context: TaskContext) -> TaskFuture {
        (self.start)(context)
    }
}

/// Returns how to decode the arguments of a call for this function.
pub(super) fn bind<A, F, R>(function: F) -> Bind
where
    A: DeserializeOwned + Send + 'static,
    F: Fn(TaskContext, A) -> R + Send + Sync + 'static,
    R: Future<Output = Result<CallToolResult, TaskExit>> + Send + 'static,
{
    let function = Arc::new(function);
    Arc::new(move |arguments: &Value| {
        let (function, given) = (Arc::clone(&function), Arc::new(arguments.clone()));
        let arguments = A::deserialize(arguments)?;
        Ok(Box::new(move |context: TaskContext| Box::pin(function(context.with_arguments(given), arguments))))
    })
}
