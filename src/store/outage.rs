//! Logs one line when the engine begins to fail, and one when it works again.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// An outage ends once no call has failed for this long. If only the servers of some owners fail, the calls of all other
/// owners succeed during the outage.
const QUIET: Duration = Duration::from_secs(2);

/// Records whether the engine fails at the moment.
#[derive(Debug, Default)]
pub(super) struct OutageLog {
    /// Mirrors `outage.is_some()`, so that a successful call takes no lock while there is no outage.
    is_failing: AtomicBool,
    outage: Mutex<Option<Outage>>,
}

#[derive(Debug)]
struct Outage {
    started: Instant,
    last_failure: Instant,
    failed_calls: u64,
}

impl OutageLog {
    /// No code panics while it holds the lock.
    fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a failed call, and logs the first failure of an outage as a warning.
    pub(super) fn record_failure(&self, error: &dyn Display) {
        let now = Instant::now();
        let mut outage = self.outage();
        if let Some(outage) = &mut *outage {
            outage.last_failure = now;
            outage.failed_calls += 1;
            tracing::debug!(%error, "a call of the storage engine failed");
            return;
        }
        *outage = Some(Outage { started: now, last_failure: now, failed_calls: 1 });
        self.is_failing.store(true, Ordering::Release);
        drop(outage);
        tracing::warn!(%error, "the storage engine fails; a line follows when it works again");
    }

    /// Records a successful call, and logs the end of an outage.
    pub(super) fn record_success(&self) {
        if !self.is_failing.load(Ordering::Acquire) {
            return;
        }
        let ended = {
            let mut outage = self.outage();
            let ended = outage.take_if(|outage| outage.last_failure.elapsed() > QUIET);
            self.is_failing.store(outage.is_some(), Ordering::Release);
            ended
        };
        if let Some(Outage { started, last_failure, failed_calls }) = ended {
            let lasted = last_failure - started;
            tracing::info!(?lasted, failed_calls, "the storage engine works again");
        }
    }
}
