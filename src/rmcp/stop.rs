//! The signal that this process is about to end, and how long its runs may still take.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Receives the signal that this process is about to end.
#[derive(Clone)]
pub(super) struct Stop(watch::Receiver<Option<Instant>>);

impl Stop {
    pub(super) fn new(stop: &watch::Sender<Option<Instant>>) -> Self {
        Self(stop.subscribe())
    }

    pub(super) fn is_told(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Returns once a shutdown has begun, with the time when it began.
    pub(super) async fn told(&self) -> Instant {
        let mut stop = self.0.clone();
        let told = stop.wait_for(Option::is_some).await.ok().and_then(|told| *told);
        match told {
            Some(told) => told,
            // A manager that is gone stops nothing: its runs go on.
            None => std::future::pending().await,
        }
    }

    /// Returns this long after a shutdown has begun.
    pub(super) async fn passed(&self, limit: Duration) {
        let told = self.told().await;
        sleep_until(told + limit).await;
    }
}
