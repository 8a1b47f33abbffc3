//! What can go wrong in an engine, and what it means for the caller.

use super::key::TaskKey;
use super::version::Version;
use crate::printable::Printable;

/// The error that caused another one.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error of a [`StorageBackend`](crate::StorageBackend).
///
/// Two questions have an answer of their own: [`is_retryable`](Self::is_retryable) and
/// [`outcome_unknown`](Self::outcome_unknown). No variant ever holds a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The record was never written, was deleted, or has expired; these cannot be told apart.
    #[error("no record at {}", .key)]
    NotFound {
        /// The key of the record.
        key: TaskKey,
    },
    /// `put_if_version` found another version. Nothing was written.
    #[error("version conflict at {}: expected {expected}, found {actual}", .key)]
    VersionConflict {
        /// The key of the record.
        key: TaskKey,
        /// The version that the caller named; 0 asked for a record that does not exist.
        expected: Version,
        /// The version that the record has.
        actual: Version,
    },
    /// The record is at [`Version::MAX`] and cannot be written again. Nothing was written; delete the
    /// record to start over.
    #[error(
        "the record at {} is at the last version, {}: it can be deleted but not written again",
        .key, Version::MAX
    )]
    VersionExhausted {
        /// The key of the record.
        key: TaskKey,
    },
    /// The owner has as many live records as its quota allows, or the engine is out of memory.
    /// Nothing was written.
    #[error("capacity exceeded: {}", Printable(.reason))]
    CapacityExceeded {
        /// What is full.
        reason: String,
        /// The quota that was reached; `None` when it is the engine's memory.
        quota: Option<u64>,
        /// What the engine said, where it said something.
        source: Option<BoxError>,
    },
    /// Data or a part is larger than the engine is configured to take, or a record would have too many parts. Nothing
    /// was written.
    #[error("{what}: {size} is over the maximum of {max}")]
    TooLarge {
        /// What is limited, and its unit.
        what: String,
        /// What was given.
        size: usize,
        /// What is allowed.
        max: usize,
    },
    /// An owner id, a task id, or the name of a part or of a queue is not legal.
    #[error("invalid key: {}", Printable(.reason))]
    InvalidKey {
        /// Which id, and what is wrong with it.
        reason: String,
    },
    /// A duration outside 1 ms to 100 years.
    #[error("invalid expiry: {given:?} is not between 1 ms and 100 years")]
    InvalidExpiry {
        /// The duration that was given.
        given: std::time::Duration,
    },
    /// A page limit outside 1 to 256, or a cursor that is malformed or another owner's.
    #[error("invalid page: {}", Printable(.reason))]
    InvalidPage {
        /// What is wrong with the request.
        reason: String,
    },
    /// Something is stored under the key that the engine cannot read. Nothing was written;
    /// `delete` removes it.
    #[error("corrupt record at {}: {}; deleting the record clears it", .key, Printable(.reason))]
    Corrupt {
        /// The key of the record.
        key: TaskKey,
        /// What cannot be read, and why. It names the engine's own key where that differs.
        reason: String,
        /// What the engine said, where it said something.
        source: Option<BoxError>,
    },
    /// The server refuses the user: wrong or missing password, or a permission that it lacks. The record is as
    /// it was; a user who may run only some of the commands that the README lists may leave index members.
    #[error("denied by {address}: {}", Printable(.reason))]
    Denied {
        /// Host and port of the server.
        address: String,
        /// What is denied, and what to do.
        reason: String,
        /// What the server said.
        source: Option<BoxError>,
    },
    /// The server cannot be reached, timed out, or cannot serve the call at the moment.
    #[error("{address} is unavailable: {}", Printable(.reason))]
    Unavailable {
        /// Host and port of the server.
        address: String,
        /// What happened, and what to do.
        reason: String,
        /// Whether a write may have been applied all the same.
        outcome_unknown: bool,
        /// The error below.
        source: Option<BoxError>,
    },
    /// Fewer replicas than configured confirmed a write in time. The engine may have applied the write, and loses it if it
    /// fails over to a replica without it. Reading the record back shows whether the engine has the write, but not whether
    /// the replicas do.
    #[error(
        "{acknowledged} of {wanted} replicas confirmed a write to {address} within {within:?}, and the write may have \
         been applied; check that the replicas are connected"
    )]
    TooFewReplicas {
        /// Host and port of the server.
        address: String,
        /// How many replicas the engine is configured to wait for.
        wanted: u32,
        /// How many replicas confirmed the write.
        acknowledged: u32,
        /// How long the engine waited.
        within: std::time::Duration,
        /// Why the wait failed, if it did not time out.
        source: Option<BoxError>,
    },
    /// Anything else that an engine reports.
    #[error("storage error at {address}: {}", Printable(.reason))]
    Backend {
        /// Host and port of the server, or the name of the engine.
        address: String,
        /// What happened.
        reason: String,
        /// Whether a write may have been applied all the same.
        outcome_unknown: bool,
        /// The error below.
        source: Option<BoxError>,
    },
}

impl StorageError {
    /// Whether the same call may succeed later with nothing changed by the caller: the server may come
    /// back, and records may expire and make room.
    ///
    /// It does *not* say that a failed write was left undone: see [`outcome_unknown`](Self::outcome_unknown).
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::CapacityExceeded { .. } | Self::TooFewReplicas { .. })
    }

    /// Whether a write that failed with this error may have been applied: the connection broke or the
    /// time ran out after the write was sent. Always `false` for a call that only reads.
    pub fn outcome_unknown(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { outcome_unknown: true, .. }
                | Self::Backend { outcome_unknown: true, .. }
                | Self::TooFewReplicas { .. }
        )
    }
}
