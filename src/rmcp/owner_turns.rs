//! Lets each owner have its turn while many tasks of one owner wait.
//!
//! A queue is in the order of time, so a task behind ten thousand tasks of another owner would wait for all of them. While more tasks
//! wait than a worker can run, it also reads the queue, without taking timers. Of each owner it finds the oldest tasks, and claims
//! them in turn. The timer of such a task stays, and whoever takes it later finds nothing to claim.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Agenda, Cursor, OwnerId, Priority, Queue, StorageError, TaskKey};

/// How many pages one search reads.
const PAGES: usize = 8;
/// How many tasks of one owner, and how many owners, a search collects at most.
const MAX_TASKS: usize = 8;
const MAX_OWNERS: usize = 256;
/// The pause between two searches.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause, if the searches find the tasks of one owner only.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// How long what was found is of use.
const FRESH: Duration = Duration::from_secs(5);

/// A waiting task, and the queue that it waits in.
pub(super) type Waiting = (Queue, TaskKey);

/// The owners whose tasks wait, and whose turn is next.
#[derive(Debug, Default)]
pub(super) struct OwnerTurns {
    /// The owners in the order of their turns, each with its oldest tasks.
    found: VecDeque<VecDeque<Waiting>>,
    found_at: Option<Instant>,
    /// Where the last search has ended.
    position: Option<(Queue, Cursor)>,
    next_search: Option<Instant>,
    pause: Duration,
}

impl OwnerTurns {
    /// Returns the next task of the owner whose turn it is.
    pub(super) fn next(&mut self) -> Option<Waiting> {
        if self.found_at.is_some_and(|at| at.elapsed() > FRESH) {
            self.found.clear();
        }
        let mut tasks = self.found.pop_front()?;
        let next = tasks.pop_front();
        if !tasks.is_empty() {
            self.found.push_back(tasks);
        }
        next
    }

    /// Forgets what was found, because no tasks wait behind others any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns whether it is time for the next search.
    pub(super) fn is_due(&self) -> bool {
        self.found.is_empty() && self.next_search.is_none_or(|at| at <= Instant::now())
    }

    /// Reads the next part of the queues, and keeps the oldest tasks of each owner in it. Tasks of a lower priority have no turn while
    /// some of a higher one wait.
    ///
    /// # Errors
    /// The errors of [`Agenda::timers`].
    pub(super) async fn search<B: Agenda>(
        &mut self,
        engine: &B,
        operations: &[String],
    ) -> Result<(), StorageError> {
        self.next_search = Some(Instant::now() + self.pause.max(PAUSE));
        for priority in Priority::ALL {
            let queues = operations.iter().filter_map(|name| Queue::work(name, priority).ok());
            let owners = self.read(engine, queues.collect()).await?;
            if owners.is_empty() {
                continue;
            }
            // The tasks of one owner are claimed in the order of the queue, which costs less.
            let has_several = owners.len() > 1;
            self.pause = if has_several { PAUSE } else { (self.pause * 2).clamp(PAUSE, LONGEST_PAUSE) };
            if has_several {
                (self.found, self.found_at) = (owners.into(), Some(Instant::now()));
            }
            break;
        }
        Ok(())
    }

    /// Reads some pages of these queues from the last position on. Returns the tasks that are due, by owner.
    async fn read<B: Agenda>(
        &mut self,
        engine: &B,
        queues: Vec<Queue>,
    ) -> Result<Vec<VecDeque<Waiting>>, StorageError> {
        let now = engine.now();
        let (mut owners, mut places) = (Vec::<VecDeque<Waiting>>::new(), HashMap::<OwnerId, usize>::new());
        let mut pages = 0;
        for queue in queues {
            let resumes = self.position.as_ref().is_some_and(|(at, _)| *at == queue);
            let mut after = if resumes { self.position.take().map(|(_, cursor)| cursor) } else { None };
            while pages < PAGES {
                pages += 1;
                let page = engine.timers(&queue, after.as_ref()).await?;
                let is_last = page.timers.last().is_none_or(|timer| timer.due_at > now);
                for timer in page.timers.into_iter().filter(|timer| timer.due_at <= now) {
                    let place = places.get(&timer.key.owner).copied().unwrap_or(owners.len());
                    if place == owners.len() {
                        if place == MAX_OWNERS {
                            continue;
                        }
                        places.insert(timer.key.owner.clone(), place);
                        owners.push(VecDeque::new());
                    }
                    if owners[place].len() < MAX_TASKS {
                        owners[place].push_back((queue.clone(), timer.key));
                    }
                }
                after = page.next;
                if is_last || after.is_none() {
                    after = None;
                    break;
                }
            }
            if let Some(cursor) = after {
                self.position = Some((queue, cursor));
                break;
            }
        }
        Ok(owners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryBackend;

    async fn engine(owners: &[(&str, usize)]) -> MemoryBackend {
        let engine = MemoryBackend::new();
        let queue = Queue::work("render", Priority::Normal).unwrap();
        for (owner, number) in owners {
            for task in 0..*number {
                let key = TaskKey::new(owner, &format!("{task}")).unwrap();
                engine.schedule(&queue, &key, Duration::ZERO).await.unwrap();
            }
        }
        engine
    }

    async fn searched(turns: &mut OwnerTurns, engine: &MemoryBackend) -> Vec<String> {
        turns.search(engine, &["render".to_owned()]).await.unwrap();
        std::iter::from_fn(|| turns.next()).map(|(_, key)| key.owner.as_str().to_owned()).collect()
    }

    #[tokio::test]
    async fn each_owner_has_its_turn_and_one_with_many_tasks_has_not_more() {
        let engine = engine(&[("alice", 300), ("bob", 2), ("carol", 1)]).await;
        let found = searched(&mut OwnerTurns::default(), &engine).await;
        assert_eq!(found[..5], ["alice", "bob", "carol", "alice", "bob"]);
        assert!(found[5..].iter().all(|owner| owner == "alice"));
        assert_eq!(found.len(), MAX_TASKS + 3);
    }

    #[tokio::test]
    async fn the_searches_reach_a_task_behind_any_number_of_others_and_begin_again_at_the_end() {
        let mut owners = vec![("alice", 5_000)];
        owners.extend([("bob", 1), ("carol", 1)]);
        let engine = engine(&owners).await;
        let mut turns = OwnerTurns::default();
        for _ in 0..2 {
            let mut searches = 0;
            while !searched(&mut turns, &engine).await.contains(&"bob".to_owned()) {
                searches += 1;
                assert!(searches < 10);
            }
            assert_eq!(searches, 2, "each search reads 2,048 timers");
        }
    }

    #[tokio::test]
    async fn one_owner_alone_has_no_turns_and_the_searches_become_rare() {
        let engine = engine(&[("alice", 300)]).await;
        let mut turns = OwnerTurns::default();
        for _ in 0..5 {
            assert!(turns.is_due() || turns.next_search.is_some());
            assert!(searched(&mut turns, &engine).await.is_empty());
        }
        assert_eq!(turns.pause, LONGEST_PAUSE);
        assert!(!turns.is_due());
        turns.clear();
        assert!(turns.is_due());
    }
}
