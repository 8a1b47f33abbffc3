//! The tasks of a server, whichever instance started them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rmcp::model::{DetailedTask, Task};
use rmcp::task_manager::{TaskFuture, TaskOptions};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::config::ManagerConfig;
use super::context::TaskContext;
use super::places::{Place, Places};
use super::renewer::Renewer;
use super::run::{self, Run};
use super::stop::Stop;
use super::wire;
use super::worker::Working;
use crate::backend::{Agenda, OwnerId, TaskId, TaskKey};
use crate::store::{Attempt, NewTask, TaskError, TaskStore};
use crate::task::{OnWorkerLost, StoredTask};

/// How long a shutdown waits for a create or a claim that is under way.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Starts tasks, runs their operations and answers the clients, as the SDK's `TaskManager` does, but durably: every instance
/// answers for the tasks of all instances, and finds their lost workers.
///
/// * An operation given to [`spawn`](Self::spawn) is a closure, which no other process can run. When its worker is
///   lost, the task fails.
/// * One that is [registered](Self::register) by name can be run again by any instance that has registered the name,
///   if it was [spawned](Self::spawn_registered) to resume. Only one attempt at a time can write to the task; what
///   the operation does *outside* of the store may overlap for a moment with an earlier attempt that has not yet
///   detected the loss of its lease, and is done again from the start. Make it idempotent.
///
/// The [`TaskStore`] of every instance finds the lost workers of all instances. Each manager has one background
/// task, which takes the tasks that wait for a worker of an operation that it has registered. It starts with the manager,
/// or with the first call if the manager is made outside of a Tokio runtime, and again with the next call if its runtime
/// has ended.
///
/// Cheap to clone; all clones are one manager. It needs a Tokio runtime.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use mcp_task_store::DurableTaskManager;
/// use mcp_task_store::{MemoryBackend, OwnerId, TaskStore};
/// use rmcp::model::{CallToolResult, ContentBlock};
/// use rmcp::task_manager::TaskOptions;
///
/// let tasks = DurableTaskManager::new(TaskStore::new(MemoryBackend::new()));
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let task = tasks
///     .spawn(&alice, "greet", TaskOptions::new(), |_context| {
///         Box::pin(async { Ok(CallToolResult::success(vec![ContentBlock::text("done")])) })
///     })
///     .await?;
/// // Whoever polls, at whichever instance, finds it.
/// let state = tasks.get_task(&alice, &task.task_id).await?;
/// assert_eq!(state.task.task_id, task.task_id);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of [`TaskStore`]; each converts into the SDK's `ErrorData` for the client.
///
/// # Cancellation safety
/// As for [`TaskStore`]. Dropping the future of a spawn may leave a task that no client knows. The store fails it, or the next
/// worker runs it if it can resume.
pub struct DurableTaskManager<B>(Arc<Inner<B>>);

impl<B> Clone for DurableTaskManager<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> fmt::Debug for DurableTaskManager<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableTaskManager")
            .field("running", &*self.0.running.borrow())
            .finish_non_exhaustive()
    }
}

pub(super) type Operation = Arc<dyn Fn(TaskContext, Value) -> TaskFuture + Send + Sync>;

pub(super) struct Inner<B> {
    pub(super) store: TaskStore<B>,
    operations: Mutex<HashMap<String, Operation>>,
    /// How many runs there are in this process.
    running: watch::Sender<usize>,
    /// Since when this process is about to end.
    stop: watch::Sender<Option<Instant>>,
    pub(super) working: Working,
    pub(super) places: Places,
    renewer: Arc<Renewer<B>>,
}

/// The options of a task that runs a registered operation.
///
/// ```
/// use mcp_task_store::OnWorkerLost;
/// use mcp_task_store::RegisteredOptions;
/// use rmcp::task_manager::TaskOptions;
///
/// let task = TaskOptions::new().with_ttl_ms(600_000);
/// let options = RegisteredOptions::from(task).on_worker_lost(OnWorkerLost::Resume).max_attempts(5);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RegisteredOptions {
    task: TaskOptions,
    on_worker_lost: OnWorkerLost,
    max_attempts: Option<u32>,
}

impl RegisteredOptions {
    /// Returns the SDK's default options. The task fails when its worker is lost.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what happens to the task when its worker is lost; it fails unless set.
    pub fn on_worker_lost(mut self, then: OnWorkerLost) -> Self {
        self.on_worker_lost = then;
        self
    }

