//! Creates tasks that wait for a worker.

use std::pin::pin;

use serde_json::Map;
use tracing::{Instrument, Span, field, info_span};

use super::TaskStore;
use super::deadline::{CallTarget, Deadline};
use super::durations::millis;
use super::error::TaskError;
use super::new_task::NewTask;
use super::records::Records;
use crate::backend::{Agenda, OwnerId, StorageError, TaskId, TaskKey};
use crate::printable::Chain;
use crate::spans::{self, Message};
use crate::task::{Lease, StoredTask, traceparent};

impl<B: Agenda> TaskStore<B> {
    /// Creates a task that waits for a worker of its operation, in any process. When the call returns, the task is durable.
    /// Otherwise the call is like [`create`](Self::create).
    ///
    /// Workers claim waiting tasks of a higher [priority](NewTask::priority) first, and those of the same priority oldest first. With
    /// the feature `rmcp`, a `Worker` does this for the tools of a server. Code without an SDK takes the timers of the queue
    /// [`work`](crate::Queue::work) of the [`Agenda`], and [claims](Self::claim) their tasks.
    ///
    /// If the first worker is lost, a task that [can resume](NewTask::on_worker_lost) waits for another worker, and any other task
    /// fails. A task that no worker claims fails when its TTL elapses.
    ///
    /// # Errors
    /// The errors of [`create`](Self::create); [`InvalidArgument`](TaskError::InvalidArgument) for a task without an operation, and
    /// for one whose TTL elapses before it may begin.
    ///
    /// # Cancellation safety
    /// If the future is dropped, the task may be stored nevertheless. Then a worker runs it.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mcp_task_store::TaskError> {
    /// use std::time::Duration;
    ///
    /// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, Priority, TaskStore};
    /// use serde_json::json;
    ///
    /// let store = TaskStore::new(MemoryBackend::new());
    /// let alice = OwnerId::try_from("alice").expect("not empty");
    /// let new = NewTask::new("tools/call").operation("render").arguments(json!({ "frames": 240 }));
    /// let task = store.enqueue(&alice, new.priority(Priority::Low).delay(Duration::from_secs(60))).await?;
    /// assert!(task.task.lease.as_ref().is_some_and(|lease| lease.holder.is_none()));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn enqueue(&self, owner: &OwnerId, mut new: NewTask) -> Result<StoredTask, TaskError> {
        let key = TaskKey { owner: owner.clone(), task: TaskId::random() };
        let span = span(owner, Some(&key.task), &mut new);
        let enqueue = async {
            let records = self.0.records();
            let deadline = records.deadline();
            let create = pin!(create(records, &deadline, &key, new));
            let stored = deadline.limit("enqueue", CallTarget::Task(&key), create).await?;
            deadline.limit_optional(offer(records, &stored)).await;
            Ok(stored)
        };
        enqueue.instrument(span).await
    }

    /// Creates a task that waits for a worker, under this key. After a failure the call can be repeated: it then returns the task
    /// that an earlier call has stored. No other task may ever use the key.
    ///
    /// # Errors
    /// As for [`enqueue`](Self::enqueue).
    #[cfg(feature = "rmcp")]
    pub(crate) async fn enqueue_as(&self, key: &TaskKey, mut new: NewTask) -> Result<StoredTask, TaskError> {
        let span = span(&key.owner, Some(&key.task), &mut new);
        let enqueue = async {
            let records = self.0.records();
            let deadline = records.deadline();
            let create = pin!(create_once(records, &deadline, key, new));
            let stored = deadline.limit("enqueue", CallTarget::Task(key), create).await?;
            deadline.limit_optional(offer(records, &stored)).await;
            Ok(stored)
        };
        enqueue.instrument(span).await
    }
}

/// Creates the span of an enqueue. With the feature `otel`, the task keeps its `traceparent`, so that every attempt is its child, in
/// any process.
pub(super) fn span(owner: &OwnerId, task: Option<&TaskId>, new: &mut NewTask) -> Span {
    new.traceparent = spans::inherited(new.traceparent.take());
    let span = info_span!(
        "enqueue",
        owner = %owner.printable(),
        task = task.map(|task| field::display(task.printable())),
        operation = new.operation.as_deref(),
        otel.kind = field::Empty,
        otel.name = field::Empty,
    );
    let message =
        Message { task, operation: new.operation.as_deref(), traceparent: new.traceparent.as_deref() };
    spans::enqueue(&span, &message);
    // The check of the task refuses a text that is not a `traceparent`.
    if new.traceparent.as_deref().is_none_or(traceparent::is_valid) {
        new.traceparent = spans::traceparent(&span).or(new.traceparent.take());
    }
    span
}

/// Creates a task that waits for a worker. The timer of its lease fires one lease later, and the keeper that takes it offers the
/// task to the workers, if [`offer`] has not.
pub(super) async fn create<B: Agenda>(
    records: &Records<B>,
    deadline: &Deadline,
    key: &TaskKey,
    new: NewTask,
) -> Result<StoredTask, TaskError> {
    new.check_can_wait()?;
    let (now, duration) = (records.engine.now(), records.config.lease);
    let delay = new.delay_at(now, &records.config)?;
    let lease = Lease {
        holder: None,
        attempt: 0,
        losses: 0,
        renewals: 0,
        duration_ms: millis(duration),
        deadline: now + delay,
        delay_ms: Some(millis(delay)),
        traceparent: None,
        extra: Map::new(),
    };
    records.create(deadline, key, new, Some(lease)).await
}

/// Creates a task that waits for a worker, or returns the task that an earlier call has stored under this key.
pub(super) async fn create_once<B: Agenda>(
    records: &Records<B>,
    deadline: &Deadline,
    key: &TaskKey,
    new: NewTask,
) -> Result<StoredTask, TaskError> {
    match create(records, deadline, key, new).await {
        Err(TaskError::Storage(StorageError::VersionConflict { .. })) => records.read_current(key).await,
        created => created,
    }
}

/// Schedules a new task in its work queue, for its earliest start.
pub(super) async fn offer<B: Agenda>(records: &Records<B>, stored: &StoredTask) {
    match records.scheduler.schedule_work(stored).await {
        Ok(()) => records.scheduler.note_enqueued(stored),
        Err(error) => tracing::debug!(
            error = %Chain(&error),
            task = %stored.key.task.printable(),
            "an enqueued task could not be scheduled; it waits until the timer of its lease fires"
        ),
    }
}
