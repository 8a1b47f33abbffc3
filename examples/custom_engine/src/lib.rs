//! An engine of `mcp-task-store` over plain files.
//!
//! One file holds one record. A lock file orders the calls of all processes that share the folder. The engine syncs a
//! write to the disk before it acknowledges the write. So no crash loses an acknowledged write or leaves half of one.
//!
//! The engine is an example: small, correct, and slow. Each update reads and rewrites a whole file, parts included. Each call lists the
//! owner's folder. The guide "Writing an engine" explains the code.

mod folder;
mod record;

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;
use mcp_task_store::backend::engine::{
    PageBounds, WriteMode, check_part_count, check_parts, check_size, cursor, expiry_millis, from_micros,
    watch_by_polling,
};
use mcp_task_store::{
    CorruptRecord, DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES, Expiry, ListedRecord, OwnerId, Page,
    PageRequest, Part, PartName, PutOptions, Record, StorageBackend, StorageError, TaskKey, Version, Written,
};

use folder::{Access, Entry, Failure, Folder, Locked};
use record::Stored;

/// Stores records as files below one folder. Clones share the folder, and so may several processes of one machine.
///
/// ```no_run
/// use custom_engine::FileBackend;
/// use mcp_task_store::{LocalAgenda, TaskStore};
///
/// # fn main() -> Result<(), mcp_task_store::StorageError> {
/// let engine = FileBackend::open("/var/lib/my-server/tasks")?;
/// let store = TaskStore::new(LocalAgenda::new(engine));
/// # let _ = store;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileBackend(Folder);

impl FileBackend {
    /// Opens the folder, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`StorageError::Backend`] if the folder cannot be created or written.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StorageError> {
        Folder::open(path.into()).map(Self)
    }

    /// Implements `put` and `put_if_version`.
    async fn write(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        mode: WriteMode,
    ) -> Result<Written, StorageError> {
        check_size(&data, DEFAULT_MAX_VALUE_BYTES)?;
        check_parts(&options.parts, DEFAULT_MAX_PART_BYTES)?;
        expiry_millis(options.expiry)?;
        let key = key.clone();
        self.0.call(Access::Write, move |folder| write(folder, &key, data, options, mode)).await
    }
}

#[async_trait]
impl StorageBackend for FileBackend {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        let key = key.clone();
        self.0.call(Access::Read, move |folder| Ok(live(folder, &key)?.to_record())).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        let (key, name) = (key.clone(), name.clone());
        let part = move |folder: &Locked| {
            let stored = live(folder, &key)?;
            Ok(stored.parts.get(&name).map(|data| Part::new(data.clone(), stored.version)))
        };
        self.0.call(Access::Read, part).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.write(key, data, options, WriteMode::Upsert).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.write(key, data, options, WriteMode::expecting(expected)).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        let key = key.clone();
        let delete = move |folder: &Locked| {
            let entries = folder.entries(&key.owner)?;
            let Some(entry) = Entry::of(&entries, &key.task) else { return Ok(false) };
            let was_live = match folder.read(entry, &key) {
                Ok(stored) => stored.is_live(now_millis()),
                // `delete` also removes a record that cannot be read.
                Err(Failure::Storage(StorageError::Corrupt { .. })) => true,
                Err(error) => return Err(error),
            };
            folder.remove(entry)?;
            Ok(was_live)
        };
        self.0.call(Access::Write, delete).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        let bounds = PageBounds::check(&page, owner)?;
        let owner = owner.clone();
        self.0.call(Access::Read, move |folder| list(folder, &owner, bounds)).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.0.call(Access::Write, cleanup).await
    }

    /// Returns the clock of this machine, because a file system has no clock that can be read.
    async fn clock(&self, _key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        Ok(self.now())
    }

    fn now(&self) -> DateTime<Utc> {
        from_micros(now_micros())
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        watch_by_polling(self.clone(), key.clone())
    }
}

fn now_micros() -> u64 {
    u64::try_from(Utc::now().timestamp_micros()).unwrap_or(0)
}

fn now_millis() -> u64 {
    now_micros() / 1000
}

/// Reads the live record of a key.
fn live(folder: &Locked, key: &TaskKey) -> Result<Stored, Failure> {
    let entries = folder.entries(&key.owner)?;
    let stored = Entry::of(&entries, &key.task).map(|entry| folder.read(entry, key)).transpose()?;
    let live = stored.filter(|stored| stored.is_live(now_millis()));
    live.ok_or_else(|| StorageError::NotFound { key: key.clone() }.into())
}

