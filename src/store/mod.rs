//! The lifecycle of tasks, on any engine.

mod answers;
mod attempts;
mod back_off;
mod change;
mod config;
mod deadline;
#[cfg(feature = "pmcp")]
mod draft;
#[cfg(feature = "rmcp")]
mod ending;
mod error;
mod health;
mod keeper;
mod lease;
mod limits;
mod look;
mod new_task;
mod payloads;
mod timers;
mod transitions;
mod turns;
mod wait;
mod write;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use serde_json::{Map, Value};
use tokio::time::Instant;
use tracing::instrument;

use answers::Answers;
use attempts::Attempts;
#[cfg(feature = "rmcp")]
pub(crate) use back_off::BackOff;
use change::Kind;
pub use config::StoreConfig;
use deadline::{Deadline, Subject};
#[cfg(feature = "pmcp")]
pub(crate) use draft::Draft;
#[cfg(feature = "rmcp")]
pub(crate) use ending::{Ending, InCharge};
pub use error::TaskError;
use keeper::Keeping;
pub use lease::Attempt;
use limits::{MAX_JSON_DEPTH, check, check_depth, check_poll_interval};
pub use new_task::{NewTask, Ttl};
use timers::Noticed;
use transitions::DEFAULT_MAX_ATTEMPTS;
use turns::Turns;
use write::{Caller, Event, Write, mark};

use crate::backend::{
    Agenda, Cursor, Expiry, OwnerId, PageRequest, PutOptions, Queue, Record, StorageBackend, StorageError,
    TaskId, TaskKey, Version,
};
use crate::task::exact::ExactIntegers;
use crate::task::payload::HeldParts;
use crate::task::snapshot::Origin;
use crate::task::{Lease, OnWorkerLost, RpcError, StoredTask, Task, TaskStatus};

/// The lifecycle of MCP tasks on an engine: who may do what with a task, and when.
///
/// Every change reads the task, checks, and writes it only if nobody else has written it meanwhile; otherwise
/// it reads and checks again. So racing updates all land, or the loser gets the error that fits: progress on a
/// cancelled task is an [`InvalidTransition`](TaskError::InvalidTransition), never a raw conflict.
///
/// A call takes a task by [`TaskKey`] or by the [`StoredTask`] that an earlier call returned less than a second ago, which
/// [saves a read](crate::Snapshot). If that copy is outdated, the call reads the task after all. Cheap to clone.
///
/// # Time
/// A task may run for its TTL. After that the next call that reads it, unless it has ended, asks the engine for its
/// clock and ends it: as failed with "TTL elapsed", or as cancelled if a cancel was requested. While the engine takes
/// no writes, the call only shows it so. The record is kept for the retention on top, result and all, and then goes.
///
/// # Workers
/// A task that was [started](TaskStore::start) is worked on under a [`Lease`], which its [`Attempt`] renews. Each store
/// has one background task, its keeper, which takes the timers of the queue `leases` of the [`Agenda`] and finds
/// lost workers of every store. A worker is lost if its lease has lapsed and the worker does not renew it for a third of
/// the lease and one second more. An engine that fails or answers late in that time, or a keeper that was stopped, starts
/// the observation again. The task of a lost worker is cancelled if a cancel was requested. Otherwise it waits for the next
/// worker if its operation can [resume](TaskStore::claim) and has not lost as many workers as
/// [it may](StoreConfig::max_attempts), or fails. A lease whose [`Attempt`] lives in the process of a store is never ended by
/// that store; one whose attempt there was dropped ends at once.
///
/// The keeper starts with the store, or with the first call if the store is made outside of a Tokio runtime. It ends
/// with the last clone of the store, and starts again with the next call if its runtime has ended, or if nobody has driven
/// its runtime for a while (a runtime of one thread runs only within `block_on`). The runtime needs its time driver.
///
/// # Payloads
/// Arguments, results and checkpoints are parts of the record if their JSON is over 4 KiB. No other change sends
/// them, and no read loads them: a task that was read has them as [`Payload::Stored`](crate::Payload::Stored), and
/// [`payload`](Self::payload) loads one.
///
/// # Time limit
/// Every call ends within [`StoreConfig::call_timeout`], whatever the engine does: waiting for other writers of the task,
/// reads, writes and back-offs included. After that it fails with
/// [`StorageError::Unavailable`](crate::StorageError::Unavailable). [`wait`](Self::wait) waits for as long as it takes;
/// each read in it has the limit. Writers of a task in one process take turns. Status messages, variables and checkpoints
/// wait behind all other writes.
///
/// # Cancellation safety
/// Dropping the future of a call that changes something leaves the change made or not, as a whole.
///
/// # Errors
/// Beside those that a call names: [`NotFound`](TaskError::NotFound) for a task that does not exist or is
/// another owner's, [`Contended`](TaskError::Contended), [`Unreadable`](TaskError::Unreadable), and
/// [`Storage`](TaskError::Storage); [`LimitExceeded`](TaskError::LimitExceeded) when a payload is larger than the
/// engine takes, or the record would become larger than the engine's
/// [maximum](crate::StorageBackend::max_value_bytes) less 1 KiB. Leases, cancels and the end of a task may use that
/// kibibyte. A
/// write whose outcome is unknown, other than a delete, is looked up by an id that it leaves in the record; only if
/// that does not tell, the error says [`outcome_unknown`](TaskError::outcome_unknown).
///
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
pub struct TaskStore<B>(Arc<Inner<B>>);

