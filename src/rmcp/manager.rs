//! The tasks of a server: begun here or at another instance, served by each.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rmcp::model::{DetailedTask, Task};
use rmcp::task_manager::{TaskFuture, TaskOptions};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tracing::{Instrument, debug_span};

use super::context::TaskContext;
use super::run::{Run, Stop};
use super::wire;
use crate::{
    Agenda, Attempt, NewTask, OnWorkerLost, OwnerId, PageRequest, PayloadKind, StoredTask, TaskError, TaskId,
    TaskKey, TaskStore,
};

/// Begins tasks, works on them and answers for them, as the SDK's `TaskManager` does, but durably: what one instance
/// has begun every other answers for, and a worker that is lost is noticed.
///
/// * An operation given to [`spawn`](Self::spawn) is a closure, which no other process can run. When its worker is
///   lost, the task fails.
/// * One that is [registered](Self::register) by name can be run again by any instance that has registered the name,
///   if it was [spawned](Self::spawn_registered) to resume. Only one attempt at a time can write to the task; what
///   the operation does *outside* of the store may overlap for a moment with an earlier attempt that has not yet
///   noticed that it is lost, and is done again from the start. Make it idempotent.
///
/// Lost workers are noticed by whoever reads their tasks, and by each manager that looks through the tasks of the
/// owners that it has served, and of those given to [`sweep`](Self::sweep), every third of a lease.
///
/// Cheap to clone; all clones are one manager. It needs a Tokio runtime.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use mcp_task_store::rmcp::DurableTaskManager;
/// use mcp_task_store::{MemoryBackend, OwnerId, TaskStore};
/// use rmcp::model::{CallToolResult, ContentBlock};
/// use rmcp::task_manager::TaskOptions;
///
/// let tasks = DurableTaskManager::new(TaskStore::new(MemoryBackend::new()));
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let task = tasks
///     .spawn(&alice, TaskOptions::new(), |_context| {
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
/// As for [`TaskStore`]. Dropping the future of a `spawn` may leave a task behind that nobody works on, whose lease
/// lapses.
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

/// How many records a sweep reads at a time: finished ones are among them, and may be large.
const SWEPT_AT_ONCE: usize = 32;

type Operation = Arc<dyn Fn(TaskContext, Value) -> TaskFuture + Send + Sync>;

struct Inner<B> {
    store: TaskStore<B>,
    operations: Mutex<HashMap<String, Operation>>,
    owners: Mutex<Owners>,
    /// How many runs there are in this process.
    running: watch::Sender<usize>,
    /// This process is to end.
    stop: watch::Sender<bool>,
    is_sweeping: AtomicBool,
    /// Owners were named: they are looked at now.
    named: Arc<Notify>,
}

/// Whose tasks are looked through.
#[derive(Default)]
struct Owners {
    named: HashSet<OwnerId>,
    /// Until none of their tasks is open any more.
    served: HashSet<OwnerId>,
}

/// How a registered operation is spawned.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RegisteredOptions {
    task: TaskOptions,
    on_worker_lost: OnWorkerLost,
}

impl RegisteredOptions {
    /// The SDK's default options; the task fails when its worker is lost.
    pub fn new() -> Self {
        Self::default()
    }

    /// What becomes of the task when its worker is lost.
    pub fn on_worker_lost(mut self, then: OnWorkerLost) -> Self {
        self.on_worker_lost = then;
        self
    }
}

impl From<TaskOptions> for RegisteredOptions {
    fn from(task: TaskOptions) -> Self {
        Self { task, on_worker_lost: OnWorkerLost::default() }
    }
}

impl<B: Agenda> DurableTaskManager<B> {
    /// A manager of the tasks in this store.
    pub fn new(store: TaskStore<B>) -> Self {
        let manager = Self(Arc::new(Inner {
            store,
            operations: Mutex::default(),
            owners: Mutex::default(),
            running: watch::Sender::new(0),
            stop: watch::Sender::new(false),
            is_sweeping: AtomicBool::new(false),
            named: Arc::default(),
        }));
        manager.0.begin_to_sweep();
        manager
    }

    /// The store below.
    pub fn store(&self) -> &TaskStore<B> {
        &self.0.store
    }

    /// Looks through the tasks of these owners for lost workers as well, from the first moment on, and not only once
    /// it has served them.
    pub fn sweep(&self, owners: impl IntoIterator<Item = OwnerId>) {
        self.0.owners().named.extend(owners);
        self.0.named.notify_one();
        self.0.begin_to_sweep();
    }

