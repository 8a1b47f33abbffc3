//! The lifecycle of tasks, on any engine.
//!
//! [`TaskStore`] is the facade. Each module depends only on modules below it in this list:
//!
//! * `scan` walks through the tasks of all owners, and yields those that match a `filter`;
//! * `dead_tasks` lists dead tasks, `requeue` does the work of ended tasks again;
//! * `variables`, `wait`, `timing` (TTLs and poll intervals), `unique` (unique tasks), `secrets`, `owners` and `workers` are calls of their own;
//! * `starting` begins the attempt of a task whose operation already runs;
//! * `enqueue` creates tasks that wait for a worker;
//! * `lease` begins attempts, `attempt` is the right to work, `retrying` gives a task back after an error,
//!   `ending`, `progress_report` and `split_calls` serve the adapters;
//! * `keeper` finds lost workers, with one `observation` for each lease that may have lapsed, and takes the `dead_timers`;
//! * `slots` counts the holders of a limit across all instances;
//! * `hold` makes the `pointer` of a unique key name a task;
//! * `records` reads, changes and writes tasks, `payloads` loads their payloads;
//! * `notices` logs which tasks this process leaves alone;
//! * `scheduler` sets timers, `write` sends conditional writes, `engine` calls the engine and counts its `answers`;
//! * `dead` says what a dead task is, `retry` is the policy of retries;
//! * `machine` is the status machine.

mod answers;
mod attempt;
mod config;
mod dead;
mod dead_tasks;
mod dead_timers;
mod deadline;
mod durations;
#[cfg(feature = "rmcp")]
mod ending;
mod engine;
mod enqueue;
mod error;
mod filter;
mod hold;
mod keeper;
mod lease;
mod limits;
mod local_attempts;
mod machine;
mod new_task;
mod notices;
mod observation;
mod outage;
mod owners;
mod payloads;
mod pointer;
#[cfg(feature = "rmcp")]
mod progress_report;
mod records;
mod requeue;
mod retry;
mod retrying;
mod scan;
mod scheduler;
#[cfg(feature = "rmcp")]
mod secrets;
#[cfg(feature = "rmcp")]
mod slots;
#[cfg(feature = "pmcp")]
mod split_calls;
#[cfg(feature = "rmcp")]
mod starting;
mod task_ref;
mod timing;
mod ttl;
mod unique;
mod variables;
mod wait;
mod workers;
mod write;
mod writers;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tracing::instrument;

use answers::Answers;
pub use attempt::Attempt;
pub use config::StoreConfig;
pub use dead_tasks::DeadTaskPage;
use deadline::CallTarget;
#[cfg(feature = "rmcp")]
pub(crate) use durations::BackOff;
#[cfg(feature = "rmcp")]
pub(crate) use ending::{DropGuard, Ending};
use engine::StoredPage;
pub use error::TaskError;
pub use filter::TaskFilter;
use keeper::KeptRecords;
use lease::OpenSpan;
use limits::{check_key, check_owner};
use local_attempts::LocalAttempts;
use machine::Change;
#[cfg(feature = "rmcp")]
pub(crate) use new_task::EarliestStart;
pub use new_task::NewTask;
#[cfg(feature = "rmcp")]
pub(crate) use progress_report::ProgressReport;
use records::{ChangeCall, Records};
pub use retry::Retry;
pub use scan::{ScanPosition, ScannedPage, TaskScan};
#[cfg(feature = "rmcp")]
pub(crate) use slots::{HeldSlot, SlotLimit};
#[cfg(feature = "pmcp")]
pub(crate) use split_calls::{SetResult, SplitCalls};
#[cfg(feature = "rmcp")]
pub(crate) use starting::Starting;
pub use task_ref::{TaskPage, TaskRef};
pub use ttl::Ttl;
pub use unique::{UniqueEnqueue, UniqueKey, UniqueStart};
#[cfg(feature = "rmcp")]
pub(crate) use workers::Announcement;
pub use workers::{WorkerPage, WorkerStatus, WorkerTask};
use write::ChangeKind;

