//! The handle of a running operation on its task.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::model::{InputRequest, JsonObject};
use rmcp::task_manager::TaskExit;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::any_attempt::AnyAttempt;
use super::error_class::ErrorClass;
use super::identity::Identity;
use super::places::{Place, Places};
use super::progress_reports::ProgressReports;
use super::retry_mark::RetryMark;
use super::slots::Slot;
use super::stage::StageView;
use super::timeouts::short_call_timeout;
use super::wire::exit;
use crate::backend::OwnerId;
use crate::printable::Chain;
use crate::store::{BackOff, TaskError, Ttl};
use crate::task::{Progress, StoredTask};

/// The task of a running operation: its id, owner and attempt, its progress and checkpoints, requests to the client, and the signal to stop.
/// Clones are cheap and share one task.
///
/// The operation must stop when the client asks to cancel the task. It must also stop once its attempt is void: the lease
/// is lost, the task has ended, the TTL has elapsed, or the record was deleted. The store rejects later writes of a void
/// attempt, and the runtime aborts the operation ten seconds later.
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// use mcp_task_store::TaskContext;
/// use rmcp::model::{CallToolResult, ContentBlock};
/// use rmcp::task_manager::TaskExit;
///
/// async fn render(task: TaskContext) -> Result<CallToolResult, TaskExit> {
///     for frame in 1..=240 {
///         task.set_status_message(format!("frame {frame} of 240"));
///         tokio::select! {
///             () = tokio::time::sleep(Duration::from_millis(1)) => {}
///             () = task.cancelled() => return Err(TaskExit::Cancelled),
///         }
///     }
///     Ok(CallToolResult::success(vec![ContentBlock::text("240 frames")]))
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use mcp_task_store::{DurableTaskManager, MemoryBackend, OwnerId, TaskKey, TaskStatus, TaskStore};
/// let tasks = DurableTaskManager::new(TaskStore::new(MemoryBackend::new()));
/// let alice = OwnerId::try_from("alice")?;
/// let task = tasks.spawn(&alice, "render", Default::default(), |task| Box::pin(render(task))).await?;
/// let done = tasks.store().wait(&TaskKey::new("alice", &*task.task_id)?).await?;
/// assert_eq!(done.task.status_message.as_deref(), Some("frame 240 of 240"));
/// # assert_eq!(done.task.status, TaskStatus::Completed);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TaskContext {
    identity: Arc<Identity>,
    pub(super) stage: StageView,
    progress_reports: Arc<ProgressReports>,
    /// `None` for a closure, which has none.
    arguments: Option<Arc<Value>>,
    /// `None` for an operation that a call of this process has started.
    slot: Option<Arc<Slot>>,
    /// The run holds a place of its tool already.
    has_place: bool,
    retry_mark: RetryMark,
    /// The time limit of one write.
    call_timeout: Duration,
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
    pub(super) fn new(
        identity: Identity,
        stage: StageView,
        lease: Duration,
        progress_reports: Arc<ProgressReports>,
        slot: Option<Arc<Slot>>,
    ) -> Self {
        let call_timeout = short_call_timeout(lease);
        let identity = Arc::new(identity);
        let retry_mark = RetryMark::default();
        Self {
            identity,
            stage,
            progress_reports,
            arguments: None,
            slot,
            has_place: false,
            retry_mark,
            call_timeout,
        }
    }

    pub(super) fn with_arguments(self, arguments: Arc<Value>) -> Self {
        Self { arguments: Some(arguments), ..self }
    }

    /// Returns the mark of the errors to retry.
    pub(super) fn retry_mark(&self) -> RetryMark {
        self.retry_mark.clone()
    }

    /// Says that the run holds a place of its tool.
    pub(super) fn with_place(self) -> Self {
        Self { has_place: true, ..self }
    }

    /// Waits for a place of its tool, unless the run holds one already.
    ///
    /// # Errors
    /// `Cancelled` if the operation must stop first.
    pub(super) async fn place(&self, places: &Places) -> Result<Option<Place>, TaskExit> {
        if self.has_place {
            return Ok(None);
        }
        tokio::select! {
            place = places.take() => place.map(Some).ok_or(TaskExit::Cancelled),
            () = self.cancelled() => Err(TaskExit::Cancelled),
        }
    }

    /// Returns the id of the task.
    pub fn task_id(&self) -> &str {
        self.identity.key.task.as_str()
    }

    /// Returns the owner of the task.
    pub fn owner(&self) -> &OwnerId {
        &self.identity.key.owner
    }

    /// Returns the number of this attempt: 1 for the first. It grows each time that a worker is lost, releases the task or
    /// [retries](Self::retry) it.
    pub fn attempt(&self) -> u32 {
        self.identity.attempt
    }

    /// Returns what the task keeps of the request that started it. [`ManagerConfig::extensions`](super::ManagerConfig::extensions)
    /// chooses the values. The map is empty for a task that [`spawn`](super::DurableTaskManager::spawn) or
    /// [`spawn_registered`](super::DurableTaskManager::spawn_registered) started, because they do not receive the request.
    pub fn extensions(&self) -> &JsonObject {
        &self.identity.extensions
    }

    /// Decodes the arguments of the call that started the task. They are the same in every attempt, on every instance.
    ///
    /// The function of a [tool](super::TaskTools) receives its arguments. This method serves code that receives only the context.
    ///
    /// # Errors
    /// [`TaskExit::Error`] if the arguments do not have the type `A`, or if the task has none because
    /// [`spawn`](super::DurableTaskManager::spawn) or [`spawn_for`](super::DurableTaskManager::spawn_for) started it with a
    /// closure.
    ///
    /// # Examples
    /// ```
    /// use mcp_task_store::TaskContext;
    /// use rmcp::task_manager::TaskExit;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Render {
    ///     scene: String,
    /// }
    ///
    /// fn announce(task: &TaskContext) -> Result<(), TaskExit> {
    ///     let render: Render = task.args()?;
    ///     task.set_status_message(format!("rendering {}", render.scene));
    ///     Ok(())
    /// }
    /// ```
    pub fn args<A: DeserializeOwned>(&self) -> Result<A, TaskExit> {
        let error = |reason: String| TaskExit::Error(rmcp::ErrorData::internal_error(reason, None));
        let Some(arguments) = &self.arguments else {
            return Err(error("the task runs a closure, so its record has no arguments".to_owned()));
        };
        let wanted = std::any::type_name::<A>();
        A::deserialize(&**arguments).map_err(|reason| {
            error(format!("the arguments of the task do not have the type {wanted}: {reason}"))
        })
    }

    /// Returns the `traceparent` of the request that started the task (SEP-414, W3C Trace Context), if the request had a
    /// valid one. The span of every attempt has it as the field `traceparent`. With the feature `otel`, it is that of the span which
    /// created the task, if that span is exported.
    pub fn traceparent(&self) -> Option<&str> {
        self.identity.traceparent.as_deref()
    }

    /// Makes a request to the client under `key` and waits for its answer. Any instance may receive the answer. While the
    /// request is open, `tasks/get` reports the task as `input_required`. Several requests may be open at once.
    ///
    /// An attempt can use a key once. A later attempt must make the same requests under the same keys. For an equal
    /// request the call returns the stored answer, or waits for it.
    ///
    /// While the engine fails, the call tries again until the attempt is void. While a resumed operation waits for the answer,
    /// it does not count against [`max_concurrent`](super::ManagerConfig::max_concurrent).
    ///
    /// # Errors
    /// [`TaskExit::Cancelled`] when the operation must stop. [`TaskExit::Error`] if this attempt has used the key
    /// before, if an earlier attempt has used it for another request, if the request is over a limit of the store, or
    /// if the record cannot be read.
    ///
    /// # Cancellation safety
    /// If the future is dropped, the request may be open nevertheless.
    pub async fn request_input(
        &self,
        key: impl Into<String>,
        request: InputRequest,
    ) -> Result<Value, TaskExit> {
        let key = key.into();
        let request = serde_json::to_value(request).map_err(|error| {
            let message = format!("the request {key:?} cannot be written as JSON: {error}");
            TaskExit::Error(rmcp::ErrorData::internal_error(message, None))
        })?;
        let requested = self.store_request(&key, request).await?;
        if let Some(answer) = requested.as_ref().and_then(|stored| stored.task.input_responses.get(&key)) {
            return Ok(answer.clone());
        }
        let yielded = self.slot.as_ref().map(|slot| slot.yield_slot());
        let answer = self.answer(&key).await.ok_or(TaskExit::Cancelled)?;
        if let Some(yielded) = yielded {
            // An operation that must stop does not wait for a slot.
            tokio::select! {
                () = yielded.reacquire() => {}
                () = self.cancelled() => return Err(TaskExit::Cancelled),
            }
        }
        Ok(answer)
    }

    /// Stores a request. Returns the written task; `None` if an earlier write of this call was applied although it failed.
    async fn store_request(&self, key: &str, request: Value) -> Result<Option<StoredTask>, TaskExit> {
        let request = &request;
        let store = |attempt: Arc<dyn AnyAttempt>, may_be_stored| async move {
            match attempt.request_input(key.to_owned(), request.clone()).await {
                // For a task that can resume, the store compares the requests. Any other task has only this attempt,
                // so an earlier write of this call has used the key.
                Err(TaskError::InputKeyUsed { .. }) if may_be_stored && !self.identity.can_resume => Ok(None),
                stored => stored.map(Some),
            }
        };
        self.repeat("store a request to the client", store).await
    }

    /// Calls the store until the call succeeds, or fails with an error that no later call can avoid. `call` receives the attempt,
    /// and whether an earlier call may have been applied although it failed. A task that is not stored yet is stored first.
    ///
    /// # Errors
    /// `Cancelled` when the operation must stop.
    pub(super) async fn repeat<T, F>(
        &self,
        what: &str,
        call: impl Fn(Arc<dyn AnyAttempt>, bool) -> F,
    ) -> Result<T, TaskExit>
    where
        F: Future<Output = Result<T, TaskError>>,
    {
        let attempt = self.stage.stored().await.ok_or(TaskExit::Cancelled)?.attempt;
        let mut may_be_applied = false;
        let mut back_off = BackOff::new();
        loop {
            match timeout(self.call_timeout, call(Arc::clone(&attempt), may_be_applied)).await {
                Ok(Ok(returned)) => return Ok(returned),
                Ok(Err(error)) if ErrorClass::of(&error) != ErrorClass::Transient => return Err(exit(error)),
                Ok(Err(error)) => {
                    may_be_applied |= error.outcome_unknown();
                    tracing::debug!(error = %Chain(&error), "an operation could not {what} yet");
                }
                Err(_) => {
                    may_be_applied = true;
                    tracing::debug!("an operation could not {what} within {:?} yet", self.call_timeout);
                }
            }
            tokio::select! {
                () = sleep(back_off.next_pause()) => {}
                () = self.cancelled() => return Err(TaskExit::Cancelled),
            }
        }
    }

    /// Waits for the answer to a request. Returns `None` if the operation must stop first.
    async fn answer(&self, key: &str) -> Option<Value> {
        let mut state = self.stage.stored().await?.state;
        let state = state.wait_for(|state| state.must_stop() || state.answer(key).is_some()).await.ok()?;
        state.answer(key).cloned()
    }

    /// Sets the status message of the task: a sentence for people about the progress of the work.
    ///
    /// The call returns at once, so an operation can call it as often as it needs. The runtime writes the newest message at
    /// most four times a second, and the last one together with the outcome. While the engine fails, the runtime
    /// tries again. A message over [`max_status_message_bytes`](crate::StoreConfig::max_status_message_bytes) is cut.
    /// A message of a void attempt has no effect.
    ///
    /// [`progress`](Self::progress) also says how much of the work is done.
    pub fn set_status_message(&self, message: impl Into<String>) {
        self.progress_reports.set(message.into(), None);
    }

    /// Reports how much of the work is done, in a unit that the operation chooses, with a status message. `total` is how
    /// much there is to do; `None` if the operation does not know it.
    ///
    /// The call returns at once, like [`set_status_message`](Self::set_status_message): the runtime writes the newest
    /// report, and one write stores both the message and the numbers. A client receives the message. The numbers are in
    /// [`Task::progress`](crate::Task::progress), on every instance.
    ///
    /// # Examples
    /// ```
    /// use mcp_task_store::TaskContext;
    ///
    /// fn report(task: &TaskContext, frame: u64) {
    ///     task.progress(frame, 240, format!("rendering frame {frame} of 240"));
    /// }
    /// ```
    pub fn progress(&self, done: u64, total: impl Into<Option<u64>>, message: impl Into<String>) {
        self.progress_reports.set(message.into(), Some(Progress::new(done, total)));
    }

    /// Changes how long the task may run, counted from its creation, for example once the operation knows how much work
    /// there is. While the engine fails, the call tries again until the attempt is void.
    ///
    /// # Errors
    /// [`TaskExit::Cancelled`] when the operation must stop; [`TaskExit::Error`] if the TTL is over a limit of the store, or
    /// has already elapsed.
    ///
    /// # Cancellation safety
    /// If the future is dropped, the TTL may have changed nevertheless.
    pub async fn set_ttl(&self, ttl: impl Into<Ttl>) -> Result<(), TaskExit> {
        let ttl = ttl.into();
        let set = |attempt: Arc<dyn AnyAttempt>, _| async move { attempt.set_ttl(ttl).await };
        self.repeat("set the TTL of its task", set).await.map(drop)
    }

    /// Changes how long a client should wait between two polls, for example for a phase of the work that takes longer. While
    /// the engine fails, the call tries again until the attempt is void.
    ///
    /// # Errors
    /// [`TaskExit::Cancelled`] when the operation must stop; [`TaskExit::Error`] for an interval outside 1 ms to 24 hours.
    ///
    /// # Cancellation safety
    /// If the future is dropped, the interval may have changed nevertheless.
    pub async fn set_poll_interval(&self, interval: Duration) -> Result<(), TaskExit> {
        let set = |attempt: Arc<dyn AnyAttempt>, _| async move { attempt.set_poll_interval(interval).await };
        self.repeat("set the poll interval of its task", set).await.map(drop)
    }

    /// Marks an error that a further attempt may avoid, for example because a service is down. An operation that returns the
    /// error is retried: the task waits for its next attempt, on any instance. The attempt counts like a lost worker. The last
    /// attempt fails with the error.
    ///
    /// The mark has an effect only if the operation returns this error. The last marked error counts. The task of an operation
    /// that cannot resume fails with the error at once.
    ///
    /// The delay is that of [`TaskTools::retry`](super::TaskTools::retry) or
    /// [`RegisteredOptions::retry`](super::RegisteredOptions::retry). Without one, the second attempt begins at once, and the
    /// third after 10 s.
    ///
    /// # Examples
    /// ```
    /// use mcp_task_store::TaskContext;
    /// use rmcp::ErrorData;
    /// use rmcp::model::CallToolResult;
    /// use rmcp::task_manager::TaskExit;
    ///
    /// # async fn print() -> std::io::Result<()> { Ok(()) }
    /// async fn report(task: TaskContext) -> Result<CallToolResult, TaskExit> {
    ///     let printed = print().await;
    ///     printed.map_err(|error| task.retry(ErrorData::internal_error(error.to_string(), None)))?;
    ///     Ok(CallToolResult::success(vec![]))
    /// }
    /// ```
    pub fn retry(&self, error: ErrorData) -> TaskExit {
        self.retry_mark.set(error.clone());
        TaskExit::Error(error)
    }

    /// Returns whether the operation must stop.
    pub fn is_cancel_requested(&self) -> bool {
        self.stage.must_stop()
    }

    /// Waits until the operation must stop.
    ///
    /// An operation that stops early returns [`TaskExit::Cancelled`]. Cancellation is cooperative: if the operation completes
    /// or fails instead, so does the task.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn cancelled(&self) {
        self.stage.stop_required().await;
    }
}