    /// Sets how many attempts may lose their worker before the task fails, at least 1; as
    /// [configured](crate::StoreConfig::max_attempts) unless set. It counts only for a task that can resume. A release by a
    /// shutdown does not count.
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

impl<B: Agenda> DurableTaskManager<B> {
    /// Creates a manager of the tasks in this store, with the default configuration.
    pub fn new(store: TaskStore<B>) -> Self {
        Self::with_config(store, ManagerConfig::default())
    }

    /// Creates a manager of the tasks in this store, with this configuration.
    pub fn with_config(store: TaskStore<B>, config: ManagerConfig<B>) -> Self {
        let renewer = Arc::new(Renewer::new(&store, config.connect));
        let manager = Self(Arc::new(Inner {
            store,
            operations: Mutex::default(),
            running: watch::Sender::new(0),
            stop: watch::Sender::new(None),
            working: Working::default(),
            places: Places::new(config.max_concurrent),
            renewer,
        }));
        manager.0.begin_to_work();
        manager
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
        self.0.operations().insert(name.into(), Arc::new(operation));
        self.0.working.registered.notify_one();
        self.0.begin_to_work();
    }

    /// Begins a task, and returns it once it is stored, for the SDK's `CreateTaskResult`. The name says what the closure
    /// does, the name of the tool for instance; it is stored as the task's [operation](crate::Task::operation).
    ///
    /// In a `tools/call`, use [`spawn_for`](Self::spawn_for), which refuses clients that cannot read the task.
    ///
    /// The operation runs in a span `task`, a child of the current span.
    ///
    /// # Errors
    /// As [`TaskStore::start`]; [`ShuttingDown`](TaskError::ShuttingDown) after [`shutdown`](Self::shutdown);
    /// [`OperationPanicked`](TaskError::OperationPanicked) if the closure panics before it returns its future, in which case
    /// the task fails.
    pub async fn spawn<F>(
        &self,
        owner: &OwnerId,
        name: &str,
        options: TaskOptions,
        make_future: F,
    ) -> Result<Task, TaskError>
    where
        F: FnOnce(TaskContext) -> TaskFuture,
    {
        self.0.start(owner, wire::new_task(options).operation(name), make_future).await
    }

    /// Begins a task that runs a registered operation with these arguments. Its name and arguments are in the record.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn); [`InvalidArgument`](TaskError::InvalidArgument) for a name that is not registered.
    pub async fn spawn_registered(
        &self,
        owner: &OwnerId,
        name: &str,
        arguments: Value,
        options: impl Into<RegisteredOptions>,
    ) -> Result<Task, TaskError> {
        let RegisteredOptions { task, on_worker_lost, max_attempts } = options.into();
        let Some(operation) = self.0.operation(name) else {
            let reason = format!("no operation {name:?} is registered");
            return Err(TaskError::InvalidArgument { reason });
        };
        let new = wire::new_task(task).arguments(arguments.clone()).operation(name);
        let new = new.on_worker_lost(on_worker_lost);
        let new = match max_attempts {
            Some(max) => new.max_attempts(max),
            None => new,
        };
        self.0.start(owner, new, |context| operation(context, arguments)).await
    }

    /// Answers `tasks/get`.
    ///
    /// # Errors
    /// [`NotFound`](TaskError::NotFound) for a task that the owner does not have.
    pub async fn get_task(&self, owner: &OwnerId, task_id: &str) -> Result<DetailedTask, TaskError> {
        let key = self.0.key(owner, task_id)?;
        let stored = self.0.store.get(&key).await?;
        wire::detailed(&self.0.store, &stored).await
    }

