//! What operators ask an engine about its state: its settings, its health, and whether its indexes and timers are complete.

use async_trait::async_trait;

use super::agenda::Agenda;
use super::error::StorageError;
use super::key::{OwnerId, TaskKey};
use super::page::Cursor;
use super::queue::Queue;

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Health {
    /// As it should be.
    Green,
    /// It works, but an operator should change it, or could not be checked.
    Yellow,
    /// Tasks are lost or calls fail, or will be soon.
    Red,
}

/// What one check of an engine has found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The name of the check, for example `persistence`.
    pub check: String,
    /// How well it is.
    pub health: Health,
    /// What the check has found.
    pub what: String,
    /// What the operator should do; `None` for nothing.
    pub advice: Option<String>,
}

impl Finding {
    /// Creates a finding that needs no action.
    pub fn green(check: impl Into<String>, what: impl Into<String>) -> Self {
        Self { check: check.into(), health: Health::Green, what: what.into(), advice: None }
    }

    /// Creates a finding that an operator should look at.
    pub fn yellow(check: impl Into<String>, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { health: Health::Yellow, advice: Some(advice.into()), ..Self::green(check, what) }
    }

    /// Creates a finding that needs action now.
    pub fn red(check: impl Into<String>, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { health: Health::Red, advice: Some(advice.into()), ..Self::green(check, what) }
    }
}

/// How the index of an owner and its records disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// The index has a member whose record does not exist: it was evicted, or deleted by hand.
    MemberWithoutRecord,
    /// The index does not have a record, or states another expiry for it. Pages of the owner can miss the record.
    RecordWithoutMember,
    /// The number of records that the engine keeps for an owner is wrong, and so is the owner's quota.
    WrongCount,
}

/// One disagreement between an index and its records.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// The key of the record, or the owner, as text.
    pub subject: String,
    /// Whether this call has repaired it.
    pub is_repaired: bool,
}

impl Fault {
    /// Creates a fault. Engines call it.
    pub fn new(kind: FaultKind, subject: impl Into<String>, is_repaired: bool) -> Self {
        Self { kind, subject: subject.into(), is_repaired }
    }
}

/// One page of a check of records or of the members of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckedPage {
    /// The live records that the page has found.
    pub records: Vec<TaskKey>,
    /// How many records or members the page has read.
    pub checked: usize,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// The cursor of the next page; `None` if there are no more pages.
    pub next: Option<Cursor>,
}

/// One page of the queues that have timers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueuePage {
    /// The queues. A walk may return a queue more than once.
    pub queues: Vec<Queue>,
    /// The cursor of the next page; `None` if there are no more pages.
    pub next: Option<Cursor>,
}

impl QueuePage {
    /// Creates a page. Engines return it.
    pub fn new(queues: Vec<Queue>, next: Option<Cursor>) -> Self {
        Self { queues, next }
    }
}

/// An engine that can check itself. For operators: `mcp-tasks doctor` calls it.
///
/// No call changes a record or its expiry. With `repair`, a call changes an index, in one atomic step that first checks
/// that the fault still exists. So servers may run meanwhile.
///
/// # Errors
/// The errors of a [`StorageBackend`](super::StorageBackend), and `InvalidPage` for a malformed cursor.
///
/// # Cancellation safety
/// Dropping the future of a call with `repair` may leave faults of its page repaired or not.
#[async_trait]
pub trait Diagnose: Agenda {
    /// Checks the engine itself: its version, its settings, its permissions and its speed. `is_thorough` adds checks that
    /// read the whole store.
    ///
    /// # Errors
    /// Only if the engine cannot be reached. A check that fails is a finding.
    async fn diagnose(&self, is_thorough: bool) -> Result<Vec<Finding>, StorageError>;

    /// Checks one page of all records: whether the index of their owner has each of them.
    async fn check_records(&self, after: Option<&Cursor>, repair: bool) -> Result<CheckedPage, StorageError>;

    /// Checks one page of the index of an owner: whether each of its members has a record. Its `records` are empty.
    async fn check_members(
        &self,
        owner: &OwnerId,
        after: Option<&Cursor>,
        repair: bool,
    ) -> Result<CheckedPage, StorageError>;

    /// Returns one page of the queues that have timers. The call may cost a bounded scan.
    async fn queues(&self, after: Option<&Cursor>) -> Result<QueuePage, StorageError>;

    /// Returns those of the tasks that have no timer in a queue. [`schedule`](Agenda::schedule) repairs them.
    async fn without_timer(&self, queue: &Queue, keys: &[TaskKey]) -> Result<Vec<TaskKey>, StorageError>;
}
