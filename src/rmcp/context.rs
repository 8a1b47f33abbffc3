//! What an operation has of its task.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use rmcp::model::InputRequest;
use rmcp::task_manager::TaskExit;
use serde_json::Value;
use tokio::sync::watch;

use super::wire::exit;
use crate::{Agenda, Attempt, StoredTask, Task, TaskError};

/// The task as a run has seen it last.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) task: Arc<Task>,
    /// The run is not to go on: its lease is lost, the task has ended or gone, or its TTL has elapsed.
    pub(super) is_over: bool,
}

impl Seen {
    fn is_to_stop(&self) -> bool {
        self.is_over || self.task.cancel_requested
    }
}

/// What an operation does to its task, on whichever engine.
#[async_trait]
trait AnyAttempt: Send + Sync {
    fn task_id(&self) -> &str;
    fn number(&self) -> u32;
    async fn ask(&self, key: String, request: Value) -> Result<StoredTask, TaskError>;
    async fn set_status_message(&self, message: String) -> Result<StoredTask, TaskError>;
}

#[async_trait]
impl<B: Agenda> AnyAttempt for Attempt<B> {
    fn task_id(&self) -> &str {
        self.key().task.as_str()
    }

    fn number(&self) -> u32 {
        Self::number(self)
    }

    async fn ask(&self, key: String, request: Value) -> Result<StoredTask, TaskError> {
        Self::ask(self, key, request).await
    }

    async fn set_status_message(&self, message: String) -> Result<StoredTask, TaskError> {
        Self::set_status_message(self, message).await
    }
}

/// Gives a running operation its task, and what the client says about it. Cheap to clone.
///
/// The operation must stop when the client asks to cancel the task. It must also stop once its attempt is void: the lease
/// is lost, the task has ended, the TTL has elapsed, or the record was deleted. Later writes of a void attempt are rejected,
/// and the operation is aborted ten seconds later.
#[derive(Clone)]
pub struct TaskContext {
    attempt: Arc<dyn AnyAttempt>,
    seen: watch::Receiver<Seen>,
}

impl fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskContext")
            .field("task_id", &self.task_id())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

impl TaskContext {
    pub(super) fn new<B: Agenda>(attempt: Attempt<B>, seen: watch::Receiver<Seen>) -> Self {
        Self { attempt: Arc::new(attempt), seen }
    }

    /// The id of the task.
    pub fn task_id(&self) -> &str {
        self.attempt.task_id()
    }

    /// Which attempt at the task this is: 1, and more where the worker of an earlier one was lost.
    pub fn attempt(&self) -> u32 {
        self.attempt.number()
    }

    /// Makes a request to the client under `key` and waits for its answer, which may come in at any instance. While it
    /// is open, `tasks/get` reports the task as `input_required`. Several may be open at once.
    ///
    /// A key is used once in an attempt. The next attempt asks under the same keys again: an equal request returns the
    /// answer that there is, or waits for it.
    ///
    /// # Errors
    /// [`TaskExit::Cancelled`] when the operation must stop. [`TaskExit::Error`] for a key that was used before
    /// for another request or by this attempt, for a request over the store's limits, and when the engine fails.
    ///
    /// # Cancellation safety
    /// Dropping the future leaves the request open, or not made.
    pub async fn request_input(
        &self,
        key: impl Into<String>,
        request: InputRequest,
    ) -> Result<Value, TaskExit> {
        let key = key.into();
        let request = serde_json::to_value(request).map_err(|error| {
            TaskExit::Error(rmcp::ErrorData::internal_error(format!("the request {key:?}: {error}"), None))
        })?;
        let asked = self.attempt.ask(key.clone(), request).await.map_err(exit)?;
        if let Some(answer) = asked.task.input_responses.get(&key) {
            return Ok(answer.clone());
        }
        let mut seen = self.seen.clone();
        let seen =
            seen.wait_for(|seen| seen.is_to_stop() || seen.task.input_responses.contains_key(&key)).await;
        let answer = seen.ok().and_then(|seen| seen.task.input_responses.get(&key).cloned());
        answer.ok_or(TaskExit::Cancelled)
    }

    /// Sets the sentence for people about where the task stands.
    ///
    /// # Errors
    /// As [`request_input`](Self::request_input), but for the key; a request to cancel does not stand in its way.
    ///
    /// # Cancellation safety
    /// Dropping the future leaves the message set or not.
    pub async fn set_status_message(&self, message: impl Into<String>) -> Result<(), TaskExit> {
        self.attempt.set_status_message(message.into()).await.map(drop).map_err(exit)
    }

    /// Returns whether the operation must stop.
    pub fn is_cancel_requested(&self) -> bool {
        self.seen.borrow().is_to_stop()
    }

    /// Returns once the operation must stop. One that stops for it returns [`TaskExit::Cancelled`]; one that
    /// fails or completes all the same ends so, as cancelling is cooperative.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn cancelled(&self) {
        // A run that is gone wants nothing any more.
        let _ = self.seen.clone().wait_for(Seen::is_to_stop).await;
    }
}
