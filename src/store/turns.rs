//! Writers of one task within one process take turns, as racing would only cost round trips.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as Queue, MutexGuard as Head};

use crate::backend::TaskKey;

/// Which writers of a task pass which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Renewals, cancels, outcomes, answers: at most one write of progress is in front of them.
    First,
    /// Progress: one at a time queues up behind the others.
    Progress,
}

/// Both queues are first come, first served. The head of `progress` waits in `turn` like everybody else, so it is passed
/// by those that came before it, and never starves.
#[derive(Debug, Default)]
struct Queues {
    turn: Queue<()>,
    progress: Queue<()>,
}

/// The queues of each task that somebody is writing, with the number of writers, and none for all others.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<TaskKey, (usize, Arc<Queues>)>>);

/// A place in the queue of one task; left when it is dropped, whether or not its turn came.
pub(super) struct Place<'a> {
    turns: &'a Turns,
    key: TaskKey,
    queues: Arc<Queues>,
    lane: Lane,
}

/// The turn of one writer, until it is dropped.
pub(super) struct Turn<'a> {
    _turn: Head<'a, ()>,
    _progress: Option<Head<'a, ()>>,
}

impl Turns {
    /// Queues up for `key`. The turn begins when [`Place::turn`] returns.
    pub(super) fn queue(&self, key: &TaskKey, lane: Lane) -> Place<'_> {
        let mut writers = self.writers();
        let (places, queues) = writers.entry(key.clone()).or_default();
        *places += 1;
        let queues = Arc::clone(queues);
        Place { turns: self, key: key.clone(), queues, lane }
    }

    /// Nothing panics while it holds the map.
    fn writers(&self) -> MutexGuard<'_, HashMap<TaskKey, (usize, Arc<Queues>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Waits for the turn.
    pub(super) async fn turn(&self) -> Turn<'_> {
        let progress = match self.lane {
            Lane::First => None,
            Lane::Progress => Some(self.queues.progress.lock().await),
        };
        Turn { _turn: self.queues.turn.lock().await, _progress: progress }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut writers = self.turns.writers();
        if let Some((places, _)) = writers.get_mut(&self.key) {
            *places -= 1;
            if *places == 0 {
                writers.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;

    #[tokio::test]
    async fn a_queue_is_kept_only_while_somebody_is_in_it() {
        let turns = Turns::default();
        let key = TaskKey::new("alice", "t1").unwrap();
        let first = turns.queue(&key, Lane::First);
        let turn = first.turn().await;
        {
            let second = turns.queue(&key, Lane::Progress);
            let waiting = std::pin::pin!(second.turn());
            assert!(poll!(waiting).is_pending());
        }
        assert_eq!(turns.writers().len(), 1);
        drop(turn);
        drop(first);
        assert!(turns.writers().is_empty());
    }

    #[tokio::test]
    async fn at_most_one_write_of_progress_is_in_front_of_another_write_and_each_lane_keeps_its_order() {
        let turns = Turns::default();
        let key = TaskKey::new("alice", "t1").unwrap();
        let order = Mutex::new(Vec::new());
        let write = async |name: &'static str, lane| {
            let place = turns.queue(&key, lane);
            let _turn = place.turn().await;
            // Everybody queues up during the first turn.
            tokio::task::yield_now().await;
            order.lock().unwrap().push(name);
        };
        let progress = |name| write(name, Lane::Progress);
        let first = |name| write(name, Lane::First);
        tokio::join!(
            progress("p1"),
            progress("p2"),
            progress("p3"),
            progress("p4"),
            first("renewal"),
            first("cancel"),
            first("outcome"),
        );
        assert_eq!(*order.lock().unwrap(), ["p1", "renewal", "cancel", "outcome", "p2", "p3", "p4"]);
    }
}
