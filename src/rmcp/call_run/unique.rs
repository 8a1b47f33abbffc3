//! A call whose key has at most one open task: it starts the task, or joins the open one.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::time::Instant;
use tracing::Span;

use super::storing::{limit_elapsed, until_accepted};
use super::{CallAnswer, CallLimits, CallOperation};
use crate::backend::{Agenda, OwnerId};
use crate::rmcp::manager::DurableTaskManager;
use crate::store::{NewTask, TaskError, UniqueKey, UniqueStart};

impl<B: Agenda> DurableTaskManager<B> {
    /// Starts a task, unless the owner has an open task of the same key. Then the call joins that task, which may run in any
    /// process, and drops `operation`. Either way, the task is durable when the method returns it. While the engine fails, the
    /// method tries again.
    ///
    /// # Errors
    /// [`InvalidArgument`](TaskError::InvalidArgument) and [`LimitExceeded`](TaskError::LimitExceeded) for options that the
    /// store does not accept. The errors of [`TaskStore::start_unique`] if it does not succeed within `hold_for`;
    /// [`ShuttingDown`](TaskError::ShuttingDown) if a shutdown ends the call first;
    /// [`OperationPanicked`](TaskError::OperationPanicked) as for [`spawn`](Self::spawn).
    ///
    /// # Cancellation safety
    /// As for [`TaskStore::start_unique`].
    pub(super) async fn call_unique(
        &self,
        caller: &Span,
        owner: &OwnerId,
        new: NewTask,
        key: &UniqueKey,
        limits: CallLimits,
        operation: impl CallOperation,
    ) -> Result<CallAnswer, TaskError> {
        let (begun, runtime) = (Instant::now(), self.runtime());
        let guard = runtime.runs.add();
        if runtime.shutdown.has_begun() {
            return Err(TaskError::ShuttingDown);
        }
        runtime.store.check_new(owner, &new)?;
        let started = tokio::select! {
            started = until_accepted(|| runtime.store.start_unique(owner, new.clone(), key)) => started?,
            error = limit_elapsed(begun, limits, runtime.shutdown.signal()) => return Err(error),
        };
        let task = match started {
            UniqueStart::Joined(task) => task,
            UniqueStart::Started { task, attempt } => {
                runtime
                    .run_started(guard, attempt, task.clone(), caller, |context| operation.start(context))?;
                task
            }
        };
        Ok(CallAnswer::Stored(Arc::new(task)))
    }
}
