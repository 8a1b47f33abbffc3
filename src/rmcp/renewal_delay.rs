//! Reports renewals that begin late because something blocked their runtime.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::operation::PollTimer;

/// How often a late renewal of unknown cause is logged as a warning.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// When a late renewal of unknown cause was last logged. One blocked thread delays the renewals of all operations of its
/// runtime, so they share this limit.
#[derive(Debug, Default)]
pub(super) struct UnexplainedDelays(Mutex<Option<Instant>>);

impl UnexplainedDelays {
    fn may_warn(&self) -> bool {
        // No code panics while it holds this lock.
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_some_and(|at| at.elapsed() < WARN_INTERVAL) {
            return false;
        }
        *warned = Some(Instant::now());
        true
    }
}

/// Reports the late renewals of one operation.
#[derive(Debug)]
pub(super) struct RenewalDelay {
    operation: String,
    polls: Arc<PollTimer>,
    unexplained: Arc<UnexplainedDelays>,
}

impl RenewalDelay {
    pub(super) fn new(
        operation: Option<String>,
        polls: Arc<PollTimer>,
        unexplained: Arc<UnexplainedDelays>,
    ) -> Self {
        Self { operation: operation.unwrap_or_default(), polls, unexplained }
    }

    /// Reports a renewal that began this `late`. Only its runtime can have delayed it. `third` is a third of the
    /// lease.
    pub(super) fn report(&self, late: Duration, third: Duration) {
        let longest = self.polls.take_longest();
        let operation = &*self.operation;
        if longest > third {
            tracing::warn!(
                operation,
                "operation {operation:?} blocked the runtime for {longest:.1?}, and its lease was renewed {late:.1?} late; \
                 use tokio::task::spawn_blocking for work that blocks"
            );
        } else if self.unexplained.may_warn() {
            tracing::warn!(
                operation,
                "the lease of operation {operation:?} was renewed {late:.1?} late: something blocked the runtime, or the \
                 process was stopped; use tokio::task::spawn_blocking for work that blocks"
            );
        } else {
            tracing::debug!(operation, "a lease was renewed {late:.1?} late");
        }
    }
}
