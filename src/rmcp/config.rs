//! What a manager allows.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

/// How many tasks that wait for a worker an instance runs at once by default, for each core.
const RUNS_PER_CORE: usize = 4;

/// The settings of a [`DurableTaskManager`](super::DurableTaskManager). Every value has a default; each method replaces
/// one.
///
/// ```
/// use mcp_task_store::rmcp::{DurableTaskManager, ManagerConfig};
/// use mcp_task_store::{MemoryBackend, TaskStore};
///
/// let config = ManagerConfig::new().max_concurrent(2);
/// let tasks = DurableTaskManager::with_config(TaskStore::new(MemoryBackend::new()), config);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ManagerConfig {
    pub(super) max_concurrent: usize,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        Self { max_concurrent: cores * RUNS_PER_CORE }
    }
}

impl ManagerConfig {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many tasks that waited for a worker this process runs at once, at least 1; four for each core unless set.
    /// The others stay in the queue, for other instances or until an operation here ends.
    ///
    /// An operation that waits for input does not count. When the answer comes, it goes on as soon as there is a place; one
    /// that must stop does so at once. An operation that a call of this process has spawned never counts.
    pub fn max_concurrent(mut self, max: usize) -> Self {
        self.max_concurrent = max.max(1);
        self
    }
}
