//! Lets each owner have its turn while many tasks of one owner wait.
//!
//! The timers of a queue are in the order of their due times, so a task behind ten thousand tasks of another owner would wait for all
//! of them. While more tasks wait than a worker can run, the worker also lists the timers of the queue, without taking them. It
//! finds the oldest tasks of each owner, and claims them in turn. The timer of such a task stays in the queue. The next taker of
//! the timer finds nothing to claim.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Agenda, Cursor, OwnerId, Priority, Queue, StorageError, TaskKey};

/// How many pages one search reads.
const PAGES: usize = 8;
/// How many tasks of one owner a search collects at most.
const MAX_TASKS: usize = 8;
/// The same while an owner has as many attempts as one owner may have. A take finds its tasks first, however many there are. So
/// only the turns reach the tasks of the others.
const MAX_TASKS_BEHIND_FULL: usize = 64;
/// The pause between two searches.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause, if the searches find the tasks of one owner only.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// After this time, the next claim searches again before it uses what was found.
const FRESH: Duration = Duration::from_secs(5);
/// The same while an owner has as many attempts as one owner may have: its turn must come soon after an attempt ends.
const FRESH_BEHIND_FULL: Duration = Duration::from_secs(1);
/// How long a task that had its turn is left out of further searches: its timer stays in the queue, in front of those of the tasks
/// that its owner has enqueued later.
const LEFT_OUT: Duration = Duration::from_secs(30);
/// How many such tasks are remembered.
const MAX_LEFT_OUT: usize = 16_384;
/// How many owners are remembered for the order of their turns.
const MAX_SERVED: usize = 16_384;

/// A waiting task, and the queue that it waits in.
pub(super) type Waiting = (Queue, TaskKey);

/// The owners whose tasks wait, and whose turn is next.
#[derive(Debug, Default)]
pub(super) struct OwnerTurns {
    /// The owners in the order of their turns, each with its oldest tasks. All of them wait with one priority.
    found: VecDeque<VecDeque<Waiting>>,
    priority: Priority,
    outdated_at: Option<Instant>,
    /// The number of the last turn of each owner. It outlasts a search. Otherwise the owners behind the first ones would have no
    /// turn while each task takes longer than what was found is fresh.
    served: HashMap<OwnerId, u64>,
    turns: u64,
    /// The tasks that had their turn, each with the time.
    left_out: HashMap<TaskKey, Instant>,
    /// Where the next search begins: the queue, and the place in it.
    position: Option<(Queue, Option<Cursor>)>,
    next_search: Option<Instant>,
    pause: Duration,
}

impl OwnerTurns {
    /// Returns the next task of the owner whose turn it is.
    pub(super) fn next(&mut self) -> Option<Waiting> {
        let mut tasks = self.found.pop_front()?;
        let next = tasks.pop_front()?;
        if !tasks.is_empty() {
            self.found.push_back(tasks);
        }
        self.note_turn(&next.1.owner);
        if self.left_out.len() >= MAX_LEFT_OUT {
            self.left_out.clear();
        }
        self.left_out.insert(next.1.clone(), Instant::now());
        Some(next)
    }

    /// Notes that a task of this owner is claimed now, so that other owners have their turns before it.
    pub(super) fn note_turn(&mut self, owner: &OwnerId) {
        if self.served.len() >= MAX_SERVED {
            self.served.clear();
        }
        self.turns += 1;
        self.served.insert(owner.clone(), self.turns);
    }

    /// Lets a further search find a task again that had its turn and was refused.
    pub(super) fn readmit(&mut self, key: &TaskKey) {
        self.left_out.remove(key);
    }

    /// Returns the priority of the tasks whose owners have their turns; `None` if no owner has.
    pub(super) fn priority(&self) -> Option<Priority> {
        (!self.found.is_empty()).then_some(self.priority)
    }

    /// Forgets what was found, because no tasks wait behind others any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns whether it is time for the next search.
    pub(super) fn is_due(&self) -> bool {
        self.found.is_empty() && self.next_search.is_none_or(|at| at <= Instant::now())
    }

    /// Returns whether a search must come before the next turn: other owners may have come since the last one.
    pub(super) fn is_outdated(&self) -> bool {
        !self.found.is_empty() && self.outdated_at.is_none_or(|at| at <= Instant::now())
    }

    /// Reads the next part of the queues of this priority, and keeps the oldest tasks of each owner in it. The owners in `full` have no
    /// turn.
    ///
    /// # Errors
    /// The errors of [`Agenda::timers`].
    pub(super) async fn search<B: Agenda>(
        &mut self,
        engine: &B,
        operations: &[String],
        priority: Priority,
        full: &HashSet<OwnerId>,
    ) -> Result<(), StorageError> {
        self.next_search = Some(Instant::now() + self.pause.max(PAUSE));
        let queues = operations.iter().filter_map(|name| Queue::work(name, priority).ok());
        let mut owners = self.read(engine, queues.collect(), full).await?;
        // The tasks of one owner are claimed in the order of the queue, which costs less.
        let is_alone = owners.len() <= 1 && full.is_empty();
        self.pause = if is_alone { (self.pause * 2).clamp(PAUSE, LONGEST_PAUSE) } else { PAUSE };
        if is_alone {
            owners.clear();
        }
        owners.sort_by_key(|tasks| tasks.front().and_then(|(_, key)| self.served.get(&key.owner).copied()));
        let fresh = if full.is_empty() { FRESH } else { FRESH_BEHIND_FULL };
        (self.found, self.priority, self.outdated_at) =
            (owners.into(), priority, Some(Instant::now() + fresh));
        Ok(())
    }