#[derive(Debug)]
struct Inner<B> {
    backend: Arc<B>,
    config: StoreConfig,
    turns: Turns,
    /// Distinguishes the copies that this store read from those of others.
    number: u64,
    /// Distinguishes the leases of this store from those of others.
    holder: String,
    /// The queue of the timers of leases.
    leases: Queue,
    attempts: Arc<Attempts>,
    noticed: Noticed,
    answers: Arc<Answers>,
    /// `None` for a store whose leases another one looks after.
    keeping: Option<Keeping>,
}

impl<B> Clone for TaskStore<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// How many stores this process has made.
static STORES: AtomicU64 = AtomicU64::new(0);

/// A task that a call is about.
#[derive(Clone, Copy, Debug)]
pub enum TaskRef<'a> {
    /// By its key: the call reads it first.
    Key(&'a TaskKey),
    /// As an earlier call returned it: the call reads it only if it has changed since, or [may have](crate::Snapshot).
    Stored(&'a StoredTask),
}

impl<'a> From<&'a TaskKey> for TaskRef<'a> {
    fn from(key: &'a TaskKey) -> Self {
        Self::Key(key)
    }
}

impl<'a> From<&'a StoredTask> for TaskRef<'a> {
    fn from(stored: &'a StoredTask) -> Self {
        Self::Stored(stored)
    }
}

impl<'a> TaskRef<'a> {
    fn key(self) -> &'a TaskKey {
        match self {
            Self::Key(key) => key,
            Self::Stored(stored) => &stored.key,
        }
    }
}

/// One page of an owner's tasks, newest first by creation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskPage {
    /// The tasks. May be fewer than the limit, or none, on any page.
    pub tasks: Vec<StoredTask>,
    /// Tasks of this page whose record cannot be read. They can be deleted.
    pub unreadable: Vec<TaskId>,
    /// Where the next page begins. Only `None` ends the walk.
    pub next: Option<Cursor>,
}

impl<B: Agenda> TaskStore<B> {
    /// A store with the default configuration.
    pub fn new(backend: B) -> Self {
        Self::with_config(backend, StoreConfig::default())
    }

    /// A store with this configuration.
    pub fn with_config(backend: B, config: StoreConfig) -> Self {
        let holder = uuid::Uuid::new_v4().to_string();
        let (attempts, dropped) = Attempts::new(&holder);
        let answers = Arc::new(Answers::new(config.call_timeout));
        let store = Self(Arc::new(Inner {
            backend: Arc::new(backend),
            config,
            turns: Turns::default(),
            number: STORES.fetch_add(1, Ordering::Relaxed),
            holder,
            leases: Queue::leases(),
            attempts,
            noticed: Noticed::default(),
            answers,
            keeping: Some(Keeping::new(dropped)),
        }));
        store.keep();
        store
    }

    /// A store on another connection to the same engine that renews the leases of this one. It has no keeper.
    #[cfg(feature = "rmcp")]
    pub(crate) fn twin(&self, backend: B) -> Self {
        let Inner { config, holder, leases, attempts, answers, .. } = &*self.0;
        Self(Arc::new(Inner {
            backend: Arc::new(backend),
            config: config.clone(),
            turns: Turns::default(),
            number: STORES.fetch_add(1, Ordering::Relaxed),
            holder: holder.clone(),
            leases: leases.clone(),
            attempts: Arc::clone(attempts),
            noticed: Noticed::default(),
            answers: Arc::clone(answers),
            keeping: None,
        }))
    }

