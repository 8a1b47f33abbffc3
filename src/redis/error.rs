//! Turns the failures that servers and connections report into the errors that callers receive.

mod cause;
mod classes;
#[cfg(test)]
mod tests;

use redis::{ErrorKind, RedisError};

pub(super) use cause::{cause, plain};
use classes::{Class, classify, classify_connection, is_truncated, unknown_command};
pub(super) use classes::{ProbeError, concerns_one_key, probe_error};

use super::dialer::is_callback_error;
use super::in_flight::CallInFlight;
use super::reply::{CommandError, Unconfirmed, without_arguments};
use crate::backend::{BoxError, MAX_PARTS, StorageError, TaskKey, Version};
use crate::scripts::{Found, Refusal, UnexpectedReply};

/// The server, the key and the kind of a call. Errors contain them, and they decide whether the outcome of a failed
/// call is unknown.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// Host and port of the server.
    pub(super) address: &'a str,
    /// The Redis key that the call is about.
    pub(super) key: &'a str,
    /// The task, if the call is about one record.
    pub(super) task: Option<&'a TaskKey>,
    /// Whether the call may write. If so, its outcome is unknown without a reply.
    pub(super) writes: bool,
    /// The version that the caller expects; `None` for any.
    pub(super) expected: Option<Version>,
    /// The owner's quota.
    pub(super) quota: Option<u64>,
    /// Whether the call reads or writes pages or parts, which have a connection of their own.
    pub(super) is_bulk: bool,
    pub(super) in_flight: CallInFlight,
}

impl<'a> Context<'a> {
    /// Creates the context of a call that only reads.
    pub(super) fn reads(address: &'a str, key: &'a str) -> Self {
        Self {
            address,
            key,
            task: None,
            writes: false,
            expected: None,
            quota: None,
            is_bulk: false,
            in_flight: CallInFlight::default(),
        }
    }

    /// Returns the context of the same call for the record of this task.
    pub(super) fn of(self, task: &'a TaskKey) -> Self {
        Self { task: Some(task), ..self }
    }

    /// Returns the error that the caller receives for a command that did not succeed.
    pub(super) fn storage_error(&self, failure: CommandError) -> StorageError {
        match failure {
            CommandError::ErrorReply(error) => {
                match Refusal::parse(error.code().unwrap_or_default(), error.detail()) {
                    Some(refusal) => self.refused(refusal),
                    None => self.server_error(error),
                }
            }
            CommandError::NoReply(error) if error.kind() == ErrorKind::Parse && !is_truncated(&error) => {
                self.garbage(error, self.writes)
            }
            CommandError::NoReply(error) if self.writes => {
                let reason = "the connection broke before the reply to a write, which may have been applied; read the \
                              record before you write again";
                self.unavailable(reason, true, Some(cause(error)))
            }
            CommandError::NotSent(error) | CommandError::NoReply(error) => self.connection_error(error),
            #[cfg(feature = "redis-cluster")]
            CommandError::Unreachable(server, error) => {
                Context::reads(&server, self.key).connection_error(error)
            }
            CommandError::Unexpected(error) => self.unexpected(error),
            CommandError::TooFewReplicas { replicas, cause: error, .. } => {
                let Unconfirmed { wanted, acknowledged, within } = replicas;
                let (address, source) = (self.address.to_owned(), error.map(cause));
                StorageError::TooFewReplicas { address, wanted, acknowledged, within, source }
            }
        }
    }

    /// Returns the error of a command that did not run.
    fn connection_error(&self, error: RedisError) -> StorageError {
        match error.kind() {
            // The server replied with this error to the first commands over a new connection.
            ErrorKind::Server(_) | ErrorKind::Extension => self.server_error(error),
            ErrorKind::RESP3NotSupported => self.lacks_hello(error),
            ErrorKind::Parse if !is_truncated(&error) => self.garbage(error, false),
            ErrorKind::Client if is_callback_error(&error) => {
                let cause = error.detail().map(|text| BoxError::from(text.to_owned()));
                self.unavailable(
                    "the credentials callback failed; the next call invokes it again",
                    false,
                    cause,
                )
            }
            _ => self.of_class(classify_connection(&error), error),
        }
    }

    /// Returns the error for this class.
    fn of_class(&self, class: Class, error: RedisError) -> StorageError {
        match class {
            Class::OutOfMemory => StorageError::CapacityExceeded {
                reason: format!(
                    "{} is out of memory, so nothing was written; raise its maxmemory or delete records",
                    self.address
                ),
                quota: None,
                source: Some(cause(error)),
            },
            Class::WrongType => self.corrupt(
                "this key, the owner's index, or the timers' key holds another type",
                Some(cause(error)),
            ),
            Class::Unavailable(reason) => self.unavailable(reason, false, Some(cause(error))),
            Class::Denied(reason) => self.denied(reason, error),
            Class::NodeOfCluster => {
                let reason = "the server is a node of a cluster; connect with connect_cluster";
                self.backend(reason, false, Some(cause(error)))
            }
            Class::Misconfigured(reason) => self.backend(reason, false, Some(cause(error))),
            // An unforeseen error may come from the middle of a script.
            Class::Other => self.backend(
                "the server replied with an error that this crate does not know; see its text",
                self.writes,
                Some(cause(error)),
            ),
        }
    }

