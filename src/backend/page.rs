//! Listing an owner's records page by page.

use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::key::stable_hash;
use super::{OwnerId, PartSizes, StorageError, TaskId, Version};

/// The largest page.
pub const MAX_PAGE_LIMIT: usize = 256;

/// Which page of a listing: how many records, and after which [`Cursor`].
///
/// ```
/// use mcp_task_store::PageRequest;
///
/// let first = PageRequest::new(50);
/// let next = PageRequest::new(50).after("5f3759df.00000000cafef00d");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    pub(crate) limit: usize,
    pub(crate) max_bytes: usize,
    pub(crate) after: Option<Cursor>,
}

/// About how many bytes of data a page holds unless it is asked for otherwise.
const DEFAULT_MAX_BYTES: usize = 4 * 1024 * 1024;

impl PageRequest {
    /// The first page, of at most `limit` records. A limit outside 1 to [`MAX_PAGE_LIMIT`] is refused
    /// by the call that takes the request.
    pub fn new(limit: usize) -> Self {
        Self { limit, max_bytes: DEFAULT_MAX_BYTES, after: None }
    }

    /// About how many bytes of data the page may hold, 4 MiB unless set: it ends before the record that would exceed
    /// them, and holds one record at least if there is one.
    #[must_use]
    pub fn max_bytes(mut self, max: usize) -> Self {
        self.max_bytes = max;
        self
    }

    /// The page that follows `cursor`, the [`next`](Page::next) of the page before.
    #[must_use]
    pub fn after(mut self, cursor: impl Into<Cursor>) -> Self {
        self.after = Some(cursor.into());
        self
    }

    /// Checks the request and gives the limit and the position to continue below, if any. For engines.
    ///
    /// # Errors
    /// [`StorageError::InvalidPage`] for a limit outside 1 to [`MAX_PAGE_LIMIT`] and for a cursor that
    /// is malformed or another owner's.
    pub fn check(&self, owner: &OwnerId) -> Result<(usize, Option<u64>), StorageError> {
        if !(1..=MAX_PAGE_LIMIT).contains(&self.limit) {
            return Err(StorageError::InvalidPage {
                reason: format!("a limit of {} is not between 1 and {MAX_PAGE_LIMIT}", self.limit),
            });
        }
        let below = self.after.as_ref().map(|cursor| cursor.position(owner)).transpose()?;
        Ok((self.limit, below))
    }
}

/// Where a listing continues: opaque text, valid for the owner that it was given to.
///
/// Text that comes from a client is taken as it is and checked by the call that uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// The cursor behind the record of `owner` that was created at `position`. For engines.
    pub fn new(owner: &OwnerId, position: u64) -> Self {
        Self(format!("{position:x}.{:016x}", Self::check_sum(owner, position)))
    }

    /// The cursor as text, to be handed to a client.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn position(&self, owner: &OwnerId) -> Result<u64, StorageError> {
        let position = self.0.split('.').next().unwrap_or_default();
        u64::from_str_radix(position, 16)
            .ok()
            .filter(|position| Self::new(owner, *position) == *self)
            .ok_or_else(|| StorageError::InvalidPage {
                reason: "the cursor is malformed or belongs to another listing".to_owned(),
            })
    }

    /// It tells mistakes, not attacks; a forged cursor still lists only the records of the owner who uses it.
    fn check_sum(owner: &OwnerId, position: u64) -> u64 {
        stable_hash(owner.as_str().bytes().chain(position.to_be_bytes()))
    }
}

impl From<String> for Cursor {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Cursor {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One page of an owner's records, newest first by creation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The records that could be read. May be fewer than the limit, or none, on any page.
    pub records: Vec<ListedRecord>,
    /// The records of this page that are stored but cannot be read.
    pub corrupt: Vec<CorruptRecord>,
    /// Where the next page begins. Only `None` ends the walk.
    pub next: Option<Cursor>,
}

/// A record in a [`Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedRecord {
    /// Which of the owner's tasks.
    pub task: TaskId,
    /// The record's bytes.
    pub data: Bytes,
    /// The record's version.
    pub version: Version,
    /// When it expires by the engine's clock; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was created by the engine's clock. No two records of an owner share it.
    pub created_at: DateTime<Utc>,
    /// Names and sizes of its parts. [`part`](crate::StorageBackend::part) reads one.
    pub parts: PartSizes,
}

impl ListedRecord {
    /// A listed record. For engines.
    pub fn new(task: TaskId, record: crate::backend::Record, created_at: DateTime<Utc>) -> Self {
        let crate::backend::Record { data, version, expires_at, parts } = record;
        Self { task, data, version, expires_at, created_at, parts }
    }
}

/// A record in a [`Page`] that is stored but cannot be read. `get` on it says `Corrupt`, `delete` removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CorruptRecord {
    /// Which of the owner's tasks.
    pub task: TaskId,
    /// What is wrong with it.
    pub reason: String,
}

impl CorruptRecord {
    /// A corrupt record. For engines.
    pub fn new(task: TaskId, reason: String) -> Self {
        Self { task, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn owner(id: &str) -> OwnerId {
        id.try_into().unwrap()
    }

    #[test]
    fn a_cursor_gives_back_its_position() {
        let text = Cursor::new(&owner("alice"), 1_795_000_000_000_000).to_string();
        let page = PageRequest::new(1).after(text);
        assert_eq!(page.check(&owner("alice")).unwrap(), (1, Some(1_795_000_000_000_000)));
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_check_sum("ff")]
    #[case::not_a_number("zz.0000000000000000")]
    #[case::wrong_check_sum("ff.0000000000000000")]
    #[case::signed("+ff.0000000000000000")]
    fn a_malformed_cursor_is_refused(#[case] text: &str) {
        let page = PageRequest::new(1).after(text);
        assert!(matches!(page.check(&owner("alice")), Err(StorageError::InvalidPage { .. })));
    }

    #[test]
    fn another_owners_cursor_is_refused() {
        let page = PageRequest::new(1).after(Cursor::new(&owner("alice"), 7));
        assert!(matches!(page.check(&owner("bob")), Err(StorageError::InvalidPage { .. })));
    }

    #[test]
    fn a_cursor_is_the_same_text_in_every_version_of_the_crate() {
        assert_eq!(Cursor::new(&owner("alice"), 255).as_str(), "ff.75024796edaab566");
    }
}