use crate::backend::{Agenda, OwnerId, PageRequest, TaskId, TaskKey};
use crate::spans;
use crate::task::{PayloadKind, RpcError, StoredTask, Task};
#[cfg(feature = "rmcp")]
use crate::telemetry;

/// The lifecycle of MCP tasks on an engine: creates tasks, changes them, and finds lost workers. Cheap to clone.
///
/// Every change reads the task, checks whether the change is allowed, and writes the task only if no other writer has
/// written it since the read. Otherwise the change starts again. So each of several racing updates is applied, or
/// fails with an error of the lifecycle. For example, a status message for a cancelled task fails with
/// [`InvalidTransition`](TaskError::InvalidTransition), never with a version conflict.
///
/// A call takes a task by its [`TaskKey`], or by the [`StoredTask`] that an earlier call returned. A `StoredTask`
/// that is less than a second old [saves a read](crate::Snapshot). If the `StoredTask` is outdated, the call reads
/// the task.
///
/// # Time
/// A task may run for its TTL. After the TTL the next call that reads the task asks the engine for its clock, and
/// ends the task: as `cancelled` if a cancel was requested, else as `failed` with "TTL elapsed". While the engine
/// rejects writes, calls return the task as ended, and a later call stores the end. The engine keeps the record, with
/// its result, for the TTL and the [retention](StoreConfig::retention).
///
/// # Workers
/// A task that was [started](TaskStore::start) has a [`Lease`](crate::Lease). Its [`Attempt`] renews the lease. Each
/// store has one background task, the *keeper*. The keeper takes the timers of the queue `leases` of the [`Agenda`],
/// and finds the lost workers of every store on the same engine.
///
/// A worker is lost if its lease has lapsed and it does not renew the lease for another third of the lease and one
/// second. The keeper starts this observation again if the engine fails or answers late meanwhile, or if the process
/// of the keeper was stopped. What happens to the task of a lost worker:
///
/// * If a cancel was requested, the task becomes `cancelled`.
/// * If the task can [resume](TaskStore::claim) and has lost fewer workers than its
///   [`max_attempts`](StoreConfig::max_attempts), it waits for the next worker.
/// * Otherwise the task fails.
///
/// A store never ends the lease of an [`Attempt`] that its own process still holds. If the last clone of the attempt
/// was dropped, the store ends the lease at once.
///
/// The keeper starts with the store, or with the first call if the store was created outside of a Tokio runtime. It
/// ends with the last clone of the store. The next call starts the keeper again if the keeper's runtime has ended, or
/// has not run for a while (a current-thread runtime runs only inside `block_on`). The runtime must have its time
/// driver enabled.
///
/// # Payloads
/// Arguments, results and checkpoints whose JSON is over 4 KiB are parts of the record. Only the change that sets
/// such a payload sends its part. A read of the task does not load the part: in a task that was read, the payload is
/// [`Payload::Stored`](crate::Payload::Stored). [`payload`](Self::payload) loads a payload.
///
/// # Time limit
/// Every call ends within [`StoreConfig::call_timeout`], whatever the engine does. The limit includes reads, writes,
/// back-offs, and the wait for other writers of the task. A call that exceeds it fails with
/// [`StorageError::Unavailable`](crate::StorageError::Unavailable). [`wait`](Self::wait) has no limit, but each of
/// its reads has.
///
/// In each process, the writers of one task wait in a queue. Status messages, variables and checkpoints wait behind
/// all other writes.
///
/// # Errors
/// Every call can fail with:
///
/// * [`NotFound`](TaskError::NotFound) for a task that does not exist or belongs to another owner;
/// * [`Contended`](TaskError::Contended), [`Unreadable`](TaskError::Unreadable) and [`Storage`](TaskError::Storage);
/// * [`LaterVersion`](TaskError::LaterVersion) for a change of a task that only a later version of this crate may change;
/// * [`LimitExceeded`](TaskError::LimitExceeded) if a payload is larger than the engine accepts, or if the record
///   would be larger than the engine's [maximum](crate::StorageBackend::max_value_bytes) less 2 KiB. The store
///   reserves 1 KiB for leases, cancels and the end of a task, and 1 KiB for the [history](crate::Task::history).
///
/// Every write except a delete stores a write id in the record. If the outcome of a write is unknown, the store reads
/// the record and looks for this id. The error says [`outcome_unknown`](TaskError::outcome_unknown) only if the read
/// does not resolve the outcome.
///
/// # Cancellation safety
/// If the future of a call is dropped, its change is applied as a whole or not at all.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStatus, TaskStore};
/// use serde_json::json;
///
/// let store = TaskStore::new(MemoryBackend::new());
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let created = store.create(&alice, NewTask::new("tools/call")).await?;
/// let done = store.complete(&created, json!({ "content": [] })).await?;
/// assert_eq!(done.task.status, TaskStatus::Completed);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TaskStore<B>(KeptRecords<B>);

