//! The run of a call whose task is not stored yet. The operation starts at once, in memory. Its task is stored when it is first
//! needed: when the call takes long, or when the operation asks for input, sets a checkpoint, or changes its TTL or its
//! poll interval. A call whose operation ends before that makes no call of the engine.

mod retrying;
mod storing;
#[cfg(test)]
mod tests;
mod unique;

use std::sync::Arc;
use std::time::Duration;

use rmcp::task_manager::TaskFuture;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, Span};

pub(super) use self::storing::{KEEP_ANSWERED, limit_elapsed, until_accepted};
use super::context::TaskContext;
use super::identity::Identity;
use super::manager::DurableTaskManager;
use super::operation::{Outcome, PollTimer, RunningOperation};
use super::progress_reports::ProgressReports;
use super::renewer::Renewer;
use super::shutdown::ShutdownSignal;
use super::stage::{self, StageControl, StopSignal};
use crate::backend::{Agenda, OwnerId, TaskId, TaskKey};
use crate::spans;
use crate::store::{NewTask, TaskError, TaskStore, UniqueKey};
use crate::task::{OnWorkerLost, StoredTask};

/// The operation of a call.
pub(super) trait CallOperation {
    /// Returns the key of the call, if its owner has at most one open task for each key.
    fn key(&self) -> Option<&UniqueKey>;

    fn start(self, context: TaskContext) -> TaskFuture;
}

impl<F: FnOnce(TaskContext) -> TaskFuture> CallOperation for F {
    fn key(&self) -> Option<&UniqueKey> {
        None
    }

    fn start(self, context: TaskContext) -> TaskFuture {
        self(context)
    }
}

/// The time limits of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallLimits {
    /// How long the operation may run before its task is stored.
    pub(super) answer_within: Duration,
    /// How long the call is held while its task cannot be stored.
    pub(super) hold_for: Duration,
    /// How long a shutdown waits for a call whose task is not stored.
    pub(super) drain: Duration,
}

/// What a call is answered with.
pub(super) enum CallAnswer {
    /// The operation has ended before its task was stored.
    Ended(Outcome),
    /// The task is stored, and its operation runs. The task of a call with a key may run in any process.
    Stored(Arc<StoredTask>),
}

impl<B: Agenda> DurableTaskManager<B> {
    /// Runs an operation, and returns its outcome if it ends soon. Otherwise stores its task, and returns the task once it is
    /// durable. `stop` asks the operation to stop, also while its task is not stored.
    ///
    /// The task of a call with a key is stored before its operation starts. If the owner has an open task of that key, the call
    /// joins that task, and drops the operation.
    ///
    /// The span of the operation is a child of `caller`.
    ///
    /// # Errors
    /// [`InvalidArgument`](TaskError::InvalidArgument) and [`LimitExceeded`](TaskError::LimitExceeded) for options that the store
    /// does not accept, before the operation starts. The errors of [`TaskStore::start`] if the task is needed and cannot be
    /// stored within `hold_for`; [`ShuttingDown`](TaskError::ShuttingDown) if a shutdown ends the call first. The operation is
    /// then stopped.
    ///
    /// # Cancellation safety
    /// If the future is dropped, the operation runs on, and its task is stored when it is needed. For a call with a key as
    /// [`TaskStore::start_unique`].
    pub(super) async fn call(
        &self,
        caller: Span,
        owner: &OwnerId,
        new: NewTask,
        limits: CallLimits,
        stop: StopSignal,
        operation: impl CallOperation,
    ) -> Result<CallAnswer, TaskError> {
        if let Some(key) = operation.key().cloned() {
            // Boxed, because most calls have no key, and this future has kilobytes.
            return Box::pin(self.call_unique(&caller, owner, new, &key, limits, operation)).await;
        }
        let answered = self.begin_call(caller, owner, new, limits, stop, operation)?;
        // A run always answers, unless its Tokio runtime ends.
        answered.await.unwrap_or(Err(TaskError::ShuttingDown))
    }

