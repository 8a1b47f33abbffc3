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

/// The largest data of a record that an engine takes unless it is configured otherwise, in bytes.
pub const DEFAULT_MAX_VALUE_BYTES: usize = 1024 * 1024;

/// Versioned records by owner and task, with compare-and-swap and expiry.
///
/// An engine keeps these rules, and `tests/backend_contract.rs` holds each engine to them:
///
/// * A record is *absent* once its time has come, everywhere and at once, even if the engine still
///   holds its bytes: reads do not see it, and a `put` over it starts again at version 1.
/// * Every write is atomic over the record, its parts, its expiry and the listing: no reader and no crash sees half of
///   one. A write that is refused has written nothing.
/// * An update neither sends nor reads the parts that it does not name.
/// * The engine's own clock alone decides what has expired. The clock of the calling process is not asked.
/// * Owners never see each other. No call takes a pattern.
/// * When an owner's last record has expired or been deleted, the engine holds nothing of that owner.
///
/// The trait is object-safe, and `Arc<B>` and `Arc<dyn StorageBackend>` are backends too.
///
/// # Cancellation safety
/// Dropping the future of a read has no effect. Dropping the future of a write may leave the
/// write applied or not, as a whole; the backend stays usable.
#[async_trait]
pub trait StorageBackend: Send + Sync + 'static {
    /// Reads a record.
    ///
    /// # Errors
    /// `NotFound` when it is absent or expired, `Corrupt` when its stored fields cannot be read.
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError>;

    /// Reads one part of a record, with the version of the record that it belongs to; `None` if the record has no
    /// part of this name.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError>;

    /// Creates the record at version 1, or replaces it and counts the version up. A new record has the parts that
    /// `options` sets, and no others.
    ///
    /// # Errors
    /// `CapacityExceeded` when it would be created and the owner is at the quota; `VersionExhausted`
    /// past [`Version::MAX`]; `TooLarge` for data or a part over the configured maximum, and for more than
    /// [`MAX_PARTS`](crate::MAX_PARTS) parts; `InvalidExpiry`, `Corrupt`. Nothing is written on any of them.
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

    /// One page of the owner's live records without their parts, newest first by creation: at most
    /// [`limit`](PageRequest::new) records, and about [`max_bytes`](PageRequest::max_bytes) of data.
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

    /// Asks the engine for its clock, where the record of this key lives. Call it before you end anything
    /// because of the time.
    ///
    /// # Errors
    /// `Unavailable` and the like when the engine cannot be asked.
    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError>;

    /// An estimate of the engine's clock without a round trip: as last seen, advanced by the monotonic clock of this
    /// process. It may lag behind the engine. It leads only after the engine's clock was set back, or another server
    /// took over whose clock is behind, until the next call learns of it.
    fn now(&self) -> DateTime<Utc>;

    /// Returns the largest data of a record in bytes, [`DEFAULT_MAX_VALUE_BYTES`] unless the engine is told otherwise.
    /// [`TaskStore`](crate::TaskStore) keeps the last kibibyte of it free for leases, cancels and the end of a task.
    fn max_value_bytes(&self) -> usize {
        DEFAULT_MAX_VALUE_BYTES
    }

    /// Returns a number that grows whenever the engine may by now talk to another server than before, or to one that
    /// lost writes: with each connection that breaks, and with each that is re-created.
    ///
    /// A version that was read under another number may be met again with other content: a failover, or the restore of an
    /// older snapshot, makes a record count from a lower version again. [`TaskStore`](crate::TaskStore) then reads a task
    /// again before it writes.
    ///
    /// The provided method always returns 0: an engine whose records live and die with this process, or that never loses
    /// an acknowledged write. An engine that cannot tell returns a greater number each time. One that forwards to another
    /// forwards this call too.
    fn generation(&self) -> u64 {
        0
    }

    /// Streams a notification for every change of the record, from any process.
    ///
    /// The first item comes once the watch is live: what is read after it is followed by an item for each later
    /// change. Several changes may share one item, and an item may come without a change; a
    /// [quiet](PutOptions::quiet) write need not have one. The stream ends when the record is gone, deleted or
    /// expired, and without an item if there was none.
    ///
    /// Dropping the stream ends the watch. The method must be called, and the stream polled, within a Tokio runtime. An
    /// engine without notifications calls [`watch_by_polling`](crate::backend::engine::watch_by_polling).
    ///
    /// # Errors
    /// An item is an error when the engine cannot be asked or cannot tell. The watch goes on after one that
    /// [may pass](StorageError::is_retryable), and its next good item stands for all that was missed; it ends after
    /// any other.
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
