//! Follows the task of a run: passes changes of the task to the operation, and detects when the run must end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::error_class::ErrorClass;
use super::operation::Outcome;
use super::renewals::RenewalReport;
use super::run::Run;
use super::shutdown::ShutdownSignal;
use crate::backend::{Agenda, StorageError};
use crate::printable::Chain;
use crate::store::TaskError;

/// How long an operation may continue once its attempt is void.
const ABORT_AFTER: Duration = Duration::from_secs(10);

/// Why a run ends.
pub(super) enum RunEnd {
    Ended(Outcome),
    Shutdown,
    /// The operation did not stop in time, or its runtime ends.
    Aborted,
}

/// What a run receives while its attempt is valid.
enum Event {
    /// The renewals have a new report.
    Renewal,
    /// The Tokio task of the renewals has panicked, for instance because the engine panicked.
    RenewalsPanicked,
    /// An item of the subscription; `None` at its end.
    Change(Option<Result<(), StorageError>>),
    TtlElapsed,
}

/// Returns when the TTL of the task elapses; `None` for a task without a TTL.
fn ttl_ends_at<B: Agenda>(run: &Run<B>) -> Option<Instant> {
    run.ttl_left().map(|left| Instant::now() + left)
}

/// Follows the task until its run ends.
pub(super) async fn follow<B: Agenda>(run: &mut Run<B>, shutdown: &ShutdownSignal) -> RunEnd {
    match follow_valid_attempt(run, shutdown).await {
        Some(end) => end,
        None => wait_for_void_attempt(run, shutdown).await,
    }
}

/// Follows the task until its run ends. Returns `None` if the attempt becomes void first.
async fn follow_valid_attempt<B: Agenda>(run: &mut Run<B>, shutdown: &ShutdownSignal) -> Option<RunEnd> {
    let mut changes = Some(run.watch());
    // These futures stay for all events.
    let mut ttl_ms = run.ttl_ms();
    let mut ttl_elapsed = pin!(at(ttl_ends_at(run)));
    let mut shutdown = pin!(shutdown.begun());
    while !run.state.is_void() {
        if run.ttl_ms() != ttl_ms {
            ttl_ms = run.ttl_ms();
            ttl_elapsed.set(at(ttl_ends_at(run)));
        }
        let event = tokio::select! {
            biased;
            ended = &mut run.operation.handle => return Some(ended.map_or(RunEnd::Aborted, RunEnd::Ended)),
            _ = &mut shutdown => return Some(RunEnd::Shutdown),
            reported = run.renewals.reports.changed() => match reported {
                Ok(()) => Event::Renewal,
                Err(_) => Event::RenewalsPanicked,
            },
            change = next(&mut changes) => Event::Change(change),
            () = &mut ttl_elapsed => Event::TtlElapsed,
        };
        match event {
            Event::Renewal => {
                apply_report(run);
                // The engine may end a subscription although the task exists. The run subscribes again, but not at once.
                changes.get_or_insert_with(|| run.watch());
            }
            Event::RenewalsPanicked => run.restart_renewals(),
            // The next item without an error stands for every change that the run has missed.
            Event::Change(Some(Err(error))) => {
                tracing::debug!(error = %Chain(&error), "the worker receives no changes of its task for now");
            }
            Event::Change(change) => {
                if change.is_none() {
                    changes = None;
                }
                let mut read = pin!(read_task(run));
                tokio::select! {
                    biased;
                    () = &mut read => {}
                    _ = &mut shutdown => return Some(RunEnd::Shutdown),
                }
            }
            Event::TtlElapsed => {
                ttl_elapsed.set(at(None));
                // A renewal reads the task, and every reader ends an overdue task.
                run.renewals.request_renewal();
            }
        }
    }
    None
}

/// Waits until the operation of a void attempt has stopped. Aborts the operation after [`ABORT_AFTER`].
async fn wait_for_void_attempt<B: Agenda>(run: &mut Run<B>, shutdown: &ShutdownSignal) -> RunEnd {
    tokio::select! {
        ended = &mut run.operation.handle => ended.map_or(RunEnd::Aborted, RunEnd::Ended),
        _ = shutdown.begun() => RunEnd::Shutdown,
        () = tokio::time::sleep(ABORT_AFTER) => {
            tracing::warn!("an operation did not stop within {ABORT_AFTER:?} after its attempt became void; it is aborted");
            run.operation.handle.abort();
            RunEnd::Aborted
        }
    }
}

/// Applies the newest report of the renewals.
fn apply_report<B: Agenda>(run: &mut Run<B>) {
    let report = run.renewals.reports.borrow_and_update().clone();
    match report {
        RenewalReport::Pending => {}
        RenewalReport::Renewed { stored, since } => run.state.set(stored, since),
        RenewalReport::Void(reason) => run.state.set_void(&reason),
    }
}

/// Reads the task after a change.
async fn read_task<B: Agenda>(run: &Run<B>) {
    let since = std::time::Instant::now();
    let read = pin!(run.attempt.read_again(|| run.state.stored()));
    match timeout(run.call_timeout(), read).await {
        Ok(Ok(stored)) => run.state.set(Arc::new(stored), since),
        Ok(Err(error)) => apply_read_error(run, &error),
        // A renewal reads the task too.
        Err(_) => run.renewals.request_renewal(),
    }
    if run.lease_left().is_none() {
        run.renewals.request_renewal();
    }
}

fn apply_read_error<B: Agenda>(run: &Run<B>, error: &TaskError) {
    if ErrorClass::of(error) == ErrorClass::Void {
        return run.state.set_void(error);
    }
    tracing::debug!(error = %Chain(error), "a worker could not read its task");
    // A renewal reads the task, too, and the renewals try again until one succeeds.
    run.renewals.request_renewal();
}

/// Returns the next item of a subscription. Waits forever if there is no subscription.
async fn next(
    changes: &mut Option<BoxStream<'static, Result<(), StorageError>>>,
) -> Option<Result<(), StorageError>> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until this time. Waits forever if there is no time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