impl<B> Clone for TaskStore<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Agenda> TaskStore<B> {
    /// Creates a store with the default configuration.
    pub fn new(backend: B) -> Self {
        Self::with_config(backend, StoreConfig::default())
    }

    /// Creates a store with a configuration.
    pub fn with_config(backend: B, config: StoreConfig) -> Self {
        let holder = uuid::Uuid::new_v4().to_string();
        let (attempts, dropped) = LocalAttempts::new(&holder);
        let answers = Arc::new(Answers::new(config.call_timeout));
        let is_observer = config.is_observer;
        let records = Records::new(backend, config, attempts, answers);
        Self(if is_observer {
            KeptRecords::without_keeper(records)
        } else {
            KeptRecords::new(records, dropped)
        })
    }

    /// Returns the engine.
    pub fn backend(&self) -> &B {
        &self.0.records_only().engine.backend
    }

    /// Creates a task under a random id. When the call returns, the task is durable, and the server may send the
    /// task's id to the client.
    ///
    /// # Errors
    /// [`QuotaExceeded`](TaskError::QuotaExceeded) if the owner has too many tasks;
    /// [`LimitExceeded`](TaskError::LimitExceeded) if the TTL, the status message, the arguments or the record exceed
    /// a limit; [`InvalidArgument`](TaskError::InvalidArgument) for an empty method, a TTL under 1 ms, a poll
    /// interval outside 1 ms to 24 hours, [`OnWorkerLost::Resume`](crate::OnWorkerLost::Resume) without an operation,
    /// or a reserved owner (one that begins with `\0mcp/`).
    #[instrument(level = "debug", skip_all, fields(owner = %owner.printable()))]
    pub async fn create(&self, owner: &OwnerId, mut new: NewTask) -> Result<StoredTask, TaskError> {
        new.traceparent = spans::inherited(new.traceparent.take());
        let records = self.0.records();
        let key = TaskKey { owner: owner.clone(), task: TaskId::random() };
        let deadline = records.deadline();
        let create = pin!(records.create(&deadline, &key, new, None));
        deadline.limit("create", CallTarget::Task(&key), create).await
    }

    /// Reads a task.
    #[instrument(level = "debug", skip_all, fields(owner = %key.owner.printable(), task = %key.task.printable()))]
    pub async fn get(&self, key: &TaskKey) -> Result<StoredTask, TaskError> {
        let records = self.0.records();
        let deadline = records.deadline();
        let read = pin!(records.read_current(key));
        let stored = deadline.limit("get", CallTarget::Task(key), read).await?;
        deadline.limit_optional(records.scheduler.schedule_if_lapsed(&stored)).await;
        Ok(stored)
    }

