//! Conditional writes, and what became of one that got no answer.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use once_cell::sync::Lazy;

use super::change::Kind;
use super::deadline::Deadline;
use super::limits::check;
use super::transitions::Change;
use super::turns::Turn;
use super::{TaskError, TaskStore};
use crate::backend::{Agenda, Expiry, PutOptions, StorageBackend, StorageError, TaskKey, Version, Written};
use crate::task::payload::MAX_INLINE_BYTES;
use crate::task::snapshot::Origin;
use crate::task::{StoredTask, Task, TaskStatus};

/// How many ids of writes a record remembers.
const WRITE_IDS_KEPT: usize = 4;
/// How long to wait before each attempt to find out what became of a write.
const SETTLE_DELAYS_MS: [u64; 6] = [10, 50, 100, 250, 250, 250];

/// One conditional write with the parts that it sets, as it may have to be looked up or sent again.
pub(super) struct Write<'a> {
    pub(super) key: &'a TaskKey,
    pub(super) data: Bytes,
    pub(super) options: PutOptions,
    pub(super) expected: Version,
    pub(super) write_id: String,
    /// The id of the write that the record had when this one was made of it.
    pub(super) previous: Option<String>,
    /// What the write makes of the task for the first time.
    pub(super) event: Option<Event>,
}

/// What happens once in the life of a task, and is one line of the log.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Created,
    Ended(TaskStatus),
}

impl Event {
    /// Called once the engine has accepted the write.
    pub(super) fn log(self, key: &TaskKey, operation: Option<&str>) {
        let (owner, id) = (&key.owner, &key.task);
        match self {
            Self::Created => {
                tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, "created")
            }
            Self::Ended(TaskStatus::Completed) => {
                tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, "completed")
            }
            Self::Ended(TaskStatus::Failed) => {
                tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, "failed")
            }
            Self::Ended(_) => {
                tracing::info!(owner = %owner.printable(), task = %id.printable(), operation, "cancelled")
            }
        }
    }
}

impl Write<'_> {
    fn is_made_of(&self, found: &StoredTask) -> bool {
        found.version == self.expected && found.task.write_ids.last() == self.previous.as_ref()
    }

    fn stored(&self, task: Task, written: Written, origin: Origin) -> StoredTask {
        StoredTask::new(self.key, task, written.version, written.expires_at, origin)
    }
}

/// How many bytes of a record only leases, cancels and the end of the task may use.
const RESERVE: usize = 1024;

/// Who writes.
pub(super) struct Caller<'a> {
    pub(super) kind: Kind,
    /// The time limit of the call that the write belongs to.
    pub(super) deadline: Option<&'a Deadline>,
    /// The writer's turn at the task. It ends when the outcome of the write must be looked up: the next writer goes on
    /// meanwhile, and compare-and-swap keeps both right.
    pub(super) turn: Option<Turn<'a>>,
    /// The task had ended before: some SDKs complete one in two calls.
    pub(super) was_ended: bool,
}

impl<'a> Caller<'a> {
    pub(super) fn new(kind: Kind, deadline: &'a Deadline, turn: Option<Turn<'a>>) -> Self {
        Self { kind, deadline: Some(deadline), turn, was_ended: false }
    }

    /// The store itself, which looks after leases and ends what is overdue.
    fn store() -> Self {
        Self { kind: Kind::Lifecycle, deadline: None, turn: None, was_ended: false }
    }

    fn set_in_doubt(&self, is_in_doubt: bool) {
        if let Some(deadline) = self.deadline {
            deadline.set_in_doubt(is_in_doubt);
        }
    }
}

impl<B: Agenda> TaskStore<B> {
    /// Encodes a task, and holds its data against the maximum of the engine. Content stays out of the last kibibyte, so
    /// that a lease, a cancel and the end of the task always fit.
    pub(super) fn encode(
        &self,
        task: &mut Task,
        options: &mut PutOptions,
        kind: Kind,
    ) -> Result<Bytes, TaskError> {
        let max = self.0.backend.max_value_bytes();
        let data = encode(task, options, max)?;
        if kind != Kind::Lifecycle && !task.status.is_terminal() {
            let max = max.saturating_sub(RESERVE);
            check("bytes of data in the record of the task", data.len(), max)?;
        }
        Ok(data)
    }

    /// Writes a changed task over the version that it was made of. `None` if somebody else wrote that meanwhile.
    pub(super) async fn write(
        &self,
        key: &TaskKey,
        expected: Version,
        task: Task,
        change: Change,
    ) -> Result<Option<StoredTask>, TaskError> {
        self.write_by(&mut Caller::store(), key, expected, task, change).await
    }

    pub(super) async fn write_by(
        &self,
        caller: &mut Caller<'_>,
        key: &TaskKey,
        expected: Version,
        mut task: Task,
        change: Change,
    ) -> Result<Option<StoredTask>, TaskError> {
        let mut options = PutOptions::new(Expiry::Keep);
        match change {
            Change::Unseen => options = options.quiet(),
            Change::Made | Change::None => task.last_updated_at = self.now().max(task.last_updated_at),
        }
        let previous = task.write_ids.last().cloned();
        let write_id = mark(&mut task);
        let data = self.encode(&mut task, &mut options, caller.kind)?;
        let ends = task.status.is_terminal() && !caller.was_ended;
        let event = ends.then_some(Event::Ended(task.status));
        let write = Write { key, data, options, expected, write_id, previous, event };
        self.put(caller, &write, task).await
    }

