//! What can go wrong in an engine, and what it means for the caller.

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
    #[error("no record at {}", Printable(.key))]
    NotFound {
        /// The key that was asked for.
        key: String,
    },
    /// `put_if_version` found another version. Nothing was written.
    #[error("version conflict at {}: expected {expected}, found {actual}", Printable(.key))]
    VersionConflict {
        /// The key that was to be written.
        key: String,
        /// The version that the caller named; 0 asked for a record that does not exist.
        expected: Version,
        /// The version that the record has.
        actual: Version,
    },
    /// The record is at [`Version::MAX`] and cannot be written again. Nothing was written; delete the
    /// record to start over.
    #[error(
        "the record at {} is at the last version, {}: it can be deleted but not written again",
        Printable(.key), Version::MAX
    )]
    VersionExhausted {
        /// The key that was to be written.
        key: String,
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
    #[error("corrupt record at {}: {}; deleting the record clears it", Printable(.key), Printable(.reason))]
    Corrupt {
        /// The key in the engine, as an operator would look it up.
        key: String,
        /// Which field, and what is wrong with it.
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

/// Fewer replicas than wanted are known to have a write. The engine may have applied it all the same, and would
/// lose it if it failed over to a replica without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{acknowledged} of {wanted} replicas confirmed the write within {within:?}")]
pub struct TooFewReplicas {
    /// How many replicas the engine was told to wait for.
    pub wanted: u32,
    /// How many confirmed.
    pub acknowledged: u32,
    /// How long the engine waited.
    pub within: std::time::Duration,
}

/// The same where waiting for the replicas failed.
#[derive(Debug, thiserror::Error)]
#[error("{few}")]
pub(crate) struct Unconfirmed {
    pub(crate) few: TooFewReplicas,
    #[source]
    pub(crate) cause: BoxError,
}

impl StorageError {
    /// How many replicas are known to have a write, if it is [`Unavailable`](Self::Unavailable) because those are
    /// too few. Reading the record back tells whether the engine has it, and not whether replicas do.
    pub fn too_few_replicas(&self) -> Option<TooFewReplicas> {
        match self {
            Self::Unavailable { source: Some(source), .. } => match source.downcast_ref() {
                Some(Unconfirmed { few, .. }) => Some(*few),
                None => source.downcast_ref().copied(),
            },
            _ => None,
        }
    }

    /// Whether the same call may succeed later with nothing changed by the caller: the server may come
    /// back, and records may expire and make room.
    ///
    /// It does *not* say that a failed write was left undone: see [`outcome_unknown`](Self::outcome_unknown).
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::CapacityExceeded { .. })
    }

    /// Whether a write that failed with this error may have been applied: the connection broke or the
    /// time ran out after the write was sent. Always `false` for a call that only reads.
    pub fn outcome_unknown(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { outcome_unknown: true, .. } | Self::Backend { outcome_unknown: true, .. }
        )
    }
}