    /// The engine below.
    pub fn backend(&self) -> &B {
        &self.0.backend
    }

    #[cfg(feature = "rmcp")]
    pub(crate) fn call_timeout(&self) -> Duration {
        self.0.config.call_timeout
    }

    #[cfg(feature = "rmcp")]
    pub(crate) fn shared_backend(&self) -> &Arc<B> {
        &self.0.backend
    }

    /// Creates a task under a random id. When this returns, the task is stored: only then may a server tell
    /// the client about it.
    ///
    /// # Errors
    /// [`QuotaExceeded`](TaskError::QuotaExceeded); [`LimitExceeded`](TaskError::LimitExceeded) for a TTL over
    /// the maximum, a long status message, deep or large arguments, or a large record;
    /// [`InvalidArgument`](TaskError::InvalidArgument) for an empty method, a TTL under 1 ms, a poll interval outside
    /// 1 ms to 24 hours, or an owner that begins with `\0mcp/`, which is reserved.
    #[instrument(level = "debug", skip_all, fields(owner = %owner.printable()))]
    pub async fn create(&self, owner: &OwnerId, new: NewTask) -> Result<StoredTask, TaskError> {
        let key = TaskKey { owner: owner.clone(), task: TaskId::random() };
        let deadline = self.deadline();
        let mut caller = Caller::new(Kind::Input, &deadline, None);
        let create = pin!(self.create_with(&mut caller, &key, new, None));
        deadline.limit("create", Subject::Task(&key), create).await
    }

    /// Reads a task.
    #[instrument(level = "debug", skip_all, fields(owner = %key.owner.printable(), task = %key.task.printable()))]
    pub async fn get(&self, key: &TaskKey) -> Result<StoredTask, TaskError> {
        let deadline = self.deadline();
        let stored = deadline.limit("get", Subject::Task(key), pin!(self.look_at(key))).await?;
        deadline.give(self.notice(&stored)).await;
        Ok(stored)
    }

    async fn look_at(&self, key: &TaskKey) -> Result<StoredTask, TaskError> {
        for attempt in 0..self.0.config.max_conflicts {
            self.back_off(attempt).await;
            if let Some(stored) = self.settle(self.read(key).await?).await? {
                return Ok(stored);
            }
        }
        Err(self.contended(key))
    }

    /// Reads one page of an owner's tasks.
    ///
    /// # Errors
    /// [`InvalidPage`](TaskError::InvalidPage) for a limit outside 1 to 256 and for a cursor that is malformed
    /// or another owner's; [`InvalidArgument`](TaskError::InvalidArgument) for an owner that begins with `\0mcp/`, which
    /// is reserved.
    #[instrument(level = "debug", skip_all, fields(owner = %owner.printable()))]
    pub async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<TaskPage, TaskError> {
        check_owner(owner)?;
        self.keep();
        let deadline = self.deadline();
        let page = deadline.limit("list", Subject::Owner(owner), pin!(self.list_now(owner, page))).await?;
        deadline.give(self.notice_all(&page.tasks)).await;
        Ok(page)
    }

