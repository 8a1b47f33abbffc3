//! Turns the errors of SQLite into the errors that callers receive.

use std::time::Duration;

use rusqlite::ErrorCode;

use super::schema::FileKind;
use crate::backend::{BoxError, StorageError};

/// Why a call did not succeed inside its transaction.
#[derive(Debug)]
pub(super) enum Failure {
    /// The call itself refused. It has written nothing, and the transaction is intact.
    Refused(StorageError),
    /// SQLite failed. The transaction must be rolled back.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Refused(error)
    }
}

/// Which step of a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A read, or a write before its commit. The file is unchanged.
    BeforeCommit,
    /// The commit. It may be on the disk in whole, or not at all.
    Commit,
}

/// Creates the errors of one file.
#[derive(Clone, Debug)]
pub(super) struct Errors {
    /// The path of the file.
    pub(super) address: String,
    /// How long a call waits for a lock.
    pub(super) busy_timeout: Duration,
}

impl Errors {
    pub(super) fn of(&self, failure: Failure) -> StorageError {
        match failure {
            Failure::Refused(error) => error,
            Failure::Sqlite(error) => self.sqlite(error, Step::BeforeCommit),
        }
    }

    pub(super) fn sqlite(&self, error: rusqlite::Error, step: Step) -> StorageError {
        let in_doubt = step == Step::Commit;
        let address = self.address.clone();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => self.busy(error),
            Some(ErrorCode::DiskFull) => self.full(
                "no space is left, so nothing was written; free disk space, raise max_file_bytes, or delete records",
                error,
            ),
            Some(ErrorCode::OutOfMemory) if !in_doubt => {
                self.full("the process is out of memory, so nothing was written; give it more memory", error)
            }
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StorageError::Denied {
                address,
                reason: "the file or its folder is read-only; let this process write to both".to_owned(),
                source: Some(error.into()),
            },
            Some(ErrorCode::SystemIoFailure) => {
                let reason = if in_doubt {
                    "the disk failed during a commit, which may have been applied; check the disk, and read the record \
                     before you write again"
                } else {
                    "the disk failed; check the disk and the file system"
                };
                self.unavailable(reason, in_doubt, Some(error.into()))
            }
            Some(ErrorCode::NotADatabase) => {
                self.backend("the file is not a SQLite database; choose another path", false, error)
            }
            Some(ErrorCode::DatabaseCorrupt) => self.backend(
                "the file is damaged; restore a backup, or recover it with the command `.recover` of sqlite3",
                in_doubt,
                error,
            ),
            Some(ErrorCode::CannotOpen) => self.backend(
                "the file cannot be opened; check that its folder exists and that this process may write to both",
                false,
                error,
            ),
            _ => self.backend("SQLite failed; see the text of its error", in_doubt, error),
        }
    }

    /// Returns the error of a call that waited in vain for a lock.
    pub(super) fn busy(&self, error: rusqlite::Error) -> StorageError {
        let reason = format!(
            "another process kept the file locked for {:?}, so nothing was written; end long transactions of other \
             programs",
            self.busy_timeout
        );
        self.unavailable(reason, false, Some(error.into()))
    }

    /// Returns the error of a file that this version of the crate does not open; `None` if it does.
    pub(super) fn refused_file(&self, kind: &FileKind) -> Option<StorageError> {
        let reason = match kind {
            FileKind::Ours { .. } => return None,
            FileKind::Newer { version, known } => format!(
                "the file has schema version {version}, and this version of the crate knows versions up to {known}; \
                 upgrade the crate"
            ),
            FileKind::Foreign { application_id } => format!(
                "the file belongs to another program (application id {application_id:#x}); choose another path"
            ),
        };
        Some(self.refused(reason))
    }

    fn refused(&self, reason: impl Into<String>) -> StorageError {
        StorageError::Backend {
            address: self.address.clone(),
            reason: reason.into(),
            outcome_unknown: false,
            source: None,
        }
    }

    /// Returns the error of a file that must exist.
    pub(super) fn missing_file(&self) -> StorageError {
        self.refused("there is no such file; check the path, create the file with `mcp-tasks init`, or start the server that creates it")
    }

    /// Returns the error of a file that must have the tables of this version.
    pub(super) fn outdated_file(&self) -> StorageError {
        self.refused(
            "the file has no tables, or those of an older version of this crate; start a server of this version, which creates or \
             migrates them",
        )
    }

    /// Returns the error of a write to a file that its path no longer leads to.
    pub(super) fn replaced_file(&self) -> StorageError {
        self.refused("the file was deleted or replaced while it was open, so nothing was written; restart this process")
    }

    /// Returns the error of a call whose thread has ended.
    pub(super) fn stopped(&self) -> StorageError {
        StorageError::Backend {
            address: self.address.clone(),
            reason: "the thread of the engine has ended; open the file again".to_owned(),
            outcome_unknown: true,
            source: None,
        }
    }

    fn full(&self, reason: &str, error: rusqlite::Error) -> StorageError {
        let reason = format!("{}: {reason}", self.address);
        StorageError::CapacityExceeded { reason, quota: None, source: Some(error.into()) }
    }

    pub(super) fn unavailable(
        &self,
        reason: impl Into<String>,
        outcome_unknown: bool,
        source: Option<BoxError>,
    ) -> StorageError {
        let (address, reason) = (self.address.clone(), reason.into());
        StorageError::Unavailable { address, reason, outcome_unknown, source }
    }

    fn backend(&self, reason: &str, outcome_unknown: bool, error: rusqlite::Error) -> StorageError {
        let (address, reason) = (self.address.clone(), reason.to_owned());
        StorageError::Backend { address, reason, outcome_unknown, source: Some(error.into()) }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use rusqlite::ffi;

    use super::*;

    fn error(code: i32, step: Step) -> StorageError {
        let errors = Errors { address: "tasks.db".to_owned(), busy_timeout: Duration::from_secs(5) };
        errors.sqlite(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None), step)
    }

    #[rstest]
    #[case::busy(ffi::SQLITE_BUSY, true)]
    #[case::full(ffi::SQLITE_FULL, true)]
    #[case::fsync(ffi::SQLITE_IOERR_FSYNC, true)]
    #[case::read_only(ffi::SQLITE_READONLY_DIRECTORY, false)]
    #[case::corrupt(ffi::SQLITE_CORRUPT_INDEX, false)]
    #[case::not_a_database(ffi::SQLITE_NOTADB, false)]
    fn an_error_states_whether_the_call_may_succeed_later(#[case] code: i32, #[case] is_retryable: bool) {
        let before_commit = error(code, Step::BeforeCommit);
        assert_eq!(before_commit.is_retryable(), is_retryable, "{before_commit}");
        assert!(!before_commit.outcome_unknown(), "{before_commit}");
        assert!(before_commit.to_string().contains("tasks.db"), "{before_commit}");
    }

    #[rstest]
    #[case::fsync(ffi::SQLITE_IOERR_FSYNC, true)]
    #[case::other(ffi::SQLITE_INTERNAL, true)]
    #[case::full(ffi::SQLITE_FULL, false)]
    #[case::busy(ffi::SQLITE_BUSY, false)]
    fn a_failed_commit_is_in_doubt_unless_sqlite_cannot_have_written_it(
        #[case] code: i32,
        #[case] outcome_unknown: bool,
    ) {
        assert_eq!(error(code, Step::Commit).outcome_unknown(), outcome_unknown);
    }
}
