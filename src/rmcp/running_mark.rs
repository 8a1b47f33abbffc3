//! The mark of a background task that runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Marks a background task as running until its future has ended or was dropped with its runtime.
pub(super) struct RunningMark(pub(super) Arc<AtomicBool>);

impl Drop for RunningMark {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