    /// Reads some pages of these queues from the last position on. Returns the tasks that are due, by owner.
    async fn read<B: Agenda>(
        &mut self,
        engine: &B,
        mut queues: Vec<Queue>,
        full: &HashSet<OwnerId>,
    ) -> Result<Vec<VecDeque<Waiting>>, StorageError> {
        queues.sort_unstable();
        let (at, mut after) = self.position.take().unzip();
        match at.and_then(|at| queues.iter().position(|queue| *queue == at)) {
            Some(first) => queues.rotate_left(first),
            None => after = None,
        }
        self.left_out.retain(|_, at| at.elapsed() < LEFT_OUT);
        let max_tasks = if full.is_empty() { MAX_TASKS } else { MAX_TASKS_BEHIND_FULL };
        let (now, mut found) = (engine.now(), ByOwner { max_tasks, ..ByOwner::default() });
        let (mut queues, mut after) = (queues.into_iter(), after.flatten());
        let mut current = queues.next();
        for _ in 0..PAGES {
            let Some(queue) = &current else { return Ok(found.owners) };
            let page = engine.timers(queue, after.as_ref()).await?;
            let is_last = page.timers.last().is_none_or(|timer| timer.due_at > now);
            let due = page.timers.into_iter().filter(|timer| timer.due_at <= now).map(|timer| timer.key);
            let has_turn = |key: &TaskKey| !full.contains(&key.owner) && !self.left_out.contains_key(key);
            due.filter(has_turn).for_each(|key| found.add(queue, key));
            after = page.next.filter(|_| !is_last);
            if after.is_none() {
                current = queues.next();
            }
        }
        self.position = current.map(|queue| (queue, after));
        Ok(found.owners)
    }
}

/// The oldest tasks of each owner.
#[derive(Default)]
struct ByOwner {
    owners: Vec<VecDeque<Waiting>>,
    places: HashMap<OwnerId, usize>,
    max_tasks: usize,
}

impl ByOwner {
    fn add(&mut self, queue: &Queue, key: TaskKey) {
        let place = match self.places.get(&key.owner) {
            Some(place) => *place,
            None => {
                self.places.insert(key.owner.clone(), self.owners.len());
                self.owners.push(VecDeque::new());
                self.owners.len() - 1
            }
        };
        if self.owners[place].len() < self.max_tasks {
            self.owners[place].push_back((queue.clone(), key));
        }
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
        turns.search(engine, &["render".to_owned()], Priority::Normal, &HashSet::new()).await.unwrap();
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
            turns.readmit(&TaskKey::new("bob", "0").unwrap());
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

    #[tokio::test]
    async fn an_owner_that_had_its_turn_comes_after_the_others_in_the_next_search() {
        let engine = engine(&[("alice", 300), ("bob", 1), ("carol", 1)]).await;
        let mut turns = OwnerTurns::default();
        for expected in ["bob", "carol"] {
            turns.note_turn(&"alice".try_into().unwrap());
            turns.search(&engine, &["render".to_owned()], Priority::Normal, &HashSet::new()).await.unwrap();
            assert_eq!(turns.next().unwrap().1.owner.as_str(), expected);
        }
    }

    #[tokio::test]
    async fn the_searches_reach_every_queue_of_any_number_of_operations() {
        let engine = MemoryBackend::new();
        let names: Vec<_> = (0..20).map(|number| format!("operation {number}")).collect();
        for (number, name) in names.iter().enumerate() {
            // Two queues have more timers than one search reads.
            for task in 0..if number < 2 { 3_000 } else { 10 } {
                let key = TaskKey::new("alice", &format!("{number} {task}")).unwrap();
                engine
                    .schedule(&Queue::work(name, Priority::Normal).unwrap(), &key, Duration::ZERO)
                    .await
                    .unwrap();
            }
            let key = TaskKey::new(name, "last").unwrap();
            engine
                .schedule(&Queue::work(name, Priority::Normal).unwrap(), &key, Duration::ZERO)
                .await
                .unwrap();
        }
        let (mut turns, mut owners) = (OwnerTurns::default(), std::collections::BTreeSet::new());
        for _ in 0..20 {
            turns.search(&engine, &names, Priority::Normal, &HashSet::new()).await.unwrap();
            owners.extend(std::iter::from_fn(|| turns.next()).map(|(_, key)| key.owner.as_str().to_owned()));
        }
        assert!(names.iter().all(|name| owners.contains(name)), "{owners:?}");
    }

    #[tokio::test]
    async fn an_owner_with_as_many_attempts_as_it_may_have_has_no_turn_and_the_others_have_more() {
        let engine = engine(&[("alice", 300), ("bob", 100)]).await;
        let (mut turns, full) = (OwnerTurns::default(), HashSet::from(["alice".try_into().unwrap()]));
        turns.search(&engine, &["render".to_owned()], Priority::Normal, &full).await.unwrap();
        let found: Vec<_> = std::iter::from_fn(|| turns.next()).map(|(_, key)| key.owner).collect();
        assert_eq!(found, vec!["bob".try_into().unwrap(); MAX_TASKS_BEHIND_FULL]);
    }

    #[tokio::test]
    async fn a_search_finds_the_later_tasks_of_an_owner_although_the_timers_of_earlier_ones_stay() {
        let engine = engine(&[("alice", 300), ("bob", 20)]).await;
        let mut turns = OwnerTurns::default();
        let mut found = HashSet::new();
        for _ in 0..3 {
            turns.search(&engine, &["render".to_owned()], Priority::Normal, &HashSet::new()).await.unwrap();
            let of_bob = std::iter::from_fn(|| turns.next()).filter(|(_, key)| key.owner.as_str() == "bob");
            found.extend(of_bob.map(|(_, key)| key.task));
        }
        assert_eq!(found.len(), 20);
    }
}
