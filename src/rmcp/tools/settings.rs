//! What an author can set for one tool.

use std::time::Duration;

use serde_json::Value;

use super::retry_if::RetryIf;
use crate::backend::Priority;
use crate::rmcp::places::Places;
use crate::rmcp::wire::METHOD;
use crate::store::{NewTask, Retry, Ttl};
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
    /// `None` is the default delay between attempts.
    pub(super) retry: Option<Retry>,
    /// Which errors are retried, next to those that the function marks.
    pub(super) retry_if: Option<RetryIf>,
    /// `None` if any number of calls may run at once.
    pub(super) places: Option<Places>,
    pub(super) is_required: bool,
    pub(super) cancels_with_request: bool,
    pub(super) priority: Priority,
}

impl Settings {
    /// Returns the task of a call of the tool `name` with these arguments, which this process runs.
    pub(super) fn new_task(&self, name: &str, arguments: Value) -> NewTask {
        // Only another instance that runs the call again needs the arguments.
        if self.is_resumable { self.enqueued_task(name, arguments) } else { self.task(name) }
    }

    /// Returns the task of a call of the tool `name` with these arguments, which waits for a worker.
    pub(super) fn enqueued_task(&self, name: &str, arguments: Value) -> NewTask {
        self.task(name).arguments(arguments)
    }

    fn task(&self, name: &str) -> NewTask {
        let mut new = NewTask::new(METHOD).operation(name).ttl(self.ttl).priority(self.priority);
        if let Some(interval) = self.poll_interval {
            new = new.poll_interval(interval);
        }
        if let Some(retention) = self.retention {
            new = new.retention(retention);
        }
        if let Some(attempts) = self.attempts {
            new = new.max_attempts(attempts);
        }
        if let Some(retry) = self.retry {
            new = new.retry(retry);
        }
        if self.is_resumable { new.on_worker_lost(OnWorkerLost::Resume) } else { new }
    }
}
