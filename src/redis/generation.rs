//! The generation of a backend's connections.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that grows when a connection breaks, and again when it is re-created, before the first command travels over
/// the new connection.
///
/// A caller that sees the same generation twice knows that no failover happened in between.
#[derive(Debug)]
pub(super) struct Generation {
    number: AtomicU64,
    /// Whether the backend detects every reconnect.
    detects_reconnects: bool,
}

impl Generation {
    /// Counts the connections that the backend itself makes.
    pub(super) fn of_own_connections() -> Self {
        Self { number: AtomicU64::new(0), detects_reconnects: true }
    }

    /// Counts a caller's connections. They may reconnect undetected.
    pub(super) fn of_caller_connections() -> Self {
        Self { number: AtomicU64::new(0), detects_reconnects: false }
    }

    pub(super) fn grow(&self) {
        self.number.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn get(&self) -> u64 {
        if self.detects_reconnects {
            self.number.load(Ordering::SeqCst)
        } else {
            // The connection may have reconnected since the last call, so no two calls see the same number.
            self.number.fetch_add(1, Ordering::SeqCst)
        }
    }
}