    fn garbage(&self, error: RedisError, outcome_unknown: bool) -> StorageError {
        let reason = "the reply is not Redis protocol; check that a Redis or Valkey server listens there";
        self.backend(reason, outcome_unknown, Some(cause(error)))
    }

    /// Returns the error of a call without a reply within its time limit.
    pub(super) fn timed_out(&self, limit: std::time::Duration) -> StorageError {
        if !self.in_flight.give_up() {
            return self.unavailable(
                format!("no connection within {limit:?}, so nothing was sent; check that the server can be reached"),
                false,
                None,
            );
        }
        let reason = format!("no reply within {limit:?}; check that the server answers");
        self.unavailable(reason, self.writes, None)
    }

    /// Returns the error for a reply of an unknown form.
    pub(super) fn unexpected(&self, error: UnexpectedReply) -> StorageError {
        let reason = "the reply has a form that this crate does not know; check that a Redis or Valkey server listens there";
        self.backend(reason, self.writes, Some(error.into()))
    }

    pub(super) fn not_found(&self) -> StorageError {
        match self.task {
            Some(key) => StorageError::NotFound { key: key.clone() },
            None => self.unexpected(UnexpectedReply),
        }
    }

    pub(super) fn corrupt(&self, reason: impl Into<String>, source: Option<BoxError>) -> StorageError {
        let reason = format!("{}: {}", self.key, reason.into());
        match self.task {
            Some(key) => StorageError::Corrupt { key: key.clone(), reason, source },
            None => self.backend(reason, false, source),
        }
    }

    fn refused(&self, refusal: Refusal) -> StorageError {
        match refusal {
            Refusal::Found(Found::Nothing) => self.not_found(),
            Refusal::Found(Found::Live(actual)) => self.version_refused(actual),
            Refusal::Found(Found::Corrupt(field)) => {
                self.corrupt(format!("the field {field} is missing or cannot be read"), None)
            }
            Refusal::TooManyParts { count } => {
                let what = "parts of a record".to_owned();
                StorageError::TooLarge { what, size: count, max: MAX_PARTS }
            }
            Refusal::CapacityExceeded { live } => {
                let quota = self.quota.unwrap_or(live);
                let owner = match self.task {
                    Some(key) => format!("owner {:?}", key.owner),
                    None => format!("the owner of {}", self.key),
                };
                StorageError::CapacityExceeded {
                    reason: format!(
                        "{owner} has {live} live records, and its quota is {quota}; delete records or raise the quota"
                    ),
                    quota: Some(quota),
                    source: None,
                }
            }
        }
    }

    fn version_refused(&self, actual: Version) -> StorageError {
        let Some(key) = self.task.cloned() else { return self.unexpected(UnexpectedReply) };
        match self.expected {
            Some(expected) if expected != actual => StorageError::VersionConflict { key, expected, actual },
            _ => StorageError::VersionExhausted { key },
        }
    }

    fn server_error(&self, error: RedisError) -> StorageError {
        let Some(command) = unknown_command(&error) else {
            let class = classify(error.code().unwrap_or_default(), error.detail().unwrap_or_default());
            return self.of_class(class, error);
        };
        let (reason, error) = match command.as_str() {
            "HELLO" => return self.lacks_hello(error),
            // `TIME` is the first command over a connection.
            "TIME" => {
                let reason = "the server does not know the command TIME; connect to a Redis or Valkey server, or, if this is a \
                              sentinel, with connect_sentinel";
                (reason.to_owned(), error)
            }
            "SENTINEL" => {
                let reason = "this server is not a sentinel; give the addresses of sentinels, whose usual port is 26379";
                (reason.to_owned(), without_arguments(error))
            }
            command => {
                let reason = format!(
                    "the server does not know the command {command}, or has it disabled; enable it on the server"
                );
                (reason, error)
            }
        };
        self.backend(reason, false, Some(cause(error)))
    }

    fn lacks_hello(&self, error: RedisError) -> StorageError {
        let reason = "the server does not know HELLO; add ?protocol=resp2 to the URL; watches then poll";
        self.backend(reason, false, Some(cause(error)))
    }

    fn denied(&self, reason: &str, error: RedisError) -> StorageError {
        StorageError::Denied {
            address: self.address.to_owned(),
            reason: reason.to_owned(),
            source: Some(cause(error)),
        }
    }

    fn unavailable(
        &self,
        reason: impl Into<String>,
        outcome_unknown: bool,
        source: Option<BoxError>,
    ) -> StorageError {
        let (address, reason) = (self.address.to_owned(), reason.into());
        StorageError::Unavailable { address, reason, outcome_unknown, source }
    }

    fn backend(
        &self,
        reason: impl Into<String>,
        outcome_unknown: bool,
        source: Option<BoxError>,
    ) -> StorageError {
        let (address, reason) = (self.address.to_owned(), reason.into());
        StorageError::Backend { address, reason, outcome_unknown, source }
    }
}
