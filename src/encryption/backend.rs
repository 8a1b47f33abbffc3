//! The engine that encrypts what another engine stores.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;

use super::envelope::{ENVELOPE_BYTES, Field, Unopened, open, seal};
use super::keyring::Keyring;
use crate::backend::engine::{check_part_count, check_size};
use crate::backend::{
    Agenda, CorruptRecord, Cursor, Due, ListedRecord, Next, OwnerId, OwnerPage, Page, PageRequest, Part,
    PartChange, PartChanges, PartName, PartSizes, PutOptions, Queue, Record, StorageBackend, StorageError,
    Taken, TaskKey, TimerPage, Version, Written,
};

/// Wraps an engine, and encrypts the data and the parts of its records.
///
/// Each write encrypts with XChaCha20-Poly1305 under the current key of a [`Keyring`]. Each read decrypts, and checks that the bytes
/// were written for this owner, this task and this part. [`rotation`](Self::rotation) encrypts the stored records under
/// another key.
///
/// These stay in the clear: ids of owners and tasks, names and sizes of parts, times, versions, the names of queues, which contain
/// the names of operations, and the ids of the keys. See [the guide to encryption](crate::guide::encryption).
///
/// Data and parts grow by [`ENVELOPE_BYTES`](crate::ENVELOPE_BYTES) bytes. The maximum sizes of the wrapped engine apply to the
/// encrypted bytes, so the maximum sizes of this engine are lower by as much. A page that is cut by its bytes may take a second round
/// trip. Every other call takes as many round trips as without the wrapper.
///
/// # Errors
/// In addition to the errors of the wrapped engine, reads fail with:
///
/// * [`MissingKey`](StorageError::MissingKey) if the keyring does not have the key of the record;
/// * [`Corrupt`](StorageError::Corrupt) if the bytes were altered, moved to another record or part, or are not encrypted.
///
/// A page carries such records in [`corrupt`](Page::corrupt).
///
/// Writes do not read what they replace. So [`put`](StorageBackend::put) also replaces a record that cannot be decrypted.
/// [`put_if_version`](StorageBackend::put_if_version) replaces it only for a caller that knows its version.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mcp_task_store::{Encrypted, Keyring, MemoryBackend, PutOptions, StorageBackend, TaskKey};
///
/// # let random_bytes = vec![7; 32];
/// let engine = MemoryBackend::new();
/// let encrypted = Encrypted::new(engine.clone(), Keyring::new([("2026-11", random_bytes)])?);
///
/// let key = TaskKey::new("alice", "t1")?;
/// encrypted.put(&key, "secret".into(), PutOptions::default()).await?;
/// assert_eq!(encrypted.get(&key).await?.data, "secret");
/// assert!(!engine.get(&key).await?.data.ends_with(b"secret"));
/// # Ok(())
/// # }
/// ```
pub struct Encrypted<B> {
    engine: B,
    keyring: Keyring,
}

impl<B: StorageBackend> Encrypted<B> {
    /// Wraps an engine.
    pub fn new(engine: B, keyring: Keyring) -> Self {
        Self { engine, keyring }
    }

    /// Returns the wrapped engine, which reads and writes encrypted bytes.
    pub fn engine(&self) -> &B {
        &self.engine
    }

    /// Returns the keys.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Checks the sizes of a write, and encrypts its data and its parts.
    fn seal(
        &self,
        key: &TaskKey,
        data: &Bytes,
        mut options: PutOptions,
    ) -> Result<(Bytes, PutOptions), StorageError> {
        check_size(data, self.max_value_bytes())?;
        let is_set = |change: &&PartChange| matches!(change, PartChange::Set(_));
        check_part_count(options.parts.values().filter(is_set).count())?;
        let data = seal(&self.keyring, key, Field::Data, data)?;
        options.parts = options
            .parts
            .into_iter()
            .map(|(name, change)| {
                let change = match change {
                    PartChange::Set(plain) => {
                        PartChange::Set(seal(&self.keyring, key, Field::Part(&name), &plain)?)
                    }
                    PartChange::Clear => PartChange::Clear,
                };
                Ok((name, change))
            })
            .collect::<Result<PartChanges, StorageError>>()?;
        Ok((data, options))
    }

    fn open_record(&self, key: &TaskKey, record: Record) -> Result<Record, StorageError> {
        let data = open(&self.keyring, key, Field::Data, &record.data)?;
        let mut parts = PartSizes::new();
        for (name, stored) in record.parts {
            // A stored part that is shorter than an envelope is not encrypted.
            let size = stored
                .checked_sub(ENVELOPE_BYTES)
                .ok_or_else(|| Unopened::Plain.error(key, Field::Part(&name)))?;
            parts.insert(name, size);
        }
        Ok(Record { data, parts, ..record })
    }

