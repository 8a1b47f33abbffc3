//! Stores the task of a run that has begun in memory. The operation runs meanwhile, and the call is held.

use std::pin::{Pin, pin};
use std::time::Duration;

use rmcp::ErrorData;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Span;

use super::{CallAnswer, CallLimits, CallRun, log_panic};
use crate::backend::{Agenda, StorageError};
use crate::printable::Chain;
use crate::rmcp::error_class::ErrorClass;
use crate::rmcp::operation::Outcome;
use crate::rmcp::outcome;
use crate::rmcp::run::Run;
use crate::rmcp::runtime::SHUTDOWN_CALL_LIMIT;
use crate::rmcp::shutdown::ShutdownSignal;
use crate::rmcp::supervise::supervise;
use crate::spans;
use crate::store::{BackOff, NewTask, Starting, TaskError};
use crate::task::StoredTask;

/// How long the record of a task lives whose outcome is already with the client.
pub(in crate::rmcp) const KEEP_ANSWERED: Duration = Duration::from_secs(300);

/// How long storing a task may take at least. Without it, a limit that has elapsed before the task is needed would stop the operation.
const SHORTEST_TRY: Duration = Duration::from_secs(1);

/// How the time has ended in which a task was being stored.
enum StoringEnd {
    /// The task is stored, and its operation runs.
    Stored(Box<StoredTask>),
    /// The operation has ended or was stopped, and the call is answered. The task may be stored nevertheless.
    Answered(Outcome, Option<Box<StoredTask>>),
    /// The operation has ended with an error to retry. The task may be stored.
    Retry(ErrorData, Option<Box<StoredTask>>),
}

enum Event {
    /// The operation has ended.
    Ended(Result<Outcome, JoinError>),
    /// The create has returned.
    Tried(Result<Box<StoredTask>, TaskError>),
    /// The call is held no longer.
    LimitElapsed(TaskError),
}

impl<B: Agenda> CallRun<B> {
    /// Stores the task, and supervises the run until its operation has ended.
    pub(super) async fn store_task(mut self, new: NewTask) {
        let (new, report) = match self.reports.unwritten_with_number() {
            Some((report, number)) => (new.report(report), Some(number)),
            None => (new, None),
        };
        let starting = self.starting(new);
        match self.try_until_stored(&starting).await {
            StoringEnd::Stored(stored) => {
                if let Some(number) = report {
                    self.reports.set_written(number);
                }
                self.hand_over(starting, *stored).await;
            }
            StoringEnd::Answered(outcome, stored) => self.store_outcome(starting, outcome, stored).await,
            StoringEnd::Retry(error, stored) => self.retry_once_stored(starting, error, stored).await,
        }
    }

    /// Prepares the attempt that this run is, in the span of which the caller is.
    pub(super) fn starting(&self, new: NewTask) -> Starting<B> {
        let starting = self.store.start_as(&self.key, new);
        starting.attempt().set_traceparent(spans::traceparent(&Span::current()));
        starting
    }

    /// Tries to store the task until it is stored, the operation ends, or the call must be answered.
    async fn try_until_stored(&mut self, starting: &Starting<B>) -> StoringEnd {
        let mut limit = pin!(limit_elapsed(self.begun, self.limits, self.shutdown.clone()));
        let mut back_off = BackOff::new();
        loop {
            let mut create = pin!(starting.try_to_store());
            let event = tokio::select! {
                biased;
                ended = &mut self.operation.handle => Event::Ended(ended),
                tried = create.as_mut() => Event::Tried(tried.map(Box::new)),
                error = limit.as_mut() => Event::LimitElapsed(error),
            };
            match event {
                Event::Tried(Ok(stored)) => return StoringEnd::Stored(stored),
                Event::Tried(Err(error)) if is_refusal(&error) => {
                    return StoringEnd::Answered(self.stop(error).await, None);
                }
                Event::Tried(Err(error)) => {
                    tracing::debug!(error = %Chain(&error), "the task of a call could not be stored yet");
                }
                Event::Ended(ended) => match self.error_to_retry(&ended) {
                    Some(error) => return StoringEnd::Retry(error, self.last_try(create).await),
                    None => {
                        let outcome = self.answer_end(ended);
                        return StoringEnd::Answered(outcome, self.last_try(create).await);
                    }
                },
                Event::LimitElapsed(error) => {
                    let outcome = self.stop(error).await;
                    return StoringEnd::Answered(outcome, self.last_try(create).await);
                }
            }
            tokio::select! {
                biased;
                ended = &mut self.operation.handle => return match self.error_to_retry(&ended) {
                    Some(error) => StoringEnd::Retry(error, None),
                    None => StoringEnd::Answered(self.answer_end(ended), None),
                },
                error = limit.as_mut() => return StoringEnd::Answered(self.stop(error).await, None),
                () = sleep(back_off.next_pause()) => {}
            }
        }
    }

