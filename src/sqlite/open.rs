//! Opens the connections to a file.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::busy::Patience;
use super::error::{Errors, Failure, Step};
use super::log;
use super::schema::{FileKind, migrate};
use super::settings::Synchronous;
use crate::backend::StorageError;

/// How many prepared statements a connection keeps. The engine has fewer.
const STATEMENTS: usize = 64;
/// The page cache of a connection in KiB. SQLite takes a negative size as KiB.
const CACHE_KIB: i64 = -16_384;

/// A file, and how to open it.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) synchronous: Synchronous,
    pub(super) max_file_bytes: Option<u64>,
    pub(super) errors: Errors,
}

/// A connection, and until when it waits for locks.
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) patience: Patience,
}

impl File {
    /// Opens the file for the thread that writes. Creates the file and its tables, or migrates them.
    ///
    /// # Errors
    /// `Unavailable` for a busy file, `Denied` for a read-only one, and `Backend` for a file that is damaged, of another
    /// program, or of a newer version of this crate. The file is then unchanged.
    pub(super) fn open_writer(&self) -> Result<Session, StorageError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        self.writer(flags).map_err(|error| self.explain(error))
    }

    /// Opens the file for a thread that reads.
    pub(super) fn open_reader(&self) -> Result<Session, StorageError> {
        // A reader of a file in WAL mode also writes to the index of the log, so it must not be read-only.
        let session = self.session(OpenFlags::SQLITE_OPEN_READ_WRITE).and_then(|session| {
            session.connection.pragma_update(None, "query_only", true)?;
            Ok(session)
        });
        session.map_err(|error| self.explain(Failure::Sqlite(error)))
    }

    fn session(&self, flags: OpenFlags) -> rusqlite::Result<Session> {
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        let patience = Patience::attach(&mut connection)?;
        patience.set(Instant::now() + self.errors.busy_timeout);
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        // Else SQLite compiles a statement again whenever a parameter changes that may change its plan.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.pragma_update(None, "cache_size", CACHE_KIB)?;
        connection.pragma_update(None, "synchronous", self.synchronous.pragma())?;
        connection.pragma_update(None, "trusted_schema", false)?;
        Ok(Session { connection, patience })
    }

    fn writer(&self, flags: OpenFlags) -> Result<Session, Failure> {
        let mut session = self.session(flags)?;
        // A file of another program must not change, not even its journal mode.
        self.check(&FileKind::read(&session.connection)?)?;
        self.set_journal_mode(&session)?;
        let connection = &mut session.connection;
        connection.pragma_update(None, "journal_size_limit", log::LONG_BYTES as i64)?;
        if let Some(max) = self.max_file_bytes {
            let page_bytes: u64 = connection
                .query_row("PRAGMA page_size", [], |row| row.get::<_, i64>(0).map(i64::unsigned_abs))?;
            connection.pragma_update(None, "max_page_count", (max / page_bytes.max(1)).max(1) as i64)?;
        }
        self.check(&migrate(connection)?)?;
        Ok(session)
    }

    fn check(&self, kind: &FileKind) -> Result<(), StorageError> {
        self.errors.refused_file(kind).map_or(Ok(()), Err)
    }

    /// Turns the write-ahead log on. SQLite reports some locks without calling the busy handler, because a wait could
    /// end in a deadlock. This method holds no lock between two attempts.
    fn set_journal_mode(&self, session: &Session) -> Result<(), Failure> {
        loop {
            let mode = session
                .connection
                .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
            match mode {
                Ok(mode) if mode.eq_ignore_ascii_case("wal") => return Ok(()),
                Ok(mode) => {
                    let reason = format!(
                        "SQLite cannot use a write-ahead log here, and stays in the mode {mode:?}; choose a file on a \
                         local disk"
                    );
                    return Err(Failure::Refused(StorageError::Backend {
                        address: self.errors.address.clone(),
                        reason,
                        outcome_unknown: false,
                        source: None,
                    }));
                }
                Err(error)
                    if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                        && session.patience.sleep() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns the error of an open that failed. SQLite has one error for a missing folder and a missing permission; the
    /// operating system has two.
    fn explain(&self, failure: Failure) -> StorageError {
        let error = match failure {
            Failure::Refused(error) => return error,
            Failure::Sqlite(error) => error,
        };
        let cannot_open = error.sqlite_error_code() == Some(ErrorCode::CannotOpen);
        let permission = || match std::fs::OpenOptions::new().read(true).write(true).open(&self.path) {
            Err(refused) => refused.kind() == std::io::ErrorKind::PermissionDenied,
            // The file can be opened, so SQLite cannot create the files next to it.
            Ok(_) => true,
        };
        if cannot_open && permission() {
            return StorageError::Denied {
                address: self.errors.address.clone(),
                reason: "this process may not write to the file or to its folder; let it write to both"
                    .to_owned(),
                source: Some(error.into()),
            };
        }
        self.errors.sqlite(error, Step::BeforeCommit)
    }
}

impl Session {
    /// Sets how long the next statements wait for locks, from now on.
    pub(super) fn wait_for(&self, limit: Duration) {
        self.patience.set(Instant::now() + limit);
    }
}
