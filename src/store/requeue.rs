//! Requeues ended tasks. The id of the new task follows from that of the ended one, so an ended task is requeued once.

use std::pin::pin;

use serde_json::Value;
use tracing::instrument;

use super::TaskStore;
use super::deadline::{CallTarget, Deadline};
use super::enqueue;
use super::error::TaskError;
use super::keeper::KeptRecords;
use super::new_task::NewTask;
use super::payloads;
use super::pointer::hash;
use super::records::Records;
use super::unique;
use crate::backend::{Agenda, TaskId, TaskKey};
use crate::task::{OnWorkerLost, PayloadKind, StoredTask};

/// Returns the key of the task that an ended task is requeued as.
pub(super) fn requeued_key(ended: &TaskKey) -> TaskKey {
    let hash = hash(&["requeue", ended.owner.as_str(), ended.task.as_str()]);
    let mut bytes = [0; 16];
    for (byte, digits) in bytes.iter_mut().zip(hash.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
        *byte = digit(digits[0]) << 4 | digit(digits[1]);
    }
    let id = uuid::Builder::from_custom_bytes(bytes).into_uuid();
    TaskKey { owner: ended.owner.clone(), task: TaskId::of_uuid(id) }
}

impl<B: Agenda> TaskStore<B> {
    /// Creates a task that does the work of an ended task again: with the same owner, operation, arguments and options. It waits
    /// for a worker. Its [`requeued_from`](crate::Task::requeued_from) names the ended task, which stays as it is. For operators,
    /// for example after a service works again that [dead tasks](Self::dead_tasks) need.
    ///
    /// A task is requeued once. Further calls return the task that the first one has created, as long as its record exists. So
    /// the call can be repeated after a failure, and by two operators at the same time.
    ///
    /// The new task starts with the whole TTL and all attempts. It has the method, the arguments, the TTL, the retention, the poll
    /// interval, the priority, the [`Retry`](crate::Retry), the extensions and the `traceparent` of the ended one, and neither its
    /// variables nor its checkpoint.
    ///
    /// # Errors
    /// [`NotFound`](TaskError::NotFound) if there is no such task; [`InvalidArgument`](TaskError::InvalidArgument) if it has not
    /// ended, has no operation, has no arguments because it could not resume, or is unique and another open task has its key;
    /// [`Unreadable`](TaskError::Unreadable) if its arguments are not JSON; [`LaterVersion`](TaskError::LaterVersion) if a later
    /// version of this crate has written something into its record that this version does not know; the errors of [`enqueue`](Self::enqueue).
    ///
    /// # Cancellation safety
    /// If the future is dropped, the new task may be stored nevertheless. Another call returns it.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mcp_task_store::TaskError> {
    /// use mcp_task_store::{MemoryBackend, NewTask, OnWorkerLost, OwnerId, RpcError, TaskStore};
    ///
    /// let store = TaskStore::new(MemoryBackend::new());
    /// let alice = OwnerId::try_from("alice").expect("not empty");
    /// let new = NewTask::new("tools/call").operation("print").on_worker_lost(OnWorkerLost::Resume).max_attempts(1);
    /// let (_, attempt) = store.start(&alice, new).await?;
    /// attempt.retry(RpcError::new(-32000, "the printer is down")).await?;
    ///
    /// let dead = store.dead_tasks(None).await?;
    /// let requeued = store.requeue(&dead.tasks[0].key).await?;
    /// assert_eq!(requeued.task.requeued_from.as_ref(), Some(&dead.tasks[0].key.task));
    /// assert!(store.dead_tasks(None).await?.tasks.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[instrument(level = "debug", skip_all, fields(owner = %ended.owner.printable(), task = %ended.task.printable()))]
    pub async fn requeue(&self, ended: &TaskKey) -> Result<StoredTask, TaskError> {
        let records = self.0.records();
        let deadline = records.deadline();
        let requeue = pin!(requeue(&self.0, &deadline, ended));
        let requeued = deadline.limit("requeue", CallTarget::Task(ended), requeue).await?;
        deadline.limit_optional(enqueue::offer(records, &requeued)).await;
        Ok(requeued)
    }
}

async fn requeue<B: Agenda>(
    kept: &KeptRecords<B>,
    deadline: &Deadline,
    key: &TaskKey,
) -> Result<StoredTask, TaskError> {
    let (records, new_key) = (kept.records(), requeued_key(key));
    let ended = records.read_current(key).await?;
    check(&ended)?;
    if let Some(requeued) = find(records, &new_key).await? {
        return Ok(requeued);
    }
    let arguments = payloads::load(records, &ended, PayloadKind::Input).await?.unwrap_or_default();
    check_arguments(&ended, &arguments)?;
    let new = NewTask::again(&ended.task, arguments);
    let created = match ended.task.unique.clone() {
        Some(pointer) => unique::requeue(kept, deadline, &new_key, new, pointer).await?,
        None => enqueue::create_once(records, deadline, &new_key, new).await?,
    };
    if created.task.requeued_from.as_ref() == Some(&key.task) {
        return Ok(created);
    }
    Err(invalid(
        &ended,
        &format!(
            "is unique, and the open task {} has its key; requeue it after that task has ended",
            created.key.task
        ),
    ))
}

/// Returns the task that an ended task was requeued as, if its record exists.
pub(super) async fn find<B: Agenda>(
    records: &Records<B>,
    key: &TaskKey,
) -> Result<Option<StoredTask>, TaskError> {
    match records.read_current(key).await {
        Ok(requeued) => Ok(Some(requeued)),
        Err(TaskError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn check(ended: &StoredTask) -> Result<(), TaskError> {
    let task = &ended.task;
    if !task.status.is_terminal() {
        return Err(invalid(ended, "has not ended; cancel it first, or wait for its end"));
    }
    if let Some(found) = task.forbids_leases() {
        return Err(TaskError::LaterVersion { task: ended.key.task.clone(), found });
    }
    if task.operation.is_none() {
        return Err(invalid(ended, "has no operation, so no worker can run it; create another task"));
    }
    Ok(())
}

/// The record of a call that could not resume has no arguments. An operation that receives none would do something else.
fn check_arguments(ended: &StoredTask, arguments: &Value) -> Result<(), TaskError> {
    if arguments.is_null() && ended.task.on_worker_lost == OnWorkerLost::Fail {
        return Err(invalid(ended, "could not resume, so its record has no arguments; call the tool again"));
    }
    Ok(())
}

fn invalid(ended: &StoredTask, why: &str) -> TaskError {
    TaskError::InvalidArgument { reason: format!("task {} {why}", ended.key.task.printable()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_requeued_task_is_a_uuid_that_follows_from_owner_and_task() {
        let key = |owner, task| requeued_key(&TaskKey::new(owner, task).unwrap());
        let requeued = key("alice", "t1");
        assert_eq!(requeued, key("alice", "t1"));
        assert_eq!(uuid::Uuid::try_parse(requeued.task.as_str()).unwrap().get_version_num(), 8);
        assert_eq!(requeued.owner.as_str(), "alice");
        for other in [key("alice", "t2"), key("bob", "t1"), key("alicet", "1"), requeued_key(&requeued)] {
            assert_ne!(other.task, requeued.task);
        }
    }
}
