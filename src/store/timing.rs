//! Changes of how long a task may run, and of how often a client polls it. SEP-2663 allows both during the life of a task.

use std::pin::pin;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use tokio::time::Instant;

use super::TaskStore;
use super::attempt::Attempt;
use super::config::StoreConfig;
use super::deadline::{CallTarget, Deadline};
use super::error::TaskError;
use super::hold::{Hold, Span, hold_task, lease_of};
use super::limits::check_key;
use super::machine::{self, Change};
use super::records::{ChangeCall, Records};
use super::task_ref::TaskRef;
use super::ttl::{Ttl, expiry, resolve_ttl};
use super::write::ChangeKind;
use crate::backend::{Agenda, Expiry, TaskKey};
use crate::task::{StoredTask, Task};

impl<B: Agenda> TaskStore<B> {
    /// Changes how long the task may run. The TTL counts from the creation of the task, like the TTL of a
    /// [new task](crate::NewTask::ttl), and has the same limits. The record lives for the new TTL and the
    /// [retention](crate::StoreConfig::retention) of this store.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) if the task has ended;
    /// [`LimitExceeded`](TaskError::LimitExceeded) if the TTL is over [`max_ttl`](crate::StoreConfig::max_ttl);
    /// [`InvalidArgument`](TaskError::InvalidArgument) for a TTL under 1 ms, or one that has already elapsed.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mcp_task_store::TaskError> {
    /// # use std::time::Duration;
    /// # use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStore};
    /// # let store = TaskStore::new(MemoryBackend::new());
    /// # let alice = OwnerId::try_from("alice").expect("not empty");
    /// let task = store.create(&alice, NewTask::new("tools/call").ttl(Duration::from_secs(60))).await?;
    /// let task = store.set_ttl(&task, Duration::from_secs(3600)).await?;
    /// assert_eq!(task.task.ttl_ms, Some(3_600_000));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_ttl<'a>(
        &self,
        task: impl Into<TaskRef<'a>>,
        ttl: impl Into<Ttl>,
    ) -> Result<StoredTask, TaskError> {
        let (task, records) = (task.into(), self.0.records());
        let deadline = records.deadline();
        let new = NewTtl::prepare(records, &deadline, task, ttl.into()).await?;
        let call = ChangeCall::new(ChangeKind::Input, "set_ttl", TaskRef::Stored(&new.read));
        let changed = records.change(&deadline, call, |task| new.set(task, &records.config)).await?;
        deadline.limit_optional(records.scheduler.schedule_if_lapsed(&changed)).await;
        Ok(changed)
    }

    /// Changes how long a client should wait between two polls of the task.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) if the task has ended;
    /// [`InvalidArgument`](TaskError::InvalidArgument) for an interval outside 1 ms to 24 hours.
    pub async fn set_poll_interval<'a>(
        &self,
        task: impl Into<TaskRef<'a>>,
        interval: Duration,
    ) -> Result<StoredTask, TaskError> {
        let set = |task: &mut Task| machine::set_poll_interval(task, interval);
        self.change(ChangeKind::Input, "set_poll_interval", task.into(), set).await
    }
}

impl<B: Agenda> Attempt<B> {
    /// Changes how long the task may run. See [`TaskStore::set_ttl`].
    pub async fn set_ttl(&self, ttl: impl Into<Ttl>) -> Result<StoredTask, TaskError> {
        let records = self.store.records();
        let deadline = records.deadline();
        let new = NewTtl::prepare(records, &deadline, TaskRef::Key(self.key()), ttl.into()).await?;
        let call = ChangeCall::by_holder(ChangeKind::Input, "set_ttl", TaskRef::Stored(&new.read));
        self.change_before(&deadline, call, |task| new.set(task, &records.config)).await
    }

    /// Changes how long a client should wait between two polls. See [`TaskStore::set_poll_interval`].
    pub async fn set_poll_interval(&self, interval: Duration) -> Result<StoredTask, TaskError> {
        let set = |task: &mut Task| machine::set_poll_interval(task, interval);
        self.change(ChangeKind::Input, "set_poll_interval", set).await
    }
}

/// A TTL that a task is about to have.
struct NewTtl {
    ttl: Option<Duration>,
    clock: ClockReading,
    /// The task, so that the change need not read it again.
    read: StoredTask,
}

impl NewTtl {
    /// Makes the pointer of a unique task outlive the record with its new TTL, before the record has that TTL.
    async fn prepare<B: Agenda>(
        records: &Records<B>,
        deadline: &Deadline,
        task: TaskRef<'_>,
        ttl: Ttl,
    ) -> Result<Self, TaskError> {
        let ttl = resolve_ttl(ttl, &records.config)?;
        let clock = ClockReading::of(records, deadline, task.key()).await?;
        let extend = pin!(read_and_extend(records, task, ttl, clock.now()));
        let read = deadline.limit("set_ttl", CallTarget::Task(task.key()), extend).await?;
        Ok(Self { ttl, clock, read })
    }

    fn set(&self, task: &mut Task, config: &StoreConfig) -> Result<Change, TaskError> {
        machine::set_ttl(task, self.ttl, self.clock.now(), config)
    }
}

async fn read_and_extend<B: Agenda>(
    records: &Records<B>,
    task: TaskRef<'_>,
    ttl: Option<Duration>,
    now: DateTime<Utc>,
) -> Result<StoredTask, TaskError> {
    let stored = match task {
        TaskRef::Stored(copy) => copy.clone(),
        TaskRef::Key(key) => records.read_current(key).await?,
    };
    if stored.task.unique.is_none() || stored.task.status.is_terminal() {
        return Ok(stored);
    }
    let (age, limit) = (now - stored.task.created_at, records.config.call_timeout);
    let span = match expiry(ttl, age, stored.task.retention(), &records.config)? {
        // The engine refuses such an expiry of the record itself.
        Expiry::After(life) if life > Expiry::MAX => return Ok(stored),
        // The record is written later than now, within the time limit of the call.
        Expiry::After(life) => Span::limited(life, Some(now + life + limit), limit),
        Expiry::Never | Expiry::Keep => Span::unlimited(now, lease_of(&stored)),
    };
    match hold_task(records, &stored, span).await? {
        // The key of a task that has lost its pointer belongs to another task. Its record may still live longer.
        Hold::Held | Hold::Lost => Ok(stored),
        Hold::Shared => Err(records.contended(&stored.key)),
    }
}

/// The clock of the server that holds a record, as read at one moment. The estimate of the clock may be ahead. The record
/// would then expire too early.
struct ClockReading {
    clock: DateTime<Utc>,
    read_at: Instant,
}

impl ClockReading {
    async fn of<B: Agenda>(
        records: &Records<B>,
        deadline: &Deadline,
        key: &TaskKey,
    ) -> Result<Self, TaskError> {
        check_key(key)?;
        let read = pin!(records.engine.clock(key));
        let clock = deadline.limit("set_ttl", CallTarget::Task(key), read).await?;
        Ok(Self { clock, read_at: Instant::now() })
    }

    fn now(&self) -> DateTime<Utc> {
        (self.clock + self.read_at.elapsed()).trunc_subsecs(3)
    }
}
