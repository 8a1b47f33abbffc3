//! The transaction of the thread that writes, and what follows once it is committed.

use rusqlite::Connection;

use super::clock::now_us;
use super::wakeups::Wakeups;
use super::watched::{Seen, Watched};
use crate::backend::engine::Change;
use crate::backend::{Queue, TaskKey};

/// Whom this process notifies.
#[derive(Default)]
pub(super) struct Subscribers {
    pub(super) watched: Watched,
    pub(super) wakeups: Wakeups,
}

impl Subscribers {
    pub(super) fn is_empty(&self) -> bool {
        self.watched.is_empty() && self.wakeups.is_empty()
    }
}

/// What happens once the transaction is committed.
enum Effect {
    Record { key: TaskKey, seen: Seen, change: Option<Change> },
    Timers { queue: Queue, first: Option<u64> },
}

/// An open transaction that holds the lock of the file for writes.
pub(super) struct Transaction<'a> {
    pub(super) connection: &'a Connection,
    subscribers: &'a Subscribers,
    effects: Vec<Effect>,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(connection: &'a Connection, subscribers: &'a Subscribers) -> Self {
        Self { connection, subscribers, effects: Vec::new() }
    }

    /// Returns the time in microseconds. Read after the lock is held, so that it is not before an earlier transaction.
    pub(super) fn now_us(&self) -> u64 {
        now_us()
    }

    pub(super) fn wrote(&mut self, key: &TaskKey, seen: Seen, change: Option<Change>) {
        self.effects.push(Effect::Record { key: key.clone(), seen, change });
    }

    /// Returns whether this process must know the earliest timer of a queue.
    pub(super) fn needs_first(&self, queue: &Queue) -> bool {
        self.subscribers.wakeups.is_subscribed(queue)
    }

    pub(super) fn moved_timers(&mut self, queue: &Queue, first: Option<u64>) {
        self.effects.push(Effect::Timers { queue: queue.clone(), first });
    }

    /// Notifies the subscribers. The transaction was committed.
    pub(super) fn notify(self) {
        for effect in self.effects {
            match effect {
                Effect::Record { key, seen, change } => self.subscribers.watched.wrote(&key, seen, change),
                Effect::Timers { queue, first } => self.subscribers.wakeups.found(&queue, first),
            }
        }
    }
}
