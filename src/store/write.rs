//! Sends conditional writes, and resolves the outcome of a write without an answer.

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use once_cell::sync::Lazy;

use super::deadline::Deadline;
use super::durations::jittered;
use super::engine::{EngineClient, NewTimer};
use super::error::TaskError;
use super::limits::check;
use super::machine::Change;
use super::writers::{WritePermit, WriterPriority};
use crate::backend::{Agenda, Expiry, PutOptions, StorageError, TaskKey, Version, Written};
use crate::task::history::MAX_HISTORY_BYTES;
use crate::task::payload::MAX_INLINE_BYTES;
use crate::task::{StoredTask, Task, TaskStatus};
use crate::telemetry;

/// How many write ids a record has at most.
const MAX_WRITE_IDS: usize = 4;
/// How long to wait before each try to resolve the outcome of a write.
const RESOLVE_DELAYS_MS: [u64; 6] = [10, 50, 100, 250, 250, 250];
/// How many bytes of a record only leases, cancels and the end of the task may use.
const RESERVE: usize = 1024;

/// The purpose of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeKind {
    /// Progress of the work. Other changes overtake it in the queue of writers.
    Progress,
    /// Requests to the client, and its answers.
    Input,
    /// Leases, cancels and the end of a task. They may use the reserve of the record.
    Lifecycle,
}

impl ChangeKind {
    pub(super) fn priority(self) -> WriterPriority {
        match self {
            Self::Progress => WriterPriority::Low,
            Self::Input | Self::Lifecycle => WriterPriority::High,
        }
    }
}

/// An event that happens once in the life of a task. The log has one line for it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Created,
    Ended(TaskStatus),
}

impl Event {
    /// Logs the event. The caller knows that the engine has applied the write.
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

/// The call that a write belongs to.
pub(super) struct Writer<'a> {
    pub(super) kind: ChangeKind,
    /// The time limit of the call. A write of the store itself has none.
    deadline: Option<&'a Deadline>,
    /// The writer releases its permit when it must resolve the outcome of its write. The next writer then continues,
    /// and compare-and-swap keeps both writers correct.
    permit: Option<WritePermit<'a>>,
    /// The task had ended before this write: some SDKs end a task in two calls.
    pub(super) had_ended: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        kind: ChangeKind,
        deadline: &'a Deadline,
        permit: impl Into<Option<WritePermit<'a>>>,
    ) -> Self {
        Self { kind, deadline: Some(deadline), permit: permit.into(), had_ended: false }
    }

    /// The store itself, which takes leases and expires tasks.
    pub(super) fn store() -> Self {
        Self { kind: ChangeKind::Lifecycle, deadline: None, permit: None, had_ended: false }
    }

    fn set_in_doubt(&self, is_in_doubt: bool) {
        if let Some(deadline) = self.deadline {
            deadline.set_in_doubt(is_in_doubt);
        }
    }
}

/// One conditional write with the parts that it sets. The store can send it again.
pub(super) struct Write<'a> {
    key: &'a TaskKey,
    data: Bytes,
    options: PutOptions,
    expected: Version,
    /// The timer that the engine schedules before it creates the record.
    timer: Option<NewTimer<'a>>,
    /// The event that the write causes, if any.
    event: Option<Event>,
    /// How many events the write adds to the history of the task.
    recorded: usize,
}

impl<'a> Write<'a> {
    /// Prepares the first write of a task.
    pub(super) fn create(
        key: &'a TaskKey,
        task: &mut Task,
        options: PutOptions,
        timer: Option<NewTimer<'a>>,
        max_bytes: usize,
    ) -> Result<Self, TaskError> {
        let recorded = task.history.len();
        Self::prepare(key, task, options, Version::ABSENT, ChangeKind::Input, max_bytes).map(|write| Self {
            event: Some(Event::Created),
            timer,
            recorded,
            ..write
        })
    }