    /// Waits for a create that is under way. Dropping it could leave a record without an end.
    pub(super) async fn last_try(
        &self,
        create: Pin<&mut impl Future<Output = Result<StoredTask, TaskError>>>,
    ) -> Option<Box<StoredTask>> {
        tokio::select! {
            tried = create => tried.ok().map(Box::new),
            () = self.shutdown.limit_elapsed(self.limits.drain + SHUTDOWN_CALL_LIMIT) => None,
        }
    }

    /// Answers the call with its stored task, and continues as every run of a stored task does.
    async fn hand_over(mut self, starting: Starting<B>, stored: StoredTask) {
        let answer = self.answer.take();
        let Self { store, renewer, operation, reports, stage, shutdown, .. } = self;
        let attempt = starting.attempt().clone();
        let run = Run::continue_with(store, renewer, attempt, stored, operation, reports);
        stage.set_stored(run.stage());
        let stored = CallAnswer::Stored(run.state.stored());
        if answer.is_some_and(|answer| answer.send(Ok(stored)).is_err()) {
            tracing::debug!("the task of a call is stored, and its client has left");
        }
        drop((starting, stage));
        supervise(run, shutdown).await;
    }

    /// Stores the outcome of an operation that has ended before its task was stored, if the task is stored nevertheless.
    pub(super) async fn store_outcome(
        self,
        starting: Starting<B>,
        outcome: Outcome,
        stored: Option<Box<StoredTask>>,
    ) {
        let stored = match stored {
            Some(stored) => Some(stored),
            None => self.find_stored(&starting).await,
        };
        let Some(stored) = stored else { return log_panic(&outcome) };
        let Self { store, renewer, operation, reports, shutdown, .. } = self;
        let attempt = starting.attempt().clone();
        let mut run = Run::continue_with(store, renewer, attempt, *stored, operation, reports);
        run.keep_for = Some(KEEP_ANSWERED);
        outcome::store(run, outcome, &shutdown).await;
    }

    /// Finds the task if a create without an answer has stored it. After one lease, other instances find it by its timer.
    async fn find_stored(&self, starting: &Starting<B>) -> Option<Box<StoredTask>> {
        let mut limit = pin!(async {
            tokio::select! {
                () = sleep(self.store.lease_duration()) => {}
                () = self.shutdown.limit_elapsed(self.limits.drain + SHUTDOWN_CALL_LIMIT) => {}
            }
        });
        let mut back_off = BackOff::new();
        while starting.may_be_stored() {
            let found = tokio::select! {
                found = starting.find() => found,
                () = limit.as_mut() => return None,
            };
            match found {
                Ok(stored) => return Some(Box::new(stored)),
                Err(error) if ErrorClass::of(&error) != ErrorClass::Transient => return None,
                Err(error) => tracing::debug!(
                    error = %Chain(&error),
                    "it is not known yet whether the task of an answered call is stored"
                ),
            }
            tokio::select! {
                () = sleep(back_off.next_pause()) => {}
                () = limit.as_mut() => return None,
            }
        }
        None
    }
}

/// Waits until a call is held no longer whose task is stored from now on. Returns the error that answers it.
pub(in crate::rmcp) async fn limit_elapsed(
    begun: Instant,
    limits: CallLimits,
    shutdown: ShutdownSignal,
) -> TaskError {
    let until = (begun + limits.hold_for).max(Instant::now() + SHORTEST_TRY);
    tokio::select! {
        () = sleep_until(until) => not_stored_within(until - begun),
        () = shutdown.limit_elapsed(limits.drain) => TaskError::ShuttingDown,
    }
}

fn not_stored_within(limit: Duration) -> TaskError {
    TaskError::Storage(StorageError::Unavailable {
        address: "the storage engine".to_owned(),
        reason: format!(
            "the task of a call could not be stored within {limit:?}; check that the server answers, and try again"
        ),
        outcome_unknown: false,
        source: None,
    })
}

/// Repeats a call that stores a task until it succeeds or the store refuses the task.
pub(in crate::rmcp) async fn until_accepted<T, F>(store: impl Fn() -> F) -> Result<T, TaskError>
where
    F: Future<Output = Result<T, TaskError>>,
{
    let mut back_off = BackOff::new();
    loop {
        match store().await {
            Err(error) if !is_refusal(&error) => {
                tracing::debug!(error = %Chain(&error), "the task of a call could not be stored yet");
            }
            stored => return stored,
        }
        sleep(back_off.next_pause()).await;
    }
}

/// Returns whether the store refuses the task, so that another try within the time of a call does not help.
pub(super) fn is_refusal(error: &TaskError) -> bool {
    matches!(error, TaskError::QuotaExceeded { .. }) || ErrorClass::of(error) != ErrorClass::Transient
}
