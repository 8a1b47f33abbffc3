//! Waits for locks that other connections hold.
//!
//! SQLite's own busy handler sleeps longer after each attempt, so a process that waits already loses against one that
//! has just arrived. Sleeps of the same random length give each process a fair share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// The bounds of a sleep, in microseconds.
const SLEEP_US: std::ops::Range<u64> = 200..1_200;

/// Until when the statements of a connection wait for locks.
#[derive(Clone)]
pub(super) struct Patience(Arc<Mutex<Instant>>);

impl Patience {
    /// Makes the connection wait for locks in this way.
    pub(super) fn attach(connection: &mut Connection) -> rusqlite::Result<Self> {
        let patience = Self(Arc::new(Mutex::new(Instant::now())));
        let handler = patience.clone();
        connection.busy_handler(Some(move |_| handler.sleep()))?;
        Ok(patience)
    }

    /// Sets until when the next statements wait.
    pub(super) fn set(&self, deadline: Instant) {
        *self.deadline() = deadline;
    }

    /// Sleeps once, unless the deadline has passed. Returns whether it slept.
    pub(super) fn sleep(&self) -> bool {
        let left = self.deadline().saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(left.min(Duration::from_micros(fastrand::u64(SLEEP_US))));
        true
    }

    /// Locks the deadline. No code panics while it holds the lock.
    fn deadline(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_waits_for_a_lock_until_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Connection::open(folder.path().join("tasks.db")).unwrap();
        let holder = open();
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut waits = open();
        let patience = Patience::attach(&mut waits).unwrap();
        let began = Instant::now();
        patience.set(began + Duration::from_millis(50));
        waits.execute_batch("BEGIN IMMEDIATE").unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(50), "{:?}", began.elapsed());

        patience.set(Instant::now() + Duration::from_secs(60));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || waits.execute_batch("BEGIN IMMEDIATE; COMMIT"));
            holder.execute_batch("COMMIT").unwrap();
            waiting.join().unwrap().unwrap();
        });
    }
}
