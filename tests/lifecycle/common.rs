//! What the tests of the lifecycle share: new tasks, and waiting for the record of a task.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use mcp_task_store::{Agenda, Attempt, NewTask, OnWorkerLost, PutOptions, Task, TaskKey, TaskStore};
use serde_json::{Value, json};

use crate::support::owner;

pub type Tasks = TaskStore<Arc<dyn Agenda>>;
pub type TaskAttempt = Attempt<Arc<dyn Agenda>>;

/// A lease that does not lapse in a test.
pub const LONG: Duration = Duration::from_secs(3600);
/// A lease that lapses in a test.
pub const SHORT: Duration = Duration::from_millis(50);
/// How long a test waits for an expected event.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A task that cannot resume.
pub fn plain() -> NewTask {
    NewTask::new("tools/call")
}

/// A task that another worker can resume.
pub fn resumable() -> NewTask {
    plain().operation("render").on_worker_lost(OnWorkerLost::Resume)
}

pub async fn start(tasks: &Tasks, new: NewTask) -> (TaskKey, TaskAttempt) {
    let (stored, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
    (stored.key, attempt)
}

/// Reads a record without a call of a store, so that no store schedules its timer.
pub async fn record(agenda: &dyn Agenda, key: &TaskKey) -> Task {
    serde_json::from_slice(&agenda.get(key).await.unwrap().data).unwrap()
}

/// Reads a record, without a call of a store, until it is as `expected`.
pub async fn until(agenda: &dyn Agenda, key: &TaskKey, expected: impl Fn(&Task) -> bool) -> Task {
    let reading = async {
        loop {
            let task = record(agenda, key).await;
            if expected(&task) {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the record changes as expected")
}

/// Sets the earliest start of a task that waits for a worker, and the delay that its lease states. No store writes it.
pub async fn set_earliest_start(
    agenda: &dyn Agenda,
    key: &TaskKey,
    at: DateTime<Utc>,
    delay_ms: Option<u64>,
) {
    let mut json: Value = serde_json::from_slice(&agenda.get(key).await.unwrap().data).unwrap();
    let lease = json["lease"].as_object_mut().unwrap();
    lease.insert("deadline".to_owned(), json!(at.trunc_subsecs(3)));
    match delay_ms {
        Some(delay_ms) => drop(lease.insert("delayMs".to_owned(), json!(delay_ms))),
        None => drop(lease.remove("delayMs")),
    }
    agenda.put(key, json.to_string().into(), PutOptions::default()).await.unwrap();
}

/// Claims a task that waits for a worker, without the delay after its last attempt.
pub async fn claim_now(tasks: &Tasks, key: &TaskKey) -> TaskAttempt {
    if let Some((_, attempt)) = tasks.claim(key).await.unwrap() {
        return attempt;
    }
    let agenda = &**tasks.backend();
    set_earliest_start(agenda, key, agenda.now(), Some(0)).await;
    tasks.claim(key).await.unwrap().expect("the task waits for a worker").1
}

/// Returns how many bytes the history uses in the data of a record, with the name of its field.
pub fn history_bytes(data: &[u8]) -> usize {
    let record: Value = serde_json::from_slice(data).unwrap();
    record.get("history").map_or(0, |history| r#","history":"#.len() + history.to_string().len())
}

/// Returns the size of the data of a record without its history.
pub fn content_bytes(data: &[u8]) -> usize {
    data.len() - history_bytes(data)
}

pub fn has_ended(task: &Task) -> bool {
    task.status.is_terminal()
}

pub fn waits_for_a_worker(task: &Task) -> bool {
    task.lease.as_ref().is_some_and(|lease| lease.holder.is_none())
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("the future ends in time")
}
