//! Pages of an owner's records.

use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::key::TaskId;
use super::parts::PartSizes;
use super::record::Record;
use super::version::Version;

/// The maximum number of records of a page.
pub const MAX_PAGE_LIMIT: usize = 256;

/// A request for a page: how many records, and after which [`Cursor`].
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

/// The approximate maximum of data in a page, in bytes, unless the request sets another one.
const DEFAULT_MAX_BYTES: usize = 4 * 1024 * 1024;

impl PageRequest {
    /// Creates a request for the first page, of at most `limit` records. The call that receives the request refuses a limit
    /// outside 1 to [`MAX_PAGE_LIMIT`].
    pub fn new(limit: usize) -> Self {
        Self { limit, max_bytes: DEFAULT_MAX_BYTES, after: None }
    }

    /// Sets the approximate maximum of data in the page, in bytes; 4 MiB by default. The page ends before the record
    /// that would exceed the maximum, but holds at least one record if there is one.
    #[must_use]
    pub fn max_bytes(mut self, max: usize) -> Self {
        self.max_bytes = max;
        self
    }

    /// Requests the page that follows `cursor`, the [`next`](Page::next) of the previous page.
    #[must_use]
    pub fn after(mut self, cursor: impl Into<Cursor>) -> Self {
        self.after = Some(cursor.into());
        self
    }
}

/// The position at which a listing continues: opaque text, valid for one owner.
///
/// Create it from the text that a client sent. The call that uses the cursor checks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// Returns the cursor as text, for a client.
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
    /// The readable records. A page may have fewer records than the limit, or none, before the end of the walk.
    pub records: Vec<ListedRecord>,
    /// The records of this page that the engine cannot read.
    pub corrupt: Vec<CorruptRecord>,
    /// The cursor of the next page; `None` if there are no more pages.
    pub next: Option<Cursor>,
}

/// A record in a [`Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedRecord {
    /// The id of the task.
    pub task: TaskId,
    /// The record's bytes.
    pub data: Bytes,
    /// The record's version.
    pub version: Version,
    /// When the record expires, by the engine's clock; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When the record was created, by the engine's clock. No two records of an owner share this time.
    pub created_at: DateTime<Utc>,
    /// The names and sizes of the record's parts. [`part`](crate::StorageBackend::part) reads a part.
    pub parts: PartSizes,
}

impl ListedRecord {
    /// Creates a listed record. Engines return it.
    pub fn new(task: TaskId, record: Record, created_at: DateTime<Utc>) -> Self {
        let Record { data, version, expires_at, parts } = record;
        Self { task, data, version, expires_at, created_at, parts }
    }
}

/// A record in a [`Page`] that the engine cannot read. `get` fails with `Corrupt`, and `delete` removes the record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CorruptRecord {
    /// The id of the task.
    pub task: TaskId,
    /// What cannot be read, and why.
    pub reason: String,
}

impl CorruptRecord {
    /// Creates a corrupt record. Engines return it.
    pub fn new(task: TaskId, reason: String) -> Self {
        Self { task, reason }
    }
}
