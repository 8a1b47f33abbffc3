//! Writers of one task within one process take turns, as racing would only cost round trips.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::TaskKey;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// A lock for each task that somebody is writing, and none for all others.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<TaskKey, Lock>>);

/// A place in the queue of one task; left when it is dropped, whether or not its turn came.
pub(super) struct Place<'a> {
    turns: &'a Turns,
    key: TaskKey,
    lock: Lock,
}

impl Turns {
    /// Queues up for `key`. The turn begins when [`Place::turn`] returns.
    pub(super) fn queue(&self, key: &TaskKey) -> Place<'_> {
        let lock = Arc::clone(self.locks().entry(key.clone()).or_default());
        Place { turns: self, key: key.clone(), lock }
    }

    /// Nothing panics while it holds the map.
    fn locks(&self) -> MutexGuard<'_, HashMap<TaskKey, Lock>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Waits for the turn, which lasts until the guard is dropped. First come, first served.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.lock.lock().await
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut locks = self.turns.locks();
        // The map's and ours: nobody else is in the queue, and nobody can enter while we hold the map.
        if Arc::strong_count(&self.lock) == 2 {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_is_held_only_while_somebody_is_in_the_queue() {
        let turns = Turns::default();
        let key = TaskKey::new("alice", "t1").unwrap();
        let first = turns.queue(&key);
        let turn = first.turn().await;
        {
            let second = turns.queue(&key);
            let mut waiting = std::pin::pin!(second.turn());
            assert!(
                std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending()))
                    .await
            );
        }
        assert_eq!(turns.locks().len(), 1);
        drop(turn);
        drop(first);
        assert!(turns.locks().is_empty());
    }
}
