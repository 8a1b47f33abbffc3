//! The newest state of a task that its run has read or written.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tokio::sync::watch;

use crate::task::StoredTask;

/// The newest state of a task that its run knows.
#[derive(Clone)]
pub(super) struct TaskState {
    pub(super) stored: Arc<StoredTask>,
    /// When the read or write began that returned this state.
    since: Instant,
    /// When the last write of the run began. It may have replaced the version of an earlier state.
    write_begun: Option<Instant>,
    /// The attempt is void: its lease is lost, the task has ended, the TTL has elapsed, or the record no longer
    /// exists.
    is_void: bool,
}

impl TaskState {
    pub(super) fn must_stop(&self) -> bool {
        self.is_void || self.stored.task.cancel_requested
    }

    pub(super) fn answer(&self, key: &str) -> Option<&Value> {
        self.stored.task.input_responses.get(key)
    }

    /// Returns whether an operation can tell this state from another one.
    fn differs(&self, other: &Self) -> bool {
        self.must_stop() != other.must_stop()
            || self.stored.task.input_responses != other.stored.task.input_responses
    }
}

/// The state of a task, which its run updates and its operation observes. Clones share it.
#[derive(Clone)]
pub(super) struct RunState(watch::Sender<TaskState>);

impl RunState {
    /// Begins with the task as the attempt began with it.
    pub(super) fn new(stored: Arc<StoredTask>) -> Self {
        let state = TaskState { stored, since: Instant::now(), write_begun: None, is_void: false };
        Self(watch::Sender::new(state))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<TaskState> {
        self.0.subscribe()
    }

    pub(super) fn stored(&self) -> Arc<StoredTask> {
        Arc::clone(&self.0.borrow().stored)
    }

    /// Returns whether the attempt is void. The operation has then received the signal to stop.
    pub(super) fn is_void(&self) -> bool {
        self.0.borrow().is_void
    }

    /// Begins a write. Returns the task to write over, unless an earlier write may have replaced it. Its outcome is
    /// unknown if it failed or was dropped.
    pub(super) fn begin_write(&self, now: Instant) -> Option<Arc<StoredTask>> {
        let mut copy = None;
        self.0.send_if_modified(|state| {
            let is_newest = state.write_begun.is_none_or(|begun| begun <= state.since);
            copy = is_newest.then(|| Arc::clone(&state.stored));
            state.write_begun = Some(now);
            false
        });
        copy
    }

    /// Sets a newer state of the task, and notifies the operation if it can tell the difference. A state is newer if its
    /// read or write began later, even if its answer arrived earlier.
    pub(super) fn set(&self, stored: Arc<StoredTask>, since: Instant) {
        self.0.send_if_modified(|state| {
            if since < state.since {
                return false;
            }
            let is_void = stored.task.status.is_terminal();
            let newer = TaskState { stored, since, is_void, ..state.clone() };
            let differs = newer.differs(state);
            *state = newer;
            differs
        });
    }

    pub(super) fn set_void(&self, reason: &dyn Display) {
        tracing::warn!(%reason, "the attempt of an operation is void; the operation must stop");
        self.0.send_modify(|state| state.is_void = true);
    }
}
