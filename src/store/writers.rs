//! The queue of the writers of one task within one process. Without the queue, these writers would conflict, and
//! every conflict costs round trips.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as Lock, MutexGuard as LockGuard};

use crate::backend::TaskKey;

/// The priority of a writer in the queue of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriterPriority {
    /// Renewals, cancels, outcomes, requests and answers. At most one writer of low priority is in front of such a
    /// writer.
    High,
    /// Progress. At most one such writer at a time waits in the queue with the writers of high priority.
    Low,
}

/// Both locks are first come, first served. A writer of low priority waits for `low` first, and then for `write` like
/// every other writer. So writers of high priority overtake the writers that wait for `low`, and no writer of low
/// priority starves.
#[derive(Debug, Default)]
struct Locks {
    write: Lock<()>,
    low: Lock<()>,
}

/// The locks of each task that has a writer, with the number of its writers. Other tasks have no entry.
#[derive(Debug, Default)]
pub(super) struct WriterQueues(Mutex<HashMap<TaskKey, (usize, Arc<Locks>)>>);

/// A writer in the queue of one task. It leaves the queue when it is dropped, whether or not it has a permit.
pub(super) struct QueuedWriter<'a> {
    queues: &'a WriterQueues,
    key: TaskKey,
    locks: Arc<Locks>,
    priority: WriterPriority,
}

/// The permit of one writer to write, until it is dropped.
pub(super) struct WritePermit<'a> {
    _write: LockGuard<'a, ()>,
    _low: Option<LockGuard<'a, ()>>,
}

impl WriterQueues {
    /// Adds a writer to the queue of a task. [`QueuedWriter::permit`] waits for its permit.
    pub(super) fn join(&self, key: &TaskKey, priority: WriterPriority) -> QueuedWriter<'_> {
        let mut entries = self.entries();
        let (writers, locks) = entries.entry(key.clone()).or_default();
        *writers += 1;
        let locks = Arc::clone(locks);
        QueuedWriter { queues: self, key: key.clone(), locks, priority }
    }

    /// No code panics while it holds the lock.
    fn entries(&self) -> MutexGuard<'_, HashMap<TaskKey, (usize, Arc<Locks>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueuedWriter<'_> {
    /// Waits until this writer may write.
    pub(super) async fn permit(&self) -> WritePermit<'_> {
        let low = match self.priority {
            WriterPriority::High => None,
            WriterPriority::Low => Some(self.locks.low.lock().await),
        };
        WritePermit { _write: self.locks.write.lock().await, _low: low }
    }
}

impl Drop for QueuedWriter<'_> {
    fn drop(&mut self) {
        let mut entries = self.queues.entries();
        if let Entry::Occupied(mut entry) = entries.entry(self.key.clone()) {
            let (writers, _) = entry.get_mut();
            *writers -= 1;
            if *writers == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;

    #[tokio::test]
    async fn a_task_without_writers_has_no_entry() {
        let queues = WriterQueues::default();
        let key = TaskKey::new("alice", "t1").unwrap();
        let first = queues.join(&key, WriterPriority::High);
        let permit = first.permit().await;
        {
            let second = queues.join(&key, WriterPriority::Low);
            let waiting = std::pin::pin!(second.permit());
            assert!(poll!(waiting).is_pending());
        }
        assert_eq!(queues.entries().len(), 1);
        drop(permit);
        drop(first);
        assert!(queues.entries().is_empty());
    }

    #[tokio::test]
    async fn at_most_one_write_of_progress_precedes_another_write_and_each_priority_keeps_its_order() {
        let queues = WriterQueues::default();
        let key = TaskKey::new("alice", "t1").unwrap();
        let order = Mutex::new(Vec::new());
        let write = async |name: &'static str, priority| {
            let writer = queues.join(&key, priority);
            let _permit = writer.permit().await;
            // All writers join the queue while the first one writes.
            tokio::task::yield_now().await;
            order.lock().unwrap().push(name);
        };
        let low = |name| write(name, WriterPriority::Low);
        let high = |name| write(name, WriterPriority::High);
        tokio::join!(
            low("p1"),
            low("p2"),
            low("p3"),
            low("p4"),
            high("renewal"),
            high("cancel"),
            high("outcome"),
        );
        assert_eq!(*order.lock().unwrap(), ["p1", "renewal", "cancel", "outcome", "p2", "p3", "p4"]);
    }
}
