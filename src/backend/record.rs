//! A record of an engine, and what a write does to it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{PartChange, PartChanges, PartName, PartSizes, StorageError};

/// How many times a record has been written since it was created: 1, 2, 3, …, exact to 2^53 - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// No record: as the expected version of
    /// [`put_if_version`](crate::StorageBackend::put_if_version) it means "create".
    pub const ABSENT: Self = Self(0);
    /// The version that a new record has.
    pub const FIRST: Self = Self(1);
    /// The last version, 2^53 - 1: the largest integer that every engine holds exactly.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The version as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The version after this one; `None` after [`MAX`](Self::MAX).
    pub const fn next(self) -> Option<Self> {
        if self.0 < Self::MAX.0 { Some(Self(self.0 + 1)) } else { None }
    }
}

impl From<u64> for Version {
    fn from(version: u64) -> Self {
        Self(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

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

    /// The duration in whole milliseconds, rounded up; `None` for `Keep` and `Never`. For engines.
    ///
    /// # Errors
    /// [`StorageError::InvalidExpiry`] for a duration outside 1 ms to 100 years.
    pub fn millis(self) -> Result<Option<u64>, StorageError> {
        let Self::After(given) = self else {
            return Ok(None);
        };
        if given < Duration::from_millis(1) || given > Self::MAX {
            return Err(StorageError::InvalidExpiry { given });
        }
        Ok(Some(given.as_nanos().div_ceil(1_000_000) as u64))
    }
}

/// What a write does in addition to storing the data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// Whether subscribers of the record receive a notification.
    pub(crate) fn notifies(&self) -> bool {
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

/// What a write left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The record's version now; 1 if the write created it.
    pub version: Version,
    /// When it expires by the engine's clock, to the millisecond; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::shortest(Duration::from_millis(1), 1)]
    #[case::rounded_up(Duration::from_micros(1_001), 2)]
    #[case::longest(Expiry::MAX, 3_155_760_000_000)]
    fn durations_are_whole_milliseconds(#[case] given: Duration, #[case] millis: u64) {
        assert_eq!(Expiry::After(given).millis().unwrap(), Some(millis));
    }

    #[rstest]
    #[case::too_short(Duration::from_micros(999))]
    #[case::nothing(Duration::ZERO)]
    #[case::too_long(Expiry::MAX + Duration::from_nanos(1))]
    #[case::endless(Duration::MAX)]
    fn other_durations_are_refused(#[case] given: Duration) {
        assert!(matches!(Expiry::After(given).millis(), Err(StorageError::InvalidExpiry { .. })));
    }

    #[test]
    fn versions_end_at_2_to_the_53_less_1() {
        assert_eq!(Version::from(9_007_199_254_740_990).next(), Some(Version::MAX));
        assert_eq!(Version::MAX.next(), None);
    }
}
