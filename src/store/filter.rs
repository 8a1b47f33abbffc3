//! Chooses tasks: by owner, status, tool, age, and by what is wrong with them.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::dead::is_dead;
use super::machine::open_lease;
use crate::backend::OwnerId;
use crate::task::{Lease, StoredTask, Task, TaskStatus};

/// How long after a third of its duration a lapsed lease may stay before the task is stuck. A server that runs finds it sooner.
const LAPSED: Duration = Duration::from_secs(5);
/// How long after its earliest start a task may wait for a worker before it is stuck.
const UNCLAIMED: Duration = Duration::from_secs(5 * 60);
/// How long a task without a lease may stay unchanged before it is stuck.
const UNCHANGED: Duration = Duration::from_secs(3600);

/// Chooses tasks, for operators. A task matches if it meets every condition that was set; an empty filter matches every task.
///
/// [`TaskStore::scan`](crate::TaskStore::scan) yields the tasks that match.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use std::time::Duration;
/// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, StorageBackend, TaskFilter, TaskStatus, TaskStore};
///
/// let store = TaskStore::new(MemoryBackend::new());
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let task = store.create(&alice, NewTask::new("tools/call").operation("render")).await?;
/// let now = store.backend().now();
/// assert!(TaskFilter::new().status(TaskStatus::Working).tool("render").matches(&task, now));
/// assert!(!TaskFilter::new().older_than(Duration::from_secs(60)).matches(&task, now));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct TaskFilter {
    pub(super) owner: Option<OwnerId>,
    statuses: Vec<TaskStatus>,
    tool: Option<String>,
    is_stuck: bool,
    is_dead: bool,
    older_than: Option<Duration>,
}

impl TaskFilter {
    /// Returns a filter that matches every task.
    pub fn new() -> Self {
        Self::default()
    }

    /// Matches only tasks of this owner.
    pub fn owner(mut self, owner: OwnerId) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Matches only tasks with this status, or with one of the statuses of several calls.
    pub fn status(mut self, status: TaskStatus) -> Self {
        self.statuses.push(status);
        self
    }

    /// Matches only tasks of this [tool](Task::tool).
    pub fn tool(mut self, tool: impl Into<String>) -> Self {
        self.tool = Some(tool.into());
        self
    }

    /// Matches only tasks that are stuck: nobody works on them, although somebody should. A task is stuck if it has not ended and
    ///
    /// * its lease has lapsed, and a third of the lease and 5 s more have passed: no server detects lost workers;
    /// * its lease has no holder, and its earliest start was more than 5 minutes ago: no worker claims it;
    /// * or it is `working` without a lease, and has not changed for an hour.
    ///
    /// A task without a lease that waits for the answer of its client is not stuck.
    pub fn stuck(mut self) -> Self {
        self.is_stuck = true;
        self
    }

    /// Matches only dead tasks: those that failed because their attempts are used up.
    pub fn dead(mut self) -> Self {
        self.is_dead = true;
        self
    }

    /// Matches only tasks that are older than this. The age of an open task counts from its creation, the age of an ended one from
    /// its last change, which is its end.
    pub fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Returns whether a task matches at this time of the engine's clock.
    pub fn matches(&self, stored: &StoredTask, now: DateTime<Utc>) -> bool {
        self.matches_task(&stored.key.owner, &stored.task, now)
    }

    /// Returns whether a task of this owner matches at this time of the engine's clock. For a task that was not read by a
    /// [`TaskStore`](crate::TaskStore), but parsed from the data of a record.
    pub fn matches_task(&self, owner: &OwnerId, task: &Task, now: DateTime<Utc>) -> bool {
        self.owner.as_ref().is_none_or(|wanted| wanted == owner)
            && (self.statuses.is_empty() || self.statuses.contains(&task.status))
            && self.tool.as_deref().is_none_or(|tool| task.tool() == Some(tool))
            && (!self.is_dead || is_dead(task))
            && (!self.is_stuck || is_stuck(task, now))
            && self.older_than.is_none_or(|age| has_passed(age_counts_from(task), age, now))
    }
}

fn age_counts_from(task: &Task) -> DateTime<Utc> {
    if task.status.is_terminal() { task.last_updated_at } else { task.created_at }
}

/// Returns whether more than `after` has passed since `from`.
fn has_passed(from: DateTime<Utc>, after: Duration, now: DateTime<Utc>) -> bool {
    (now - from).to_std().is_ok_and(|passed| passed > after)
}

fn is_stuck(task: &Task, now: DateTime<Utc>) -> bool {
    match open_lease(task) {
        Some(lease) if lease.holder.is_some() => has_long_lapsed(lease, now),
        Some(lease) => has_passed(lease.deadline, UNCLAIMED, now),
        None => task.status == TaskStatus::Working && has_passed(task.last_updated_at, UNCHANGED, now),
    }
}

