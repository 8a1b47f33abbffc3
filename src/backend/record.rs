//! A record, and the options of a write.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::error::StorageError;
use super::parts::{PartChange, PartChanges, PartName, PartSizes};
use super::version::Version;

/// What a write does to the expiry of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// The expiry stays as it was. A new record never expires.
    #[default]
    Keep,
    /// The record never expires.
    Never,
    /// The record expires when this time has passed on the engine's own clock: 1 ms to 100 years, rounded up to whole
    /// milliseconds.
    After(Duration),
}

impl Expiry {
    /// The longest duration, 100 years of 365.25 days.
    pub const MAX: Duration = Duration::from_secs(100 * 36_525 * 864);

    /// Checks the duration of [`After`](Self::After).
    pub(super) fn check(self) -> Result<(), StorageError> {
        match self {
            Self::After(given) if given < Duration::from_millis(1) || given > Self::MAX => {
                Err(StorageError::InvalidExpiry { given })
            }
            _ => Ok(()),
        }
    }
}

/// The options of a write.
///
/// ```
/// use std::time::Duration;
///
/// use mcp_task_store::{Expiry, PartName, PutOptions};
///
/// let options = PutOptions::new(Expiry::After(Duration::from_secs(3600)))
///     .quota(100)
///     .set_part(PartName::from_static("output"), "a large result");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOptions {
    /// What the write does to the expiry.
    pub expiry: Expiry,
    /// The maximum number of live records of the owner; `None` for no limit. The engine checks it in the same atomic step as
    /// an insert. A quota never blocks an update.
    pub quota: Option<u64>,
    /// Whether the write sends no notification to the record's subscribers. A write that sets the expiry always sends
    /// one, because the streams of the subscribers must end when the record expires.
    pub is_quiet: bool,
    /// What the write does to parts of the record. Parts without a change stay as they are.
    pub parts: PartChanges,
}

impl PutOptions {
    /// Returns whether the write sends a notification to the record's subscribers.
    pub fn notifies(&self) -> bool {
        !self.is_quiet || self.expiry != Expiry::Keep
    }

    /// Creates options with this expiry and no quota.
    pub const fn new(expiry: Expiry) -> Self {
        Self { expiry, quota: None, is_quiet: false, parts: PartChanges::new() }
    }

    /// Sets the maximum number of live records of the owner. A write that would create one more fails.
    #[must_use]
    pub fn quota(mut self, limit: u64) -> Self {
        self.quota = Some(limit);
        self
    }

    /// Makes the write send no notification to the record's subscribers, unless it sets the expiry.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.is_quiet = true;
        self
    }

    /// Stores these bytes as a part of the record.
    #[must_use]
    pub fn set_part(mut self, name: PartName, data: impl Into<Bytes>) -> Self {
        self.parts.insert(name, PartChange::Set(data.into()));
        self
    }

    /// Removes a part of the record.
    #[must_use]
    pub fn clear_part(mut self, name: PartName) -> Self {
        self.parts.insert(name, PartChange::Clear);
        self
    }
}

impl From<Expiry> for PutOptions {
    fn from(expiry: Expiry) -> Self {
        Self::new(expiry)
    }
}

/// A live record, as an engine returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The data, as it was written.
    pub data: Bytes,
    /// The version.
    pub version: Version,
    /// When the record expires, by the engine's clock and to the millisecond; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
    /// The names and sizes of the parts. [`part`](crate::StorageBackend::part) reads a part.
    pub parts: PartSizes,
}

impl Record {
    /// Creates a record. Engines return it.
    pub fn new(
        data: impl Into<Bytes>,
        version: Version,
        expires_at: Option<DateTime<Utc>>,
        parts: PartSizes,
    ) -> Self {
        Self { data: data.into(), version, expires_at, parts }
    }
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The new version of the record; 1 if the write created it.
    pub version: Version,
    /// When the record expires, by the engine's clock and to the millisecond; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
}

impl Written {
    /// Creates the result of a write. Engines return it.
    pub fn new(version: Version, expires_at: Option<DateTime<Utc>>) -> Self {
        Self { version, expires_at }
    }
}
