//! Keeps the write-ahead log short.
//!
//! SQLite copies the log into the file after each transaction while the log is longer than 4 MB. It writes the log from its
//! beginning again once no connection reads from it. If reads overlap without a gap, the log grows without end, and after
//! a long read it stays as long as it was. So the thread that writes truncates a long log. For that, writes wait for the
//! reads that have begun, for a short time. Reads that begin meanwhile use the file alone, and are not in the way.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::open::Session;
use crate::printable::Chain;

/// A log that is longer is truncated. SQLite truncates a log to this length when it writes it from its beginning again.
pub(super) const LONG_BYTES: u64 = 16 * 1024 * 1024;
/// How long writes wait for readers at most. The reads of this engine are shorter.
const PATIENCE: Duration = Duration::from_millis(50);
/// When the thread tries again. A reader of another program may stay for hours, and must not slow the writes down.
const RETRY_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Log {
    path: PathBuf,
    /// When to try again, while a reader keeps the log long.
    retry: Option<Instant>,
}

impl Log {
    /// Returns the log of a file that is open.
    pub(super) fn of(file: &Path) -> Self {
        // SQLite keeps the log next to the file that a link leads to.
        let mut path = file.canonicalize().unwrap_or_else(|_| file.to_owned()).into_os_string();
        path.push("-wal");
        Self { path: path.into(), retry: None }
    }

    /// Returns how long the thread may wait before it calls [`shorten`](Self::shorten) again.
    pub(super) fn retry_in(&self) -> Option<Duration> {
        self.retry.map(|retry| retry.saturating_duration_since(Instant::now()))
    }

    /// Truncates the log if it is long. Does nothing before it is time to try again.
    pub(super) fn shorten(&mut self, session: &Session) {
        if self.retry.is_some_and(|retry| Instant::now() < retry) {
            return;
        }
        // Another process may have truncated the log.
        self.retry = None;
        if !self.is_long() {
            return;
        }
        session.wait_for(PATIENCE);
        self.retry = match truncate(&session.connection) {
            Ok(true) => None,
            Ok(false) => {
                tracing::debug!(log = %self.path.display(), "a reader or a writer keeps the write-ahead log long");
                Some(Instant::now() + RETRY_EVERY)
            }
            Err(error) => {
                tracing::debug!(log = %self.path.display(), error = %Chain(&error), "the write-ahead log was not truncated");
                Some(Instant::now() + RETRY_EVERY)
            }
        };
    }

    fn is_long(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|log| log.len() > LONG_BYTES)
    }
}

/// Copies the log into the file, and truncates the log. Returns whether no other connection was in the way.
fn truncate(connection: &Connection) -> rusqlite::Result<bool> {
    let is_busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    Ok(!is_busy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::error::Errors;
    use crate::sqlite::open::File;
    use crate::sqlite::settings::Synchronous;

    /// Writes a megabyte.
    fn write(connection: &Connection) {
        connection
            .execute_batch("CREATE TABLE IF NOT EXISTS t (b); INSERT INTO t VALUES (randomblob(1000000))")
            .unwrap();
    }

    #[test]
    fn a_log_that_another_connection_has_truncated_is_not_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.db");
        let errors = Errors { address: String::new(), busy_timeout: Duration::ZERO };
        let file =
            File { path: path.clone(), synchronous: Synchronous::Normal, max_file_bytes: None, errors };
        let session = file.open_writer().unwrap();
        let mut log = Log::of(&path);
        let reader = Connection::open(&path).unwrap();
        write(&session.connection);
        reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        while !log.is_long() {
            write(&session.connection);
        }
        log.shorten(&session);
        assert!(log.is_long() && log.retry_in().unwrap() > Duration::ZERO, "the reader is in the way");

        reader.execute_batch("COMMIT").unwrap();
        assert!(truncate(&reader).unwrap());
        log.retry = Some(Instant::now());
        log.shorten(&session);
        // The thread would spin if it waited for a time that has passed.
        assert!(!log.is_long() && log.retry_in().is_none(), "{:?}", log.retry_in());
    }
}
