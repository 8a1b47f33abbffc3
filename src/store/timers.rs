//! The timers of tasks: what is scheduled, and when.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::attempts::Run;
use super::transitions::{delay_left, waiting};
use super::{TaskError, TaskStore};
use crate::backend::{Agenda, Queue, TaskKey};
use crate::printable::Chain;
use crate::task::{Lease, StoredTask};

/// How many tasks are remembered whose lease was scheduled by a reader.
const MOST_NOTICED: usize = 16_384;
/// How many tasks of a page are scheduled at once.
const AT_ONCE: usize = 16;

/// The tasks whose lease a reader of this process has scheduled, and until when that counts. A task leaves with its end,
/// and otherwise one lease later.
#[derive(Debug, Default)]
pub(super) struct Noticed(Mutex<HashMap<TaskKey, Instant>>);

impl Noticed {
    /// Nothing panics while it holds the map.
    fn until(&self) -> MutexGuard<'_, HashMap<TaskKey, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody noticed this task within the last lease. From now on somebody has.
    fn is_new(&self, key: &TaskKey, lease: Duration) -> bool {
        let (mut until, now) = (self.until(), Instant::now());
        if until.get(key).is_some_and(|until| now < *until) {
            return false;
        }
        if until.len() >= MOST_NOTICED {
            until.retain(|_, until| now < *until);
            // A crowd: each may be scheduled once more.
            if until.len() >= MOST_NOTICED {
                until.clear();
            }
        }
        until.insert(key.clone(), now + lease);
        true
    }

    pub(super) fn forget(&self, key: &TaskKey) {
        self.until().remove(key);
    }
}

impl<B: Agenda> TaskStore<B> {
    pub(super) async fn schedule(
        &self,
        queue: &Queue,
        key: &TaskKey,
        after: Duration,
    ) -> Result<(), TaskError> {
        let scheduled =
            self.0.answers.count_write(Some(&key.owner), self.0.backend.schedule(queue, key, after));
        scheduled.await.map_err(TaskError::Storage)
    }

    /// Schedules a task that waits for a worker in its work queue, for the earliest start that its lease states.
    pub(super) async fn schedule_work(&self, stored: &StoredTask) -> Result<(), TaskError> {
        let (Some(operation), Some(lease)) = (stored.task.operation.as_deref(), waiting(&stored.task)) else {
            return Ok(());
        };
        let queue = Queue::work(operation).map_err(TaskError::Storage)?;
        self.schedule(&queue, &stored.key, delay_left(lease, self.now())).await
    }

    /// A reader has found this: if its lease has lapsed or has no holder, its timer may have been lost. One whose run was in
    /// this process and is gone has not lapsed yet.
    pub(super) async fn notice(&self, stored: &StoredTask) {
        let Some(lease) = stored.task.lease.as_ref().filter(|_| !stored.task.status.is_terminal()) else {
            self.0.noticed.forget(&stored.key);
            return;
        };
        if self.may_be_lost(&stored.key, lease) && self.0.noticed.is_new(&stored.key, lease.duration()) {
            self.look_now(&stored.key).await;
        }
    }

    pub(super) async fn notice_all(&self, tasks: &[StoredTask]) {
        stream::iter(tasks).for_each_concurrent(AT_ONCE, |stored| self.notice(stored)).await;
    }

    /// A cancel was requested: if the worker seems to be lost, that must not wait.
    pub(super) async fn look_soon(&self, stored: &StoredTask) {
        let lease = stored.task.lease.as_ref().filter(|_| !stored.task.status.is_terminal());
        if lease.is_some_and(|lease| self.may_be_lost(&stored.key, lease)) {
            self.look_now(&stored.key).await;
        }
    }

    fn may_be_lost(&self, key: &TaskKey, lease: &Lease) -> bool {
        lease.may_have_lapsed(self.now()) || self.run(key, lease) == Run::Gone
    }

    async fn look_now(&self, key: &TaskKey) {
        if let Err(error) = self.schedule(&self.0.leases, key, Duration::ZERO).await {
            // The next reader tries again.
            self.0.noticed.forget(key);
            tracing::debug!(error = %Chain(&error), task = %key.task.printable(), "a lease that has lapsed could not be scheduled");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{PutOptions, StorageBackend};
    use crate::memory::MemoryBackend;
    use crate::store::NewTask;

    fn key(number: usize) -> TaskKey {
        TaskKey::new("alice", &format!("t{number}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_noticed_once_a_lease_and_forgotten_with_its_end() {
        let (noticed, lease) = (Noticed::default(), Duration::from_secs(30));
        assert!(noticed.is_new(&key(1), lease));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(!noticed.is_new(&key(1), lease));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(noticed.is_new(&key(1), lease));
        noticed.forget(&key(1));
        assert!(noticed.until().is_empty());
    }

    #[tokio::test]
    async fn what_is_remembered_of_a_task_goes_with_it_whoever_deletes_it() {
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
            assert_eq!(store.0.noticed.until().len(), 1, "its worker seems to be lost");
            if is_deleted_here {
                store.delete(&created.key).await.unwrap();
            } else {
                store.backend().delete(&created.key).await.unwrap();
                assert!(matches!(store.get(&created.key).await, Err(TaskError::NotFound { .. })));
            }
            assert!(store.0.noticed.until().is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_of_noticed_tasks_is_bounded() {
        let noticed = Noticed::default();
        for number in 0..MOST_NOTICED + 10 {
            assert!(noticed.is_new(&key(number), Duration::from_secs(30)));
        }
        assert!(noticed.until().len() <= MOST_NOTICED);
        tokio::time::advance(Duration::from_secs(30)).await;
        for number in 0..MOST_NOTICED + 10 {
            noticed.is_new(&key(number), Duration::from_millis(1));
        }
        assert!(noticed.until().len() <= MOST_NOTICED);
    }
}
