//! Makes the pointer of a unique key name a task, and outlive the record of the task.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::durations::pause_after_conflicts;
use super::error::TaskError;
use super::pointer::{EntryState, Pointer, PointerClient, set};
use super::records::Records;
use crate::backend::{Agenda, Expiry, OwnerId, PartChanges, TaskId};
use crate::task::{Lease, StoredTask};

/// What a pointer says about a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// The task is the open one of its key.
    Held,
    /// The pointer does not name the task: another start has replaced it.
    Lost,
    /// The pointer names the task and another one. A start that the engine applied late has added one of them, and its store is
    /// about to remove it.
    Shared,
}

/// How long a pointer lives from each extension, if the record of its task never expires.
const UNLIMITED: Duration = Duration::from_secs(30 * 24 * 3600);
/// The same in leases of the task, if that is longer. The keeper reads an open task every ten leases at the latest.
const UNLIMITED_LEASES: u32 = 40;

/// How long a pointer must live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// How long it lives from a write on.
    life: Duration,
    /// When it may expire at the earliest; `None` if every write is enough.
    until: Option<DateTime<Utc>>,
}

impl Span {
    /// Returns the span for a record that lives for `record`, and a pointer that must not expire before `until`. The pointer
    /// outlives the record by the time limit of a call, because the record may be created that much later.
    pub(super) fn limited(record: Duration, until: Option<DateTime<Utc>>, call_timeout: Duration) -> Self {
        Self { life: longer(record, call_timeout), until }
    }

    /// Returns the span for a record that never expires, at `now`. The keepers extend the pointer while the task is open.
    pub(super) fn unlimited(now: DateTime<Utc>, lease: Duration) -> Self {
        let life = longer(UNLIMITED.max(lease.saturating_mul(UNLIMITED_LEASES)), Duration::ZERO);
        Self { life, until: Some(now + life / 2) }
    }

    /// Returns the span for the record of a task that was read at `now`.
    pub(super) fn of(stored: &StoredTask, now: DateTime<Utc>, call_timeout: Duration) -> Self {
        match stored.expires_at {
            Some(at) => Self::limited((at - now).to_std().unwrap_or_default(), Some(at), call_timeout),
            None => Self::unlimited(now, lease_of(stored)),
        }
    }

    pub(super) fn life(&self) -> Duration {
        self.life
    }

    /// Returns by how much too early the pointer expires.
    fn missing(&self, pointer: &Pointer) -> Option<TimeDelta> {
        let (at, until) = (pointer.expires_at?, self.until?);
        Some(until - at).filter(|left| *left > TimeDelta::zero())
    }

    /// Returns the life from a write on after one that was not enough: the servers of the pointer and of the task have different
    /// clocks, or a clock was set between two writes.
    fn longer_life(&self, pointer: &Pointer) -> Duration {
        let missing = self.missing(pointer).unwrap_or_default();
        longer(self.life, missing.to_std().unwrap_or_default())
    }
}

fn longer(life: Duration, by: Duration) -> Duration {
    life.saturating_add(by).min(Expiry::MAX)
}

/// Returns the duration of the lease of a task.
pub(super) fn lease_of(stored: &StoredTask) -> Duration {
    stored.task.lease.as_ref().map(Lease::duration).unwrap_or_default()
}

/// Returns the client of a task's pointer.
pub(super) fn pointer_of<'a, B: Agenda>(
    records: &'a Records<B>,
    owner: &OwnerId,
    id: &str,
) -> Result<PointerClient<'a, B>, TaskError> {
    PointerClient::new(&records.engine, owner, id, records.config.call_timeout)
}

/// Confirms the entry of a task, and makes the pointer live for the span. If there is no pointer, a failover or an operator has
/// removed it, and the call creates it.
///
/// The call returns [`Hold::Held`] only after a read that shows the confirmed entry and no other confirmed entry. Every such read
/// follows the write of its own entry. So if two tasks confirm their entries, the task that wrote later finds the other entry.
pub(super) async fn hold<B: Agenda>(
    pointers: &PointerClient<'_, B>,
    task: &TaskId,
    span: Span,
    max_conflicts: u32,
) -> Result<Hold, TaskError> {
    let mut has_written = false;
    for conflicts in 0..max_conflicts {
        pause_after_conflicts(conflicts).await;
        let pointer = pointers.read().await?;
        if let Some(found) = judge(pointer.as_ref(), task, span) {
            return Ok(found);
        }
        let mut changes = PartChanges::new();
        set(&mut changes, task, EntryState::Confirmed)?;
        let life = match &pointer {
            Some(pointer) if has_written => span.longer_life(pointer),
            _ => span.life,
        };
        has_written |= pointers.write(pointer.as_ref(), changes, life).await?;
    }
    Err(TaskError::Contended { task: task.clone(), conflicts: max_conflicts })
}

/// Returns what the pointer says; `None` if a write of the entry can change it.
fn judge(pointer: Option<&Pointer>, task: &TaskId, span: Span) -> Option<Hold> {
    let pointer = pointer?;
    let state = match pointer.state_of(task) {
        None | Some(EntryState::Void) => return Some(Hold::Lost),
        Some(state) => state,
    };
    if pointer.others(task, EntryState::Confirmed).next().is_some() {
        return Some(Hold::Shared);
    }
    (state == EntryState::Confirmed && span.missing(pointer).is_none()).then_some(Hold::Held)
}

/// Makes the pointer of a unique task hold it for the span. Returns [`Hold::Held`] for a task that is not unique.
pub(super) async fn hold_task<B: Agenda>(
    records: &Records<B>,
    stored: &StoredTask,
    span: Span,
) -> Result<Hold, TaskError> {
    let Some(id) = stored.task.unique.as_deref() else { return Ok(Hold::Held) };
    let pointers = pointer_of(records, &stored.key.owner, id)?;
    hold(&pointers, &stored.key.task, span, records.config.max_conflicts).await
}

/// Extends the pointer of an open unique task whose record never expires, once half of the pointer's life has passed. The pointer
/// expires some time after the task has ended or was removed.
pub(super) async fn extend_unlimited<B: Agenda>(
    records: &Records<B>,
    stored: &StoredTask,
) -> Result<(), TaskError> {
    if stored.expires_at.is_some() {
        // The pointer outlives the record already.
        return Ok(());
    }
    let span = Span::unlimited(records.engine.now(), lease_of(stored));
    // The key of a task that has lost its pointer belongs to another task.
    hold_task(records, stored, span).await.map(drop)
}