    async fn list_now(&self, owner: &OwnerId, page: PageRequest) -> Result<TaskPage, TaskError> {
        let origin = self.origin();
        let page = self.0.answers.count_large(Some(owner), self.0.backend.list(owner, page)).await;
        let page = page.map_err(|error| match error {
            StorageError::InvalidPage { reason } => TaskError::InvalidPage { reason },
            other => TaskError::Storage(other),
        })?;
        let mut unreadable: Vec<TaskId> = page.corrupt.into_iter().map(|corrupt| corrupt.task).collect();
        let mut tasks = Vec::with_capacity(page.records.len());
        for listed in page.records {
            let key = TaskKey { owner: owner.clone(), task: listed.task };
            let record = Record {
                data: listed.data,
                version: listed.version,
                expires_at: listed.expires_at,
                parts: listed.parts,
            };
            let Ok(stored) = decode(&key, record, origin) else {
                unreadable.push(key.task);
                continue;
            };
            match self.settle(stored).await {
                Ok(Some(settled)) => tasks.push(settled),
                // It was changed or removed since the page was read.
                Ok(None) | Err(TaskError::NotFound { .. }) => match self.look_at(&key).await {
                    Ok(stored) => tasks.push(stored),
                    Err(TaskError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(TaskPage { tasks, unreadable, next: page.next })
    }

    /// Sets the sentence for people about where the task stands.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) when the task has ended,
    /// [`LimitExceeded`](TaskError::LimitExceeded) when the message is too long.
    pub async fn set_status_message<'a>(
        &self,
        task: impl Into<TaskRef<'a>>,
        message: impl Into<String>,
    ) -> Result<StoredTask, TaskError> {
        let message = message.into();
        let config = &self.0.config;
        let change = |task: &mut Task| transitions::set_status_message(task, &message, config);
        self.change(Kind::Progress, "set_status_message", task.into(), change).await
    }

    /// Records requests that the client has to answer, each under a key of its own, and moves the task to
    /// `input_required`, in one write. Several may be open at once.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) when the task has ended,
    /// [`CancelRequested`](TaskError::CancelRequested) when the client wants it cancelled,
    /// [`InputKeyUsed`](TaskError::InputKeyUsed) when a key was used before in this task,
    /// [`LimitExceeded`](TaskError::LimitExceeded) for too many or too deep requests,
    /// [`InvalidArgument`](TaskError::InvalidArgument) for none at all.
    pub async fn request_input<'a, K: Into<String>>(
        &self,
        task: impl Into<TaskRef<'a>>,
        requests: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<StoredTask, TaskError> {
        let requests: Vec<_> = requests.into_iter().map(|(key, request)| (key.into(), request)).collect();
        let config = &self.0.config;
        let change = |task: &mut Task| transitions::request_input(task, &requests, config);
        self.change(Kind::Input, "request_input", task.into(), change).await
    }

    /// Stores the client's answers to open requests. The last one moves the task back to `working`. Answers to
    /// requests that are not open are ignored, so a task that has ended is returned as it is.
    ///
    /// # Errors
    /// [`LimitExceeded`](TaskError::LimitExceeded) for an answer that is nested too deep.
    pub async fn deliver_inputs<'a, K: Into<String>>(
        &self,
        task: impl Into<TaskRef<'a>>,
        responses: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<StoredTask, TaskError> {
        let responses = responses.into_iter().map(|(key, response)| (key.into(), response)).collect();
        let change = |task: &mut Task| transitions::deliver_inputs(task, &responses);
        self.change(Kind::Input, "deliver_inputs", task.into(), change).await
    }

    /// Ends the task as `completed` with its result, in one write.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) when the task has ended,
    /// [`LimitExceeded`](TaskError::LimitExceeded) when the result is too large or too deep.
    pub async fn complete<'a>(
        &self,
        task: impl Into<TaskRef<'a>>,
        result: Value,
    ) -> Result<StoredTask, TaskError> {
        self.change(Kind::Lifecycle, "complete", task.into(), |task| transitions::complete(task, &result))
            .await
    }

    /// Ends the task as `failed` with a JSON-RPC error object, in one write.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn fail<'a>(
        &self,
        task: impl Into<TaskRef<'a>>,
        error: RpcError,
    ) -> Result<StoredTask, TaskError> {
        self.change(Kind::Lifecycle, "fail", task.into(), |task| transitions::fail(task, &error)).await
    }

    /// Ends the task as `cancelled`, now, whatever works on it.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) when the task has ended.
    pub async fn cancel<'a>(&self, task: impl Into<TaskRef<'a>>) -> Result<StoredTask, TaskError> {
        self.change(Kind::Lifecycle, "cancel", task.into(), transitions::cancel).await
    }

