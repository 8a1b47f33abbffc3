//! The task manager of a server: starts tasks, and answers the clients' requests about them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{DetailedTask, Task};
use rmcp::task_manager::{TaskFuture, TaskOptions};
use serde_json::Value;
use tokio::time::timeout;
use tracing::Span;

use super::announcer;
use super::claimer;
use super::config::ManagerConfig;
use super::context::TaskContext;
use super::options::RegisteredOptions;
use super::request::FindExtensions;
use super::runtime::{RegisteredOperation, Runtime, SHUTDOWN_CALL_LIMIT};
use super::tools::TaskTool;
use super::wire;
use crate::backend::{Agenda, OwnerId, TaskId, TaskKey};
use crate::store::{NewTask, TaskError, TaskStore};

/// Starts tasks, runs their operations and answers the clients, in place of the SDK's `TaskManager`. Its tasks are durable:
/// every instance of a server answers for the tasks of all instances, and detects their lost workers.
///
/// There are two kinds of operations:
/// * [`spawn`](Self::spawn) takes a closure, which no other process can run. The task fails when its worker is lost.
/// * [`spawn_registered`](Self::spawn_registered) takes the name of an operation that every instance
///   [registers](Self::register). Another instance can resume its task. Only one attempt at a time can write to the task. What
///   the operation does *outside* of the store may overlap with an earlier attempt that has not yet detected the loss of its
///   lease. Every attempt starts from the beginning, or from the [checkpoint](TaskContext::checkpoint) of an earlier attempt.
///   Make such an operation idempotent.
///
/// Each manager has one background task, which claims the tasks that wait for a worker of a registered operation. The
/// background task starts with the manager. If the manager was created outside of a Tokio runtime, or if that runtime
/// has ended, the background task starts with the next call. All methods need a Tokio runtime.
///
/// A manager that has an operation announces itself to operators, who list it with [`TaskStore::workers`].
///
/// Clones are cheap and share one manager.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mcp_task_store::{DurableTaskManager, MemoryBackend, OnWorkerLost, OwnerId, RegisteredOptions, TaskStore};
/// use rmcp::model::{CallToolResult, ContentBlock};
/// use serde_json::json;
///
/// let tasks = DurableTaskManager::new(TaskStore::new(MemoryBackend::new()));
/// tasks.register("render", |task, arguments| {
///     Box::pin(async move {
///         task.set_status_message("rendering");
///         let text = format!("{} frames in attempt {}", arguments["frames"], task.attempt());
///         Ok(CallToolResult::success(vec![ContentBlock::text(text)]))
///     })
/// });
///
/// let alice = OwnerId::try_from("alice")?;
/// let options = RegisteredOptions::new().on_worker_lost(OnWorkerLost::Resume);
/// let task = tasks.spawn_registered(&alice, "render", json!({ "frames": 240 }), options).await?;
///
/// // Any instance answers a poll of the client.
/// let state = tasks.get_task(&alice, &task.task_id).await?;
/// assert_eq!(state.task.task_id, task.task_id);
/// tasks.shutdown().await;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The errors of [`TaskStore`]. Each converts into the SDK's `ErrorData` for the client.
///
/// # Cancellation safety
/// As for [`TaskStore`]. If the future of a spawn is dropped, a task may exist that no client knows. The store fails it, or the
/// next worker runs it if it can resume.
pub struct DurableTaskManager<B>(Arc<Runtime<B>>);

impl<B> Clone for DurableTaskManager<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> fmt::Debug for DurableTaskManager<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableTaskManager").field("running", &self.0.runs.get()).finish_non_exhaustive()
    }
}

impl<B: Agenda> DurableTaskManager<B> {
    /// Creates a manager of the tasks in this store, with the default configuration.
    pub fn new(store: TaskStore<B>) -> Self {
        Self::with_config(store, ManagerConfig::default())
    }

    /// Creates a manager of the tasks in this store, with this configuration.
    pub fn with_config(store: TaskStore<B>, config: ManagerConfig<B>) -> Self {
        let manager = Self(Arc::new(Runtime::new(store, config)));
        manager.ensure_claiming();
        manager
    }

    /// Starts the background task that claims tasks, unless it runs.
    fn ensure_claiming(&self) {
        claimer::ensure_running(&self.0);
    }

    /// Returns the store that keeps the tasks.
    pub fn store(&self) -> &TaskStore<B> {
        &self.0.store
    }

    /// Registers an operation by name, and replaces an earlier one of that name. From then on this instance claims the tasks
    /// of this operation that wait for a worker. Register the same operations on every instance before it serves.
    pub fn register<F>(&self, name: impl Into<String>, operation: F)
    where
        F: Fn(TaskContext, Value) -> TaskFuture + Send + Sync + 'static,
    {
        let with_arguments = move |context: TaskContext, arguments: Value| {
            operation(context.with_arguments(Arc::new(arguments.clone())), arguments)
        };
        self.0.register(name.into(), Arc::new(with_arguments), None);
        self.ensure_claiming();
    }

