//! What an author can set for one tool.

use std::time::Duration;

use serde_json::Value;

use crate::rmcp::places::Places;
use crate::rmcp::wire::METHOD;
use crate::store::{NewTask, Ttl};
use crate::task::OnWorkerLost;

/// The settings of one tool.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) is_resumable: bool,
    pub(super) ttl: Ttl,
    /// `None` is the default of the store.
    pub(super) retention: Option<Duration>,
    /// `None` is the default of the store.
    pub(super) poll_interval: Option<Duration>,
    /// `None` is the default of the store.
    pub(super) attempts: Option<u32>,
    /// `None` if any number of calls may run at once.
    pub(super) places: Option<Places>,
    pub(super) is_required: bool,
    pub(super) cancels_with_request: bool,
}

impl Settings {
    /// Returns the task of a call of the tool `name` with these arguments.
    pub(super) fn new_task(&self, name: &str, arguments: Value) -> NewTask {
        let mut new = NewTask::new(METHOD).operation(name).ttl(self.ttl);
        if let Some(interval) = self.poll_interval {
            new = new.poll_interval(interval);
        }
        if let Some(retention) = self.retention {
            new = new.retention(retention);
        }
        if let Some(attempts) = self.attempts {
            new = new.max_attempts(attempts);
        }
        if !self.is_resumable {
            return new;
        }
        // Another instance can run the call again, so the record has its arguments.
        new.on_worker_lost(OnWorkerLost::Resume).arguments(arguments)
    }
}
