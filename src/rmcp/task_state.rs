//! The newest state of a task that its run has read or written.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use crate::task::StoredTask;

/// The newest state of a task that its run knows.
#[derive(Clone)]
pub(super) struct TaskState {
    pub(super) stored: Arc<StoredTask>,
    /// When the read or write began that returned this state.
    pub(super) since: Instant,
    /// The attempt is void: its lease is lost, the task has ended, the TTL has elapsed, or the record no longer
    /// exists.
    pub(super) is_void: bool,
}

impl TaskState {
    pub(super) fn must_stop(&self) -> bool {
        self.is_void || self.stored.task.cancel_requested
    }

    pub(super) fn answer(&self, key: &str) -> Option<&Value> {
        self.stored.task.input_responses.get(key)
    }
}