    /// Registers an operation by name, in place of one of that name. Every instance of a server should register the
    /// same ones before it serves.
    pub fn register<F>(&self, name: impl Into<String>, operation: F)
    where
        F: Fn(TaskContext, Value) -> TaskFuture + Send + Sync + 'static,
    {
        self.0.operations().insert(name.into(), Arc::new(operation));
    }

    /// Begins a task, and returns it once it is stored, for the SDK's `CreateTaskResult`.
    ///
    /// # Errors
    /// As [`TaskStore::start`]; [`ShuttingDown`](TaskError::ShuttingDown) after [`shutdown`](Self::shutdown).
    pub async fn spawn<F>(
        &self,
        owner: &OwnerId,
        options: TaskOptions,
        make_future: F,
    ) -> Result<Task, TaskError>
    where
        F: FnOnce(TaskContext) -> TaskFuture,
    {
        self.0.start(owner, wire::new_task(options), make_future).await
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
        let RegisteredOptions { task, on_worker_lost } = options.into();
        let Some(operation) = self.0.operation(name) else {
            let reason = format!("no operation {name:?} is registered");
            return Err(TaskError::InvalidArgument { reason });
        };
        let new =
            wire::new_task(task).arguments(arguments.clone()).operation(name).on_worker_lost(on_worker_lost);
        self.0.start(owner, new, |context| Box::pin(async move { operation(context, arguments).await })).await
    }

    /// Answers `tasks/get`.
    ///
    /// # Errors
    /// [`NotFound`](TaskError::NotFound) for a task that the owner does not have.
    pub async fn get_task(&self, owner: &OwnerId, task_id: &str) -> Result<DetailedTask, TaskError> {
        let key = self.0.key(owner, task_id)?;
        let stored = self.0.store.get(&key).await?;
        let state = wire::detailed(&self.0.store, &stored).await;
        self.0.adopt(stored).await;
        state
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
        let stored = self.0.store.deliver_inputs(&key, input_responses).await?;
        self.0.adopt(stored).await;
        Ok(())
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

    /// How many operations run in this process.
    pub fn running_task_count(&self) -> usize {
        *self.0.running.borrow()
    }

    /// Stops what runs in this process and hands the leases back, so that what can resume does so elsewhere at once.
    /// Deletes nothing. Returns when that is done; from then on this manager begins no more work.
    ///
    /// # Cancellation safety
    /// Dropping the future does not take it back.
    pub async fn shutdown(&self) {
        self.0.stop.send_replace(true);
        let _ = self.0.running.subscribe().wait_for(|running| *running == 0).await;
    }
}

/// Counts as a run until it is dropped.
struct Running<B>(Arc<Inner<B>>);

impl<B> Running<B> {
    fn new(inner: &Arc<Inner<B>>) -> Self {
        inner.running.send_modify(|running| *running += 1);
        Self(Arc::clone(inner))
    }
}

impl<B> Drop for Running<B> {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

impl<B: Agenda> Inner<B> {
    /// Nothing panics while it holds the operations or the owners.
    fn operations(&self) -> MutexGuard<'_, HashMap<String, Operation>> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operation(&self, name: &str) -> Option<Operation> {
        self.operations().get(name).cloned()
    }

    /// The key of a task that a client names.
    fn key(self: &Arc<Self>, owner: &OwnerId, task_id: &str) -> Result<TaskKey, TaskError> {
        self.begin_to_sweep();
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
        self.begin_to_sweep();
        // Counted before it looks, so that a shutdown waits for what it has not stopped.
        let running = Running::new(self);
        if *self.stop.borrow() {
            return Err(TaskError::ShuttingDown);
        }
        let (stored, attempt) = self.store.start(owner, new).await?;
        let task = wire::task(&stored);
        self.run(running, attempt, stored, make_future);
        Ok(task)
    }

    fn run(
        self: &Arc<Self>,
        running: Running<B>,
        attempt: Attempt<B>,
        stored: StoredTask,
        make_future: impl FnOnce(TaskContext) -> TaskFuture,
    ) {
        self.owners().served.insert(stored.key.owner.clone());
        let run = Run::begin(self.store.clone(), attempt, stored, make_future);
        let stop = Stop::new(&self.stop);
        tokio::spawn(async move {
            run.attend(stop).await;
            drop(running);
        });
    }

