//! The options of a task that runs a registered operation.

use rmcp::task_manager::TaskOptions;

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
    pub(super) task: TaskOptions,
    pub(super) on_worker_lost: OnWorkerLost,
    pub(super) max_attempts: Option<u32>,
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

    /// Sets the number of lost workers at which the task fails, at least 1. The default is
    /// [`StoreConfig::max_attempts`](crate::StoreConfig::max_attempts). Only a task that can resume has more than one
    /// attempt. A release by a shutdown does not count.
    pub fn max_attempts(mut self, max: u32) -> Self {
        self.max_attempts = Some(max);
        self
    }
}

impl From<TaskOptions> for RegisteredOptions {
    fn from(task: TaskOptions) -> Self {
        Self { task, ..Self::default() }
    }
}
