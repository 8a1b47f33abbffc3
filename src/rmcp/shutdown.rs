//! The shutdown of a manager, and how long its runs may still take.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The shutdown of one manager. It begins once and is never revoked.
#[derive(Debug)]
pub(super) struct Shutdown(watch::Sender<Option<Instant>>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Shutdown {
    pub(super) fn begin(&self) {
        self.0.send_if_modified(|since| {
            let is_first = since.is_none();
            since.get_or_insert_with(Instant::now);
            is_first
        });
    }

    pub(super) fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    pub(super) fn signal(&self) -> ShutdownSignal {
        ShutdownSignal(self.0.subscribe())
    }
}

/// Receives the signal that a shutdown has begun.
#[derive(Clone)]
pub(super) struct ShutdownSignal(watch::Receiver<Option<Instant>>);

impl ShutdownSignal {
    pub(super) fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Returns once a shutdown has begun, with the time at which it began.
    pub(super) async fn begun(&self) -> Instant {
        let mut signal = self.0.clone();
        match signal.wait_for(Option::is_some).await.ok().and_then(|since| *since) {
            Some(since) => since,
            // The manager was dropped without a shutdown: its runs continue.
            None => std::future::pending().await,
        }
    }

    /// Waits until this time has passed since a shutdown began.
    pub(super) async fn limit_elapsed(&self, limit: Duration) {
        let since = self.begun().await;
        sleep_until(since + limit).await;
    }
}
