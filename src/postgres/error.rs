//! Turns the errors of PostgreSQL into the errors that callers receive.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

use crate::backend::{BoxError, StorageError};

/// The code that the function `put` raises if a record would have too many parts.
pub(super) const TOO_MANY_PARTS: &str = "MT001";

/// How far a call has come. After an error, the outcome of a write depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The server has not received the statement, or the statement reads.
    NothingWritten,
    /// The server may have received a statement that writes.
    WriteSent,
}

/// Why a statement has no rows. The callers of a batch share the cause.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    /// The server refused the statement, or the connection broke.
    Statement(Arc<tokio_postgres::Error>, Stage),
    /// The pool has no connection, and cannot make one.
    Connect(Arc<PoolError>),
    TimedOut(Stage),
    /// The rows are not those that this version of the crate asks for.
    Unexpected(String, Stage),
}

impl Failed {
    pub(super) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Statement(error, _) => error.code(),
            _ => None,
        }
    }

    /// Returns whether the server has refused a statement for a reason that may lie in one of its rows.
    pub(super) fn may_concern_one_row(&self) -> bool {
        // Resources, operators, the system, the schema and the rights concern all rows alike.
        let concerns_all = |code: &str| {
            ["08", "25", "28", "42", "53", "57", "58", "XX"].iter().any(|class| code.starts_with(class))
        };
        self.code().is_some_and(|code| !concerns_all(code.code()))
    }
}

/// Creates the errors of one database.
#[derive(Clone, Debug)]
pub(super) struct Errors {
    /// The hosts and the database, without credentials.
    pub(super) address: String,
    /// The time limit of each call.
    pub(super) limit: Duration,
}

/// Returns whether the server has rolled back the transaction, and the same statement may succeed at once: another transaction had the
/// same rows.
pub(super) fn is_conflict(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::T_R_DEADLOCK_DETECTED || *code == SqlState::T_R_SERIALIZATION_FAILURE
    })
}

impl Errors {
    pub(super) fn of(&self, failed: Failed) -> StorageError {
        match failed {
            Failed::Statement(error, stage) => self.of_statement(error, stage),
            Failed::Connect(error) => self.of_pool(error),
            Failed::TimedOut(stage) => self.timed_out(stage),
            Failed::Unexpected(what, stage) => self.unexpected(&what, stage),
        }
    }

    fn of_pool(&self, error: Arc<PoolError>) -> StorageError {
        match &*error {
            PoolError::Backend(cause) => {
                self.of_answer(cause.code(), Arc::clone(&error).into(), Stage::NothingWritten)
            }
            PoolError::Closed => {
                self.backend("the pool of connections was closed; open the backend again", false, None)
            }
            _ => self.unavailable("the pool has no connection", false, Some(error.into())),
        }
    }

    fn of_statement(&self, error: Arc<tokio_postgres::Error>, stage: Stage) -> StorageError {
        let code = error.code().cloned();
        self.of_answer(code.as_ref(), error.into(), stage)
    }