    /// Records that the client wants the task cancelled (`tasks/cancel` of SEP-2663) and withdraws open
    /// requests; its worker decides how it ends. Without effect on a task that has ended. A task that waits
    /// for a worker is cancelled at once, and so is one whose worker turns out to be lost.
    pub async fn request_cancel<'a>(&self, task: impl Into<TaskRef<'a>>) -> Result<StoredTask, TaskError> {
        let deadline = self.deadline();
        let change = self.change_before(
            &deadline,
            Kind::Lifecycle,
            "request_cancel",
            task.into(),
            transitions::request_cancel,
        );
        let requested = change.await?;
        deadline.give(self.look_soon(&requested)).await;
        Ok(requested)
    }

    /// Merges variables into those of the task: a value replaces the one of the same name.
    /// [`remove_variables`](Self::remove_variables) removes some.
    ///
    /// # Errors
    /// [`InvalidArgument`](TaskError::InvalidArgument) for a variable that is `null`: `serde_json` makes `null` of NaN and of
    /// infinity, so it is most often a mistake.
    /// [`InvalidTransition`](TaskError::InvalidTransition) when the task has ended,
    /// [`LimitExceeded`](TaskError::LimitExceeded) when what the merge would leave is too large, too deep, or
    /// holds too long a string.
    pub async fn set_variables<'a, K: Into<String>>(
        &self,
        task: impl Into<TaskRef<'a>>,
        variables: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<StoredTask, TaskError> {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let config = &self.0.config;
        let change = |task: &mut Task| transitions::set_variables(task, &variables, config);
        self.change(Kind::Progress, "set_variables", task.into(), change).await
    }

    /// Removes the variables of these names. Names that the task does not have are ignored.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) when the task has ended.
    pub async fn remove_variables<'a, K: Into<String>>(
        &self,
        task: impl Into<TaskRef<'a>>,
        names: impl IntoIterator<Item = K>,
    ) -> Result<StoredTask, TaskError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let change = |task: &mut Task| transitions::remove_variables(task, &names);
        self.change(Kind::Progress, "remove_variables", task.into(), change).await
    }

    /// Removes a task, whatever its status, and whether or not its record can be read.
    ///
    /// Nothing of a deleted task is left, so nothing refuses a copy of its *creation* that was under way for longer
    /// than all of its life, as out of the buffers of a server that hung: the task would be there again.
    #[instrument(level = "debug", skip_all, fields(owner = %key.owner.printable(), task = %key.task.printable()))]
    pub async fn delete(&self, key: &TaskKey) -> Result<(), TaskError> {
        check_key(key)?;
        let deadline = self.deadline();
        deadline.set_in_doubt(true);
        let delete = pin!(async {
            let removed = self.0.answers.count_write(Some(&key.owner), self.0.backend.delete(key)).await;
            removed.map_err(|error| TaskError::from_storage(error, &key.task))
        });
        let removed = deadline.limit("delete", Subject::Task(key), delete).await;
        self.0.noticed.forget(key);
        match removed? {
            true => Ok(()),
            false => Err(TaskError::NotFound { task: key.task.clone() }),
        }
    }

    /// Drops expired records that the engine still holds, and says how many: always 0 on Redis, where the
    /// server expires them.
    #[instrument(level = "debug", skip_all)]
    pub async fn cleanup(&self) -> Result<u64, TaskError> {
        let cleanup = pin!(async {
            let removed = self.0.answers.count(None, self.0.backend.cleanup_expired()).await;
            removed.map_err(TaskError::Storage)
        });
        self.deadline().limit("cleanup", Subject::Store, cleanup).await
    }
}

impl<B: Agenda> TaskStore<B> {
    /// The estimate of the engine's clock in whole milliseconds, as records hold it.
    fn now(&self) -> DateTime<Utc> {
        self.0.backend.now().trunc_subsecs(3)
    }

    /// A call begins.
    fn deadline(&self) -> Deadline {
        Deadline::after(self.0.config.call_timeout)
    }

    /// What a task that is read or written from now on is a copy of.
    fn origin(&self) -> Origin {
        Origin { store: self.0.number, generation: self.0.backend.generation(), at: Instant::now() }
    }

    /// Asks the engine for its clock, before anything is ended because of the time.
    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, TaskError> {
        let now = self.0.answers.count(Some(&key.owner), self.0.backend.clock(key)).await;
        Ok(now.map_err(|error| TaskError::from_storage(error, &key.task))?.trunc_subsecs(3))
    }