    /// Takes a task up that has lost its worker, if it can resume here.
    async fn adopt(self: &Arc<Self>, stored: StoredTask) {
        if stored.task.status.is_terminal() {
            return;
        }
        self.owners().served.insert(stored.key.owner.clone());
        if !self.store.is_orphaned(&stored) {
            return;
        }
        let Some(operation) = stored.task.operation.as_deref().and_then(|name| self.operation(name)) else {
            return;
        };
        let running = Running::new(self);
        if *self.stop.borrow() {
            return;
        }
        // Before the claim, so that a task whose arguments cannot be loaded at the moment is left to others. One whose
        // arguments are unreadable for good fails.
        let arguments = match self.store.payload(&stored, PayloadKind::Input).await {
            Err(error) if !matches!(error, TaskError::Unreadable { .. }) => {
                tracing::warn!(%error, task = %stored.key.task, "the arguments of a task could not be loaded");
                return;
            }
            loaded => loaded.map(Option::unwrap_or_default).map_err(wire::exit),
        };
        match self.store.take_up(&stored).await {
            Ok(Some(attempt)) => {
                tracing::info!(task = %stored.key.task, attempt = attempt.number(), "a task is resumed");
                self.run(running, attempt, stored, |context| {
                    Box::pin(async move { operation(context, arguments?).await })
                });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, task = %stored.key.task, "a task could not be taken up"),
        }
    }

    /// Begins to look for lost workers, unless that has begun or there is no runtime yet.
    fn begin_to_sweep(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.is_sweeping.swap(true, Ordering::Relaxed) {
            let (this, named, stop) = (Arc::downgrade(self), Arc::clone(&self.named), Stop::new(&self.stop));
            runtime.spawn(keep_sweeping(this, named, stop).instrument(debug_span!("sweep")));
        }
    }

    /// Looks through the open tasks of all owners; whether any of them may be without a worker is settled soon.
    async fn sweep(self: &Arc<Self>) -> Duration {
        let owners: HashSet<OwnerId> = {
            let mut owners = self.owners();
            // Those with open tasks are put back; so is who is served meanwhile.
            let served = std::mem::take(&mut owners.served);
            owners.named.iter().cloned().chain(served).collect()
        };
        let mut pause = self.store.lease_duration() / 3;
        for owner in owners {
            match self.sweep_owner(&owner).await {
                Ok(Open::None) => continue,
                Ok(Open::Attended) => {}
                Ok(Open::Lapsed) => pause = pause.min(crate::store::SEEN_APART),
                Err(error) => tracing::warn!(%error, %owner, "an owner's tasks could not be looked through"),
            }
            self.owners().served.insert(owner);
        }
        pause
    }

    /// Whether this instance can do something about a task that has lost its worker.
    fn may_settle(&self, stored: &StoredTask) -> bool {
        stored.task.on_worker_lost == OnWorkerLost::Fail
            || stored.task.operation.as_deref().is_some_and(|name| self.operation(name).is_some())
    }

    async fn sweep_owner(self: &Arc<Self>, owner: &OwnerId) -> Result<Open, TaskError> {
        let mut open = Open::None;
        let mut page = PageRequest::new(SWEPT_AT_ONCE);
        loop {
            let listed = self.store.list(owner, page).await?;
            for stored in listed.tasks {
                if stored.task.status.is_terminal() {
                    continue;
                }
                let now = self.store.backend().now();
                let has_lapsed = stored.task.lease.as_ref().is_some_and(|lease| !lease.is_live(now))
                    && self.may_settle(&stored);
                open = open.max(if has_lapsed { Open::Lapsed } else { Open::Attended });
                self.adopt(stored).await;
            }
            match listed.next {
                Some(next) => page = PageRequest::new(SWEPT_AT_ONCE).after(next),
                None => return Ok(open),
            }
        }
    }
}

/// What an owner has in open tasks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Open {
    None,
    Attended,
    /// At least one with a lease that has lapsed, and that may have to be seen once more.
    Lapsed,
}

async fn keep_sweeping<B: Agenda>(manager: Weak<Inner<B>>, named: Arc<Notify>, stop: Stop) {
    loop {
        let Some(inner) = manager.upgrade() else { return };
        let pause = inner.sweep().await;
        drop(inner);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = named.notified() => {}
            () = stop.told() => return,
        }
    }
}