    /// Prepares the write of a changed task over the version `expected`, at which the task was read.
    pub(super) fn update(
        writer: &Writer<'_>,
        key: &'a TaskKey,
        task: &mut Task,
        expected: Version,
        change: Change,
        max_bytes: usize,
    ) -> Result<Self, TaskError> {
        let options = match change {
            #[cfg(feature = "rmcp")]
            Change::Retention(expiry) => PutOptions::new(expiry).quiet(),
            Change::Internal => PutOptions::new(Expiry::Keep).quiet(),
            Change::Lifetime(expiry) => PutOptions::new(expiry),
            Change::Visible | Change::None => PutOptions::new(Expiry::Keep),
        };
        let ends = task.status.is_terminal() && !writer.had_ended;
        let event = ends.then_some(Event::Ended(task.status));
        Self::prepare(key, task, options, expected, writer.kind, max_bytes)
            .map(|write| Self { event, ..write })
    }

    /// Encodes a task. Only a [`Lifecycle`](ChangeKind::Lifecycle) change and a task that has ended may use the
    /// reserve of the record, so that a lease, a cancel or the end of the task always fits.
    fn prepare(
        key: &'a TaskKey,
        task: &mut Task,
        mut options: PutOptions,
        expected: Version,
        kind: ChangeKind,
        max_bytes: usize,
    ) -> Result<Self, TaskError> {
        add_write_id(task);
        let data = encode(task, &mut options, max_bytes)?;
        let max = max_bytes.saturating_sub(RESERVE + MAX_HISTORY_BYTES);
        if kind != ChangeKind::Lifecycle && !task.status.is_terminal() && data.len() > max {
            // The history has room of its own, so the content of a task fits or not, whatever happened to the task.
            let content = data.len().saturating_sub(task.history_bytes());
            check("bytes of data in the record of the task", content, max)?;
        }
        Ok(Self { key, data, options, expected, timer: None, event: None, recorded: 0 })
    }

    /// Sets how many events the write adds to the history of the task.
    pub(super) fn with_events(self, recorded: usize) -> Self {
        Self { recorded, ..self }
    }

    /// Sends the write of this task. Returns the task as written; `None` if the write conflicts with another one.
    pub(super) async fn apply<B: Agenda>(
        &self,
        engine: &EngineClient<B>,
        writer: &mut Writer<'_>,
        task: StoredTask,
    ) -> Result<Option<StoredTask>, TaskError> {
        let written = self.send_and_resolve(engine, writer, task).await?;
        if let (Some(event), Some(written)) = (self.event, &written) {
            event.log(self.key, written.task.operation.as_deref());
        }
        match &written {
            Some(written) => telemetry::events(&written.task, self.recorded),
            // A create under the key of an earlier one is no conflict: it finds the task of that one.
            None if self.expected == Version::ABSENT => {}
            None => telemetry::conflict(),
        }
        Ok(written)
    }

    async fn send_and_resolve<B: Agenda>(
        &self,
        engine: &EngineClient<B>,
        writer: &mut Writer<'_>,
        task: StoredTask,
    ) -> Result<Option<StoredTask>, TaskError> {
        let origin = engine.origin();
        writer.set_in_doubt(true);
        let sent = self.send(engine).await;
        writer.set_in_doubt(sent.as_ref().is_err_and(StorageError::outcome_unknown));
        match sent {
            Ok(written) => Ok(Some(task.written(written, origin))),
            Err(StorageError::VersionConflict { .. }) => Ok(None),
            Err(error) if can_be_resolved(&error) => {
                writer.permit = None;
                // This case is rare. The boxed future uses memory only in this case.
                Box::pin(self.resolve_outcome(engine, task, error)).await.map(Some)
            }
            Err(error) => Err(TaskError::from_storage(error, &self.key.task)),
        }
    }

    async fn send<B: Agenda>(&self, engine: &EngineClient<B>) -> Result<Written, StorageError> {
        let (data, options) = (self.data.clone(), self.options.clone());
        match self.timer {
            // A second copy leaves an earlier timer as it is, so the store can send it too.
            Some(timer) => engine.create_with_timer(self.key, data, options, timer).await,
            None => engine.put(self.key, data, options, self.expected).await,
        }
    }

