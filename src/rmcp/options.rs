//! The options of a task that runs a registered operation.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rmcp::task_manager::TaskOptions;
use serde_json::Value;

use super::wire;
use crate::backend::Priority;
use crate::store::{EarliestStart, NewTask, Retry};
use crate::task::OnWorkerLost;

/// The options of a task that runs a registered operation: those of the SDK, and what happens when a worker is lost.
///
/// # Examples
/// ```
/// use mcp_task_store::{OnWorkerLost, RegisteredOptions};
/// use rmcp::task_manager::TaskOptions;
///
/// let task = TaskOptions::new().with_ttl_ms(600_000).with_status_message("queued");
/// let options = RegisteredOptions::from(task).on_worker_lost(OnWorkerLost::Resume).max_attempts(5);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RegisteredOptions {
    task: TaskOptions,
    on_worker_lost: OnWorkerLost,
    max_attempts: Option<u32>,
    retry: Option<Retry>,
    priority: Priority,
    earliest_start: EarliestStart,
}

impl RegisteredOptions {
    /// Returns the SDK's default options. The task fails when its worker is lost.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what happens to the task when its worker is lost. By default the task fails.
    pub fn on_worker_lost(mut self, then: OnWorkerLost) -> Self {
        self.on_worker_lost = then;
        self
    }

    /// Sets the number of attempts at which the task fails, at least 1. The default is
    /// [`StoreConfig::max_attempts`](crate::StoreConfig::max_attempts). Only a task that can resume has more than one
    /// attempt. A release by a shutdown does not count.
    pub fn max_attempts(mut self, max: u32) -> Self {
        self.max_attempts = Some(max);
        self
    }

    /// Sets how many attempts the task has, and how long it waits before each further one: see [`NewTask::retry`]. Only a task that
    /// can resume may have a retry. It applies to lost workers, and to errors that the operation
    /// [marks](crate::TaskContext::retry).
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Sets the priority of the task while it waits for a worker: see [`NewTask::priority`].
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Lets an [enqueued](crate::DurableTaskManager::enqueue) task begin only after this time: see [`NewTask::delay`].
    pub fn delay(mut self, delay: Duration) -> Self {
        self.earliest_start = EarliestStart::After(delay);
        self
    }

    /// Lets an [enqueued](crate::DurableTaskManager::enqueue) task begin only at this time: see [`NewTask::not_before`].
    pub fn not_before(mut self, time: DateTime<Utc>) -> Self {
        self.earliest_start = EarliestStart::At(time);
        self
    }

    /// Returns the task of an operation with these arguments.
    pub(super) fn new_task(self, operation: &str, arguments: Value) -> NewTask {
        let new = wire::new_task(self.task).arguments(arguments).operation(operation);
        let new = new.on_worker_lost(self.on_worker_lost).priority(self.priority);
        let mut new = new.earliest_start(self.earliest_start);
        if let Some(max) = self.max_attempts {
            new = new.max_attempts(max);
        }
        if let Some(retry) = self.retry {
            new = new.retry(retry);
        }
        new
    }
}

impl From<TaskOptions> for RegisteredOptions {
    fn from(task: TaskOptions) -> Self {
        Self { task, ..Self::default() }
    }
}
