//! A process that runs the tasks that servers enqueue.

use std::fmt;
use std::io;
use std::time::Duration;

use super::config::ManagerConfig;
use super::manager::DurableTaskManager;
use super::tools::TaskTools;
use crate::backend::Agenda;
use crate::store::{TaskError, TaskStore};

/// How long a worker waits for its running tasks by default when it stops.
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// Runs tasks in a process of its own: those that a server [enqueues](crate::TaskServerConfig::enqueue_only), and those of lost
/// workers.
///
/// A worker claims the tasks of its operations that wait, on any engine with timers. Any number of workers may serve the same
/// operations. Each task is claimed by one of them at a time. While more tasks wait than the workers can run, the owners have their
/// turns, so one owner with many tasks does not hold up the others. A task of an operation that no worker knows waits until its TTL elapses.
///
/// # Examples
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use mcp_task_store::{RedisBackend, TaskContext, TaskStore, TaskTools, Worker};
/// use rmcp::model::{CallToolResult, ContentBlock};
/// use rmcp::schemars;
/// use rmcp::task_manager::TaskExit;
///
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// struct Film {
///     frames: u64,
/// }
///
/// async fn render(task: TaskContext, film: Film) -> Result<CallToolResult, TaskExit> {
///     task.set_status_message(format!("rendering {} frames", film.frames));
///     Ok(CallToolResult::success(vec![ContentBlock::text("rendered")]))
/// }
///
/// let store = TaskStore::new(RedisBackend::connect("redis://127.0.0.1:6379").await?);
/// let tools = TaskTools::new().tool("render", "Renders a film", render).resumable();
/// Worker::new(store).operations(tools).concurrency(8).run().await?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Worker<B> {
    store: TaskStore<B>,
    config: ManagerConfig<B>,
    operations: TaskTools,
    drain: Duration,
}

impl<B> fmt::Debug for Worker<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("config", &self.config)
            .field("operations", &self.operations)
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}

impl<B: Agenda> Worker<B> {
    /// Returns a worker on this store, without operations.
    pub fn new(store: TaskStore<B>) -> Self {
        Self::with_config(store, ManagerConfig::default())
    }

    /// Returns a worker on this store with this configuration, for example with
    /// [dedicated renewals](ManagerConfig::dedicated_renewals).
    pub fn with_config(store: TaskStore<B>, config: ManagerConfig<B>) -> Self {
        Self { store, config, operations: TaskTools::new(), drain: DEFAULT_DRAIN }
    }

    /// Sets the operations that this worker runs: the tools of the servers, or some of them. Settings that concern the calls of
    /// clients have no effect here.
    pub fn operations(mut self, tools: TaskTools) -> Self {
        self.operations = tools;
        self
    }

    /// Sets how many tasks this worker runs at once, at least 1: see [`ManagerConfig::max_concurrent`]. The default is four for each
    /// core.
    pub fn concurrency(mut self, max: usize) -> Self {
        self.config = self.config.max_concurrent(max);
        self
    }

    /// Sets how many tasks of an operation all workers run at once: see [`ManagerConfig::limit`].
    pub fn limit(mut self, operation: impl Into<String>, max: u32) -> Self {
        self.config = self.config.limit(operation, max);
        self
    }

    /// Sets how many tasks of one owner all workers run at once: see [`ManagerConfig::limit_per_owner`].
    pub fn limit_per_owner(mut self, max: u32) -> Self {
        self.config = self.config.limit_per_owner(max);
        self
    }

    /// Sets how long the running tasks may go on once the worker stops. The default is 30 s. Then the worker releases the rest:
    /// other workers resume those that can resume at once, and the others fail.
    pub fn drain(mut self, limit: Duration) -> Self {
        self.drain = limit;
        self
    }

    /// Claims and runs tasks until the process receives SIGTERM or Ctrl-C. Then the worker claims no more tasks, and returns once
    /// its running tasks have ended. After the [`drain`](Self::drain) limit, it stops and releases the rest, which takes up to 10 s
    /// more. A second signal is ignored.
    ///
    /// While the engine fails, the worker keeps its running tasks alive, and stores their outcomes once the engine is back. A worker
    /// that stops meanwhile waits for the engine for up to 30 s after the drain limit.
    ///
    /// # Errors
    /// [`InvalidArgument`](TaskError::InvalidArgument) for a worker without operations, for a mistake in the tools, and if the process
    /// cannot receive signals.
    ///
    /// # Cancellation safety
    /// If the future is dropped, the worker claims no more tasks. Its running tasks go on until their runtime ends.
    pub async fn run(self) -> Result<(), TaskError> {
        let stop = stop_signal().map_err(|error| TaskError::InvalidArgument {
            reason: format!("the process cannot receive signals: {error}; use Worker::run_until"),
        })?;
        self.run_until(stop).await
    }

    /// Claims and runs tasks until `stop` is ready. Otherwise the call is like [`run`](Self::run).
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    ///
    /// # Cancellation safety
    /// As for [`run`](Self::run).
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), TaskError> {
        let tools = self.operations.checked(&self.store)?;
        if tools.is_empty() {
            let reason = "the worker has no operations; set Worker::operations".to_owned();
            return Err(TaskError::InvalidArgument { reason });
        }
        let tasks = DurableTaskManager::with_config(self.store, self.config);
        tools.iter().for_each(|tool| tasks.register_tool(tool));
        stop.await;
        tasks.drain(self.drain).await;
        tasks.shutdown().await;
        Ok(())
    }
}

/// Returns a future that is ready once the process is asked to stop. Signals are received from the call on.
#[cfg(unix)]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Returns a future that is ready once the process is asked to stop.
#[cfg(not(unix))]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "the process cannot receive Ctrl-C; the worker stops");
        }
    })
}
