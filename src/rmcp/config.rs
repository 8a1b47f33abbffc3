//! What a manager allows.

use std::fmt;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use super::renewer::{self, Connect};
use crate::backend::{Agenda, StorageError};

/// How many tasks that wait for a worker an instance runs at once by default, for each core.
const RUNS_PER_CORE: usize = 4;

/// The settings of a [`DurableTaskManager`](super::DurableTaskManager). Every value has a default; each method replaces
/// one.
///
/// ```
/// use mcp_task_store::{DurableTaskManager, ManagerConfig};
/// use mcp_task_store::{MemoryBackend, TaskStore};
///
/// let config = ManagerConfig::new().max_concurrent(2);
/// let tasks = DurableTaskManager::with_config(TaskStore::new(MemoryBackend::new()), config);
/// ```
#[must_use]
pub struct ManagerConfig<B> {
    pub(super) max_concurrent: usize,
    /// Connects the dedicated renewals.
    pub(super) connect: Option<Connect<B>>,
}

impl<B> fmt::Debug for ManagerConfig<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerConfig")
            .field("max_concurrent", &self.max_concurrent)
            .field("dedicated_renewals", &self.connect.is_some())
            .finish()
    }
}

impl<B> Default for ManagerConfig<B> {
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        Self { max_concurrent: cores * RUNS_PER_CORE, connect: None }
    }
}

impl<B: Agenda> ManagerConfig<B> {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many tasks that waited for a worker this process runs at once, at least 1; four for each core unless set.
    /// The others stay in the queue, for other instances or until an operation here ends.
    ///
    /// An operation that waits for input does not count. When the answer comes, it continues as soon as it may run again. One
    /// that must stop does so at once. An operation that a call of this process has spawned never counts.
    pub fn max_concurrent(mut self, max: usize) -> Self {
        self.max_concurrent = max.max(1);
        self
    }

    /// Renews leases on a thread with a Tokio runtime of its own, over a connection of its own, which `connect` makes there.
    /// Off unless set.
    ///
    /// By default an operation that blocks its runtime for longer than its lease loses it. Prefer
    /// [`spawn_blocking`](tokio::task::spawn_blocking) for such work: a blocked runtime also answers no requests. Set this
    /// where you cannot rule it out.
    ///
    /// `connect` must connect to the same engine with the same key prefix. It is called again until it succeeds; meanwhile the
    /// thread renews over the engine of the store. The thread ends with the last clone of the manager and the last operation.
    /// An operation that never returns keeps its lease until its TTL elapses.
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis")]
    /// # async fn example(url: &'static str) -> Result<(), mcp_task_store::StorageError> {
    /// use mcp_task_store::{DurableTaskManager, ManagerConfig};
    /// use mcp_task_store::{RedisBackend, TaskStore};
    ///
    /// let store = TaskStore::new(RedisBackend::connect(url).await?);
    /// let config = ManagerConfig::new().dedicated_renewals(async move || RedisBackend::connect(url).await);
    /// let tasks = DurableTaskManager::with_config(store, config);
    /// # Ok(())
    /// # }
    /// ```
    pub fn dedicated_renewals(
        mut self,
        connect: impl AsyncFn() -> Result<B, StorageError> + Send + 'static,
    ) -> Self {
        self.connect = Some(renewer::connect(connect));
        self
    }
}
