//! Supervises one run from its begin to its end.

use std::pin::pin;
use std::sync::Arc;

use tokio::time::timeout;
use tracing::Span;

use super::follow::{RunEnd, follow};
use super::operation::STOP_TIMEOUT;
use super::outcome::{self, VOID};
use super::run::Run;
use super::shutdown::ShutdownSignal;
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::spans;

/// Supervises a run until its operation has ended and the outcome is stored, or until the run is stopped.
pub(super) async fn supervise<B: Agenda>(mut run: Run<B>, shutdown: ShutdownSignal) {
    let end = {
        let (reports, attempt) = (Arc::clone(&run.progress_reports), run.attempt.clone());
        let (state, lease, signals) = (run.state.clone(), run.store.lease_duration(), run.renewals.signals());
        // When the run ends, the `select` drops the write of a report. The report is then written together with the
        // outcome.
        // Pinned here: a future that is passed by value is copied, and adds its size to the future of this run.
        let mut follow = pin!(follow(&mut run, &shutdown));
        let mut write = pin!(reports.write(&attempt, &state, lease, &signals));
        tokio::select! {
            biased;
            end = &mut follow => end,
            never = &mut write => match never {},
        }
    };
    match end {
        RunEnd::Ended(outcome) => outcome::store(run, outcome, &shutdown).await,
        RunEnd::Shutdown => stop(run, &shutdown).await,
        RunEnd::Aborted => spans::failed(&Span::current(), &VOID),
    }
}

/// Stops the operation and releases its lease. Another instance resumes the task if it can resume.
async fn stop<B: Agenda>(mut run: Run<B>, shutdown: &ShutdownSignal) {
    // An operation that is about to end can end by itself meanwhile.
    tokio::task::yield_now().await;
    if let Some(outcome) = run.operation.abort().await {
        return outcome::store(run, outcome, shutdown).await;
    }
    // A renewal that has begun would conflict with the release.
    drop(run.renewals);
    // The process is about to end, and a lease that was not released lapses by itself.
    match timeout(STOP_TIMEOUT, run.attempt.release()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(error = %Chain(&error), "a lease could not be released"),
        Err(_) => tracing::debug!("a lease could not be released within {STOP_TIMEOUT:?}"),
    }
}
