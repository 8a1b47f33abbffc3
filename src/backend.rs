//! The contract that every engine keeps.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;

use crate::{OwnerId, Page, PageRequest, StorageError, TaskKey};

/// How many times a record has been written since it was created: 1, 2, 3, …, exact to 2^53 - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// No record: as the expected version of
    /// [`put_if_version`](StorageBackend::put_if_version) it means "create".
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

/// What a write does beside storing the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// What becomes of the expiry.
    pub expiry: Expiry,
    /// The most live records that the owner may have. Checked in the same atomic step as an insert; it
    /// never stands in the way of an update. `None` is no limit.
    pub quota: Option<u64>,
    /// Those who [`watch`](StorageBackend::watch) the record are not told. For a write that concerns none of them.
    pub is_quiet: bool,
}

impl PutOptions {
    /// Options with this expiry and no quota.
    pub const fn new(expiry: Expiry) -> Self {
        Self { expiry, quota: None, is_quiet: false }
    }

    /// The same with a quota of live records for the owner.
    #[must_use]
    pub const fn quota(mut self, limit: u64) -> Self {
        self.quota = Some(limit);
        self
    }

    /// The same without a word to those who watch the record.
    #[must_use]
    pub const fn quiet(mut self) -> Self {
        self.is_quiet = true;
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
}

/// What a write left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The record's version now; 1 if the write created it.
    pub version: Version,
    /// When it expires by the engine's clock, to the millisecond; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Versioned records by owner and task, with compare-and-swap and expiry.
///
/// An engine keeps these rules, and `tests/backend_contract.rs` holds each engine to them:
///
/// * A record is *absent* once its time has come, everywhere and at once, even if the engine still
///   holds its bytes: reads do not see it, and a `put` over it starts again at version 1.
/// * Every write is atomic: no reader and no crash sees half of one.
/// * The engine's own clock alone decides what has expired. The clock of the calling process is not asked.
/// * Owners never see each other. No call takes a pattern.
/// * When an owner's last record has expired or been deleted, the engine holds nothing of that owner.
///
/// The trait is object-safe, and `Arc<B>` and `Arc<dyn StorageBackend>` are backends too.
///
/// # Cancellation safety
/// Dropping the future of `get` or `list` has no effect. Dropping the future of a write may leave the
/// write applied or not, as a whole; the backend stays usable.
#[async_trait]
pub trait StorageBackend: Send + Sync + 'static {
    /// Reads a record.
    ///
    /// # Errors
    /// `NotFound` when it is absent or expired, `Corrupt` when its stored fields cannot be read.
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError>;

    /// Creates the record at version 1, or replaces it and counts the version up.
    ///
    /// # Errors
    /// `CapacityExceeded` when it would be created and the owner is at the quota; `VersionExhausted`
    /// past [`Version::MAX`]; `TooLarge`, `InvalidExpiry`, `Corrupt`. Nothing is written on any of them.
    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError>;

    /// Replaces the record if it is at version `expected`; with [`Version::ABSENT`], creates it if it
    /// does not exist.
    ///
    /// # Errors
    /// `VersionConflict` when the record has another version, or exists although it should not;
    /// `NotFound` when it should exist and does not; and those of [`put`](Self::put). Nothing is written
    /// on any of them.
    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError>;

    /// Removes the record, readable or not. Says whether there was a live one.
    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError>;

    /// One page of the owner's live records, newest first by creation.
    ///
    /// A walk to the end (`next` is `None`) returns every record that lived throughout exactly once,
    /// whatever is created, deleted or expires meanwhile. A page may be short or empty before the end.
    ///
    /// # Errors
    /// `InvalidPage` for a limit outside 1 to 256 and for a cursor that is malformed or another owner's.
    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError>;

    /// Drops expired records that the engine still holds, and says how many. Engines whose server
    /// expires records by itself do nothing and return 0.
    async fn cleanup_expired(&self) -> Result<u64, StorageError>;

    /// The engine's clock as last seen, carried on by the monotonic clock of this process: it may lag
    /// behind the engine, it never leads.
    fn now(&self) -> DateTime<Utc>;

    /// Feels every change of a record, whoever makes it.
    ///
    /// The first item comes once the watch is live: what is read after it is followed by an item for each later
    /// change. Several changes may share one item, and an item may come without a change; a
    /// [quiet](PutOptions::quiet) write need not have one. The stream ends when the record is gone, deleted or
    /// expired, and without an item if there was none.
    ///
    /// The provided method reads the record every 20 ms, then less and less often, down to once a second, while it
    /// stays as it is. Dropping the stream ends the watch. It has to be called, and the stream polled, within a Tokio
    /// runtime.
    ///
    /// # Errors
    /// An item is an error when the engine cannot be asked or cannot tell. The watch goes on after one that
    /// [may pass](StorageError::is_retryable), and its next good item stands for all that was missed; it ends after
    /// any other.
    fn watch(self: Arc<Self>, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        crate::watch::by_polling(self, key.clone())
    }
}

#[async_trait]
impl<B: StorageBackend + ?Sized> StorageBackend for Arc<B> {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        (**self).get(key).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        (**self).put(key, data, options).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        (**self).put_if_version(key, data, options, expected).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        (**self).delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        (**self).list(owner, page).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        (**self).cleanup_expired().await
    }

    fn now(&self) -> DateTime<Utc> {
        (**self).now()
    }

    fn watch(self: Arc<Self>, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        Self::clone(&self).watch(key)
    }
}

/// The largest value that an engine takes unless it is told otherwise, in bytes.
pub const DEFAULT_MAX_VALUE_BYTES: usize = 1024 * 1024;

/// Refuses a value that is larger than the configured maximum.
pub(crate) fn check_size(data: &Bytes, max: usize) -> Result<(), StorageError> {
    if data.len() > max {
        return Err(StorageError::TooLarge { size: data.len(), max });
    }
    Ok(())
}

/// A time of an engine's clock in milliseconds since the epoch. The engines stay within a few hundred
/// years of it, far inside what `DateTime` holds.
pub(crate) fn from_millis(millis: u64) -> DateTime<Utc> {
    i64::try_from(millis).ok().and_then(DateTime::from_timestamp_millis).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The same in microseconds.
pub(crate) fn from_micros(micros: u64) -> DateTime<Utc> {
    i64::try_from(micros).ok().and_then(DateTime::from_timestamp_micros).unwrap_or(DateTime::<Utc>::MAX_UTC)
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
