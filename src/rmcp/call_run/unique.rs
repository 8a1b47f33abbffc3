//! A call whose key has at most one open task: it starts the task, or joins the open one.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::time::{Instant, sleep};
use tracing::Span;

use super::storing::{is_refusal, limit_elapsed};
use super::{CallAnswer, CallLimits, CallOperation};
use crate::backend::{Agenda, OwnerId};
use crate::printable::Chain;
use crate::rmcp::manager::DurableTaskManager;
use crate::store::{BackOff, NewTask, TaskError, TaskStore, UniqueKey, UniqueStart};

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
        owner: &OwnerId,
        new: NewTask,
        key: &UniqueKey,
        limits: CallLimits,
        operation: impl CallOperation,
    ) -> Result<CallAnswer, TaskError> {
        let (begun, caller, runtime) = (Instant::now(), Span::current(), self.runtime());
        let guard = runtime.runs.add();
        if runtime.shutdown.has_begun() {
            return Err(TaskError::ShuttingDown);
        }
        runtime.store.check_new(owner, &new)?;
        let started = tokio::select! {
            started = start_or_join(&runtime.store, owner, new, key) => started?,
            error = limit_elapsed(begun, limits, runtime.shutdown.signal()) => return Err(error),
        };
        let task = match started {
            UniqueStart::Joined(task) => task,
            UniqueStart::Started { task, attempt } => {
                runtime
                    .run_started(guard, attempt, task.clone(), &caller, |context| operation.start(context))?;
                task
            }
        };
        Ok(CallAnswer::Stored(Arc::new(task)))
    }
}

/// Tries until the task is started or joined, or the store refuses the task.
async fn start_or_join<B: Agenda>(
    store: &TaskStore<B>,
    owner: &OwnerId,
    new: NewTask,
    key: &UniqueKey,
) -> Result<UniqueStart<B>, TaskError> {
    let mut back_off = BackOff::new();
    loop {
        match store.start_unique(owner, new.clone(), key).await {
            Err(error) if !is_refusal(&error) => {
                tracing::debug!(error = %Chain(&error), "the task of a unique call could not be started yet");
            }
            started => return started,
        }
        sleep(back_off.next_pause()).await;
    }
}
