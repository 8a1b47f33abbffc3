//! The tasks of the store as the console last read them.
//!
//! The contract of engines has no index by status or tool, because each write would pay for it. So the console reads all
//! records at a bounded rate, and keeps what its lists and counts need in memory.

pub(crate) mod activity;
mod entry;
pub(crate) mod keeper;
pub(crate) mod query;

use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use chrono::{DateTime, Utc};
use mcp_task_store::{StoredTask, TaskKey};
use tokio::time::Instant;

use activity::Activity;
pub(crate) use entry::Entry;

/// How many tasks a snapshot holds by default. They take about 150 MB.
pub(crate) const MAX_TASKS: usize = 500_000;

/// The snapshot, which its keeper writes and pages read.
#[derive(Debug)]
pub(crate) struct Snapshot(RwLock<Tasks>);

#[derive(Debug)]
pub(crate) struct Tasks {
    pub(crate) entries: HashMap<TaskKey, Entry>,
    pub(crate) activity: Activity,
    /// When the snapshot began to observe the store.
    pub(crate) since: DateTime<Utc>,
    /// The number of the pass that is under way, or of the last one.
    pass: u64,
    pass_begun: DateTime<Utc>,
    /// When the last complete pass began. What was written before is in the snapshot.
    pub(crate) as_of: Option<DateTime<Utc>>,
    pub(crate) unreadable: Counted,
    /// The tasks that found no place in the snapshot.
    pub(crate) left_out: Counted,
    max_tasks: usize,
    /// The workers at the last read; `None` before it.
    pub(crate) workers: Option<Workers>,
    /// Why the last read failed.
    pub(crate) failure: Option<String>,
    /// Grows with each change that a page shows.
    revision: u64,
}

/// How many workers have announced themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Workers {
    pub(crate) running: u64,
    /// Those that have stopped without a shutdown within the last hour.
    pub(crate) lost: u64,
}

/// Something that each pass counts anew.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    this_pass: u64,
    pub(crate) last_pass: u64,
}

impl Snapshot {
    pub(crate) fn new(now: DateTime<Utc>, max_tasks: usize) -> Self {
        Self(RwLock::new(Tasks {
            entries: HashMap::new(),
            activity: Activity::default(),
            since: now,
            pass: 0,
            pass_begun: now,
            as_of: None,
            unreadable: Counted::default(),
            left_out: Counted::default(),
            max_tasks,
            workers: None,
            failure: None,
            revision: 0,
        }))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Tasks> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Tasks> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tasks {
    /// Returns a number that grows with each change that a page shows.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Notes why the store cannot be read, or that it can.
    fn set_failure(&mut self, failure: Option<String>) {
        self.revision += u64::from(self.failure != failure);
        self.failure = failure;
    }

    fn set_workers(&mut self, workers: Workers) {
        self.revision += u64::from(self.workers != Some(workers));
        self.workers = Some(workers);
    }

    /// Notes a task as it was just read.
    pub(crate) fn record(&mut self, stored: &StoredTask, now: DateTime<Utc>) {
        let mut entry = Entry::new(stored, now, self.pass);
        if let Some(before) = self.entries.get_mut(&stored.key)
            && before.is_end_of(&entry)
        {
            before.pass = self.pass;
            return;
        }
        let before = self.entries.get(&stored.key);
        // The record of a dead task stays as it is when the task is requeued. The pass has noted that.
        entry.is_dead &=
            before.is_none_or(|before| before.is_open() || before.is_dead || !before.is_same_task_as(&entry));
        if before.is_none() && self.entries.len() >= self.max_tasks {
            self.left_out.this_pass += 1;
            return;
        }
        self.revision += u64::from(before.is_none_or(|before| !before.shows_the_same_as(&entry)));
        self.activity.observe(before, &entry, now);
        self.entries.insert(stored.key.clone(), entry);
    }

    /// Notes which tasks wait for an operator, of those that were read before this time.
    fn set_dead(&mut self, dead: &HashSet<TaskKey>, before: Instant) {
        for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.read_at < before) {
            entry.is_dead = dead.contains(key);
        }
    }

    pub(crate) fn forget(&mut self, key: &TaskKey) {
        self.revision += u64::from(self.entries.remove(key).is_some());
    }

    fn begin_pass(&mut self, now: DateTime<Utc>) {
        self.pass += 1;
        self.pass_begun = now;
        self.unreadable.this_pass = 0;
        self.left_out.this_pass = 0;
    }

    /// Removes the tasks that the pass has not found: a complete pass finds each task that lived throughout.
    fn end_pass(&mut self) {
        let pass = self.pass;
        self.entries.retain(|_, entry| entry.pass == pass);
        self.as_of = Some(self.pass_begun);
        self.unreadable.last_pass = self.unreadable.this_pass;
        self.left_out.last_pass = self.left_out.this_pass;
        self.revision += 1;
        self.set_failure(None);
    }
}

#[cfg(test)]
mod tests;