    /// Decrypts the records of a page. Those that cannot be decrypted become corrupt records of the page.
    fn open_page(&self, owner: &OwnerId, page: Page) -> Page {
        let Page { records, mut corrupt, next } = page;
        let mut opened = Vec::with_capacity(records.len());
        for listed in records {
            let ListedRecord { task, data, version, expires_at, created_at, parts } = listed;
            let key = TaskKey { owner: owner.clone(), task };
            match self.open_record(&key, Record::new(data, version, expires_at, parts)) {
                Ok(record) => opened.push(ListedRecord::new(key.task, record, created_at)),
                Err(error) => corrupt.push(CorruptRecord::new(key.task, reason(error))),
            }
        }
        Page { records: opened, corrupt, next }
    }

    /// Reads a page of encrypted records whose plain data fits into the maximum of the request.
    async fn stored_page(&self, owner: &OwnerId, request: PageRequest) -> Result<Page, StorageError> {
        // The wrapped engine counts the bytes of the envelopes. It may have as many as the page has records.
        let envelopes = request.limit.saturating_mul(ENVELOPE_BYTES);
        let enlarged = request.clone().max_bytes(request.max_bytes.saturating_add(envelopes));
        let page = self.engine.list(owner, enlarged.clone()).await?;
        let fitting = count_fitting(&page.records, request.max_bytes);
        if fitting == page.records.len() {
            return Ok(page);
        }
        // Only the engine can create the cursor after another record.
        self.engine.list(owner, PageRequest { limit: fitting, ..enlarged }).await
    }
}

/// Returns how many records the page may hold by the size of their plain data: at least one.
fn count_fitting(records: &[ListedRecord], max_bytes: usize) -> usize {
    let mut total = 0_usize;
    let fits = |record: &&ListedRecord| {
        total = total.saturating_add(record.data.len().saturating_sub(ENVELOPE_BYTES));
        total <= max_bytes
    };
    records.iter().take_while(fits).count().max(1).min(records.len())
}

/// Returns the reason of an error about one record, for a page. The page names the record.
fn reason(error: StorageError) -> String {
    match error {
        StorageError::Corrupt { reason, .. } => reason,
        StorageError::MissingKey { key_id, .. } => {
            format!(
                "it is encrypted under the key {key_id:?}, which the keyring does not have; add this key to the keyring"
            )
        }
        other => other.to_string(),
    }
}

/// Converts an error of a write, so that sizes are those of the plain bytes. The number of parts, which is the other limit, is
/// checked before.
fn in_plain_bytes(error: StorageError) -> StorageError {
    match error {
        StorageError::TooLarge { what, size, max } if size >= ENVELOPE_BYTES => StorageError::TooLarge {
            what,
            size: size - ENVELOPE_BYTES,
            max: max.saturating_sub(ENVELOPE_BYTES),
        },
        other => other,
    }
}

impl<B> fmt::Debug for Encrypted<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encrypted").field("keyring", &self.keyring).finish_non_exhaustive()
    }
}

#[async_trait]
impl<B: StorageBackend> StorageBackend for Encrypted<B> {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        let record = self.engine.get(key).await?;
        self.open_record(key, record)
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        let Some(part) = self.engine.part(key, name).await? else { return Ok(None) };
        let data = open(&self.keyring, key, Field::Part(name), &part.data)?;
        Ok(Some(Part::new(data, part.version)))
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        let (data, options) = self.seal(key, &data, options)?;
        self.engine.put(key, data, options).await.map_err(in_plain_bytes)
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        let (data, options) = self.seal(key, &data, options)?;
        self.engine.put_if_version(key, data, options, expected).await.map_err(in_plain_bytes)
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.engine.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        let page = self.stored_page(owner, page).await?;
        Ok(self.open_page(owner, page))
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.engine.cleanup_expired().await
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        self.engine.clock(key).await
    }

    fn now(&self) -> DateTime<Utc> {
        self.engine.now()
    }

    fn max_value_bytes(&self) -> usize {
        self.engine.max_value_bytes().saturating_sub(ENVELOPE_BYTES)
    }

    fn generation(&self) -> u64 {
        self.engine.generation()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.engine.watch(key)
    }
}

#[async_trait]
impl<B: Agenda> Agenda for Encrypted<B> {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        self.engine.schedule(queue, key, after).await
    }

    async fn create_with_timer(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        queue: &Queue,
        after: Duration,
    ) -> Result<Written, StorageError> {
        let (data, options) = self.seal(key, &data, options)?;
        self.engine.create_with_timer(key, data, options, queue, after).await.map_err(in_plain_bytes)
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        self.engine.take_due(queues, limit, hide_for).await
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        self.engine.resolve(due, next).await
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.engine.wakeups(queues)
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        self.engine.owners(after).await
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        self.engine.timers(queue, after).await
    }
}
