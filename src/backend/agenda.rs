//! Timers of the tasks of all owners. The instances of a server find work by these timers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;

use super::error::StorageError;
use super::key::{OwnerId, TaskKey};
use super::page::Cursor;
use super::queue::Queue;
use super::record::{PutOptions, Written};
use super::storage::StorageBackend;
use super::version::Version;

/// A due timer that [`take_due`](Agenda::take_due) took.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Due {
    /// The queue of the timer.
    pub queue: Queue,
    /// The task of the timer.
    pub key: TaskKey,
    /// Identifies this take of the timer. The next `schedule` or `take_due` of the timer voids the token.
    pub token: String,
}

impl Due {
    /// Creates a taken timer. Engines call it.
    pub fn new(queue: Queue, key: TaskKey, token: impl Into<String>) -> Self {
        Self { queue, key, token: token.into() }
    }
}

/// The result of [`take_due`](Agenda::take_due).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken {
    /// The taken timers, in the order of the queues; within a queue, in the order of their due times.
    pub due: Vec<Due>,
    /// The time until the next timer of these queues is due: zero if more are due now, `None` if there is no timer.
    pub next_in: Option<Duration>,
}

impl Taken {
    /// Creates the result of a take. Engines call it.
    pub fn new(due: Vec<Due>, next_in: Option<Duration>) -> Self {
        Self { due, next_in }
    }
}

/// What [`resolve`](Agenda::resolve) does with a taken timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The timer fires again when this time has passed.
    After(Duration),
    /// The engine removes the timer.
    Remove,
}

/// A timer as [`timers`](Agenda::timers) lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timer {
    /// The task of the timer.
    pub key: TaskKey,
    /// When the timer fires, by the engine's clock.
    pub due_at: DateTime<Utc>,
}

impl Timer {
    /// Creates a listed timer. Engines call it.
    pub fn new(key: TaskKey, due_at: DateTime<Utc>) -> Self {
        Self { key, due_at }
    }
}

/// One page of the timers of a queue, in the order of their due times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimerPage {
    /// The timers.
    pub timers: Vec<Timer>,
    /// The number of timers of the queue.
    pub total: u64,
    /// The cursor of the next page; `None` if there are no more pages.
    pub next: Option<Cursor>,
}

impl TimerPage {
    /// Creates a page. Engines return it.
    pub fn new(timers: Vec<Timer>, total: u64, next: Option<Cursor>) -> Self {
        Self { timers, total, next }
    }
}

/// One page of the owners that have records, in no particular order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerPage {
    /// The owners. A page may be empty before the end of the walk.
    pub owners: Vec<OwnerId>,
    /// The cursor of the next page; `None` if there are no more pages.
    pub next: Option<Cursor>,
}

impl OwnerPage {
    /// Creates a page. Engines return it.
    pub fn new(owners: Vec<OwnerId>, next: Option<Cursor>) -> Self {
        Self { owners, next }
    }
}

/// Stores timers of tasks, across owners. A timer belongs to a task and to a [`Queue`].
///
/// The record is the truth, and a timer is a hint. A timer fires at least once, and never later than the requested
/// time on the engine's clock. If that clock is set back, the timer fires later by the size of that step. The taker
/// of a timer reads the record, acts, and resolves the timer. If the taker dies, the timer fires again after the
/// `hide_for` of that `take_due`.
///
/// [`LocalAgenda`](crate::LocalAgenda) wraps an engine without timers of its own.
///
/// The trait is object-safe. `Arc<A>` and `Arc<dyn Agenda>` are agendas too.
///
/// # Errors
/// `InvalidExpiry` for a duration over 100 years, and the errors of a [`StorageBackend`].
///
/// # Cancellation safety
/// Dropping the future of a call that writes may leave it applied or not, as a whole. Timers that a dropped `take_due` took
/// fire again after `hide_for`.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::StorageError> {
/// use std::time::Duration;
///
/// use mcp_task_store::{Agenda, MemoryBackend, Next, Priority, Queue, TaskKey};
///
/// let (agenda, queue) = (MemoryBackend::new(), Queue::work("render", Priority::Normal)?);
/// agenda.schedule(&queue, &TaskKey::new("alice", "t1")?, Duration::ZERO).await?;
///
/// let hide_for = Duration::from_secs(60);
/// for due in agenda.take_due(&[queue], 10, hide_for).await?.due {
///     // Read the record, act, and then:
///     agenda.resolve(&due, Next::Remove).await?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Contract
/// The suite of the feature `conformance` checks these rules, under these names:
///
/// Timers:
///
/// * Without timers, `take_due` returns no timer and no next due time.
/// * A timer is taken once it is due, and `next_in` states when that is.
/// * A timer fires no later than asked by the clock of the engine.
/// * `next_in` is the earliest of all queues, and zero if more are due.
/// * With a limit of 0, `take_due` takes nothing and states when the next timer is due.
/// * A due timer goes to one taker.
/// * A taken timer is hidden and fires again.
/// * One call takes a timer once, even if `hide_for` is zero.
/// * One call takes each of many timers once, even if `hide_for` is zero.
/// * `schedule` keeps an earlier timer and moves a later one.
/// * A task has its own timer in each queue.
/// * A timer stays when its record is written, deleted or expires.
/// * Queues are taken in the order given.
/// * Timers of a queue are taken by due time.
/// * With a limit of 1, `take_due` takes the timer that was due first.
/// * `take_due` takes no more than its limit and 256.
/// * `resolve` moves or removes the timer.
/// * `schedule` voids the token even if an earlier timer stays.
/// * A later take voids the token.
/// * A token is valid for one `resolve`.
/// * A token of a removed timer is void for the next timer.
/// * A token that `take_due` never returned is void.
/// * The engine holds nothing after all timers are removed.
/// * Timers of different ids or queues never collide.
/// * A delay over 100 years is refused, and changes nothing.
/// * A queue name outside 1 to 512 bytes is refused.
///
/// A create with its timer:
///
/// * `create_with_timer` creates the record and schedules the timer.
/// * `create_with_timer` keeps an earlier timer and moves a later one.
/// * A `create_with_timer` that is refused writes no record and changes no other timer.
/// * An expiry or a delay out of range is refused by `create_with_timer`, and nothing is written.
/// * Of many creates with a timer that race for one task, exactly one wins.
/// * Each of many creates with a timer has its record and its timer.
///
/// Wakeups:
///
/// * A timer that becomes the earliest wakes the subscribers.
/// * A timer of `create_with_timer` that becomes the earliest wakes the subscribers.
/// * A timer that `resolve` makes the earliest wakes the subscribers.
/// * Subscribers receive items for earlier timers of their queues only.
/// * A timer scheduled before the stream is polled is an item of the next poll.
/// * A stream of wakeups of no queue has no item.
///
/// Listings:
///
/// * `timers` lists each timer once with its due time, and takes none.
/// * A walk while timers are added and removed lists each remaining timer once.
/// * A malformed cursor of `timers` or `owners` is refused.
/// * `owners` lists each owner that has records.
#[async_trait]
pub trait Agenda: StorageBackend {
    /// Makes a timer fire no later than `after` from now. A timer of this task in this queue that fires earlier stays as it
    /// is. A timer that fires later is moved. In both cases the call voids the token of the previous taker.
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError>;

