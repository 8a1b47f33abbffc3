//! The checkpoints of an operation: what its next attempt starts from.

use std::any::type_name;
use std::sync::Arc;

use rmcp::ErrorData;
use rmcp::task_manager::TaskExit;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::any_attempt::AnyAttempt;
use super::context::TaskContext;

impl TaskContext {
    /// Stores a checkpoint: what the next attempt needs in order to continue, for example which steps are done. It replaces
    /// the previous checkpoint. When the call returns, the checkpoint is durable.
    ///
    /// Each call costs one write. So store a checkpoint after a step that is worth more than that. The end of the task
    /// removes its checkpoint. While the engine fails, the call tries again until the attempt is void.
    ///
    /// # Errors
    /// [`TaskExit::Cancelled`] when the operation must stop; [`TaskExit::Error`] if the value cannot be written as JSON, or is
    /// over a limit of the store.
    ///
    /// # Cancellation safety
    /// If the future is dropped, the checkpoint may be stored nevertheless.
    ///
    /// # Examples
    /// ```
    /// use mcp_task_store::TaskContext;
    /// use rmcp::model::{CallToolResult, ContentBlock};
    /// use rmcp::task_manager::TaskExit;
    ///
    /// async fn import(task: TaskContext, files: Vec<String>) -> Result<CallToolResult, TaskExit> {
    ///     let mut done: usize = task.last_checkpoint().await?.unwrap_or(0);
    ///     for file in &files[done..] {
    ///         // Import the file here.
    ///         done += 1;
    ///         task.progress(done as u64, files.len() as u64, format!("imported {file}"));
    ///         task.checkpoint(&done).await?;
    ///     }
    ///     Ok(CallToolResult::success(vec![ContentBlock::text(format!("{done} files"))]))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use mcp_task_store::{DurableTaskManager, MemoryBackend, OwnerId, RegisteredOptions, TaskKey, TaskStatus, TaskStore};
    /// # let tasks = DurableTaskManager::new(TaskStore::new(MemoryBackend::new()));
    /// tasks.register("import", |task, files| {
    ///     Box::pin(async move {
    ///         let files = serde_json::from_value(files).map_err(|error| rmcp::ErrorData::invalid_params(error.to_string(), None))?;
    ///         import(task, files).await
    ///     })
    /// });
    /// # let alice = OwnerId::try_from("alice")?;
    /// # let task = tasks.spawn_registered(&alice, "import", serde_json::json!(["a", "b"]), RegisteredOptions::new()).await?;
    /// # let done = tasks.store().wait(&TaskKey::new("alice", &*task.task_id)?).await?;
    /// # assert_eq!(done.task.status, TaskStatus::Completed);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn checkpoint<T: Serialize + Sync + ?Sized>(&self, value: &T) -> Result<(), TaskExit> {
        let value = serde_json::to_value(value).map_err(|error| {
            ErrorData::internal_error(format!("the checkpoint cannot be written as JSON: {error}"), None)
        })?;
        let value = &value;
        let store =
            |attempt: Arc<dyn AnyAttempt>, _| async move { attempt.set_checkpoint(value.clone()).await };
        self.repeat("store a checkpoint", store).await.map(drop)
    }

    /// Loads the last checkpoint of the task, of this attempt or an earlier one; `None` if there is none. While the engine
    /// fails, the call tries again until the attempt is void.
    ///
    /// After a deploy, an earlier version of the server may have stored the checkpoint. Load it as a
    /// [`Value`](serde_json::Value) if its type has changed.
    ///
    /// # Errors
    /// [`TaskExit::Cancelled`] when the operation must stop; [`TaskExit::Error`] if the checkpoint is not a `T`.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn last_checkpoint<T: DeserializeOwned>(&self) -> Result<Option<T>, TaskExit> {
        if self.stage.is_in_memory() {
            // Only the first attempt can run before its task is stored, and it has stored no checkpoint.
            return Ok(None);
        }
        let load = |attempt: Arc<dyn AnyAttempt>, _| async move { attempt.last_checkpoint().await };
        let Some(value) = self.repeat("load the last checkpoint", load).await? else { return Ok(None) };
        serde_json::from_value(value).map(Some).map_err(|error| {
            let message = format!("the checkpoint of the task is not a {}: {error}", type_name::<T>());
            ErrorData::internal_error(message, None).into()
        })
    }
}
