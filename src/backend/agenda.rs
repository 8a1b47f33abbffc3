//! Timers across owners. The instances of a server use them to find work that is due.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;

use super::error::StorageError;
use super::key::{OwnerId, TaskKey};
use super::page::Cursor;
use super::storage::StorageBackend;
#[cfg(feature = "redis")]
use crate::printable::Printable;

/// The longest name of a queue, in bytes of UTF-8.
const MAX_QUEUE_BYTES: usize = 512;

/// The name of a queue of timers: any non-empty UTF-8 of up to 512 bytes. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queue(Arc<str>);

impl Queue {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name for a line of the log.
    #[cfg(feature = "redis")]
    pub(crate) fn printable(&self) -> Printable<'_> {
        Printable(&self.0)
    }
}

impl Queue {
    /// Returns the queue of the timers of leases, which every instance takes: `leases`.
    pub fn leases() -> Self {
        Self("leases".into())
    }

    /// Returns the queue of the tasks that wait for a worker of this operation: `work/{operation}`.
    ///
    /// # Errors
    /// [`StorageError::InvalidKey`] for an overlong name.
    pub fn work(operation: &str) -> Result<Self, StorageError> {
        Self::try_from(format!("work/{operation}").as_str())
    }
}

impl TryFrom<&str> for Queue {
    type Error = StorageError;

    /// # Errors
    /// [`StorageError::InvalidKey`] for an empty or overlong name.
    fn try_from(name: &str) -> Result<Self, StorageError> {
        if (1..=MAX_QUEUE_BYTES).contains(&name.len()) {
            return Ok(Self(name.into()));
        }
        let length = name.len();
        let reason = format!("a queue name of {length} bytes is not 1 to {MAX_QUEUE_BYTES} bytes long");
        Err(StorageError::InvalidKey { reason })
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A timer that was due when it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Due {
    /// The queue that it was taken from.
    pub queue: Queue,
    /// The task that it belongs to.
    pub key: TaskKey,
    /// Identifies this taking of the timer: the next `schedule` or `take_due` of the timer voids it.
    pub token: String,
}

impl Due {
    /// Creates a timer that was taken. For engines.
    pub fn new(queue: Queue, key: TaskKey, token: impl Into<String>) -> Self {
        Self { queue, key, token: token.into() }
    }
}

/// What [`take_due`](Agenda::take_due) took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken {
    /// The timers, in the order of the queues, and within a queue those that were due first.
    pub due: Vec<Due>,
    /// The time until the next timer of these queues is due: zero if more are due now, `None` if there is none.
    pub next_in: Option<Duration>,
}

impl Taken {
    /// Creates the result of a take. For engines.
    pub fn new(due: Vec<Due>, next_in: Option<Duration>) -> Self {
        Self { due, next_in }
    }
}

/// What becomes of a timer that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It fires again when this time has passed.
    After(Duration),
    /// It is removed.
    Remove,
}

/// A timer as [`timers`](Agenda::timers) lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timer {
    /// The task that it belongs to.
    pub key: TaskKey,
    /// When it fires, by the engine's clock.
    pub due_at: DateTime<Utc>,
}

impl Timer {
    /// Creates a listed timer. For engines.
    pub fn new(key: TaskKey, due_at: DateTime<Utc>) -> Self {
        Self { key, due_at }
    }
}

/// One page of the timers of a queue, by due time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimerPage {
    /// The timers.
    pub timers: Vec<Timer>,
    /// How many timers the queue has.
    pub total: u64,
    /// Where the next page begins. Only `None` ends the walk.
    pub next: Option<Cursor>,
}

impl TimerPage {
    /// Creates a page. For engines.
    pub fn new(timers: Vec<Timer>, total: u64, next: Option<Cursor>) -> Self {
        Self { timers, total, next }
    }
}

/// One page of the owners that have records, in no order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerPage {
    /// The owners. May be none on any page.
    pub owners: Vec<OwnerId>,
    /// Where the next page begins. Only `None` ends the walk.
    pub next: Option<Cursor>,
}

impl OwnerPage {
    /// Creates a page. For engines.
    pub fn new(owners: Vec<OwnerId>, next: Option<Cursor>) -> Self {
        Self { owners, next }
    }
}

/// Timers of tasks, across owners. Each belongs to a task and to a [`Queue`].
///
/// The record is the truth. A timer is a hint that fires at least once, and never later than asked, by the engine's
/// clock; if that clock is set back, by the step later. The taker of a timer reads the record, acts, and resolves the
/// timer. If the taker dies, the timer fires again once the time has passed for which it was hidden.
///
/// [`LocalAgenda`](crate::LocalAgenda) wraps an engine without timers of its own.
///
/// The trait is object-safe, and `Arc<A>` and `Arc<dyn Agenda>` are agendas too.
///
/// # Errors
/// `InvalidExpiry` for a duration over 100 years, and the errors of a [`StorageBackend`].
///
/// # Cancellation safety
/// Dropping the future of a call that writes may leave it applied or not, as a whole. Timers that a dropped
/// `take_due` took fire again after `hide_for`.
#[async_trait]
pub trait Agenda: StorageBackend {
    /// Makes a timer fire no later than `after` from now. A timer of this task in this queue that fires earlier stays
    /// as it is; one that fires later is moved. Either way it voids the token of the taker before.
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError>;

    /// Takes up to `limit` timers that are due: from the queues in the order given, and in each queue by due time. In the same atomic step it moves each to `hide_for` from now, so that no other taker gets it
    /// meanwhile.
    ///
    /// A call takes 256 timers at most. With a limit of 0 it takes none, and returns when the next one is due.
    ///
    /// An engine whose timers are on several servers takes from those that it can reach, and fails if it reaches none.
    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError>;

    /// Moves or removes a timer that was taken. Returns whether it had an effect: it has none once somebody has
    /// scheduled or taken the timer since.
    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError>;

    /// Streams an item whenever a timer of these queues may have become due sooner than the last
    /// [`take_due`](Self::take_due) said. An item may come without a reason. The stream does not end. It must be
    /// polled within a Tokio runtime.
    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()>;

    /// Returns one page of the owners that have records. For operators: the call may cost a bounded scan of all records. An
    /// owner that appears or disappears meanwhile may be missing, or be on two pages.
    ///
    /// # Errors
    /// `InvalidPage` for a cursor that is malformed.
    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError>;

    /// Returns one page of the timers of a queue, and their number. It takes none. For operators.
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
