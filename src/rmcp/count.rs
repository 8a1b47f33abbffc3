//! Counts what is under way in this process.

use tokio::sync::watch;

/// A number of things that are under way.
#[derive(Debug, Default)]
pub(super) struct Count(watch::Sender<usize>);

/// Counts as one until it is dropped.
pub(super) struct CountGuard(watch::Sender<usize>);

impl Count {
    pub(super) fn get(&self) -> usize {
        *self.0.borrow()
    }

    /// Returns a receiver of the number.
    pub(super) fn subscribe(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }

    /// Counts one more.
    pub(super) fn add(&self) -> CountGuard {
        self.0.send_modify(|count| *count += 1);
        CountGuard(self.0.clone())
    }

    /// Waits until nothing is under way.
    pub(super) async fn is_zero(&self) {
        // The sender lives as long as this value.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Clone for CountGuard {
    /// Counts one more.
    fn clone(&self) -> Self {
        self.0.send_modify(|count| *count += 1);
        Self(self.0.clone())
    }
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
