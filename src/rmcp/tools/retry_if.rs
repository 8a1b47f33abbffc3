//! Which errors of a tool are retried.

use std::fmt;
use std::sync::Arc;

use rmcp::ErrorData;
use rmcp::task_manager::TaskExit;

use super::arguments::Start;

/// Decides whether an error is retried.
#[derive(Clone)]
pub(super) struct RetryIf(Arc<dyn Fn(&ErrorData) -> bool + Send + Sync>);

impl RetryIf {
    pub(super) fn new(predicate: impl Fn(&ErrorData) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(predicate))
    }

    /// Marks the errors of an operation that are retried.
    pub(super) fn apply(self, start: Start) -> Start {
        Box::new(move |context| {
            Box::pin(async move {
                match start(context.clone()).await {
                    Err(TaskExit::Error(error)) if (self.0)(&error) => Err(context.retry(error)),
                    ended => ended,
                }
            })
        })
    }
}

impl fmt::Debug for RetryIf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RetryIf")
    }
}