/// A deadline that is further ahead than the lease lasts counts as lapsed, because the clock was set back after the renewal.
fn has_long_lapsed(lease: &Lease, now: DateTime<Utc>) -> bool {
    let found_within = lease.duration() / 3 + LAPSED;
    has_passed(lease.deadline, found_within, now) || lease.deadline > now + lease.duration() + found_within
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::backend::{PutOptions, StorageBackend, TaskKey};
    use crate::memory::MemoryBackend;
    use crate::store::TaskStore;

    /// Returns a task with these fields that was created at the time 0.
    async fn task(fields: Value) -> StoredTask {
        let mut record = json!({
            "taskId": "t1", "status": "working", "method": "tools/call", "ttlMs": null,
            "createdAt": "2026-01-31T12:00:00.000Z", "lastUpdatedAt": "2026-01-31T12:00:00.000Z",
        });
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (store, key) = (TaskStore::new(MemoryBackend::new()), TaskKey::new("alice", "t1").unwrap());
        store.backend().put(&key, record.to_string().into(), PutOptions::default()).await.unwrap();
        store.get(&key).await.unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2026-01-31T12:00:00Z").unwrap().to_utc()
            + chrono::TimeDelta::seconds(seconds)
    }

    fn lease(holder: Option<&str>) -> Value {
        json!({ "lease": { "holder": holder, "attempt": 1, "durationMs": 30_000, "deadline": at(30) } })
    }

    #[rstest]
    #[case::held(lease(Some("w1")), 30 + 15, 30 + 16)]
    #[case::waiting(lease(None), 30 + 300, 30 + 301)]
    #[case::without_lease(json!({}), 3600, 3601)]
    #[tokio::test]
    async fn a_task_is_stuck_once_somebody_should_have_worked_on_it(
        #[case] fields: Value,
        #[case] not_yet: i64,
        #[case] stuck: i64,
    ) {
        let (task, filter) = (task(fields).await, TaskFilter::new().stuck());
        assert!(!filter.matches(&task, at(1)));
        assert!(!filter.matches(&task, at(not_yet)));
        assert!(filter.matches(&task, at(stuck)));
    }

    #[tokio::test]
    async fn a_lease_that_ends_further_ahead_than_it_lasts_is_stuck() {
        let (task, filter) = (task(lease(Some("w1"))).await, TaskFilter::new().stuck());
        assert!(!filter.matches(&task, at(-15)));
        assert!(filter.matches(&task, at(-16)));
    }

    #[rstest]
    #[case::ended(json!({ "status": "failed" }))]
    #[case::asking(json!({ "status": "input_required" }))]
    #[tokio::test]
    async fn an_ended_task_and_one_that_asks_its_client_are_not_stuck(#[case] fields: Value) {
        assert!(!TaskFilter::new().stuck().matches(&task(fields).await, at(1_000_000)));
    }

    #[tokio::test]
    async fn an_open_task_ages_from_its_creation_and_an_ended_one_from_its_end() {
        let filter = TaskFilter::new().older_than(Duration::from_secs(60));
        let open = task(json!({ "lastUpdatedAt": at(50) })).await;
        let ended = task(json!({ "status": "completed", "lastUpdatedAt": at(50) })).await;
        let at_time = |seconds| (filter.matches(&open, at(seconds)), filter.matches(&ended, at(seconds)));
        assert_eq!(
            [60, 61, 110, 111].map(at_time),
            [(false, false), (true, false), (true, false), (true, true)]
        );
    }

    #[tokio::test]
    async fn the_tool_is_the_operation_or_the_name_in_the_arguments() {
        let named = |tool: &str| TaskFilter::new().tool(tool);
        let by_operation = task(json!({ "operation": "render", "arguments": { "name": "other" } })).await;
        let by_arguments = task(json!({ "arguments": { "name": "render" } })).await;
        let of_another_method = task(json!({ "method": "m", "arguments": { "name": "render" } })).await;
        assert!(
            named("render").matches(&by_operation, at(0)) && !named("other").matches(&by_operation, at(0))
        );
        assert!(named("render").matches(&by_arguments, at(0)));
        assert!(!named("render").matches(&of_another_method, at(0)));
    }

    #[tokio::test]
    async fn a_task_must_meet_every_condition_and_one_of_the_statuses() {
        let dead = task(json!({ "status": "failed", "gaveUpAfter": 3 })).await;
        let filter = TaskFilter::new().status(TaskStatus::Failed).status(TaskStatus::Cancelled);
        assert!(filter.clone().dead().matches(&dead, at(0)));
        assert!(filter.clone().owner("alice".try_into().unwrap()).matches(&dead, at(0)));
        assert!(!filter.owner("bob".try_into().unwrap()).matches(&dead, at(0)));
        assert!(!TaskFilter::new().status(TaskStatus::Working).matches(&dead, at(0)));
        assert!(!TaskFilter::new().dead().matches(&task(json!({ "status": "failed" })).await, at(0)));
    }
}
