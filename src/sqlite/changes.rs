//! Detects what other processes have committed.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::records;
use super::timers;
use super::transaction::Subscribers;
use crate::printable::Chain;

/// How often a process looks for changes while it watches anything.
const POLL_EVERY: Duration = Duration::from_millis(10);
/// How often it looks after an error.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// A look that finds changes reads every watched record. The pause after it is so many times as long, so that a process
/// with many watches does not only look.
const PAUSES: u32 = 10;

pub(super) struct Changes {
    /// The number that SQLite changes with each commit of another connection.
    version: Option<i64>,
    next: Instant,
}

impl Changes {
    pub(super) fn new(connection: &Connection) -> Self {
        // Without a number, the next poll finds a change.
        Self { version: data_version(connection).ok(), next: Instant::now() }
    }

    pub(super) fn next_poll_in(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Notifies the subscribers of changes that other processes have committed. Does nothing before it is time.
    pub(super) fn poll(&mut self, connection: &Connection, subscribers: &Subscribers) {
        let began = Instant::now();
        if began < self.next {
            return;
        }
        let looked = self.look(connection, subscribers);
        self.next = match looked {
            Ok(()) => Instant::now() + POLL_EVERY.max(began.elapsed() * PAUSES),
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "changes of other processes cannot be read");
                self.version = None;
                // The subscribers read the record, and receive the error.
                subscribers.watched.notify_all();
                subscribers.wakeups.wake_all();
                Instant::now() + RETRY_EVERY
            }
        };
    }

    fn look(&mut self, connection: &Connection, subscribers: &Subscribers) -> rusqlite::Result<()> {
        let version = Some(data_version(connection)?);
        if version == self.version {
            return Ok(());
        }
        for key in subscribers.watched.keys() {
            subscribers.watched.found(&key, records::seen(connection, &key)?);
        }
        for queue in subscribers.wakeups.queues() {
            subscribers.wakeups.found(&queue, timers::first(connection, &queue)?);
        }
        self.version = version;
        Ok(())
    }
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}
