//! Renewals that come late because something blocked their runtime, and what that was.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::operation::Polls;

/// How often a late renewal is reported whose cause is unknown.
const AT_MOST_EVERY: Duration = Duration::from_secs(60);

/// When a late renewal was reported whose cause is unknown. One block delays the renewals of all operations of a runtime.
#[derive(Debug, Default)]
pub(super) struct Unexplained(Mutex<Option<Instant>>);

impl Unexplained {
    fn may_report(&self) -> bool {
        // Nothing panics while it holds the time.
        let mut reported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_some_and(|at| at.elapsed() < AT_MOST_EVERY) {
            return false;
        }
        *reported = Some(Instant::now());
        true
    }
}

/// What is known of the renewals of one operation that come late.
#[derive(Debug)]
pub(super) struct Lateness {
    operation: String,
    polls: Arc<Polls>,
    unexplained: Arc<Unexplained>,
}

impl Lateness {
    pub(super) fn new(operation: Option<String>, polls: Arc<Polls>, unexplained: Arc<Unexplained>) -> Self {
        Self { operation: operation.unwrap_or_default(), polls, unexplained }
    }

    /// Reports a renewal that came this late although nothing but its runtime could hold it up.
    pub(super) fn report(&self, late: Duration, third: Duration) {
        let longest = self.polls.take_longest();
        let operation = &*self.operation;
        if longest > third {
            tracing::warn!(
                operation,
                "operation {operation:?} blocked the runtime for {longest:.1?}, and the renewal of its lease came {late:.1?} late; \
                 use tokio::task::spawn_blocking"
            );
        } else if self.unexplained.may_report() {
            tracing::warn!(
                operation,
                "the renewal of the lease of operation {operation:?} came {late:.1?} late: something blocked the runtime, or the \
                 process was stopped; use tokio::task::spawn_blocking for work that blocks"
            );
        } else {
            tracing::debug!(operation, "the renewal of a lease came {late:.1?} late");
        }
    }
}
