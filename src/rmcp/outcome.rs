//! Stores the outcome of an operation. The run tries until the store accepts the outcome, or answers that the attempt is void.

use std::pin::pin;
use std::time::{Duration, Instant};

use rmcp::ErrorData;
use rmcp::task_manager::TaskExit;
use tokio::time::{sleep, timeout};
use tracing::Span;

use super::error_class::ErrorClass;
use super::operation::Outcome;
use super::run::Run;
use super::shutdown::ShutdownSignal;
use super::timeouts::MAX_RETRY_DELAY;
use super::wire::{is_unreadable, rpc_error};
use crate::backend::Agenda;
use crate::printable::{Chain, Printable};
use crate::spans;
use crate::store::{Ending, TaskError};
use crate::task::RpcError;

/// How long a run still tries to store its outcome after a shutdown has begun. Few supervisors wait longer before
/// they kill the process.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

/// What a trace says about an attempt that is void.
pub(super) const VOID: &str = "void";

/// Stores the outcome of an operation and its last report, unless the attempt is void. The renewals of the
/// lease continue meanwhile.
pub(super) async fn store<B: Agenda>(run: Run<B>, outcome: Outcome, shutdown: &ShutdownSignal) {
    let mut stored = pin!(store_until_accepted(&run, outcome));
    tokio::select! {
        biased;
        () = &mut stored => {}
        () = shutdown.limit_elapsed(SHUTDOWN_LIMIT) => tracing::error!(
            "the outcome of an operation is lost: the engine did not accept it within {SHUTDOWN_LIMIT:?} after the shutdown began"
        ),
    }
}

async fn store_until_accepted<B: Agenda>(run: &Run<B>, outcome: Outcome) {
    let mut unstored = Unstored::new(outcome);
    let mut delay = Duration::from_millis(50);
    loop {
        match unstored.try_to_store(run).await {
            AfterWrite::Finished => return,
            AfterWrite::RetryNow => {}
            AfterWrite::RetryLater => {
                sleep(delay).await;
                delay = (delay * 2).min(MAX_RETRY_DELAY);
            }
        }
    }
}

/// An outcome that is not stored yet.
struct Unstored {
    ending: Ending,
    /// The write also stores the last report.
    has_report: bool,
    /// The store rejected the outcome, so `ending` is now a failure that says so.
    is_replaced: bool,
    /// An earlier write may have been applied although no reply arrived.
    may_be_stored: bool,
}

/// What the run does after a write of the outcome.
enum AfterWrite {
    /// The outcome is stored, or can never be stored.
    Finished,
    RetryNow,
    RetryLater,
}

impl Unstored {
    fn new(outcome: Outcome) -> Self {
        let ending = ending(outcome);
        // The status message of a task that is retried says so.
        let has_report = !matches!(ending, Ending::Retry(_));
        Self { ending, has_report, is_replaced: false, may_be_stored: false }
    }

    async fn try_to_store<B: Agenda>(&mut self, run: &Run<B>) -> AfterWrite {
        let limit = run.call_timeout();
        let report = run.progress_reports.unwritten().filter(|_| self.has_report);
        let copy = run.state.begin_write(Instant::now());
        let ended = {
            let end = pin!(async {
                match &self.ending {
                    Ending::Retry(error) => run.attempt.retry_after(error, self.may_be_stored).await,
                    ending => run.attempt.end(copy.as_deref(), ending, report.as_ref(), run.keep_for).await,
                }
            });
            timeout(limit, end).await
        };
        match ended {
            Ok(Ok(_)) => AfterWrite::Finished,
            Ok(Err(error)) if self.may_be_stored && has_ended_as(&error, &self.ending) => {
                self.confirm(run, limit).await
            }
            Ok(Err(error)) => self.apply_error(run, error, report.is_some()),
            Err(_) => {
                self.may_be_stored = true;
                tracing::debug!("the outcome of an operation could not be stored within {limit:?} yet");
                AfterWrite::RetryLater
            }
        }
    }

