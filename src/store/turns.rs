//! Writers of one task within one process take turns, as racing would only cost round trips.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::TaskKey;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// A lock for each task that somebody is writing, with the length of its queue, and none for all others.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<TaskKey, (usize, Lock)>>);

/// A place in the queue of one task; left when it is dropped, whether or not its turn came.
pub(super) struct Place<'a> {
    turns: &'a Turns,
    key: TaskKey,
    lock: Lock,
}

impl Turns {
    /// Queues up for `key`. The turn begins when [`Place::turn`] returns.
    pub(super) fn queue(&self, key: &TaskKey) -> Place<'_> {
        let mut locks = self.locks();
        let (places, lock) = locks.entry(key.clone()).or_default();
        *places += 1;
        let lock = Arc::clone(lock);
        Place { turns: self, key: key.clone(), lock }
    }

    /// Nothing panics while it holds the map.
    fn locks(&self) -> MutexGuard<'_, HashMap<TaskKey, (usize, Lock)>> {
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
        if let Some((places, _)) = locks.get_mut(&self.key) {
            *places -= 1;
            if *places == 0 {
                locks.remove(&self.key);
            }
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