    /// Reads one page of an owner's tasks.
    ///
    /// # Errors
    /// [`InvalidPage`](TaskError::InvalidPage) if the limit is outside 1 to 256, or the cursor is malformed or belongs to
    /// another owner; [`InvalidArgument`](TaskError::InvalidArgument) for a reserved owner (one that begins with `\0mcp/`).
    #[instrument(level = "debug", skip_all, fields(owner = %owner.printable()))]
    pub async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<TaskPage, TaskError> {
        check_owner(owner)?;
        let records = self.0.records();
        let deadline = records.deadline();
        let read = pin!(records.read_page(owner, page));
        let StoredPage { tasks, unreadable, next } =
            deadline.limit("list", CallTarget::Owner(owner), read).await?;
        deadline.limit_optional(records.scheduler.schedule_all_lapsed(&tasks)).await;
        Ok(TaskPage { tasks, unreadable, next })
    }

    /// Loads a payload of a task; `None` if the task has no payload of this kind. The call returns an inline payload
    /// without a call of the engine, and loads a stored payload with one read of its part.
    ///
    /// If a stored payload has been replaced since `task` was read, the call returns the current one. Only a checkpoint can be
    /// replaced: arguments never change, and a result never changes once it is set.
    ///
    /// # Errors
    /// [`NotFound`](TaskError::NotFound) if the record was removed after `task` was read;
    /// [`Unreadable`](TaskError::Unreadable) if the part is not JSON.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    #[instrument(level = "debug", skip_all, fields(owner = %task.key.owner.printable(), task = %task.key.task.printable(), ?kind))]
    pub async fn payload(&self, task: &StoredTask, kind: PayloadKind) -> Result<Option<Value>, TaskError> {
        check_key(&task.key)?;
        let records = self.0.records();
        let load = pin!(payloads::load(records, task, kind));
        records.deadline().limit("payload", CallTarget::Task(&task.key), load).await
    }

