//! Schedules the timers of tasks: the timer of each lease, and the timer of each task that waits for a worker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::config::StoreConfig;
use super::dead::look_after;
use super::deadline::Deadline;
use super::engine::{EngineClient, NewTimer};
use super::error::TaskError;
use super::local_attempts::AttemptState;
use super::machine::exit::delay_left;
use super::machine::{open_lease, waiting_lease};
use crate::backend::{Agenda, Queue, StorageError, TaskKey};
use crate::printable::Chain;
use crate::task::{Lease, StoredTask};

/// How many tasks [`RecentlyScheduled`] remembers.
const MAX_REMEMBERED: usize = 16_384;
/// How many tasks of a page are scheduled at the same time.
const CONCURRENT_SCHEDULES: usize = 16;
/// How far the estimate of the engine's clock may lag. A new deadline may seem too far ahead by this much.
const CLOCK_LAG: Duration = Duration::from_secs(2);

/// Returns whether the lease may have lapsed, by this estimate of the engine's clock. Only an observation decides
/// whether the worker is lost.
pub(super) fn may_have_lapsed(lease: &Lease, now: DateTime<Utc>) -> bool {
    !lease.is_live(now) && !lease.is_live(now + CLOCK_LAG.min(lease.duration()))
}

/// The tasks whose lapsed lease a reader of this process has scheduled. No reader schedules such a task again before
/// the time in its entry: one lease duration later. The end of a task removes its entry.
#[derive(Debug, Default)]
struct RecentlyScheduled(Mutex<HashMap<TaskKey, Instant>>);

impl RecentlyScheduled {
    /// No code panics while it holds the lock.
    fn entries(&self) -> MutexGuard<'_, HashMap<TaskKey, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a task, unless it has an entry whose time has not passed. Returns whether the task was added.
    fn insert(&self, key: &TaskKey, lease: Duration) -> bool {
        let (mut entries, now) = (self.entries(), Instant::now());
        if entries.get(key).is_some_and(|until| now < *until) {
            return false;
        }
        if entries.len() >= MAX_REMEMBERED {
            entries.retain(|_, until| now < *until);
            // The table is full. Removing its entries only means that readers may schedule these tasks once more.
            if entries.len() >= MAX_REMEMBERED {
                entries.clear();
            }
        }
        entries.insert(key.clone(), now + lease);
        true
    }

    fn remove(&self, key: &TaskKey) {
        self.entries().remove(key);
    }
}

#[derive(Debug)]
pub(super) struct Scheduler<B> {
    engine: Arc<EngineClient<B>>,
    /// The queue of the timers of leases.
    leases: Queue,
    /// The queue of the timers of dead tasks.
    dead: Queue,
    lease: Duration,
    call_timeout: Duration,
    is_observer: bool,
    recent: RecentlyScheduled,
}

impl<B: Agenda> Scheduler<B> {
    pub(super) fn new(engine: Arc<EngineClient<B>>, config: &StoreConfig) -> Self {
        Self {
            engine,
            leases: Queue::leases(),
            dead: Queue::dead(),
            lease: config.lease,
            call_timeout: config.call_timeout,
            is_observer: config.is_observer,
            recent: RecentlyScheduled::default(),
        }
    }

