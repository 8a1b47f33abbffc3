//! Keeps the write-ahead log short.
//!
//! SQLite copies the log into the file after each transaction while the log is longer than 4 MB. It writes the log from its
//! beginning again once no connection reads from it. If reads overlap without a gap, the log grows without end, and after
//! a long read it stays as long as it was. So the thread that writes truncates a long log. For that, writes wait for the
//! reads that have begun, for a short time. Reads that begin meanwhile use the file alone, and are not in the way.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::open::Session;
use crate::printable::Chain;

/// A log that is longer is truncated. SQLite truncates a log to this length when it writes it from its beginning again.
pub(super) const LONG_BYTES: u64 = 16 * 1024 * 1024;
/// How long writes wait for readers at most. The reads of this engine are shorter.
const PATIENCE: Duration = Duration::from_millis(50);
/// When the thread tries again, unless the log has grown by [`LONG_BYTES`] before. A reader of another program may stay for hours,
/// and must not slow the writes down.
const RETRY_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Log {
    path: PathBuf,
    /// When to try again, while a reader keeps the log long.
    retry: Option<Instant>,
    /// How long the log was at the last try.
    tried_bytes: u64,
}

impl Log {
    /// Returns the log of a file that is open.
    pub(super) fn of(file: &Path) -> Self {
        // SQLite keeps the log next to the file that a link leads to.
        let mut path = file.canonicalize().unwrap_or_else(|_| file.to_owned()).into_os_string();
        path.push("-wal");
        Self { path: path.into(), retry: None, tried_bytes: 0 }
    }

    /// Returns the length of the log; 0 if there is none.
    pub(super) fn bytes_of(file: &Path) -> u64 {
        Self::of(file).bytes()
    }

    /// Returns how long the thread may wait before it calls [`shorten`](Self::shorten) again.
    pub(super) fn retry_in(&self) -> Option<Duration> {
        self.retry.map(|retry| retry.saturating_duration_since(Instant::now()))
    }

    /// Truncates the log if it is long. Does nothing before it is time to try again.
    pub(super) fn shorten(&mut self, session: &Session) {
        let bytes = self.bytes();
        let is_early = self.retry.is_some_and(|retry| Instant::now() < retry);
        if is_early && bytes < self.tried_bytes + LONG_BYTES {
            return;
        }
        // Another process may have truncated the log.
        self.retry = None;
        if bytes <= LONG_BYTES {
            return;
        }
        self.tried_bytes = bytes;
        self.retry = match truncate(session) {
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

    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |log| log.len())
    }
}

/// Copies the log into the file, and truncates the log. Returns whether no other connection was in the way.
fn truncate(session: &Session) -> rusqlite::Result<bool> {
    let checkpoint = |mode: &str| {
        let pragma = format!("PRAGMA wal_checkpoint({mode})");
        session.connection.query_row(&pragma, [], |row| row.get::<_, bool>(0))
    };
    // Copies most of the log without a wait, so that the time limit is for the readers. On a slow disk, the copy alone takes longer.
    checkpoint("PASSIVE")?;
    session.wait_for(PATIENCE);
    Ok(!checkpoint("TRUNCATE")?)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::sqlite::error::Errors;
    use crate::sqlite::open::File;
    use crate::sqlite::settings::Synchronous;

    /// Opens a file of its own, in a folder that is removed with the returned value.
    fn open() -> (tempfile::TempDir, PathBuf, Session) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.db");
        let errors = Errors { address: String::new(), busy_timeout: Duration::ZERO };
        let file = File {
            path: path.clone(),
            synchronous: Synchronous::Normal,
            max_file_bytes: None,
            must_exist: false,
            errors,
        };
        let session = file.open_writer().unwrap();
        (folder, path, session)
    }

    /// Makes the log longer than [`LONG_BYTES`], in one transaction, because SQLite begins a log anew between two.
    fn write(log: &Log, connection: &Connection) {
        connection.execute_batch("BEGIN; CREATE TABLE IF NOT EXISTS t (b)").unwrap();
        (0..20).for_each(|_| connection.execute_batch("INSERT INTO t VALUES (randomblob(1000000))").unwrap());
        connection.execute_batch("COMMIT").unwrap();
        assert!(log.bytes() > LONG_BYTES);
    }

    #[test]
    fn a_log_that_another_connection_has_truncated_is_not_tried_again() {
        let (_folder, path, session) = open();
        let mut log = Log::of(&path);
        let reader = Connection::open(&path).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM records").unwrap();
        write(&log, &session.connection);
        log.shorten(&session);
        assert!(
            log.bytes() > LONG_BYTES && log.retry_in().unwrap() > Duration::ZERO,
            "the reader is in the way"
        );

        reader.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        assert_eq!(log.bytes(), 0);
        log.retry = Some(Instant::now());
        log.shorten(&session);
        // The thread would spin if it waited for a time that has passed.
        assert!(log.retry_in().is_none(), "{:?}", log.retry_in());
    }

    #[test]
    fn a_log_that_grows_fast_is_tried_again_before_the_next_second() {
        let (_folder, path, session) = open();
        let mut log = Log::of(&path);
        write(&log, &session.connection);
        let tomorrow = Instant::now() + Duration::from_secs(86_400);
        (log.retry, log.tried_bytes) = (Some(tomorrow), LONG_BYTES);
        log.shorten(&session);
        assert!(log.bytes() > LONG_BYTES, "it is too early");
        log.tried_bytes = 0;
        log.shorten(&session);
        assert_eq!((log.bytes(), log.retry_in()), (0, None));
    }
}
