//! The errors of an engine.

use super::key::TaskKey;
use super::version::Version;
use crate::printable::Printable;

/// An error that caused another error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error of a [`StorageBackend`](crate::StorageBackend).
///
/// Most callers ask two questions. May the same call succeed later? See [`is_retryable`](Self::is_retryable). May the
/// engine have applied a write that failed? See [`outcome_unknown`](Self::outcome_unknown). No variant contains a
/// password.
///
/// # Examples
/// ```
/// use mcp_task_store::StorageError;
///
/// /// What to do after a write failed.
/// fn advice(error: &StorageError) -> &'static str {
///     match error {
///         StorageError::VersionConflict { .. } => "read the record again, and repeat the change",
///         StorageError::NotFound { .. } => "the record was deleted or has expired",
///         error if error.outcome_unknown() => "read the record back before you write again",
///         error if error.is_retryable() => "try again later",
///         _ => "report the error to an operator",
///     }
/// }
/// # let _ = advice;
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The record does not exist: it was never written, was deleted, or has expired.
    #[error("no record at {}", Printable(&.key.to_string()))]
    NotFound {
        /// The key of the record.
        key: TaskKey,
    },
    /// `put_if_version` found another version. Nothing was written.
    #[error("version conflict at {}: expected {expected}, found {actual}", Printable(&.key.to_string()))]
    VersionConflict {
        /// The key of the record.
        key: TaskKey,
        /// The version that the caller expects; 0 if it expects that the record does not exist.
        expected: Version,
        /// The version that the record has.
        actual: Version,
    },
    /// The record is at [`Version::MAX`] and cannot be written again. Nothing was written. Delete the record to start again.
    #[error(
        "the record at {} is at the last version, {}, and cannot be written again; delete it to start again",
        Printable(&.key.to_string()), Version::MAX
    )]
    VersionExhausted {
        /// The key of the record.
        key: TaskKey,
    },
    /// The owner has as many live records as its quota allows, or the engine is out of memory. Nothing was written.
    #[error("capacity exceeded: {}", Printable(.reason))]
    CapacityExceeded {
        /// What is full, and what to do.
        reason: String,
        /// The quota that was reached; `None` if the engine is out of memory.
        quota: Option<u64>,
        /// The engine's own error, if there is one.
        source: Option<BoxError>,
    },
    /// Data or a part is larger than the engine's configured maximum, or a record would have too many parts. Nothing was
    /// written.
    #[error("{what}: {size} is over the maximum of {max}")]
    TooLarge {
        /// The unit of the limit, and what it limits.
        what: String,
        /// The size that the caller passed.
        size: usize,
        /// The maximum.
        max: usize,
    },
    /// An owner id, a task id, or the name of a part or of a queue is invalid.
    #[error("invalid key: {}", Printable(.reason))]
    InvalidKey {
        /// Which id or name, and what is wrong with it.
        reason: String,
    },
    /// A duration is outside 1 ms to 100 years.
    #[error("invalid expiry: {given:?} is not between 1 ms and 100 years")]
    InvalidExpiry {
        /// The duration that the caller passed.
        given: std::time::Duration,
    },
    /// A page limit is outside 1 to 256, or a cursor is malformed or belongs to another owner.
    #[error("invalid page: {}", Printable(.reason))]
    InvalidPage {
        /// What is wrong with the request.
        reason: String,
    },
    /// The engine cannot read what is stored at the key. Nothing was written. `delete` removes the record.
    #[error("corrupt record at {}: {}; repair or delete the record", Printable(&.key.to_string()), Printable(.reason))]
    Corrupt {
        /// The key of the record.
        key: TaskKey,
        /// What cannot be read, and why. It names the engine's own key if that key differs from `key`.
        reason: String,
        /// The engine's own error, if there is one.
        source: Option<BoxError>,
    },
    /// The record is encrypted under a key that the keyring of [`Encrypted`](crate::guide::encryption) does not have. The record is
    /// intact. Add the key to the keyring.
    #[error(
        "the record at {} is encrypted under the key {key_id:?}, which the keyring does not have; add this key to the keyring",
        Printable(&.key.to_string())
    )]
    MissingKey {
        /// The key of the record.
        key: TaskKey,
        /// The id of the missing encryption key.
        key_id: String,
    },
    /// The server refuses the user: a wrong or missing password, or a missing permission. The record is unchanged. If
    /// the user has only some of the permissions that `docs/operations.md` lists, a refused write may leave extra
    /// members in an index.
    #[error("denied by {address}: {}", Printable(.reason))]
    Denied {
        /// Host and port of the server.
        address: String,
        /// What the server denies, and what to do.
        reason: String,
        /// The server's own error.
        source: Option<BoxError>,
    },
    /// The server cannot be reached, timed out, or cannot serve the call at present.
    #[error("{address} is unavailable: {}", Printable(.reason))]
    Unavailable {
        /// Host and port of the server.
        address: String,
        /// What happened, and what to do.
        reason: String,
        /// Whether the engine may have applied a write despite the error.
        outcome_unknown: bool,
        /// The underlying error.
        source: Option<BoxError>,
    },
    /// Fewer replicas than configured confirmed a write in time. The server may have applied the write. If it fails
    /// over to a replica that has not received the write, the write is lost. Reading the record back shows whether
    /// the server has the write, but not whether the replicas have it.
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
    /// Any other error of an engine.
    #[error("storage error at {address}: {}", Printable(.reason))]
    Backend {
        /// Host and port of the server, or the name of the engine.
        address: String,
        /// What happened.
        reason: String,
        /// Whether the engine may have applied a write despite the error.
        outcome_unknown: bool,
        /// The underlying error.
        source: Option<BoxError>,
    },
}

impl StorageError {
    /// Returns whether the same call may succeed later: the server may recover, and records may expire and free memory.
    ///
    /// A retryable error of a write does *not* mean that the write was not applied: see
    /// [`outcome_unknown`](Self::outcome_unknown).
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::CapacityExceeded { .. } | Self::TooFewReplicas { .. })
    }

    /// Returns whether this process cannot read the record, although the engine works.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::MissingKey { .. })
    }

    /// Returns whether a write that failed with this error may have been applied: the connection broke, or the time limit
    /// passed, after the write was sent. Always `false` for a call that only reads.
    pub fn outcome_unknown(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { outcome_unknown: true, .. }
                | Self::Backend { outcome_unknown: true, .. }
                | Self::TooFewReplicas { .. }
        )
    }
}
