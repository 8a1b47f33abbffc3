//! What the snapshot keeps of a task.

use chrono::{DateTime, Utc};
use mcp_task_store::{EventKind, StoredTask, Task, TaskFilter, TaskStatus};
use tokio::time::Instant;

/// How many characters of the name of a tool the snapshot keeps.
const MAX_TOOL_CHARS: usize = 200;

/// A task as it was at its last read. Pages read what they show again.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) status: TaskStatus,
    pub(crate) tool: Option<Box<str>>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) changed_at: DateTime<Utc>,
    pub(crate) is_stuck: bool,
    /// Whether the task has failed in all its attempts, and was not requeued.
    pub(crate) is_dead: bool,
    /// When the first attempt began, if the history still has the event.
    pub(crate) started_at: Option<DateTime<Utc>>,
    /// Since when the task could be claimed, if it waits for a worker.
    pub(crate) queued_since: Option<DateTime<Utc>>,
    /// When the task last lost its worker.
    pub(crate) lost_at: Option<DateTime<Utc>>,
    pub(super) read_at: Instant,
    /// The number of the pass in which the task was last read.
    pub(super) pass: u64,
}

impl Entry {
    pub(super) fn new(stored: &StoredTask, now: DateTime<Utc>, pass: u64) -> Self {
        let task = &stored.task;
        let started = task.history.iter().find(|event| event.kind == EventKind::Started);
        let lost = task.history.iter().rev().find(|event| event.kind == EventKind::LeaseLost);
        Self {
            status: task.status,
            tool: task.tool().map(tool_name),
            created_at: task.created_at,
            changed_at: task.last_updated_at,
            is_stuck: TaskFilter::new().stuck().matches(stored, now),
            is_dead: TaskFilter::new().dead().matches(stored, now),
            started_at: started.map(|event| event.at),
            queued_since: queued_since(task, now),
            lost_at: lost.map(|event| event.at),
            read_at: Instant::now(),
            pass,
        }
    }

    /// Returns whether this is the end of the task that `other` shows open. An ended task never changes, so `other` was read
    /// earlier.
    pub(super) fn is_end_of(&self, other: &Self) -> bool {
        !self.is_open() && other.is_open() && self.is_same_task_as(other)
    }

    /// Returns whether both are of one task, and not of two tasks that had the same id one after the other.
    pub(super) fn is_same_task_as(&self, other: &Self) -> bool {
        self.created_at == other.created_at
    }

    /// Returns whether pages show the same of both.
    pub(super) fn shows_the_same_as(&self, other: &Self) -> bool {
        let shown = |entry: &Self| {
            let times = (entry.created_at, entry.changed_at, entry.started_at, entry.lost_at);
            (times, entry.status, entry.is_stuck, entry.is_dead)
        };
        shown(self) == shown(other)
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.status.is_terminal()
    }
}

/// Returns since when a task that waits for a worker could be claimed. Without a holder, the deadline of the lease is the earliest start.
fn queued_since(task: &Task, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let waiting = task.lease.as_ref().filter(|lease| lease.holder.is_none() && !task.status.is_terminal());
    waiting.map(|lease| lease.deadline).filter(|start| *start <= now)
}

/// Returns the name of a tool as the snapshot keeps it.
pub(super) fn tool_name(name: &str) -> Box<str> {
    let end = name.char_indices().nth(MAX_TOOL_CHARS).map_or(name.len(), |(end, _)| end);
    name[..end].into()
}