    /// Returns the error for a code of the server, or of a connection if there is none.
    fn of_answer(&self, code: Option<&SqlState>, error: BoxError, stage: Stage) -> StorageError {
        let Some(code) = code else { return self.of_connection(error, stage) };
        let address = self.address.clone();
        match code {
            &SqlState::DISK_FULL => self.full("the disk of the server is full, so nothing was written; free disk space", error),
            &SqlState::OUT_OF_MEMORY | &SqlState::INSUFFICIENT_RESOURCES | &SqlState::CONFIGURATION_LIMIT_EXCEEDED => {
                self.full("the server lacks memory or reached a limit, so nothing was written; see its log", error)
            }
            &SqlState::TOO_MANY_CONNECTIONS => self.unavailable(
                "the server has no free connection; raise max_connections of the server, lower it here, or use pgbouncer",
                false,
                Some(error),
            ),
            &SqlState::READ_ONLY_SQL_TRANSACTION => self.unavailable(
                "the server is read-only, so nothing was written: it is a replica, or default_transaction_read_only is on; \
                 name all hosts in the URL, with target_session_attrs=read-write",
                false,
                Some(error),
            ),
            &SqlState::QUERY_CANCELED => self.unavailable(
                "the server canceled the statement, so nothing was written: it reached statement_timeout, or somebody canceled it; look \
                 for long transactions",
                false,
                Some(error),
            ),
            &SqlState::T_R_DEADLOCK_DETECTED | &SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::LOCK_NOT_AVAILABLE => self.unavailable(
                "other transactions held the same rows, so nothing was written; look for programs that lock these tables",
                false,
                Some(error),
            ),
            &SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => StorageError::Denied {
                address,
                reason: "the server refused the user or the password; check both, and pg_hba.conf of the server".to_owned(),
                source: Some(error),
            },
            &SqlState::INSUFFICIENT_PRIVILEGE => StorageError::Denied {
                address,
                reason: "the user lacks a right; grant it what docs/operations.md lists".to_owned(),
                source: Some(error),
            },
            &SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_FUNCTION | &SqlState::INVALID_SCHEMA_NAME => self.backend(
                "the database has no tables of this crate under this schema and prefix; run `mcp-tasks init`, or call `init`",
                false,
                Some(error),
            ),
            &SqlState::INVALID_CATALOG_NAME => {
                self.backend("the server has no such database; check the URL", false, Some(error))
            }
            &SqlState::DATA_CORRUPTED | &SqlState::INDEX_CORRUPTED => self.backend(
                "the database is damaged; stop the servers, and restore a backup",
                stage == Stage::WriteSent,
                Some(error),
            ),
            // The server ends the connection. The commit may have happened before.
            code if code.code().starts_with("57P") || code.code().starts_with("08") => self.unavailable(
                "the server ended the connection: it starts, stops, or its operator ended the session",
                stage == Stage::WriteSent,
                Some(error),
            ),
            code if code.code().starts_with("58") => self.unavailable(
                "a file of the server cannot be read or written; see the log of the server",
                stage == Stage::WriteSent,
                Some(error),
            ),
            _ => self.backend("the server refused a statement; see the text of its error", false, Some(error)),
        }
    }

    /// Returns the error of a connection that cannot be made, or that broke.
    fn of_connection(&self, error: BoxError, stage: Stage) -> StorageError {
        let reason = match stage {
            Stage::NothingWritten => {
                "the connection failed; check that the server runs, its address, and TLS"
            }
            Stage::WriteSent => {
                "the connection broke after a write was sent, which may have been applied; read the record before you write again"
            }
        };
        self.unavailable(reason, stage == Stage::WriteSent, Some(error))
    }

    pub(super) fn timed_out(&self, stage: Stage) -> StorageError {
        let limit = self.limit;
        let reason = match stage {
            Stage::NothingWritten => format!("no answer within {limit:?}, and nothing was written"),
            Stage::WriteSent => format!(
                "no answer within {limit:?} to a write, which may have been applied; read the record before you write again"
            ),
        };
        self.unavailable(reason, stage == Stage::WriteSent, None)
    }

    /// Returns the error of a call whose batch nobody sends any more.
    pub(super) fn stopped(&self, stage: Stage) -> StorageError {
        self.unavailable("the runtime that sent the batch has ended", stage == Stage::WriteSent, None)
    }

    pub(super) fn unexpected(&self, what: &str, stage: Stage) -> StorageError {
        let reason = format!(
            "the functions in the database do not fit this version of the crate ({what}); run `mcp-tasks init` of this version"
        );
        self.backend(reason, stage == Stage::WriteSent, None)
    }

    fn full(&self, reason: &str, error: BoxError) -> StorageError {
        let reason = format!("{}: {reason}", self.address);
        StorageError::CapacityExceeded { reason, quota: None, source: Some(error) }
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

    pub(super) fn backend(
        &self,
        reason: impl Into<String>,
        outcome_unknown: bool,
        source: Option<BoxError>,
    ) -> StorageError {
        let (address, reason) = (self.address.clone(), reason.into());
        StorageError::Backend { address, reason, outcome_unknown, source }
    }
}
