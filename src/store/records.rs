//! Reads, changes and writes the records of tasks.
//!
//! A change reads the task, expires it if its TTL has elapsed, applies the change, and writes the task only if no
//! other writer has written it since the read. Otherwise the change starts again.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{Instrument, debug_span};

use super::answers::Answers;
use super::config::StoreConfig;
use super::deadline::{CallTarget, Deadline};
use super::durations::{pause_after_conflicts, random};
use super::engine::{EngineClient, StoredPage};
use super::error::TaskError;
use super::limits::{check_key, check_owner};
use super::local_attempts::LocalAttempts;
use super::machine::exit::ExitTerms;
use super::machine::{self, Change};
use super::new_task::NewTask;
use super::notices::Notices;
use super::scheduler::Scheduler;
use super::task_ref::TaskRef;
use super::ttl::expiry_after_end;
use super::write::{ChangeKind, Write, Writer};
use super::writers::{WriterPriority, WriterQueues};
use crate::backend::{Agenda, OwnerId, PageRequest, PutOptions, StorageError, TaskKey, Version};
use crate::printable::Chain;
use crate::task::{Lease, StoredTask, Task};

#[derive(Debug)]
pub(super) struct Records<B> {
    pub(super) engine: Arc<EngineClient<B>>,
    pub(super) scheduler: Scheduler<B>,
    pub(super) attempts: Arc<LocalAttempts>,
    pub(super) config: StoreConfig,
    pub(super) notices: Notices,
    writers: WriterQueues,
}

/// One call that changes a task.
#[derive(Clone, Copy)]
pub(super) struct ChangeCall<'a> {
    kind: ChangeKind,
    operation: &'static str,
    task: TaskRef<'a>,
    /// The caller holds the lease of the task, so the call need not check whether the worker is lost.
    is_by_holder: bool,
}

impl<'a> ChangeCall<'a> {
    pub(super) fn new(kind: ChangeKind, operation: &'static str, task: TaskRef<'a>) -> Self {
        Self { kind, operation, task, is_by_holder: false }
    }

    pub(super) fn by_holder(kind: ChangeKind, operation: &'static str, task: TaskRef<'a>) -> Self {
        Self { kind, operation, task, is_by_holder: true }
    }
}

impl<B: Agenda> Records<B> {
    pub(super) fn new(
        backend: B,
        config: StoreConfig,
        attempts: Arc<LocalAttempts>,
        answers: Arc<Answers>,
    ) -> Self {
        let engine = Arc::new(EngineClient::new(backend, answers));
        let scheduler = Scheduler::new(Arc::clone(&engine), &config);
        let (notices, writers) = (Notices::default(), WriterQueues::default());
        Self { engine, scheduler, attempts, config, notices, writers }
    }