    /// Answers `tasks/update`: passes the client's answers on to the operation, wherever it runs. Answers to requests
    /// that are not open are ignored.
    ///
    /// # Errors
    /// As [`get_task`](Self::get_task); [`LimitExceeded`](TaskError::LimitExceeded) for an answer that is too large.
    pub async fn update_task(
        &self,
        owner: &OwnerId,
        task_id: &str,
        input_responses: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<(), TaskError> {
        let key = self.0.key(owner, task_id)?;
        self.0.store.deliver_inputs(&key, input_responses).await.map(drop)
    }

    /// Answers `tasks/cancel`: asks the operation to stop, wherever it runs, which decides how the task ends. A task
    /// that nobody works on is cancelled at once; one that has ended stays as it is.
    ///
    /// # Errors
    /// As [`get_task`](Self::get_task).
    pub async fn cancel_task(&self, owner: &OwnerId, task_id: &str) -> Result<(), TaskError> {
        let key = self.0.key(owner, task_id)?;
        self.0.store.request_cancel(&key).await.map(drop)
    }

    /// Returns how many operations run in this process.
    pub fn running_task_count(&self) -> usize {
        *self.0.running.borrow()
    }

    /// Stops the operations of this process and releases their leases. Other instances resume at once the tasks that can
    /// resume; the others fail. Deletes nothing. Returns when that is done. If the engine does not take the outcome of an
    /// operation that has ended, it returns after 30 s, and the log has one line for each outcome that is lost. This manager
    /// starts no more work once this was called.
    ///
    /// # Cancellation safety
    /// Dropping the future does not revoke the shutdown.
    pub async fn shutdown(&self) {
        self.0.stop.send_if_modified(|since| {
            let is_first = since.is_none();
            since.get_or_insert_with(Instant::now);
            is_first
        });
        let _ = self.0.running.subscribe().wait_for(|running| *running == 0).await;
    }
}

/// Counts as a run until it is dropped. It does not hold the manager, which ends with its last clone.
pub(super) struct Running(watch::Sender<usize>);

impl Running {
    pub(super) fn new<B>(inner: &Inner<B>) -> Self {
        inner.running.send_modify(|running| *running += 1);
        Self(inner.running.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

impl<B: Agenda> Inner<B> {
    /// Nothing panics while it holds the operations.
    fn operations(&self) -> MutexGuard<'_, HashMap<String, Operation>> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of the operations that it runs.
    pub(super) fn registered(&self) -> Vec<String> {
        self.operations().keys().cloned().collect()
    }

    /// Tells when this process is about to end.
    pub(super) fn stop(&self) -> Stop {
        Stop::new(&self.stop)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.borrow().is_some()
    }

    pub(super) fn operation(&self, name: &str) -> Option<Operation> {
        self.operations().get(name).cloned()
    }

    /// The key of a task that a client names.
    fn key(self: &Arc<Self>, owner: &OwnerId, task_id: &str) -> Result<TaskKey, TaskError> {
        self.begin_to_work();
        let task = TaskId::try_from(task_id).map_err(|_| TaskError::InvalidArgument {
            reason: "the task id is empty or too long".to_owned(),
        })?;
        Ok(TaskKey { owner: owner.clone(), task })
    }

    async fn start(
        self: &Arc<Self>,
        owner: &OwnerId,
        new: NewTask,
        make_future: impl FnOnce(TaskContext) -> TaskFuture,
    ) -> Result<Task, TaskError> {
        let caller = Span::current();
        self.begin_to_work();
        // Counted before it looks, so that a shutdown waits for what it has not stopped.
        let running = Running::new(self);
        if self.is_stopping() {
            return Err(TaskError::ShuttingDown);
        }
        let stop = self.stop();
        // No client knows a task whose creation is given up. The store fails it, or releases it if it can resume.
        let (stored, attempt) = tokio::select! {
            started = self.store.start(owner, new) => started?,
            () = stop.passed(PATIENCE) => return Err(TaskError::ShuttingDown),
        };
        let (task, id) = (wire::task(&stored), stored.key.task.clone());
        let span = run::span(caller.id(), &stored, &attempt);
        let has_begun = span.in_scope(|| {
            tracing::info!("started");
            self.run(running, attempt, stored, None, make_future)
        });
        if has_begun { Ok(task) } else { Err(TaskError::OperationPanicked { task: id }) }
    }

    /// Runs an operation in the current span. Returns whether its closure has returned a future; if not, it has panicked.
    pub(super) fn run(
        self: &Arc<Self>,
        running: Running,
        attempt: Attempt<B>,
        stored: StoredTask,
        place: Option<Place>,
        make_future: impl FnOnce(TaskContext) -> TaskFuture,
    ) -> bool {
        let (store, renewer) = (self.store.clone(), Arc::clone(&self.renewer));
        let (run, has_begun) = Run::begin(store, renewer, attempt, stored, place, make_future);
        let stop = self.stop();
        let attend = async move {
            run.attend(stop).await;
            drop(running);
        };
        tokio::spawn(attend.in_current_span());
        has_begun
    }
}