    fn begin_call(
        &self,
        caller: Span,
        owner: &OwnerId,
        mut new: NewTask,
        limits: CallLimits,
        stop: StopSignal,
        operation: impl CallOperation,
    ) -> Result<oneshot::Receiver<Result<CallAnswer, TaskError>>, TaskError> {
        let (begun, runtime) = (Instant::now(), self.runtime());
        // Counted before the check. Then a shutdown either prevents the run or waits for its end.
        let guard = runtime.runs.add();
        if runtime.shutdown.has_begun() {
            return Err(TaskError::ShuttingDown);
        }
        runtime.store.check_new(owner, &new)?;
        new.traceparent = spans::inherited(new.traceparent.take());
        let key = TaskKey { owner: owner.clone(), task: TaskId::random() };
        let identity = Identity::of_new(key.clone(), &new);
        let _in_span = identity.span(caller.id()).entered();
        let store = runtime.store.clone();
        let reports = Arc::new(ProgressReports::new(store.max_status_message_bytes()));
        let (stage, view) = stage::in_memory(stop);
        let context = TaskContext::new(identity, view, store.lease_duration(), Arc::clone(&reports), None);
        let (polls, mark) = (Arc::new(PollTimer::new()), context.retry_mark());
        let (operation, _) = RunningOperation::start(polls, mark, || operation.start(context));
        let (answer, answered) = oneshot::channel();
        let (renewer, shutdown) = (Arc::clone(&runtime.renewer), runtime.shutdown.signal());
        let (answer, can_resume) = (Some(answer), new.on_worker_lost == OnWorkerLost::Resume);
        let run = CallRun {
            store,
            renewer,
            key,
            operation,
            reports,
            stage,
            answer,
            begun,
            limits,
            can_resume,
            shutdown,
        };
        // Boxed, because Tokio copies a future several times until it runs, and this one has kilobytes.
        let supervised = Box::pin(async move {
            run.supervise(new).await;
            drop(guard);
        });
        tokio::spawn(supervised.in_current_span());
        Ok(answered)
    }
}

/// The run of a call whose task is not stored.
struct CallRun<B> {
    store: TaskStore<B>,
    renewer: Arc<Renewer<B>>,
    key: TaskKey,
    operation: RunningOperation,
    reports: Arc<ProgressReports>,
    stage: StageControl,
    /// `None` once the call is answered.
    answer: Option<oneshot::Sender<Result<CallAnswer, TaskError>>>,
    begun: Instant,
    limits: CallLimits,
    /// An error that the operation has marked is retried, once the task is stored.
    can_resume: bool,
    shutdown: ShutdownSignal,
}

/// How the time of a run in memory has ended.
enum MemoryEnd {
    /// The operation has ended.
    Ended(Result<Outcome, JoinError>),
    TaskNeeded,
    Shutdown,
}

impl<B: Agenda> CallRun<B> {
    /// Supervises the run until its operation has ended, and its outcome is stored if its task is.
    async fn supervise(mut self, new: NewTask) {
        match self.run_in_memory().await {
            MemoryEnd::Ended(ended) => match self.error_to_retry(&ended) {
                Some(error) => self.store_and_retry(new, error).await,
                None => log_panic(&self.answer_end(ended)),
            },
            MemoryEnd::TaskNeeded => self.store_task(new).await,
            MemoryEnd::Shutdown => log_panic(&self.stop(TaskError::ShuttingDown).await),
        }
    }

    /// Waits until the operation ends or its task is needed. Once a shutdown has begun, nothing new is stored.
    async fn run_in_memory(&mut self) -> MemoryEnd {
        tokio::select! {
            biased;
            ended = &mut self.operation.handle => return MemoryEnd::Ended(ended),
            _ = self.shutdown.begun() => {}
            () = self.stage.store_requested() => return MemoryEnd::TaskNeeded,
            () = sleep_until(self.begun + self.limits.answer_within) => return MemoryEnd::TaskNeeded,
        }
        tokio::select! {
            biased;
            ended = &mut self.operation.handle => MemoryEnd::Ended(ended),
            () = self.stage.store_requested() => MemoryEnd::Shutdown,
            () = self.shutdown.limit_elapsed(self.limits.drain) => MemoryEnd::Shutdown,
        }
    }

    /// Answers the call, unless it is answered already.
    fn answer(&mut self, answer: Result<CallAnswer, TaskError>) {
        let Some(call) = self.answer.take() else { return };
        if call.send(answer).is_err() {
            tracing::debug!("the answer of a call was dropped: its client has left");
        }
    }

    /// Answers the call with the end of its operation, which is not retried. Returns the outcome.
    fn answer_end(&mut self, ended: Result<Outcome, JoinError>) -> Outcome {
        match ended.map(Outcome::without_retry) {
            Ok(outcome) => {
                self.answer(Ok(CallAnswer::Ended(outcome.clone())));
                outcome
            }
            // The Tokio runtime of the operation ends.
            Err(_) => {
                self.answer(Err(TaskError::ShuttingDown));
                stopped()
            }
        }
    }

    /// Stops the operation and answers the call with this error. An operation that has ended just before answers the call
    /// itself. Returns the outcome.
    async fn stop(&mut self, error: TaskError) -> Outcome {
        match self.operation.abort().await {
            Some(outcome) => self.answer_end(Ok(outcome)),
            None => {
                self.answer(Err(error));
                stopped()
            }
        }
    }
}

/// The outcome of an operation that was stopped before its task was stored.
fn stopped() -> Outcome {
    let message = "the server stopped the operation, because its task could not be stored in time";
    Outcome::Returned(Err(rmcp::ErrorData::internal_error(message, None).into()))
}

/// Logs the panic of an operation whose outcome is not stored.
fn log_panic(outcome: &Outcome) {
    if let Outcome::Panicked(panic) = outcome {
        tracing::error!(panic, "an operation panicked");
    }
}