    /// Schedules a timer, then creates the record of its task, like [`schedule`](Self::schedule) and then
    /// [`put_if_version`](StorageBackend::put_if_version) with [`Version::ABSENT`].
    ///
    /// Call it for a task that another process must find if this process dies. The record never exists without its timer: the
    /// engine writes the timer in the same atomic step, or has acknowledged it before it writes the record. If the
    /// call fails, the timer may remain without a record. Its taker then finds no record, and removes the timer.
    ///
    /// The provided method makes the two calls, one after the other. An engine that needs only one round trip for both
    /// implements the method itself. An engine that wraps another engine forwards this call to it.
    ///
    /// # Errors
    /// * `InvalidExpiry` for an `after` over 100 years, and for an expiry outside 1 ms to 100 years. Neither the record nor
    ///   the timer is written.
    /// * `VersionConflict` if the record exists, `CapacityExceeded` at the quota, and the other errors of
    ///   [`put_if_version`](StorageBackend::put_if_version) and [`schedule`](Self::schedule). No record is written.
    ///
    /// If the [outcome is unknown](StorageError::outcome_unknown), read the record. A second call does no harm: it creates the
    /// record only if the first one has not, and a timer that fires earlier stays.
    ///
    /// # Cancellation safety
    /// Dropping the future leaves the timer and the record, the timer alone, or neither of them.
    async fn create_with_timer(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        queue: &Queue,
        after: Duration,
    ) -> Result<Written, StorageError> {
        options.expiry.check()?;
        self.schedule(queue, key, after).await?;
        self.put_if_version(key, data, options, Version::ABSENT).await
    }

    /// Takes up to `limit` timers that are due: from the queues in the order given, and in each queue by due time. In
    /// the same atomic step it moves each timer to `hide_for` from now, so that no other taker takes the timer before
    /// that time.
    ///
    /// A call takes at most 256 timers. With a limit of 0 it takes none, and returns when the next timer is due.
    ///
    /// An engine whose timers are on several servers takes from the servers that it can reach. It fails if it can
    /// reach none of them.
    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError>;

    /// Moves or removes a timer that was taken. Returns whether the call had an effect. It has none if another call
    /// has scheduled or taken the timer after this take.
    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError>;

    /// Streams an item whenever a timer of these queues may be due sooner than the last [`take_due`](Self::take_due)
    /// returned. An item may also arrive when no timer is due sooner. The stream does not end. It must be polled
    /// within a Tokio runtime.
    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()>;

    /// Returns one page of the owners that have records. For operators: the call may cost a bounded scan of all
    /// records. An owner whose first record is created or whose last record is removed during the walk may be
    /// missing, or may be on two pages.
    ///
    /// # Errors
    /// `InvalidPage` for a cursor that is malformed.
    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError>;

    /// Returns one page of the timers of a queue, and how many timers the queue has. The call takes no timer. For
    /// operators.
    ///
    /// # Errors
    /// `InvalidPage` for a cursor that is malformed.
    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError>;
}

#[async_trait]
impl<A: Agenda + ?Sized> Agenda for Arc<A> {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        (**self).schedule(queue, key, after).await
    }

    async fn create_with_timer(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        queue: &Queue,
        after: Duration,
    ) -> Result<Written, StorageError> {
        (**self).create_with_timer(key, data, options, queue, after).await
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        (**self).take_due(queues, limit, hide_for).await
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        (**self).resolve(due, next).await
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        (**self).wakeups(queues)
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        (**self).owners(after).await
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        (**self).timers(queue, after).await
    }
}