    /// Registers the operation of a tool, as [`register`](Self::register) does. If the tool has places, this instance claims
    /// its tasks only while one of them is free.
    pub(super) fn register_tool(&self, tool: &TaskTool) {
        let claimed = tool.clone();
        // The tool passes the arguments to the context itself.
        let operation = move |context, arguments: Value| claimed.run(context, &arguments);
        self.0.register(tool.name().to_owned(), Arc::new(operation), tool.places().cloned());
        self.ensure_claiming();
    }

    /// Tells operators that this process runs an operation, which it need not claim.
    pub(super) fn announce(&self, operation: &str) {
        self.0.announce(operation);
    }

    /// Starts a task that runs a closure, and returns it once it is stored, for the SDK's `CreateTaskResult`. `name` says what
    /// the closure does, for instance the name of the tool. The record keeps it as the task's
    /// [operation](crate::Task::operation).
    ///
    /// In a `tools/call`, use [`spawn_for`](Self::spawn_for), which refuses clients that cannot read the task.
    ///
    /// The operation runs in a span `task`, a child of the current span.
    ///
    /// # Errors
    /// The errors of [`TaskStore::start`]; [`ShuttingDown`](TaskError::ShuttingDown) after [`shutdown`](Self::shutdown);
    /// [`OperationPanicked`](TaskError::OperationPanicked) if the closure panics before it returns its future, in which case
    /// the task fails.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use mcp_task_store::{DurableTaskManager, MemoryBackend, OwnerId, TaskStore};
    /// use rmcp::model::{CallToolResult, ContentBlock};
    /// use rmcp::task_manager::TaskOptions;
    ///
    /// # let tasks = DurableTaskManager::new(TaskStore::new(MemoryBackend::new()));
    /// let alice = OwnerId::try_from("alice")?;
    /// let options = TaskOptions::new().with_ttl_ms(60_000);
    /// let task = tasks
    ///     .spawn(&alice, "greet", options, |_task| {
    ///         Box::pin(async { Ok(CallToolResult::success(vec![ContentBlock::text("hello")])) })
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn spawn<F>(
        &self,
        owner: &OwnerId,
        name: &str,
        options: TaskOptions,
        operation: F,
    ) -> Result<Task, TaskError>
    where
        F: FnOnce(TaskContext) -> TaskFuture,
    {
        self.start(owner, closure_task(name, options), operation).await
    }

    /// Starts a task that runs a registered operation with these arguments, and returns it once it is stored. The record keeps
    /// the name and the arguments.
    ///
    /// # Errors
    /// The errors of [`spawn`](Self::spawn); [`InvalidArgument`](TaskError::InvalidArgument) if no operation of this name is
    /// registered.
    pub async fn spawn_registered(
        &self,
        owner: &OwnerId,
        name: &str,
        arguments: Value,
        options: impl Into<RegisteredOptions>,
    ) -> Result<Task, TaskError> {
        let (new, operation) = self.registered_task(name, &arguments, options.into())?;
        self.start(owner, new, |context| operation(context, arguments)).await
    }

    /// Returns the task of a call of a registered operation, and the operation.
    pub(super) fn registered_task(
        &self,
        name: &str,
        arguments: &Value,
        options: RegisteredOptions,
    ) -> Result<(NewTask, RegisteredOperation), TaskError> {
        let Some(operation) = self.0.operation(name) else {
            let reason = format!(
                "no operation {name:?} is registered; register it on every instance before the server starts"
            );
            return Err(TaskError::InvalidArgument { reason });
        };
        Ok((options.new_task(name, arguments.clone()), operation))
    }

    /// Returns how to find the values of a request that its task keeps.
    pub(super) fn extensions(&self) -> Option<&FindExtensions> {
        self.0.extensions.as_ref()
    }

    /// Answers `tasks/get`: returns the task with its open requests, its result or its error.
    ///
    /// Calls for one task that are under way in this process at the same time share reads. A call sees every change that was
    /// acknowledged, on any instance, before the call began.
    ///
    /// # Errors
    /// [`NotFound`](TaskError::NotFound) if the owner has no such task.
    pub async fn get_task(&self, owner: &OwnerId, task_id: &str) -> Result<DetailedTask, TaskError> {
        let key = self.key(owner, task_id)?;
        let read = async {
            let stored = self.0.store.get(&key).await?;
            wire::detailed(&self.0.store, &stored).await
        };
        self.0.polls.poll(&key, read).await
    }

