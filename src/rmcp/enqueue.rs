//! Enqueues tasks: a worker runs them, in any process.

use std::sync::Arc;

use rmcp::model::Task;
use serde_json::Value;
use tokio::time::Instant;

use super::call_run::{CallLimits, limit_elapsed, until_accepted};
use super::manager::DurableTaskManager;
use super::options::RegisteredOptions;
use super::wire;
use crate::backend::{Agenda, OwnerId, TaskId, TaskKey};
use crate::store::{NewTask, TaskError, UniqueEnqueue, UniqueKey};
use crate::task::StoredTask;

impl<B: Agenda> DurableTaskManager<B> {
    /// Stores a task that runs an operation with these arguments, and returns it once it is stored. An instance that has
    /// [registered](Self::register) the operation runs it: a [`Worker`](crate::Worker), or a server. The operation need not be
    /// registered here.
    ///
    /// # Errors
    /// The errors of [`TaskStore::enqueue`](crate::TaskStore::enqueue); [`ShuttingDown`](TaskError::ShuttingDown) after
    /// [`shutdown`](Self::shutdown).
    ///
    /// # Cancellation safety
    /// If the future is dropped, the task may be stored nevertheless. Then a worker runs it.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use mcp_task_store::{DurableTaskManager, MemoryBackend, OwnerId, Priority, RegisteredOptions, TaskStore};
    /// use serde_json::json;
    ///
    /// let tasks = DurableTaskManager::new(TaskStore::new(MemoryBackend::new()));
    /// let alice = OwnerId::try_from("alice")?;
    /// let options = RegisteredOptions::new().priority(Priority::Low).delay(Duration::from_secs(60));
    /// let task = tasks.enqueue(&alice, "render", json!({ "frames": 240 }), options).await?;
    /// # drop(task);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn enqueue(
        &self,
        owner: &OwnerId,
        name: &str,
        arguments: Value,
        options: impl Into<RegisteredOptions>,
    ) -> Result<Task, TaskError> {
        let runtime = self.runtime();
        if runtime.shutdown.has_begun() {
            return Err(TaskError::ShuttingDown);
        }
        let stored = runtime.store.enqueue(owner, options.into().new_task(name, arguments)).await?;
        Ok(wire::task(&stored))
    }

    /// Stores the task of a call, or joins the open task of its key. Either way, the task is durable when the method returns it.
    /// While the engine fails, the method tries again.
    ///
    /// # Errors
    /// [`InvalidArgument`](TaskError::InvalidArgument) and [`LimitExceeded`](TaskError::LimitExceeded) for options that the
    /// store does not accept. The errors of [`TaskStore::enqueue`](crate::TaskStore::enqueue) if it does not succeed within
    /// `hold_for`; [`ShuttingDown`](TaskError::ShuttingDown) if a shutdown ends the call first.
    ///
    /// # Cancellation safety
    /// As for [`enqueue`](Self::enqueue).
    pub(super) async fn enqueue_call(
        &self,
        owner: &OwnerId,
        new: NewTask,
        key: Option<&UniqueKey>,
        limits: CallLimits,
    ) -> Result<Arc<StoredTask>, TaskError> {
        let (begun, runtime) = (Instant::now(), self.runtime());
        if runtime.shutdown.has_begun() {
            return Err(TaskError::ShuttingDown);
        }
        let store = &runtime.store;
        let task = &TaskKey { owner: owner.clone(), task: TaskId::random() };
        let enqueue = || {
            let new = new.clone();
            async move {
                match key {
                    None => store.enqueue_as(task, new).await,
                    Some(key) => store.enqueue_unique(owner, new, key).await.map(UniqueEnqueue::into_task),
                }
            }
        };
        tokio::select! {
            stored = until_accepted(enqueue) => stored.map(Arc::new),
            error = limit_elapsed(begun, limits, runtime.shutdown.signal()) => Err(error),
        }
    }
}
