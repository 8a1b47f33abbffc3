//! What an operation has of its task.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rmcp::model::InputRequest;
use rmcp::task_manager::TaskExit;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::meaning::{Meaning, meaning};
use super::places::Place;
use super::progress::Progress;
use super::renewals::short_patience;
use super::wire::exit;
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::store::{Attempt, BackOff, TaskError};
use crate::task::{OnWorkerLost, StoredTask};

/// The task as a run has seen it last.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) stored: Arc<StoredTask>,
    /// When the read or write began that has shown it.
    pub(super) since: std::time::Instant,
    /// The attempt is void: its lease is lost, the task has ended or gone, or its TTL has elapsed.
    pub(super) is_over: bool,
}

impl Seen {
    fn is_to_stop(&self) -> bool {
        self.is_over || self.stored.task.cancel_requested
    }

    fn answer(&self, key: &str) -> Option<&Value> {
        self.stored.task.input_responses.get(key)
    }
}

/// What an operation does to its task, on whichever engine.
#[async_trait]
trait AnyAttempt: Send + Sync {
    fn task_id(&self) -> &str;
    fn number(&self) -> u32;
    async fn ask(&self, key: String, request: Value) -> Result<StoredTask, TaskError>;
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
        Self::request_input(self, key, request).await
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
    progress: Arc<Progress>,
    /// `None` for an operation that this process was called to run.
    place: Option<Arc<Place>>,
    /// How long one write may take before it is tried again.
    patience: Duration,
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
    pub(super) fn new<B: Agenda>(
        attempt: Attempt<B>,
        lease: Duration,
        seen: watch::Receiver<Seen>,
        progress: Arc<Progress>,
        place: Option<Arc<Place>>,
    ) -> Self {
        let patience = short_patience(lease);
        Self { attempt: Arc::new(attempt), seen, progress, place, patience }
    }

    /// Returns the id of the task.
    pub fn task_id(&self) -> &str {
        self.attempt.task_id()
    }

    /// Returns the number of this attempt: 1 for the first, and more after a worker was lost or has released the task.
    pub fn attempt(&self) -> u32 {
        self.attempt.number()
    }

    /// Makes a request to the client under `key` and waits for its answer, which may come in at any instance. While it
    /// is open, `tasks/get` reports the task as `input_required`. Several may be open at once.
    ///
    /// A key is used once in an attempt. The next attempt asks under the same keys again: an equal request returns the
    /// answer that there is, or waits for it.
    ///
    /// While the engine fails, the call tries again until the attempt is void. An operation that was resumed does not
    /// count against [`max_concurrent`](super::ManagerConfig::max_concurrent) while it waits for the answer.
    ///
    /// # Errors
    /// [`TaskExit::Cancelled`] when the operation must stop. [`TaskExit::Error`] for a key that was used before
    /// for another request or by this attempt, for a request over the store's limits, and for a record that cannot be read.
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
        let asked = self.ask(&key, request).await?;
        if let Some(answer) = asked.as_ref().and_then(|asked| asked.task.input_responses.get(&key)) {
            return Ok(answer.clone());
        }
        let absence = self.place.as_ref().map(|place| place.leave());
        let answer = {
            let mut seen = self.seen.clone();
            let seen = seen.wait_for(|seen| seen.is_to_stop() || seen.answer(&key).is_some()).await;
            seen.ok().and_then(|seen| seen.answer(&key).cloned())
        };
        let answer = answer.ok_or(TaskExit::Cancelled)?;
        if let Some(absence) = absence {
            // An operation that must stop does so at once.
            tokio::select! {
                () = absence.end() => {}
                () = self.cancelled() => return Err(TaskExit::Cancelled),
            }
        }
        Ok(answer)
    }

    /// Makes a request, and tries again while the engine fails. Returns the task as it was written; `None` if an earlier try
    /// has made the request although it failed.
    async fn ask(&self, key: &str, request: Value) -> Result<Option<StoredTask>, TaskExit> {
        let mut may_be_asked = false;
        let mut back_off = BackOff::new();
        loop {
            let asked = timeout(self.patience, self.attempt.ask(key.to_owned(), request.clone())).await;
            match asked {
                Ok(Ok(asked)) => return Ok(Some(asked)),
                // The store compares requests of tasks that can resume. Any other task has one attempt, and this is it.
                Ok(Err(TaskError::InputKeyUsed { .. })) if may_be_asked && !self.can_resume() => {
                    return Ok(None);
                }
                Ok(Err(error)) => match meaning(&error) {
                    Meaning::Void | Meaning::Final => return Err(exit(error)),
                    Meaning::Temporary => {
                        may_be_asked |= error.outcome_unknown();
                        tracing::debug!(error = %Chain(&error), "a request to the client could not be stored yet");
                    }
                },
                Err(_) => {
                    may_be_asked = true;
                    tracing::debug!("a request to the client could not be stored within {:?}", self.patience);
                }
            }
            tokio::select! {
                () = sleep(back_off.longer()) => {}
                () = self.cancelled() => return Err(TaskExit::Cancelled),
            }
        }
    }

    fn can_resume(&self) -> bool {
        self.seen.borrow().stored.task.on_worker_lost == OnWorkerLost::Resume
    }

    /// Sets the sentence for people about where the task stands.
    ///
    /// The call returns at once. The runtime writes the newest message at most four times a second, and the last one
    /// together with the outcome, so an operation may call this as often as it likes. While the engine fails, the runtime
    /// tries again. A message over [`max_status_message_bytes`](crate::StoreConfig::max_status_message_bytes) is cut. A
    /// message of a void attempt has no effect.
    pub fn set_status_message(&self, message: impl Into<String>) {
        self.progress.set(message.into());
    }

    /// Returns whether the operation must stop.
    pub fn is_cancel_requested(&self) -> bool {
        self.seen.borrow().is_to_stop()
    }

    /// Returns once the operation must stop. An operation that stops early returns [`TaskExit::Cancelled`]. Cancelling is
    /// cooperative: if the operation completes or fails instead, so does the task.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn cancelled(&self) {
        // If the run is gone, the operation must stop, too.
        let _ = self.seen.clone().wait_for(Seen::is_to_stop).await;
    }
}