    /// Starts the time limit of a call.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.config.call_timeout)
    }

    /// Returns a lease of this store that begins now.
    pub(super) fn new_lease(&self, attempt: u32, losses: u32) -> Lease {
        self.attempts.new_lease(attempt, losses, self.config.lease, self.engine.now())
    }

    /// Returns what the exit of a worker depends on, at this time of the engine's clock.
    pub(super) fn exit_terms(&self, now: DateTime<Utc>) -> ExitTerms {
        let max_status_message_bytes = self.config.max_status_message_bytes;
        ExitTerms { now, random: random(), max_status_message_bytes }
    }

    pub(super) fn contended(&self, key: &TaskKey) -> TaskError {
        TaskError::Contended { task: key.task.clone(), conflicts: self.config.max_conflicts }
    }

    /// Returns the queues of writers: one queue for each task.
    pub(super) fn writers(&self) -> &WriterQueues {
        &self.writers
    }

    /// Reads a task exactly as its record states it, even if its TTL has elapsed.
    pub(super) async fn read(&self, task: impl Into<TaskRef<'_>>) -> Result<StoredTask, TaskError> {
        let task = task.into();
        let read = match task {
            TaskRef::Key(key) => self.engine.get(key).await,
            TaskRef::Stored(copy) => self.engine.get_again(copy).await,
        };
        if matches!(read, Err(TaskError::NotFound { .. })) {
            self.scheduler.forget(task.key());
        }
        read
    }

    /// Reads a task, and ends it if its TTL has elapsed.
    pub(super) async fn read_current(&self, task: impl Into<TaskRef<'_>>) -> Result<StoredTask, TaskError> {
        let task = task.into();
        for conflicts in 0..self.config.max_conflicts {
            pause_after_conflicts(conflicts).await;
            if let Some(stored) = self.expire_if_overdue(self.read(task).await?).await? {
                return Ok(stored);
            }
        }
        Err(self.contended(task.key()))
    }

    /// Reads a task after the writes of this process that are under way, and ends it if its TTL has elapsed. `copy` returns
    /// the newest copy that the caller has by then.
    pub(super) async fn read_after_writers(
        &self,
        deadline: &Deadline,
        key: &TaskKey,
        copy: impl Fn() -> Option<Arc<StoredTask>> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let span = debug_span!("read", owner = %key.owner.printable(), task = %key.task.printable());
        let read = pin!(async {
            let queued = self.writers.join(key, WriterPriority::High);
            let _permit = queued.permit().await;
            match copy() {
                Some(copy) => self.read_current(&*copy).await,
                None => self.read_current(key).await,
            }
        });
        deadline.limit("read", CallTarget::Task(key), read).instrument(span).await
    }

    /// Reads one page, and ends each of its tasks whose TTL has elapsed.
    pub(super) async fn read_page(
        &self,
        owner: &OwnerId,
        request: PageRequest,
    ) -> Result<StoredPage, TaskError> {
        let StoredPage { tasks: listed, unreadable, next } = self.engine.page(owner, request).await?;
        let mut tasks = Vec::with_capacity(listed.len());
        for stored in listed {
            tasks.extend(self.current(stored).await?);
        }
        Ok(StoredPage { tasks, unreadable, next })
    }

    /// Returns the current state of a listed task; `None` if the task no longer exists.
    async fn current(&self, listed: StoredTask) -> Result<Option<StoredTask>, TaskError> {
        let key = listed.key.clone();
        let current = match self.expire_if_overdue(listed).await {
            // Another writer has changed or removed the task since the page was read.
            Ok(None) | Err(TaskError::NotFound { .. }) => self.read_current(&key).await.map(Some),
            current => current,
        };
        match current {
            Err(TaskError::NotFound { .. }) => Ok(None),
            current => current,
        }
    }

    /// Stores a new task.
    pub(super) async fn create(
        &self,
        deadline: &Deadline,
        key: &TaskKey,
        new: NewTask,
        lease: Option<Lease>,
    ) -> Result<StoredTask, TaskError> {
        check_owner(&key.owner)?;
        let (mut task, expiry) = new.into_task(key.task.clone(), self.engine.now(), lease, &self.config)?;
        let mut options = PutOptions::new(expiry);
        options.quota = self.config.max_tasks_per_owner;
        let timer = task.lease.is_some().then(|| self.scheduler.new_lease_timer());
        let write = Write::create(key, &mut task, options, timer, self.engine.backend.max_value_bytes())?;
        let mut writer = Writer::new(ChangeKind::Input, deadline, None);
        let task = StoredTask::new(key, task, Version::ABSENT, None, self.engine.origin());
        match write.apply(&self.engine, &mut writer, task).await? {
            Some(created) => Ok(created),
            // Another task has the same random id of 122 bits, or the engine breaks its contract.
            None => Err(TaskError::Storage(StorageError::VersionConflict {
                key: key.clone(),
                expected: Version::ABSENT,
                actual: Version::FIRST,
            })),
        }
    }

    /// Applies `change` to a task and writes the task. Repeats both after a conflict with another writer. Returns the
    /// task as written.
    pub(super) async fn change(
        &self,
        deadline: &Deadline,
        call: ChangeCall<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let key = call.task.key();
        let span = debug_span!("change", operation = call.operation, owner = %key.owner.printable(), task = %key.task.printable());
        let changed = pin!(self.change_in_queue(deadline, call, change));
        deadline.limit(call.operation, CallTarget::Task(key), changed).instrument(span).await
    }

    async fn change_in_queue(
        &self,
        deadline: &Deadline,
        call: ChangeCall<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let key = call.task.key();
        check_key(key)?;
        let queued = self.writers.join(key, call.kind.priority());
        let mut writer = Writer::new(call.kind, deadline, queued.permit().await);
        if let Some(written) = self.change_copy(&mut writer, call.task, &change).await? {
            return Ok(written);
        }
        for conflicts in 0..self.config.max_conflicts {
            pause_after_conflicts(conflicts).await;
            let Some(mut stored) = self.expire_if_overdue(self.read(key).await?).await? else {
                continue;
            };
            if !call.is_by_holder {
                self.scheduler.schedule_if_lapsed(&stored).await;
            }
            writer.had_ended = stored.task.status.is_terminal();
            let made = change(stored.task_mut())?;
            if made == Change::None {
                return Ok(stored);
            }
            if let Some(written) = self.write(&mut writer, stored, made).await? {
                return Ok(written);
            }
        }
        Err(self.contended(key))
    }

    /// Changes the copy that the caller has passed, without a read. Returns `None` if this is not possible: only a
    /// read can show that there is nothing to change, or that the change is not allowed.
    async fn change_copy(
        &self,
        writer: &mut Writer<'_>,
        task: TaskRef<'_>,
        change: impl Fn(&mut Task) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<Option<StoredTask>, TaskError> {
        let TaskRef::Stored(held) = task else { return Ok(None) };
        if !held.is_fresh(self.engine.origin()) || self.is_overdue(&held.task) {
            return Ok(None);
        }
        writer.had_ended = held.task.status.is_terminal();
        let mut stored = held.clone();
        let made = match change(stored.task_mut()) {
            Ok(Change::None) | Err(_) => return Ok(None),
            Ok(made) => made,
        };
        match self.write(writer, stored, made).await {
            Err(TaskError::LimitExceeded { .. }) => Ok(None),
            written => written,
        }
    }

    /// Writes a changed task if its record still has the version of the read. Returns the task as written; `None` if another
    /// writer has written the record since the read.
    pub(super) async fn write(
        &self,
        writer: &mut Writer<'_>,
        mut stored: StoredTask,
        change: Change,
    ) -> Result<Option<StoredTask>, TaskError> {
        let (key, expected) = (stored.key.clone(), stored.version);
        if let Some(found) = stored.task.forbids_writes() {
            return Err(TaskError::LaterVersion { task: key.task, found });
        }
        let task = stored.task_mut();
        if change.is_visible() {
            task.last_updated_at = self.engine.now().max(task.last_updated_at);
        }
        // Every change with an event is visible, so its time is that of the last update.
        let events = task.record_events(task.last_updated_at);
        let ends = task.status.is_terminal() && !writer.had_ended;
        let change = match task.retention() {
            Some(retention) if ends && change == Change::Visible => self.kept_for(task, retention),
            _ => change,
        };
        let max_bytes = self.engine.backend.max_value_bytes();
        let write = Write::update(writer, &key, task, expected, change, max_bytes)?.with_events(events);
        write.apply(&self.engine, writer, stored).await
    }

    /// Returns the change of a task that ends now, and is of use for `keep_for` from then on, or for its retention if that is shorter.
    pub(super) fn kept_for(&self, task: &Task, keep_for: Duration) -> Change {
        let (ttl, age) = (task.ttl_ms.map(Duration::from_millis), self.engine.now() - task.created_at);
        let retention = task.retention();
        let keep_for = retention.map_or(keep_for, |retention| keep_for.min(retention));
        Change::Lifetime(expiry_after_end(ttl, age, retention, &self.config, keep_for))
    }

    fn is_overdue(&self, task: &Task) -> bool {
        !task.status.is_terminal()
            && task.deadline().is_some_and(|deadline| deadline <= self.engine.now())
            // The end could not be written.
            && task.forbids_writes().is_none()
    }

    /// Ends a task whose TTL has elapsed before it ended. Leaves other tasks as they are.
    ///
    /// The estimate of the clock may be ahead, so this function asks the engine for its clock first. Returns `None`
    /// if another writer has written the task since the read. If the engine rejects the write, this function returns
    /// the task as ended nevertheless, and the next reader tries again to store the end. An observer leaves the write to the next
    /// reader, too.
    pub(super) async fn expire_if_overdue(
        &self,
        stored: StoredTask,
    ) -> Result<Option<StoredTask>, TaskError> {
        if !self.is_overdue(&stored.task) || !self.has_ttl_elapsed(&stored).await {
            return Ok(Some(stored));
        }
        let mut ended = stored.clone();
        machine::expire(ended.task_mut())?;
        if self.config.is_observer {
            return Ok(Some(ended.unwritten()));
        }
        let mut writer = Writer::store();
        match Box::pin(self.write(&mut writer, ended.clone(), Change::Visible)).await {
            Err(error) if !matches!(error, TaskError::NotFound { .. }) => {
                log_unwritten_end(&error);
                Ok(Some(ended.unwritten()))
            }
            written => written,
        }
    }

    /// Returns whether the TTL has elapsed by the engine's clock. Returns `false` if the clock cannot be read.
    async fn has_ttl_elapsed(&self, stored: &StoredTask) -> bool {
        match self.engine.clock(&stored.key).await {
            Ok(now) => stored.task.deadline().is_some_and(|deadline| deadline <= now),
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "a task whose TTL may have elapsed stays open: the engine's clock cannot be read");
                false
            }
        }
    }
}

fn log_unwritten_end(error: &TaskError) {
    const WHAT: &str = "the end of a task whose TTL has elapsed was not stored";
    match error {
        TaskError::Storage(_) | TaskError::Contended { .. } => {
            tracing::debug!(error = %Chain(error), "{WHAT}")
        }
        // The log reports an outage once. This error is not part of an outage.
        _ => tracing::warn!(error = %Chain(error), "{WHAT}"),
    }
}