/// Writes a record. The caller holds the lock, so everything from the first read to the rename is one atomic step.
fn write(
    folder: &Locked,
    key: &TaskKey,
    data: Bytes,
    options: PutOptions,
    mode: WriteMode,
) -> Result<Written, Failure> {
    let now = now_micros();
    let entries = folder.entries(&key.owner)?;
    let entry = Entry::of(&entries, &key.task);
    let stored = entry.map(|entry| folder.read(entry, key)).transpose()?;
    let live = stored.filter(|stored| stored.is_live(now / 1000));

    let version = mode.next_version(key, live.as_ref().map(|live| live.version))?;
    if live.is_none()
        && let Some(quota) = options.quota
    {
        check_quota(folder, key, &entries, quota)?;
    }
    let created_at = match (&live, entry) {
        (Some(_), Some(entry)) => entry.created_at,
        // Creation times must increase, also after the clock was set back.
        _ => entries.last().map_or(now, |newest| now.max(newest.created_at + 1)),
    };
    let mut new = live.clone().unwrap_or_default();
    new.apply(options.parts);
    check_part_count(new.parts.len())?;
    (new.data, new.version) = (data, version);
    new.expires_at = match options.expiry {
        Expiry::Keep => new.expires_at,
        Expiry::Never => None,
        // Part of the current millisecond has passed. Without the 1, the record would expire early.
        Expiry::After(_) => expiry_millis(options.expiry)?.map(|millis| now / 1000 + 1 + millis),
    };

    folder.write(key, created_at, &new)?;
    // The expired file is removed last: after a crash in between, `Entry::of` finds the newer file.
    if live.is_none()
        && let Some(expired) = entry
    {
        folder.remove(expired)?;
    }
    Ok(Written::new(version, new.expires_at()))
}

/// Checks the owner's quota. Reads the records only if the number of files reaches the quota.
fn check_quota(folder: &Locked, key: &TaskKey, entries: &[Entry], quota: u64) -> Result<(), Failure> {
    if (entries.len() as u64) < quota {
        return Ok(());
    }
    let now = now_millis();
    let is_live = |entry: &&Entry| !folder.read(entry, key).is_ok_and(|stored| !stored.is_live(now));
    let live = entries.iter().filter(is_live).count() as u64;
    if live < quota {
        return Ok(());
    }
    let reason = format!(
        "owner {:?} has {live} live records, and its quota is {quota}; delete records or raise the quota",
        key.owner
    );
    Err(StorageError::CapacityExceeded { reason, quota: Some(quota), source: None }.into())
}

fn list(folder: &Locked, owner: &OwnerId, bounds: PageBounds) -> Result<Page, Failure> {
    let (now, mut bytes, mut page) = (now_millis(), 0, Page::default());
    let below = bounds.below.unwrap_or(u64::MAX);
    for entry in folder.entries(owner)?.iter().rev().filter(|entry| entry.created_at < below) {
        let task = folder.task(entry)?;
        let key = TaskKey::from((owner.clone(), task.clone()));
        let stored = match folder.read(entry, &key) {
            Ok(stored) if stored.is_live(now) => stored,
            Ok(_) => continue,
            Err(Failure::Storage(StorageError::Corrupt { reason, .. })) => {
                page.corrupt.push(CorruptRecord::new(task, reason));
                continue;
            }
            Err(error) => return Err(error),
        };
        bytes += stored.data.len();
        if page.records.len() == bounds.limit || !page.records.is_empty() && bytes > bounds.max_bytes {
            return Ok(page);
        }
        page.records.push(ListedRecord::new(task, stored.to_record(), from_micros(entry.created_at)));
        page.next = Some(cursor(owner, entry.created_at));
    }
    page.next = None;
    Ok(page)
}

fn cleanup(folder: &Locked) -> Result<u64, Failure> {
    let (now, mut removed) = (now_millis(), 0);
    for entry in folder.all_entries()? {
        // A record that cannot be read stays until it is deleted.
        if folder.expires_at(&entry)?.is_some_and(|at| at <= now) {
            folder.remove(&entry)?;
            removed += 1;
        }
    }
    Ok(removed)
}