    /// Sends a write. `None` if it conflicts with another.
    pub(super) async fn put(
        &self,
        caller: &mut Caller<'_>,
        write: &Write<'_>,
        task: Task,
    ) -> Result<Option<StoredTask>, TaskError> {
        let written = self.put_once(caller, write, task).await?;
        if let (Some(event), Some(written)) = (write.event, &written) {
            event.log(write.key, written.task.operation.as_deref());
        }
        Ok(written)
    }

    async fn put_once(
        &self,
        caller: &mut Caller<'_>,
        write: &Write<'_>,
        task: Task,
    ) -> Result<Option<StoredTask>, TaskError> {
        let origin = self.origin();
        caller.set_in_doubt(true);
        let sent = self.send(write).await;
        caller.set_in_doubt(sent.as_ref().is_err_and(StorageError::outcome_unknown));
        match sent {
            Ok(written) => Ok(Some(write.stored(task, written, origin))),
            Err(StorageError::VersionConflict { .. }) => Ok(None),
            // Rare, so the room for it is taken only then.
            Err(error) if is_settled_by_reading(&error) => {
                caller.turn = None;
                Box::pin(self.settle_outcome(write, task, error)).await.map(Some)
            }
            Err(error) => Err(TaskError::from_storage(error, &write.key.task)),
        }
    }

    async fn send(&self, write: &Write<'_>) -> Result<Written, StorageError> {
        let data = write.data.clone();
        let put = self.0.backend.put_if_version(write.key, data, write.options.clone(), write.expected);
        self.0.answers.count_write(Some(&write.key.owner), put).await
    }

    /// Finds out what became of a write that got no answer. Its id in the record: it was applied. The version
    /// and the id of the write before as they were: it was not, and may be sent again, as at most one of the copies can
    /// still find that version. Neither: nobody can tell, and the caller is told so. The version alone does not tell: a
    /// server that came back with less than it had acknowledged counts from a lower one again.
    async fn settle_outcome(
        &self,
        write: &Write<'_>,
        task: Task,
        unanswered: StorageError,
    ) -> Result<StoredTask, TaskError> {
        for delay in SETTLE_DELAYS_MS {
            tokio::time::sleep(jittered(delay)).await;
            match self.read(write.key).await {
                Ok(found) if found.task.write_ids.contains(&write.write_id) => return Ok(found),
                Ok(found) if write.is_made_of(&found) => {}
                Err(TaskError::NotFound { .. }) if write.expected == Version::ABSENT => {}
                Err(error) if error.is_retryable() => continue,
                _ => return Err(TaskError::Storage(unanswered)),
            }
            let origin = self.origin();
            match self.send(write).await {
                Ok(written) => return Ok(write.stored(task, written, origin)),
                // The first copy may have arrived late: the next look tells.
                Err(StorageError::VersionConflict { .. }) => {}
                Err(error @ StorageError::TooFewReplicas { .. }) => return Err(TaskError::Storage(error)),
                Err(error) if error.is_retryable() => {}
                Err(_) => break,
            }
        }
        match self.read(write.key).await {
            Ok(found) if found.task.write_ids.contains(&write.write_id) => Ok(found),
            _ => Err(TaskError::Storage(unanswered)),
        }
    }
}

/// Whether the record tells what became of a write. It does not tell whether replicas have it.
fn is_settled_by_reading(error: &StorageError) -> bool {
    error.outcome_unknown() && !matches!(error, StorageError::TooFewReplicas { .. })
}

/// A random time of up to `millis` milliseconds.
pub(super) fn jittered(millis: u64) -> Duration {
    Duration::from_micros(uuid::Uuid::new_v4().as_u64_pair().1 % (millis * 1000))
}

/// What the write ids of this process count from: a random number, so that those of two processes, of which a record
/// holds a few, are not the same. That they can be guessed does no harm.
static WRITE_ID: Lazy<AtomicU32> = Lazy::new(|| AtomicU32::new(uuid::Uuid::new_v4().as_fields().0));

/// Leaves a new write id in the task, and gives it.
pub(super) fn mark(task: &mut Task) -> String {
    // Odd and large, so that the ids go once around all numbers and two that follow each other differ in most digits.
    const STEP: u32 = 0x9e37_79b9;
    let write_id = format!("{:08x}", WRITE_ID.fetch_add(STEP, Ordering::Relaxed));
    let surplus = (task.write_ids.len() + 1).saturating_sub(WRITE_IDS_KEPT);
    task.write_ids.drain(..surplus);
    task.write_ids.push(write_id.clone());
    write_id
}

/// Encodes a task that is about to be written. Large payloads go into the parts of the write, and are
/// [`Stored`](crate::Payload::Stored) in the task from then on. The end of a task leaves none in a record that has no room
/// for it.
fn encode(task: &mut Task, options: &mut PutOptions, max: usize) -> Result<Bytes, TaskError> {
    let mut json = encode_beside(task, options, MAX_INLINE_BYTES)?;
    if json.len() > max && task.status.is_terminal() {
        json = encode_beside(task, options, 0)?;
    }
    // An engine that keeps the bytes must not keep the spare capacity.
    Ok(Bytes::from(json.into_boxed_slice()))
}

/// The same with all payloads over `max_inline` bytes as parts.
fn encode_beside(task: &mut Task, options: &mut PutOptions, max_inline: usize) -> Result<Vec<u8>, TaskError> {
    let parts = task.store_payloads(max_inline).map_err(|source| unencodable(task, source))?;
    options.parts.extend(parts);
    task.to_json().map_err(|source| unencodable(task, source))
}

fn unencodable(task: &Task, source: serde_json::Error) -> TaskError {
    TaskError::Unencodable { task: task.task_id.clone(), source }
}