    /// Sets the status message, a sentence for people about the state of the task.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) if the task has ended;
    /// [`LimitExceeded`](TaskError::LimitExceeded) if the message is too long.
    pub async fn set_status_message<'a>(
        &self,
        task: impl Into<TaskRef<'a>>,
        message: impl Into<String>,
    ) -> Result<StoredTask, TaskError> {
        let (message, config) = (message.into(), &self.0.records_only().config);
        let set = |task: &mut Task| machine::set_status_message(task, &message, config);
        self.change(ChangeKind::Progress, "set_status_message", task.into(), set).await
    }

    /// Stores requests that the client must answer, each under a key of its own, and moves the task to `input_required`, in one
    /// write. Several requests may be open at the same time.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) if the task has ended;
    /// [`CancelRequested`](TaskError::CancelRequested) if the client requested a cancel;
    /// [`InputKeyUsed`](TaskError::InputKeyUsed) if the task has used a key before;
    /// [`LimitExceeded`](TaskError::LimitExceeded) if there are too many requests, or if one is nested too deeply;
    /// [`InvalidArgument`](TaskError::InvalidArgument) if there are no requests.
    pub async fn request_input<'a, K: Into<String>>(
        &self,
        task: impl Into<TaskRef<'a>>,
        requests: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<StoredTask, TaskError> {
        let requests: Vec<_> = requests.into_iter().map(|(key, request)| (key.into(), request)).collect();
        let config = &self.0.records_only().config;
        let request = |task: &mut Task| machine::request_input(task, &requests, config);
        self.change(ChangeKind::Input, "request_input", task.into(), request).await
    }

    /// Stores the client's answers to open requests. The last answer moves the task back to `working`. The call
    /// ignores answers to other requests. If the task has ended, the call changes nothing and returns the task.
    ///
    /// # Errors
    /// [`LimitExceeded`](TaskError::LimitExceeded) if an answer is nested too deeply.
    pub async fn deliver_inputs<'a, K: Into<String>>(
        &self,
        task: impl Into<TaskRef<'a>>,
        responses: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<StoredTask, TaskError> {
        let responses = responses.into_iter().map(|(key, response)| (key.into(), response)).collect();
        let deliver = |task: &mut Task| machine::deliver_inputs(task, &responses);
        self.change(ChangeKind::Input, "deliver_inputs", task.into(), deliver).await
    }

    /// Ends the task as `completed` with its result, in one write.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) if the task has ended;
    /// [`LimitExceeded`](TaskError::LimitExceeded) if the result is too large or nested too deeply.
    pub async fn complete<'a>(
        &self,
        task: impl Into<TaskRef<'a>>,
        result: Value,
    ) -> Result<StoredTask, TaskError> {
        let complete = |task: &mut Task| machine::complete(task, &result);
        self.change(ChangeKind::Lifecycle, "complete", task.into(), complete).await
    }

    /// Ends the task as `failed` with a JSON-RPC error object, in one write.
    ///
    /// # Errors
    /// The errors of [`complete`](Self::complete).
    pub async fn fail<'a>(
        &self,
        task: impl Into<TaskRef<'a>>,
        error: RpcError,
    ) -> Result<StoredTask, TaskError> {
        let fail = |task: &mut Task| machine::fail(task, &error);
        self.change(ChangeKind::Lifecycle, "fail", task.into(), fail).await
    }

    /// Ends the task as `cancelled` now, even while a worker works on it.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) if the task has ended.
    pub async fn cancel<'a>(&self, task: impl Into<TaskRef<'a>>) -> Result<StoredTask, TaskError> {
        self.change(ChangeKind::Lifecycle, "cancel", task.into(), machine::cancel).await
    }

    /// Records that the client requested a cancel (`tasks/cancel` of SEP-2663), and withdraws open requests. The
    /// worker decides how the task ends.
    ///
    /// A task that waits for a worker is cancelled at once. If the worker is lost before it ends the task, the store
    /// cancels the task. A task that has ended stays as it is.
    pub async fn request_cancel<'a>(&self, task: impl Into<TaskRef<'a>>) -> Result<StoredTask, TaskError> {
        let records = self.0.records();
        let deadline = records.deadline();
        let call = ChangeCall::new(ChangeKind::Lifecycle, "request_cancel", task.into());
        let requested = records.change(&deadline, call, machine::request_cancel).await?;
        deadline.limit_optional(records.scheduler.schedule_cancel(&requested)).await;
        Ok(requested)
    }

    async fn change(
        &self,
        kind: ChangeKind,
        operation: &'static str,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let records = self.0.records();
        records.change(&records.deadline(), ChangeCall::new(kind, operation, task), change).await
    }

    /// Removes a task in any status, even if its record cannot be read.
    ///
    /// The engine keeps nothing of a deleted task. So a delayed duplicate of the create request can re-create the
    /// task, for example a duplicate that waited in a buffer while the engine's server hung.
    #[instrument(level = "debug", skip_all, fields(owner = %key.owner.printable(), task = %key.task.printable()))]
    pub async fn delete(&self, key: &TaskKey) -> Result<(), TaskError> {
        check_key(key)?;
        let records = self.0.records();
        let deadline = records.deadline();
        deadline.set_in_doubt(true);
        let delete = pin!(records.engine.delete(key));
        let removed = deadline.limit("delete", CallTarget::Task(key), delete).await;
        records.scheduler.forget(key);
        match removed? {
            true => Ok(()),
            false => Err(TaskError::NotFound { task: key.task.clone() }),
        }
    }

    /// Removes expired records that the engine still holds, and returns how many. On Redis the result is always 0, because the
    /// server expires records.
    #[instrument(level = "debug", skip_all)]
    pub async fn cleanup(&self) -> Result<u64, TaskError> {
        let records = self.0.records();
        let cleanup = pin!(records.engine.cleanup());
        records.deadline().limit("cleanup", CallTarget::Store, cleanup).await
    }

    /// Creates a task and starts its first attempt in this process, in one write. Otherwise the call is like
    /// [`create`](Self::create).
    ///
    /// The store schedules the task in the queue `leases` first, so any instance finds the task if this instance is lost.
    ///
    /// # Errors
    /// The errors of [`create`](Self::create).
    ///
    /// # Cancellation safety
    /// If the future is dropped, a task without a worker may remain. The store fails that task, or lets another worker claim it
    /// if it can resume.
    pub async fn start(
        &self,
        owner: &OwnerId,
        mut new: NewTask,
    ) -> Result<(StoredTask, Attempt<B>), TaskError> {
        new.traceparent = spans::inherited(new.traceparent.take());
        let key = TaskKey { owner: owner.clone(), task: TaskId::random() };
        let deadline = self.0.records().deadline();
        let start = pin!(lease::start(&self.0, &deadline, &key, new));
        deadline.limit("start", CallTarget::Task(&key), start).await
    }

    /// Starts the next attempt at a task that waits for a worker. Returns `None` if there is nothing to claim.
    ///
    /// A task waits for a worker while its lease has no holder: its worker was lost or has
    /// [released](Attempt::release) it, and its operation may run again. If a cancel of the task was requested, the
    /// call cancels it and returns `None`. The call also returns `None` if another worker has claimed the task, if
    /// the task has ended, or if it no longer exists. If the earliest start of the next attempt has not come by the
    /// engine's clock, the call schedules the task for that time and returns `None`.
    ///
    /// Workers find such tasks in the queue `work/{operation}` of the [`Agenda`]. The taker of a timer must remove the timer after
    /// the claim, even if there was nothing to claim. A timer that the call has scheduled again stays.
    ///
    /// # Errors
    /// [`LaterVersion`](TaskError::LaterVersion) for a task that only a later version of this crate may run. Leave its timer to the
    /// workers of that version: move the timer by one lease.
    ///
    /// # Cancellation safety
    /// The same as for [`start`](Self::start).
    pub async fn claim(&self, key: &TaskKey) -> Result<Option<(StoredTask, Attempt<B>)>, TaskError> {
        self.claim_in(key, &mut |_, _| None).await
    }

    /// Claims a task as [`claim`](Self::claim) does, and opens the span of the attempt before its lease is stored.
    pub(crate) async fn claim_in(
        &self,
        key: &TaskKey,
        open_span: OpenSpan<'_>,
    ) -> Result<Option<(StoredTask, Attempt<B>)>, TaskError> {
        let deadline = self.0.records().deadline();
        let claim = pin!(lease::claim(&self.0, &deadline, key, open_span));
        deadline.limit("claim", CallTarget::Task(key), claim).await
    }

    /// Notes that this process runs an operation. Otherwise the log has a line once a task of the operation has waited for a worker
    /// for longer than one lease.
    #[cfg(feature = "rmcp")]
    pub(crate) fn note_operation(&self, name: &str) {
        self.0.records_only().notices.note_known(name);
        telemetry::register_tool(name);
    }

    /// Returns how long a lease of this store lasts. The holder must renew the lease each time a third of this
    /// duration has passed.
    pub fn lease_duration(&self) -> Duration {
        self.0.records_only().config.lease
    }
}