    /// Returns the timer of a lease that is about to be written. The timer fires one call's time limit after the lease
    /// lapses, so a taker that finds no record at that time can remove the timer.
    pub(super) fn new_lease_timer(&self) -> NewTimer<'_> {
        NewTimer { queue: &self.leases, after: self.lease + self.write_limit() }
    }

    /// Schedules the timer of a lease that is about to be written.
    pub(super) async fn schedule_new_lease(&self, key: &TaskKey) -> Result<(), TaskError> {
        let NewTimer { queue, after } = self.new_lease_timer();
        self.engine.schedule(queue, key, after).await
    }

    /// Returns how long the write of a lease may take before its timer must be scheduled again. The limit is short enough that
    /// a worker which dies soon after its first renewal is found within 1⅓ leases and 5 s, like any other.
    fn write_limit(&self) -> Duration {
        self.call_timeout.min(self.lease / 3 + self.lease.min(Duration::from_secs(3)))
    }

    /// Schedules the timer of a lease again if the write of the lease, which began at `started`, took so long that the timer
    /// may have fired and been removed. If that fails, the call fails although the lease was written.
    pub(super) async fn reschedule_slow_lease(
        &self,
        deadline: &Deadline,
        key: &TaskKey,
        started: Instant,
    ) -> Result<(), TaskError> {
        if started.elapsed() <= self.write_limit() {
            return Ok(());
        }
        deadline.set_in_doubt(true);
        self.engine.schedule(&self.leases, key, self.lease).await.map_err(|error| {
            TaskError::Storage(StorageError::Unavailable {
                address: "the storage engine".to_owned(),
                reason: format!(
                    "the lease of task {} was written, but its timer could not be scheduled; read the record",
                    key.task.printable()
                ),
                outcome_unknown: true,
                source: Some(error.into()),
            })
        })
    }

    /// Schedules a task that waits for a worker in its work queue, for the earliest start that its lease states.
    pub(super) async fn schedule_work(&self, stored: &StoredTask) -> Result<(), TaskError> {
        let operation = stored.task.operation.as_deref();
        let (Some(operation), Some(lease)) = (operation, waiting_lease(&stored.task)) else { return Ok(()) };
        let queue = Queue::work(operation, stored.task.priority).map_err(TaskError::Storage)?;
        self.engine.schedule(&queue, &stored.key, delay_left(lease, self.engine.now())).await
    }

    /// Notes that a new task waits for a worker and that its timers are scheduled. So a reader of this process need not schedule
    /// the task until one lease duration has passed.
    pub(super) fn note_enqueued(&self, stored: &StoredTask) {
        self.recent.insert(&stored.key, self.lease);
    }

    /// Schedules a task in the queue of dead tasks. Call it before the write that makes the task one: a timer without a dead task
    /// does no harm.
    pub(super) async fn schedule_dead(&self, stored: &StoredTask) -> Result<(), TaskError> {
        self.engine.schedule(&self.dead, &stored.key, look_after(stored, self.engine.now())).await
    }

    /// Schedules a task for now if its lease may have lapsed or has no holder, at most once per lease duration. Every
    /// reader calls this, because a failover may have lost the timer. An observer schedules nothing.
    pub(super) async fn schedule_if_lapsed(&self, stored: &StoredTask) {
        if self.is_observer {
            return;
        }
        let Some(lease) = open_lease(&stored.task) else { return self.forget(&stored.key) };
        if self.may_be_lost(&stored.key, lease) && self.recent.insert(&stored.key, lease.duration()) {
            self.schedule_lease_now(&stored.key).await;
        }
    }

    /// Calls [`schedule_if_lapsed`](Self::schedule_if_lapsed) for each task of a page.
    pub(super) async fn schedule_all_lapsed(&self, tasks: &[StoredTask]) {
        let schedule = |stored| self.schedule_if_lapsed(stored);
        stream::iter(tasks).for_each_concurrent(CONCURRENT_SCHEDULES, schedule).await;
    }

    /// Schedules a task for now if its worker may be lost, even if it was scheduled recently: a requested cancel must not wait.
    pub(super) async fn schedule_cancel(&self, stored: &StoredTask) {
        if open_lease(&stored.task).is_some_and(|lease| self.may_be_lost(&stored.key, lease)) {
            self.schedule_lease_now(&stored.key).await;
        }
    }

    /// Removes the entry of a task that has ended or no longer exists.
    pub(super) fn forget(&self, key: &TaskKey) {
        self.recent.remove(key);
    }

    /// Returns whether the worker may be lost. If this process has dropped the attempt, the worker is lost even
    /// before the lease lapses.
    fn may_be_lost(&self, key: &TaskKey, lease: &Lease) -> bool {
        may_have_lapsed(lease, self.engine.now())
            || AttemptState::of_lease(key, lease) == AttemptState::Dropped
    }

    async fn schedule_lease_now(&self, key: &TaskKey) {
        if let Err(error) = self.engine.schedule(&self.leases, key, Duration::ZERO).await {
            // The next reader tries again.
            self.forget(key);
            tracing::debug!(error = %Chain(&error), task = %key.task.printable(), "a lapsed lease could not be scheduled");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{PutOptions, StorageBackend};
    use crate::memory::MemoryBackend;
    use crate::store::{NewTask, TaskStore};

    fn key(number: usize) -> TaskKey {
        TaskKey::new("alice", &format!("t{number}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_schedules_a_task_once_per_lease_and_the_end_of_the_task_removes_its_entry() {
        let (recent, lease) = (RecentlyScheduled::default(), Duration::from_secs(30));
        assert!(recent.insert(&key(1), lease));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(!recent.insert(&key(1), lease));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(recent.insert(&key(1), lease));
        recent.remove(&key(1));
        assert!(recent.entries().is_empty());
    }

    #[tokio::test]
    async fn a_deleted_task_has_no_entry_whichever_store_deletes_it() {
        let store = TaskStore::new(MemoryBackend::new());
        for is_deleted_here in [true, false] {
            let new = NewTask::new("tools/call");
            let created = store.create(&"alice".try_into().unwrap(), new).await.unwrap();
            let mut json = serde_json::to_value(&created.task).unwrap();
            json["lease"] = serde_json::json!({
                "holder": "gone", "attempt": 1, "durationMs": 30_000, "deadline": created.task.created_at - Duration::from_secs(60),
            });
            let data = serde_json::to_vec(&json).unwrap();
            store.backend().put(&created.key, data.into(), PutOptions::default()).await.unwrap();
            store.get(&created.key).await.unwrap();
            let recent = &store.0.records().scheduler.recent;
            assert_eq!(recent.entries().len(), 1, "the worker may be lost");
            if is_deleted_here {
                store.delete(&created.key).await.unwrap();
            } else {
                store.backend().delete(&created.key).await.unwrap();
                assert!(matches!(store.get(&created.key).await, Err(TaskError::NotFound { .. })));
            }
            assert!(recent.entries().is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_remembered_tasks_is_bounded() {
        let recent = RecentlyScheduled::default();
        for number in 0..MAX_REMEMBERED + 10 {
            assert!(recent.insert(&key(number), Duration::from_secs(30)));
        }
        assert!(recent.entries().len() <= MAX_REMEMBERED);
        tokio::time::advance(Duration::from_secs(30)).await;
        for number in 0..MAX_REMEMBERED + 10 {
            recent.insert(&key(number), Duration::from_millis(1));
        }
        assert!(recent.entries().len() <= MAX_REMEMBERED);
    }
}
