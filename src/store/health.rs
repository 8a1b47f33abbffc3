//! One line in the log when the engine begins to fail, and one when it works again.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long no call must have failed before an outage counts as over. If the servers of some owners fail, the calls of
/// all others succeed meanwhile.
const QUIET: Duration = Duration::from_secs(2);

/// Whether the engine fails at the moment.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The same as whether there is an outage, for the successful calls of good times.
    is_failing: AtomicBool,
    outage: Mutex<Option<Outage>>,
}

#[derive(Debug)]
struct Outage {
    began: Instant,
    last_failure: Instant,
    failed_calls: u64,
}

impl Health {
    /// Nothing panics while it holds the outage.
    fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call failed.
    pub(super) fn failed(&self, error: &dyn Display) {
        let now = Instant::now();
        let mut outage = self.outage();
        if let Some(outage) = &mut *outage {
            outage.last_failure = now;
            outage.failed_calls += 1;
            tracing::debug!(%error, "a call of the storage engine failed");
            return;
        }
        *outage = Some(Outage { began: now, last_failure: now, failed_calls: 1 });
        self.is_failing.store(true, Ordering::Release);
        drop(outage);
        tracing::warn!(%error, "the storage engine fails; a line follows when it works again");
    }

    /// A call succeeded.
    pub(super) fn succeeded(&self) {
        if !self.is_failing.load(Ordering::Acquire) {
            return;
        }
        let over = {
            let mut outage = self.outage();
            let over = outage.take_if(|outage| outage.last_failure.elapsed() > QUIET);
            self.is_failing.store(outage.is_some(), Ordering::Release);
            over
        };
        if let Some(Outage { began, last_failure, failed_calls }) = over {
            let lasted = last_failure - began;
            tracing::info!(?lasted, failed_calls, "the storage engine works again");
        }
    }
}