#[cfg(feature = "rmcp")]
impl<B: Agenda> TaskStore<B> {
    /// Returns a store on another connection to the same engine. The returned store can renew the leases of this
    /// store, and has no keeper.
    pub(crate) fn twin(&self, backend: B) -> Self {
        let Records { config, attempts, engine, .. } = self.0.records_only();
        let records =
            Records::new(backend, config.clone(), Arc::clone(attempts), Arc::clone(&engine.answers));
        Self(KeptRecords::without_keeper(records))
    }

    pub(crate) fn call_timeout(&self) -> Duration {
        self.0.records_only().config.call_timeout
    }

    /// Returns the maximum size of a status message.
    pub(crate) fn max_status_message_bytes(&self) -> usize {
        self.0.records_only().config.max_status_message_bytes
    }
}

#[cfg(feature = "rmcp")]
impl<B: Agenda> Attempt<B> {
    /// Returns the same attempt on a [twin](TaskStore::twin) of its store.
    pub(crate) fn over(&self, twin: &TaskStore<B>) -> Self {
        self.with_store(&twin.0)
    }
}

#[cfg(feature = "pmcp")]
impl<B: Agenda> TaskStore<B> {
    pub(crate) fn config(&self) -> &StoreConfig {
        &self.0.records_only().config
    }

    pub(crate) fn split_calls(&self) -> SplitCalls<'_, B> {
        SplitCalls(&self.0)
    }
}
