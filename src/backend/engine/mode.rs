//! What a write requires of the record.

use crate::backend::error::StorageError;
use crate::backend::key::TaskKey;
use crate::backend::version::Version;

/// What a write requires of the record. It covers both [`put`](crate::StorageBackend::put) and
/// [`put_if_version`](crate::StorageBackend::put_if_version).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// `put`: creates or replaces the record.
    Upsert,
    /// `put_if_version` with [`Version::ABSENT`]: creates the record.
    Create,
    /// `put_if_version` with a version: replaces the record if it is at this version.
    Update(Version),
}

impl WriteMode {
    /// Returns the mode of a [`put_if_version`](crate::StorageBackend::put_if_version) that expects this version.
    pub fn expecting(expected: Version) -> Self {
        if expected == Version::ABSENT { Self::Create } else { Self::Update(expected) }
    }

    /// Returns the version that the caller expects: [`Version::ABSENT`] for a create, `None` for any.
    pub fn expected(self) -> Option<Version> {
        match self {
            Self::Upsert => None,
            Self::Create => Some(Version::ABSENT),
            Self::Update(version) => Some(version),
        }
    }

    /// Returns the version that the write gives to a record which is live at `actual`; `None` if there is no live record.
    ///
    /// ```
    /// use mcp_task_store::backend::engine::WriteMode;
    /// use mcp_task_store::{StorageError, TaskKey, Version};
    ///
    /// let key = TaskKey::new("alice", "t1")?;
    /// assert_eq!(WriteMode::Upsert.next_version(&key, None)?, Version::FIRST);
    /// assert_eq!(WriteMode::Update(Version::FIRST).next_version(&key, Some(Version::FIRST))?.get(), 2);
    /// let refused = WriteMode::Create.next_version(&key, Some(Version::FIRST));
    /// assert!(matches!(refused, Err(StorageError::VersionConflict { .. })));
    /// # Ok::<(), StorageError>(())
    /// ```
    ///
    /// # Errors
    /// `VersionConflict`, `NotFound` or `VersionExhausted`, as the contract requires. The engine then writes nothing.
    pub fn next_version(self, key: &TaskKey, actual: Option<Version>) -> Result<Version, StorageError> {
        let key = || key.clone();
        match (self, actual) {
            (Self::Create, Some(actual)) => {
                Err(StorageError::VersionConflict { key: key(), expected: Version::ABSENT, actual })
            }
            (Self::Update(expected), Some(actual)) if expected != actual => {
                Err(StorageError::VersionConflict { key: key(), expected, actual })
            }
            (Self::Update(_), None) => Err(StorageError::NotFound { key: key() }),
            (Self::Upsert | Self::Create, None) => Ok(Version::FIRST),
            (_, Some(actual)) => actual.next().ok_or_else(|| StorageError::VersionExhausted { key: key() }),
        }
    }
}