    async fn create_with(
        &self,
        caller: &mut Caller<'_>,
        key: &TaskKey,
        new: NewTask,
        lease: Option<Lease>,
    ) -> Result<StoredTask, TaskError> {
        let config = &self.0.config;
        check_owner(&key.owner)?;
        self.keep();
        if new.method.is_empty() {
            return Err(TaskError::InvalidArgument { reason: "the method is empty".to_owned() });
        }
        if new.on_worker_lost == OnWorkerLost::Resume && new.operation.is_none() {
            let reason = "a task without an operation cannot resume".to_owned();
            return Err(TaskError::InvalidArgument { reason });
        }
        let work = new.operation.as_deref().map(Queue::work).transpose();
        work.map_err(|error| TaskError::InvalidArgument { reason: error.to_string() })?;
        check_depth("depth of the arguments", &new.arguments, MAX_JSON_DEPTH)?;
        if let Some(message) = &new.status_message {
            check("bytes of a status message", message.len(), config.max_status_message_bytes)?;
        }
        let poll_interval = new.poll_interval.or(config.default_poll_interval);
        poll_interval.map_or(Ok(()), check_poll_interval)?;
        let ttl = self.ttl(new.ttl)?;
        let expiry = match ttl {
            Some(ttl) => Expiry::After(ttl.saturating_add(config.retention.unwrap_or(ttl))),
            None => Expiry::Never,
        };
        // What is absent from the record is the default.
        let max_attempts = (new.on_worker_lost == OnWorkerLost::Resume)
            .then(|| new.max_attempts.unwrap_or(config.max_attempts))
            .filter(|max| *max != DEFAULT_MAX_ATTEMPTS);
        let now = self.now();
        let mut task = Task {
            task_id: key.task.clone(),
            status: TaskStatus::Working,
            status_message: new.status_message,
            created_at: now,
            last_updated_at: now,
            ttl_ms: ttl.map(millis),
            poll_interval_ms: poll_interval.map(millis),
            method: new.method,
            arguments: new.arguments.into(),
            input_requests: BTreeMap::new(),
            input_responses: BTreeMap::new(),
            answered_requests: BTreeMap::new(),
            cancel_requested: false,
            checkpoint: None,
            result: None,
            error: None,
            lease,
            operation: new.operation,
            on_worker_lost: new.on_worker_lost,
            max_attempts,
            variables: BTreeMap::new(),
            write_ids: Vec::new(),
            held_parts: HeldParts::default(),
            exact: ExactIntegers::default(),
            extra: Map::new(),
        };
        let write_id = mark(&mut task);
        let mut options = PutOptions { quota: config.max_tasks_per_owner, ..PutOptions::new(expiry) };
        let data = self.encode(&mut task, &mut options, caller.kind)?;
        let write = Write {
            key,
            data,
            options,
            expected: Version::ABSENT,
            write_id,
            previous: None,
            event: Some(Event::Created),
        };
        if task.lease.is_some() {
            self.schedule_lease(key).await?;
        }
        match self.put(caller, &write, task).await? {
            Some(created) => Ok(created),
            // Somebody has drawn the same 122 random bits, or the engine is not what it says.
            None => Err(TaskError::Storage(StorageError::VersionConflict {
                key: key.clone(),
                expected: Version::ABSENT,
                actual: Version::FIRST,
            })),
        }
    }

    fn ttl(&self, asked: Ttl) -> Result<Option<Duration>, TaskError> {
        let (default, max) = (self.0.config.default_ttl, self.0.config.max_ttl);
        let over = |actual: String, max: Duration| TaskError::LimitExceeded {
            what: "TTL in milliseconds".to_owned(),
            actual,
            limit: millis(max).to_string(),
        };
        let ttl = match (asked, max) {
            (Ttl::Default, None) => default,
            (Ttl::Default, Some(max)) => Some(default.map_or(max, |ttl| ttl.min(max))),
            (Ttl::After(ttl), Some(max)) if ttl > max => return Err(over(millis(ttl).to_string(), max)),
            (Ttl::After(ttl), _) => Some(ttl),
            (Ttl::Unlimited, Some(max)) => return Err(over("unlimited".to_owned(), max)),
            (Ttl::Unlimited, None) => None,
        };
        match ttl {
            Some(ttl) if ttl < Duration::from_millis(1) => {
                let reason = format!(
                    "a TTL of {ttl:?} is under 1 ms; raise it, or StoreConfig::default_ttl and max_ttl where the task names none"
                );
                Err(TaskError::InvalidArgument { reason })
            }
            ttl => Ok(ttl),
        }
    }
}

/// Owners that begin with this hold records that the runtime of the server keeps for itself.
const RESERVED_OWNERS: &str = "\0mcp/";

fn is_reserved(owner: &OwnerId) -> bool {
    owner.as_str().starts_with(RESERVED_OWNERS)
}

fn check_owner(owner: &OwnerId) -> Result<(), TaskError> {
    if is_reserved(owner) {
        let reason = format!("owner ids that begin with {RESERVED_OWNERS:?} are reserved");
        return Err(TaskError::InvalidArgument { reason });
    }
    Ok(())
}

/// A task of a reserved owner is as unknown as any other that does not exist.
fn check_key(key: &TaskKey) -> Result<(), TaskError> {
    if is_reserved(&key.owner) {
        return Err(TaskError::NotFound { task: key.task.clone() });
    }
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn decode(key: &TaskKey, record: Record, origin: Origin) -> Result<StoredTask, TaskError> {
    let unreadable = |source| TaskError::Unreadable { task: key.task.clone(), source };
    let task = Task::from_json(&record.data).map_err(unreadable)?;
    Ok(StoredTask::new(key, task.with_parts(&record.parts), record.version, record.expires_at, origin))
}
