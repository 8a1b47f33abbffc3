//! Epochs of the connections to one master.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::generation::Generation;

/// Decides which connections to a master are void, because a new connection may reach another server.
///
/// An epoch ends when the backend reconnects after a connection broke, and when the server turns out to be a replica. All
/// connections of that epoch are void then. A connection that carries only reads would not detect a failover by itself.
pub(super) struct Epochs {
    current: AtomicU64,
    /// One more than the epoch of the last connection that broke.
    broken: AtomicU64,
    generation: Arc<Generation>,
}

impl Epochs {
    pub(super) fn new(generation: Arc<Generation>) -> Self {
        Self { current: AtomicU64::new(0), broken: AtomicU64::new(0), generation }
    }

    pub(super) fn current(&self) -> u64 {
        self.current.load(Ordering::SeqCst)
    }

    /// Returns whether a connection of this epoch leads to the server that a new connection would reach, as far as this
    /// process knows.
    pub(super) fn is_current(&self, epoch: u64) -> bool {
        epoch == self.current()
    }

    /// Records that a connection of this epoch broke. The next connection ends the epoch.
    pub(super) fn report_broken(&self, epoch: u64) {
        self.generation.grow();
        if self.is_current(epoch) {
            // Another thread may have reported a later epoch in the meantime.
            self.broken.fetch_max(epoch + 1, Ordering::SeqCst);
        }
    }

    /// Returns whether a connection of this epoch broke, and no connection of a later epoch did.
    pub(super) fn has_broken(&self, epoch: u64) -> bool {
        self.broken.load(Ordering::SeqCst) == epoch + 1
    }

    /// Ends an epoch: its connections are void.
    pub(super) fn end(&self, epoch: u64) {
        self.generation.grow();
        // An error means that the epoch has ended already.
        let _ = self.current.compare_exchange(epoch, epoch + 1, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Returns the generation of all connections of the backend.
    pub(super) fn generation(&self) -> &Generation {
        &self.generation
    }
}
