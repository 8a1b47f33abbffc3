//! Listing an owner's records page by page.

use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::key::TaskId;
use super::parts::PartSizes;
use super::record::Record;
use super::version::Version;

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
    pub(super) limit: usize,
    pub(super) max_bytes: usize,
    pub(super) after: Option<Cursor>,
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
}

/// Where a listing continues: opaque text, valid for the owner that it was given to.
///
/// Text that comes from a client is taken as it is and checked by the call that uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// The cursor as text, to be handed to a client.
    pub fn as_str(&self) -> &str {
        &self.0
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
    pub fn new(task: TaskId, record: Record, created_at: DateTime<Utc>) -> Self {
        let Record { data, version, expires_at, parts } = record;
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