    /// Answers `tasks/update`: delivers the client's answers to the operation, on any instance. The store ignores
    /// answers to requests that are not open.
    ///
    /// # Errors
    /// As [`get_task`](Self::get_task); [`LimitExceeded`](TaskError::LimitExceeded) if an answer is too large or
    /// nested too deeply.
    pub async fn update_task(
        &self,
        owner: &OwnerId,
        task_id: &str,
        input_responses: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<(), TaskError> {
        let key = self.key(owner, task_id)?;
        self.0.store.deliver_inputs(&key, input_responses).await.map(drop)
    }

    /// Answers `tasks/cancel`: asks the operation to stop, on any instance. The operation decides how the task ends.
    /// A task that waits for a worker is cancelled at once. A task that has ended stays as it is.
    ///
    /// # Errors
    /// As [`get_task`](Self::get_task).
    pub async fn cancel_task(&self, owner: &OwnerId, task_id: &str) -> Result<(), TaskError> {
        let key = self.key(owner, task_id)?;
        self.0.store.request_cancel(&key).await.map(drop)
    }

    /// Returns how many operations run in this process.
    pub fn running_task_count(&self) -> usize {
        self.0.runs.get()
    }

    /// Stops the operations of this process and releases their leases. Call it when the server stops accepting requests. Do not
    /// wait for the held calls first: they may take minutes.
    ///
    /// Tasks that can resume continue on other instances at once. The other tasks fail. From the call on, the manager
    /// starts no more work. The call returns when all leases are released, and the held calls of a
    /// [`TaskServer`](crate::TaskServer) are [answered](crate::TaskServerConfig::drain). If the engine does not accept the outcome
    /// of an operation that has ended, the call returns after 30 s, and the log has one line for each lost outcome.
    ///
    /// # Cancellation safety
    /// Dropping the future does not revoke the shutdown.
    pub async fn shutdown(&self) {
        self.0.claiming.closed.begin();
        self.0.shutdown.begin();
        // A call of the engine that hangs must not delay the shutdown for longer: what it takes is hidden for a while only.
        let _ = timeout(SHUTDOWN_CALL_LIMIT, self.0.claiming.claims.is_zero()).await;
        self.0.runs.is_zero().await;
        self.0.calls.is_zero().await;
        self.0.announcing.removed(&self.0.shutdown.signal()).await;
    }

    /// Claims no more tasks, and waits until the operations of this process have ended, at most for `limit`. The caller shuts the
    /// manager down afterwards.
    pub(super) async fn drain(&self, limit: Duration) {
        self.0.claiming.closed.begin();
        let ended = async {
            self.0.claiming.claims.is_zero().await;
            self.0.runs.is_zero().await;
        };
        if timeout(limit, ended).await.is_err() {
            tracing::info!(
                running = self.0.runs.get(),
                "the drain limit has elapsed; running tasks are released"
            );
        }
    }

    /// Returns what all clones of this manager share.
    pub(super) fn runtime(&self) -> &Runtime<B> {
        self.ensure_claiming();
        &self.0
    }

    /// Returns the key of a task that a client names.
    fn key(&self, owner: &OwnerId, task_id: &str) -> Result<TaskKey, TaskError> {
        self.ensure_claiming();
        let task = TaskId::try_from(task_id).map_err(|_| TaskError::InvalidArgument {
            reason: "the task id is empty or longer than 256 bytes; use the id that the server returned"
                .to_owned(),
        })?;
        Ok(TaskKey { owner: owner.clone(), task })
    }

    /// Stores a task under a lease of this process, and starts its operation.
    pub(super) async fn start(
        &self,
        owner: &OwnerId,
        new: NewTask,
        operation: impl FnOnce(TaskContext) -> TaskFuture,
    ) -> Result<Task, TaskError> {
        let caller = Span::current();
        self.ensure_claiming();
        announcer::ensure_running(&self.0);
        // Counted before the check. Then a shutdown either prevents the run or waits for its end.
        let guard = self.0.runs.add();
        if self.0.shutdown.has_begun() {
            return Err(TaskError::ShuttingDown);
        }
        let shutdown = self.0.shutdown.signal();
        // If the create is dropped, no client knows the task. The store fails it, or releases it if it can resume.
        let (stored, attempt) = tokio::select! {
            started = self.0.store.start(owner, new) => started?,
            () = shutdown.limit_elapsed(SHUTDOWN_CALL_LIMIT) => return Err(TaskError::ShuttingDown),
        };
        let task = wire::task(&stored);
        self.0.run_started(guard, attempt, stored, &caller, operation)?;
        Ok(task)
    }
}

/// Returns the task of a call that runs a closure.
pub(super) fn closure_task(name: &str, options: TaskOptions) -> NewTask {
    wire::new_task(options).operation(name)
}
