//! A record of an engine, and what a write does to it.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::parts::{PartChange, PartChanges, PartName, PartSizes};
use super::version::Version;

/// What a write does to a record's expiry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// As it was; a new record never expires.
    #[default]
    Keep,
    /// The record never expires.
    Never,
    /// The record expires when this time has passed on the engine's own clock: 1 ms to 100 years, a
    /// fraction of a millisecond counts as a whole one.
    After(Duration),
}

impl Expiry {
    /// The longest duration, 100 years of 365.25 days.
    pub const MAX: Duration = Duration::from_secs(100 * 36_525 * 864);
}

/// What a write does in addition to storing the data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOptions {
    /// What becomes of the expiry.
    pub expiry: Expiry,
    /// The most live records that the owner may have. Checked in the same atomic step as an insert; it
    /// never stands in the way of an update. `None` is no limit.
    pub quota: Option<u64>,
    /// Subscribers of the record receive no notification, unless the write sets the expiry: their streams end with the
    /// record. For a write that concerns none of them.
    pub is_quiet: bool,
    /// What becomes of the parts that are named here; all others stay as they are.
    pub parts: PartChanges,
}

impl PutOptions {
    /// Returns whether the record's subscribers receive a notification of the write.
    pub fn notifies(&self) -> bool {
        !self.is_quiet || self.expiry != Expiry::Keep
    }

    /// Options with this expiry and no quota.
    pub const fn new(expiry: Expiry) -> Self {
        Self { expiry, quota: None, is_quiet: false, parts: PartChanges::new() }
    }

    /// The same with a quota of live records for the owner.
    #[must_use]
    pub fn quota(mut self, limit: u64) -> Self {
        self.quota = Some(limit);
        self
    }

    /// The same without a notification to the record's subscribers.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.is_quiet = true;
        self
    }

    /// The same, and stores these bytes as a part of the record.
    #[must_use]
    pub fn set_part(mut self, name: PartName, data: impl Into<Bytes>) -> Self {
        self.parts.insert(name, PartChange::Set(data.into()));
        self
    }

    /// The same, and removes a part of the record.
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

/// A live record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The bytes, as they were written.
    pub data: Bytes,
    /// The version.
    pub version: Version,
    /// When it expires by the engine's clock, to the millisecond; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
    /// Names and sizes of its parts. [`part`](crate::StorageBackend::part) reads one.
    pub parts: PartSizes,
}

impl Record {
    /// Creates a record. For engines.
    pub fn new(
        data: impl Into<Bytes>,
        version: Version,
        expires_at: Option<DateTime<Utc>>,
        parts: PartSizes,
    ) -> Self {
        Self { data: data.into(), version, expires_at, parts }
    }
}

/// What a write left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The record's version now; 1 if the write created it.
    pub version: Version,
    /// When it expires by the engine's clock, to the millisecond; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
}

impl Written {
    /// Creates the result of a write. For engines.
    pub fn new(version: Version, expires_at: Option<DateTime<Utc>>) -> Self {
        Self { version, expires_at }
    }
}