    /// Confirms an earlier write of the outcome that had no reply, or no confirmation of replicas. The record alone does not
    /// confirm it: it may be on a server that another one has replaced as master.
    async fn confirm<B: Agenda>(&mut self, run: &Run<B>, limit: Duration) -> AfterWrite {
        let confirmed = {
            let confirm = pin!(run.attempt.confirm_end(&self.ending));
            timeout(limit, confirm).await
        };
        match confirmed {
            Ok(Ok(true)) => {
                run.attempt.log_end(&self.ending, run.operation_name().as_deref());
                AfterWrite::Finished
            }
            Ok(Ok(false)) => AfterWrite::RetryNow,
            Ok(Err(error)) => self.apply_error(run, error, false),
            Err(_) => AfterWrite::RetryLater,
        }
    }

    fn apply_error<B: Agenda>(&mut self, run: &Run<B>, error: TaskError, with_report: bool) -> AfterWrite {
        match ErrorClass::of(&error) {
            ErrorClass::Void => {
                self.report_void(run, &error);
                AfterWrite::Finished
            }
            ErrorClass::Permanent => self.reduce(error, with_report),
            ErrorClass::Transient => {
                self.may_be_stored |= error.outcome_unknown();
                tracing::debug!(error = %Chain(&error), "the outcome of an operation could not be stored yet");
                AfterWrite::RetryLater
            }
        }
    }

    fn report_void<B: Agenda>(&self, run: &Run<B>, error: &TaskError) {
        spans::failed(&Span::current(), &VOID);
        if run.state.is_void() {
            // The run logged a warning when the attempt became void.
            tracing::debug!(error = %Chain(error), "the outcome of an operation was not stored");
        } else {
            tracing::warn!(error = %Chain(error), "the outcome of an operation was not stored: the attempt is void");
        }
    }

    /// Removes the report from the write, or replaces the outcome by a failure: the store can never accept
    /// the write as it is.
    fn reduce(&mut self, error: TaskError, with_report: bool) -> AfterWrite {
        if is_unreadable(&error) || (self.is_replaced && !with_report) {
            tracing::warn!(
                error = %Chain(&error),
                "the outcome of an operation cannot be stored; its worker counts as lost"
            );
            return AfterWrite::Finished;
        }
        if with_report {
            // The record may have no room for the report.
            self.has_report = false;
            return AfterWrite::RetryNow;
        }
        // A value over a limit must not leave the task open.
        let reason = ErrorData::from(error).message;
        tracing::warn!(reason = %Printable(&reason), "the outcome of an operation cannot be stored; the task fails");
        let message = format!("the outcome of the operation cannot be stored: {reason}");
        self.ending = Ending::Failed(RpcError::new(-32603, message));
        self.is_replaced = true;
        AfterWrite::RetryNow
    }
}

fn ending(outcome: Outcome) -> Ending {
    let internal = |message: String| Ending::Failed(RpcError::new(-32603, message));
    match outcome {
        Outcome::Returned(Ok(result)) => match serde_json::to_value(result) {
            Ok(result) => Ending::Completed(result),
            Err(error) => internal(format!("the result cannot be written as JSON: {error}")),
        },
        Outcome::Returned(Err(TaskExit::Cancelled)) => Ending::Cancelled,
        Outcome::Returned(Err(TaskExit::Error(error))) => Ending::Failed(rpc_error(error)),
        Outcome::Retry(error) => Ending::Retry(rpc_error(error)),
        Outcome::Panicked(panic) => {
            tracing::error!(panic, "an operation panicked");
            internal("the operation panicked".to_owned())
        }
    }
}

/// Returns whether the error says that the task has ended with the status of this ending.
fn has_ended_as(error: &TaskError, ending: &Ending) -> bool {
    matches!(error, TaskError::InvalidTransition { from, .. } if *from == ending.status())
}
