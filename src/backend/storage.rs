//! The contract of an engine: versioned records.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;

use super::error::StorageError;
use super::key::{OwnerId, TaskKey};
use super::page::{Page, PageRequest};
use super::parts::{Part, PartName};
use super::record::{PutOptions, Record, Written};
use super::version::Version;

/// The default maximum size of a record's data, in bytes.
pub const DEFAULT_MAX_VALUE_BYTES: usize = 1024 * 1024;

/// Stores versioned records by owner and task, with compare-and-swap, expiry, quotas, pages and notifications.
///
/// [`TaskStore`](crate::TaskStore) keeps its tasks in an engine that implements this trait. To write an engine, start with
/// [`backend::engine`](crate::backend::engine), and check it with the suite of the feature `conformance`.
///
/// The trait is object-safe. `Arc<B>` and `Arc<dyn StorageBackend>` are engines too.
///
/// # Examples
/// A compare-and-swap: read, change, and write only if no other caller has written the record since the read.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::StorageError> {
/// use mcp_task_store::{MemoryBackend, PutOptions, StorageBackend, StorageError, TaskKey, Version};
///
/// async fn increment(engine: &impl StorageBackend, key: &TaskKey) -> Result<Version, StorageError> {
///     loop {
///         let record = engine.get(key).await?;
///         let count: u64 = String::from_utf8_lossy(&record.data).parse().unwrap_or(0);
///         let data = (count + 1).to_string().into();
///         match engine.put_if_version(key, data, PutOptions::default(), record.version).await {
///             Ok(written) => return Ok(written.version),
///             Err(StorageError::VersionConflict { .. }) => continue,
///             Err(error) => return Err(error),
///         }
///     }
/// }
///
/// let (engine, key) = (MemoryBackend::new(), TaskKey::new("alice", "t1")?);
/// engine.put(&key, "41".into(), PutOptions::default()).await?;
/// assert_eq!(increment(&engine, &key).await?.get(), 2);
/// assert_eq!(engine.get(&key).await?.data, "42");
/// # Ok(())
/// # }
/// ```
///
/// # Cancellation safety
/// Dropping the future of a read has no effect. Dropping the future of a write may leave the write applied or not, as a
/// whole. The engine stays usable.
///
/// # Contract
/// * From the moment of its expiry, a record is *absent* for every call, even if the engine still holds its bytes.
/// * Every write is atomic over the record, its parts, its expiry and the listing. No reader and no crash sees half of a
///   write. A refused write has written nothing.
/// * An update neither sends nor reads the parts that it does not name.
/// * Only the engine's own clock decides what has expired, never the clock of the calling process.
/// * A call reaches only records of the owner that it names. No call takes a pattern.
/// * When an owner's last record has expired or been deleted, the engine holds nothing of that owner.
///
/// The suite of the feature `conformance` checks these rules, under these names:
///
/// Records:
///
/// * `get` returns data, version and expiry of a live record.
/// * `get` of an absent record is not found.
/// * Any bytes are read as they were written.
/// * `put` creates at version 1, and each write adds 1.
/// * `put` over an expired record starts again at version 1.
/// * `put` over a deleted record starts again at version 1.
/// * `put_if_version` replaces the record at the expected version.
/// * `put_if_version` at another version is a conflict and writes nothing.
/// * `put_if_version` of an absent or expired record is not found and writes nothing.
/// * `put_if_version` with 0 creates an absent or expired record.
/// * `put_if_version` with 0 on a live record is a conflict and writes nothing.
/// * Of many writers that race for one version, exactly one wins.
/// * Of many `put`s that race, each has a version of its own.
/// * A reader never sees half of a write.
/// * A read that races a delete finds the record or nothing.
/// * `delete` returns whether there was a live record.
/// * Data over the maximum is too large, and nothing is written.
/// * An `Arc` of an engine is an engine.
///
/// Parts:
///
/// * A part is read with the version of its record, which knows its name and size.
/// * A write changes the parts that it names and no others.
/// * A refused write changes no part.
/// * A new record has no part of an expired or deleted record.
/// * A part over the maximum or one too many is too large, and nothing is written.
///
/// Clock and expiry:
///
/// * `clock` decides what has expired, and `now` is not ahead of it.
/// * `now` advances between calls.
/// * An expired record is absent for every call at once.
/// * A record never expires a fraction of a millisecond early.
/// * `Keep` leaves the expiry as it was, and a new record never expires.
/// * `Never` removes the expiry, and `After` sets another.
/// * An expiry outside 1 ms to 100 years is refused, and nothing is written.
/// * `cleanup_expired` removes no live record, and returns how many it removed.
///
/// Quota:
///
/// * At the quota, a new record is refused, and nothing is written.
/// * A quota never blocks an update.
/// * A quota counts live records only.
/// * Racing inserts never exceed the quota.
///
/// Pages:
///
/// * A page is newest first by creation, with everything that `get` returns.
/// * An owner without records has one empty page.
/// * A page limit is 1 to 256.
/// * A page ends before the record that would exceed its bytes.
/// * A walk whose pages are cut by their bytes misses no record.
/// * A cursor that is malformed or of another owner is refused.
/// * A cursor stays valid after its record is deleted.
/// * A record that is created again is listed as the newest.
/// * A burst of inserts is listed in one total order.
/// * A walk returns each record that is live during the whole walk exactly once.
///
/// Owners:
///
/// * Hostile ids never collide.
/// * An id of 0 or 257 bytes is refused.
/// * An owner never reaches records of another owner.
///
/// Watch:
///
/// * A watch has an item once it is live and one after each change.
/// * A read after each item of a watch sees the last change.
/// * A watch ends when its record is deleted.
/// * A watch ends when its record expires, and no earlier.
/// * A watch ends when a quiet write makes its record expire.
/// * A watch of an absent or expired record ends without an item.
/// * A notified watch has no item for quiet writes, other tasks and other owners.
/// * A quiet write notifies no watch.
/// * Each of many watches has items until it is dropped.
///
/// Damage, last versions, clock steps:
///
/// * A write past the last version is version exhausted.
/// * A damaged record is corrupt until it is deleted, and a page lists the other records.
/// * Creation times increase after the clock of the engine steps back.
/// * The engine holds nothing of an owner without live records.
#[async_trait]
pub trait StorageBackend: Send + Sync + 'static {
    /// Reads a record.
    ///
    /// # Errors
    /// `NotFound` if the record is absent or expired; `Corrupt` if its stored fields cannot be read.
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError>;

    /// Reads one part of a record, with the version of the record that the part belongs to. Returns `None` if the record
    /// has no part of this name.
    ///
    /// # Errors
    /// The errors of [`get`](Self::get).
    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError>;

    /// Creates the record at version 1, or replaces it and adds 1 to its version. A new record has only the parts that
    /// `options` sets.
    ///
    /// # Errors
    /// Nothing is written after any of these:
    ///
    /// * `CapacityExceeded` if the write would create the record and the owner is at its quota;
    /// * `VersionExhausted` past [`Version::MAX`];
    /// * `TooLarge` for data or a part over the configured maximum, and for more than [`MAX_PARTS`](crate::MAX_PARTS) parts;
    /// * `InvalidExpiry` for a duration outside 1 ms to 100 years;
    /// * `Corrupt` if the stored record cannot be read.
    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError>;

    /// Replaces the record if it is at version `expected`. With [`Version::ABSENT`], creates the record if it does not
    /// exist.
    ///
    /// # Errors
    /// `VersionConflict` if the record has another version, or exists and `expected` is [`Version::ABSENT`];
    /// `NotFound` if the record does not exist and `expected` is not [`Version::ABSENT`]; and the errors of
    /// [`put`](Self::put). Nothing is written after any of these.
    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError>;

    /// Removes the record, readable or not. Returns whether there was a live record.
    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError>;

    /// Returns one page of the owner's live records without their parts, newest first by creation: at most
    /// [`limit`](PageRequest::new) records, and about [`max_bytes`](PageRequest::max_bytes) of data.
    ///
    /// A walk to the end (`next` is `None`) returns every record that is live during the whole walk exactly once, even if
    /// other records are created, deleted or expire during the walk. A page may be short or empty before the end.
    ///
    /// # Errors
    /// `InvalidPage` for a limit outside 1 to 256, and for a cursor that is malformed or belongs to another owner.
    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError>;

    /// Removes expired records that the engine still holds, and returns how many. An engine whose server expires records by
    /// itself does nothing and returns 0.
    async fn cleanup_expired(&self) -> Result<u64, StorageError>;

    /// Asks the server that stores the record of this key for the time on its clock. Call it before you end a task
    /// because its time has elapsed: [`now`](Self::now) is only an estimate.
    ///
    /// # Errors
    /// `Unavailable`, `Denied` or `Backend` if the server does not answer or refuses to.
    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError>;

    /// Estimates the engine's clock without a round trip: the last time that the engine returned, advanced by the
    /// monotonic clock of this process.
    ///
    /// The estimate may lag behind the clock. It is ahead of the clock only after the clock was set back, or after a
    /// failover to a server whose clock is behind, and only until the next reply.
    fn now(&self) -> DateTime<Utc>;

    /// Returns the maximum size of a record's data in bytes. The default is [`DEFAULT_MAX_VALUE_BYTES`].
    /// [`TaskStore`](crate::TaskStore) reserves the last kibibyte for leases, cancels and the end of a task.
    fn max_value_bytes(&self) -> usize {
        DEFAULT_MAX_VALUE_BYTES
    }

    /// Returns a number that grows whenever the engine may have switched to another server, or to a server that lost
    /// writes. It grows when a connection breaks, and again when the engine reconnects.
    ///
    /// After a failover, or after the restore of an older snapshot, the versions of a record continue from a lower
    /// version. The same version can then have other content. So when this number has changed since
    /// [`TaskStore`](crate::TaskStore) read a task, it reads the task again before it writes.
    ///
    /// The provided method always returns 0. It suits an engine that never loses an acknowledged write, or whose
    /// records end with this process. An engine that cannot detect a switch returns a greater number each time. An
    /// engine that wraps another engine forwards this call to it.
    fn generation(&self) -> u64 {
        0
    }

    /// Streams a notification for every change of the record, from any process.
    ///
    /// The first item arrives once the watch is live. A caller that reads the record after this item receives an item
    /// for every later change. Several changes may share one item. An item may arrive without a change. A
    /// [quiet](PutOptions::quiet) write may have no item. The stream ends when the record is deleted or expires. It
    /// ends without an item if the record was absent.
    ///
    /// Dropping the stream ends the watch. The method must be called, and the stream polled, within a Tokio runtime. An
    /// engine without notifications calls [`watch_by_polling`](crate::backend::engine::watch_by_polling).
    ///
    /// # Errors
    /// An item is an error if the engine cannot read the record or cannot receive notifications. After a
    /// [retryable](StorageError::is_retryable) error the watch continues, and its next item without an error stands
    /// for every change that the watch missed. After any other error the stream ends.
    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>>;
}

#[async_trait]
impl<B: StorageBackend + ?Sized> StorageBackend for Arc<B> {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        (**self).get(key).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        (**self).part(key, name).await
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

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        (**self).clock(key).await
    }

    fn now(&self) -> DateTime<Utc> {
        (**self).now()
    }

    fn max_value_bytes(&self) -> usize {
        (**self).max_value_bytes()
    }

    fn generation(&self) -> u64 {
        (**self).generation()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        (**self).watch(key)
    }
}
