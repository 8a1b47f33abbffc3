//! The settings of a manager.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;

use rmcp::model::JsonObject;
use rmcp::service::{RequestContext, RoleServer};

use super::fleet_limits::FleetLimits;
use super::renewer::{self, Connect};
use super::request::FindExtensions;
use crate::backend::{Agenda, StorageError};

/// How many claimed tasks an instance runs at once by default, for each core.
const RUNS_PER_CORE: usize = 4;

/// The settings of a [`DurableTaskManager`](super::DurableTaskManager). Every setting has a default; each method replaces one.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use mcp_task_store::{DurableTaskManager, ManagerConfig, MemoryBackend, TaskStore};
///
/// let config = ManagerConfig::new().max_concurrent(2);
/// let tasks = DurableTaskManager::with_config(TaskStore::new(MemoryBackend::new()), config);
/// assert_eq!(tasks.running_task_count(), 0);
/// # }
/// ```
#[must_use]
pub struct ManagerConfig<B> {
    pub(super) max_concurrent: usize,
    pub(super) limits: FleetLimits,
    /// Creates the connection of the dedicated renewals.
    pub(super) connect: Option<Connect<B>>,
    /// Finds the values of a request that its task keeps.
    pub(super) extensions: Option<FindExtensions>,
}

impl<B> fmt::Debug for ManagerConfig<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerConfig")
            .field("max_concurrent", &self.max_concurrent)
            .field("limits", &self.limits)
            .field("dedicated_renewals", &self.connect.is_some())
            .field("extensions", &self.extensions.is_some())
            .finish()
    }
}

impl<B> Default for ManagerConfig<B> {
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        let limits = FleetLimits::default();
        Self { max_concurrent: cores * RUNS_PER_CORE, limits, connect: None, extensions: None }
    }
}

impl<B: Agenda> ManagerConfig<B> {
    /// Returns the default settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many claimed tasks this instance runs at once, at least 1. The default is four for each core. Further tasks
    /// stay in the queue until an operation here ends or another instance claims them.
    ///
    /// An operation that waits for input does not count. When the answer arrives, the operation waits for a free slot and then
    /// continues. An operation that must stop does not wait for a slot. An operation that a call of this instance has started
    /// never counts.
    pub fn max_concurrent(mut self, max: usize) -> Self {
        self.max_concurrent = max.max(1);
        self
    }

    /// Sets how many claimed tasks of an operation all instances on one engine run at once, from 1 to 256. By default there is no
    /// limit. Set the same limit on every instance.
    ///
    /// Each attempt holds a slot, a small record that its instance renews. The slot of an instance that dies is free after the
    /// [lease](crate::StoreConfig::lease). Further tasks stay in the queue. An operation that a call of this instance has started
    /// itself does not count. So let the servers [only enqueue](crate::TaskServerConfig::enqueue_only) the calls of such a tool.
    ///
    /// If an instance is paused for longer than the lease, or cannot reach the engine for that long, its slots expire while its
    /// operations may still run. So the limit may be exceeded until they end.
    pub fn limit(mut self, operation: impl Into<String>, max: u32) -> Self {
        self.limits.operations.insert(operation.into(), max);
        self
    }

    /// Sets how many claimed tasks of one owner all instances on one engine run at once, from 1 to 256. By default there is no limit.
    /// Otherwise as [`limit`](Self::limit).
    ///
    /// The tasks of an owner that has reached this limit are claimed later. So they are not strictly claimed oldest first.
    pub fn limit_per_owner(mut self, max: u32) -> Self {
        self.limits.per_owner = Some(max);
        self
    }

    /// Sets which values of a `tools/call` its task keeps, for example the tenant or the locale. By default a task keeps
    /// none. The operation reads them with [`TaskContext::extensions`](super::TaskContext::extensions), in every attempt and
    /// on every instance. `find` is called before the task is stored, and must not block. The values have at most 4 KiB as
    /// JSON.
    ///
    /// The record of the task holds the values in plain text. So do not return the token of the request. An operation that
    /// calls another service should use a credential of the server.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use http::request::Parts;
    /// use mcp_task_store::{DurableTaskManager, ManagerConfig, MemoryBackend, TaskStore};
    /// use rmcp::model::JsonObject;
    ///
    /// let config = ManagerConfig::new().extensions(|request| {
    ///     let http = request.extensions.get::<Parts>();
    ///     let locale = http.and_then(|http| http.headers.get("Accept-Language")?.to_str().ok());
    ///     JsonObject::from_iter(locale.map(|locale| ("locale".to_owned(), locale.into())))
    /// });
    /// let tasks = DurableTaskManager::with_config(TaskStore::new(MemoryBackend::new()), config);
    /// # }
    /// ```
    pub fn extensions(
        mut self,
        find: impl Fn(&RequestContext<RoleServer>) -> JsonObject + Send + Sync + 'static,
    ) -> Self {
        self.extensions = Some(Arc::new(find));
        self
    }

    /// Renews leases on a thread with a Tokio runtime of its own, over a connection of its own. `connect` creates
    /// that connection, on that thread. The default is off.
    ///
    /// By default an operation that blocks its runtime for longer than its lease loses the lease. Prefer
    /// [`spawn_blocking`](tokio::task::spawn_blocking) for such work, because a blocked runtime also answers no requests. Use
    /// this setting if you cannot rule out that an operation blocks.
    ///
    /// `connect` must connect to the same engine with the same key prefix. The thread calls it again until it
    /// succeeds. Meanwhile the thread renews leases over the connection of the store. The thread ends with the last
    /// clone of the manager and the last operation. An operation that never returns keeps its lease until the TTL of
    /// its task elapses.
    ///
    /// # Examples
    /// ```no_run
    /// # #[cfg(feature = "redis")]
    /// # async fn example(url: &'static str) -> Result<(), mcp_task_store::StorageError> {
    /// use mcp_task_store::{DurableTaskManager, ManagerConfig, RedisBackend, TaskStore};
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