    /// Resolves the outcome of a write without an answer.
    ///
    /// * The record has the id of the write: the engine applied it.
    /// * The record has the version and the last write id from before: the engine did not apply it. The store can
    ///   send the write again, because at most one of the two copies can still find that version.
    /// * In every other case the outcome is unknown, and the error says so.
    ///
    /// The version alone is not enough: a server that has lost acknowledged writes at a restart assigns the same
    /// versions again.
    async fn resolve_outcome<B: Agenda>(
        &self,
        engine: &EngineClient<B>,
        task: StoredTask,
        unanswered: StorageError,
    ) -> Result<StoredTask, TaskError> {
        for delay in RESOLVE_DELAYS_MS {
            tokio::time::sleep(jittered(delay)).await;
            match engine.get(self.key).await {
                Ok(found) if has_write_of(&task.task, &found.task) => return Ok(found),
                Ok(found) if found.version == self.expected && derives_from(&task.task, &found.task) => {}
                Err(TaskError::NotFound { .. }) if self.expected == Version::ABSENT => {}
                Err(error) if error.is_retryable() => continue,
                _ => return Err(TaskError::Storage(unanswered)),
            }
            let origin = engine.origin();
            match self.send(engine).await {
                Ok(written) => return Ok(task.written(written, origin)),
                // The first copy of the write may have arrived late. The next read shows whether it has.
                Err(StorageError::VersionConflict { .. }) => {}
                Err(error @ StorageError::TooFewReplicas { .. }) => return Err(TaskError::Storage(error)),
                Err(error) if error.is_retryable() => {}
                Err(_) => break,
            }
        }
        match engine.get(self.key).await {
            Ok(found) if has_write_of(&task.task, &found.task) => Ok(found),
            _ => Err(TaskError::Storage(unanswered)),
        }
    }
}

/// Returns whether a read of the record can resolve the outcome of a write. A read does not show whether the replicas
/// have the write.
fn can_be_resolved(error: &StorageError) -> bool {
    error.outcome_unknown() && !matches!(error, StorageError::TooFewReplicas { .. })
}

/// The source of this process's write ids. It starts at a random number, so that two processes do not write the same
/// ids into a record. The ids need not be secret.
static WRITE_ID: Lazy<AtomicU32> = Lazy::new(|| AtomicU32::new(uuid::Uuid::new_v4().as_fields().0));

/// Returns whether the record has the write id of this task, which is about to be written.
fn has_write_of(task: &Task, found: &Task) -> bool {
    task.write_ids.last().is_some_and(|id| found.write_ids.contains(id))
}

/// Returns whether the last write of the record is the one that precedes the write of this task.
fn derives_from(task: &Task, found: &Task) -> bool {
    found.write_ids.last() == task.write_ids.iter().nth_back(1)
}

/// Adds a new write id to the task.
fn add_write_id(task: &mut Task) {
    // The step is odd, so the ids repeat only after all numbers were used. It is large, so consecutive ids differ in
    // most digits.
    const STEP: u32 = 0x9e37_79b9;
    let surplus = (task.write_ids.len() + 1).saturating_sub(MAX_WRITE_IDS);
    task.write_ids.drain(..surplus);
    task.write_ids.push(format!("{:08x}", WRITE_ID.fetch_add(STEP, Ordering::Relaxed)));
}

/// Encodes a task that is about to be written. Large payloads become parts of the write, and are
/// [`Stored`](crate::Payload::Stored) in the task from then on. If the record of a task that ends would be too large, all its
/// payloads become parts. If a record would still be too large, its history becomes shorter.
fn encode(task: &mut Task, options: &mut PutOptions, max: usize) -> Result<Bytes, TaskError> {
    let mut json = encode_with_parts(task, options, MAX_INLINE_BYTES)?;
    if json.len() > max && task.status.is_terminal() {
        json = encode_with_parts(task, options, 0)?;
    }
    if json.len() > max && !task.history.is_empty() {
        let surplus = json.len() - max;
        task.shrink_history(task.history_bytes().saturating_sub(surplus));
        json = task.to_json().map_err(|source| unencodable(task, source))?;
    }
    // An engine that keeps these bytes in memory must not keep the spare capacity of the vector.
    Ok(Bytes::from(json.into_boxed_slice()))
}

/// Encodes a task, with each payload over `max_inline` bytes as a part.
fn encode_with_parts(
    task: &mut Task,
    options: &mut PutOptions,
    max_inline: usize,
) -> Result<Vec<u8>, TaskError> {
    let parts = task.store_payloads(max_inline).map_err(|source| unencodable(task, source))?;
    options.parts.extend(parts);
    task.to_json().map_err(|source| unencodable(task, source))
}

fn unencodable(task: &Task, source: serde_json::Error) -> TaskError {
    TaskError::Unencodable { task: task.task_id.clone(), source }
}
