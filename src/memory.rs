//! The memory engine: the contract read literally, in one file and without a server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::backend::{DEFAULT_MAX_VALUE_BYTES, check_size, from_micros, from_millis};
use crate::{
    Cursor, Expiry, ListedRecord, OwnerId, Page, PageRequest, PutOptions, Record, StorageBackend,
    StorageError, TaskId, TaskKey, Version, Written,
};

/// How many expired records one write drops at most, so that no write pays for a mass expiry.
const DROPPED_BY_A_WRITE: usize = 32;

/// Keeps records in the memory of this process: for tests, examples, and servers whose tasks need not
/// outlive them.
///
/// Share it as an `Arc`. Its clock is the wall clock at construction, carried on by the monotonic clock,
/// so that a step of the wall clock expires nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::StorageError> {
/// use mcp_task_store::{MemoryBackend, PutOptions, StorageBackend, TaskKey, Version};
///
/// let backend = MemoryBackend::new();
/// let key = TaskKey::new("alice", "t1")?;
/// backend.put(&key, "hello".into(), PutOptions::default()).await?;
/// assert_eq!(backend.get(&key).await?.version, Version::FIRST);
/// # Ok(())
/// # }
/// ```
pub struct MemoryBackend {
    records: Mutex<Records>,
    max_value_bytes: usize,
    /// Microseconds since the epoch.
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// All records, and two orders of them. An owner without records has no entry.
#[derive(Default)]
struct Records {
    owners: HashMap<OwnerId, Owner>,
    by_expiry: BTreeSet<(u64, TaskKey)>,
}

#[derive(Default)]
struct Owner {
    tasks: HashMap<TaskId, Stored>,
    by_creation: BTreeMap<u64, TaskId>,
}

struct Stored {
    data: Bytes,
    version: Version,
    /// Milliseconds since the epoch.
    expires_at: Option<u64>,
    /// Microseconds since the epoch, strictly increasing within an owner.
    created_at: u64,
}

impl Stored {
    fn is_live(&self, now_ms: u64) -> bool {
        self.expires_at.is_none_or(|at| now_ms < at)
    }

    fn read(&self) -> Record {
        Record {
            data: self.data.clone(),
            version: self.version,
            expires_at: self.expires_at.map(from_millis),
        }
    }
}

impl Records {
    fn live(&self, key: &TaskKey, now_ms: u64) -> Option<&Stored> {
        self.owners.get(&key.owner)?.tasks.get(&key.task).filter(|stored| stored.is_live(now_ms))
    }

    fn remove(&mut self, key: &TaskKey) -> Option<Stored> {
        let owner = self.owners.get_mut(&key.owner)?;
        let stored = owner.tasks.remove(&key.task)?;
        owner.by_creation.remove(&stored.created_at);
        if owner.tasks.is_empty() {
            self.owners.remove(&key.owner);
        }
        if let Some(at) = stored.expires_at {
            self.by_expiry.remove(&(at, key.clone()));
        }
        Some(stored)
    }

    fn insert(&mut self, key: &TaskKey, stored: Stored) {
        if let Some(at) = stored.expires_at {
            self.by_expiry.insert((at, key.clone()));
        }
        let owner = self.owners.entry(key.owner.clone()).or_default();
        owner.by_creation.insert(stored.created_at, key.task.clone());
        owner.tasks.insert(key.task.clone(), stored);
    }

    fn drop_expired(&mut self, now_ms: u64, most: usize) -> u64 {
        let mut dropped = 0;
        while dropped < most {
            let Some((_, key)) = self.by_expiry.first().filter(|(at, _)| *at <= now_ms).cloned() else {
                break;
            };
            self.remove(&key);
            dropped += 1;
        }
        dropped as u64
    }
}

impl MemoryBackend {
    /// An empty store.
    pub fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = Instant::now();
        Self::with_clock(move || (wall + started.elapsed()).as_micros() as u64)
    }

    /// The same with another maximum value size, in bytes; 1 MiB unless set.
    #[must_use]
    pub fn max_value_bytes(mut self, max: usize) -> Self {
        self.max_value_bytes = max;
        self
    }

    fn with_clock(clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { records: Mutex::default(), max_value_bytes: DEFAULT_MAX_VALUE_BYTES, clock: Box::new(clock) }
    }

    fn now_ms(&self) -> u64 {
        (self.clock)() / 1000
    }

    /// No code panics while it holds the lock, so a poisoned one holds whole records.
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both writes: `expected` is `None` for an unconditional one.
    fn write(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Option<Version>,
    ) -> Result<Written, StorageError> {
        check_size(&data, self.max_value_bytes)?;
        let duration = options.expiry.millis()?;
        let mut records = self.lock();
        let now_us = (self.clock)();
        let now_ms = now_us / 1000;

        let (version, kept_expiry, created_at) = match (records.live(key, now_ms), expected) {
            (Some(live), Some(expected)) if live.version != expected => {
                return Err(StorageError::VersionConflict {
                    key: key.to_string(),
                    expected,
                    actual: live.version,
                });
            }
            (Some(live), _) => {
                let Some(next) = live.version.next() else {
                    return Err(StorageError::VersionExhausted { key: key.to_string() });
                };
                (next, live.expires_at, live.created_at)
            }
            (None, Some(expected)) if expected != Version::ABSENT => {
                return Err(StorageError::NotFound { key: key.to_string() });
            }
            (None, _) => {
                let owner = records.owners.get(&key.owner);
                check_quota(key, owner, options.quota, now_ms)?;
                let newest = owner.and_then(|owner| owner.by_creation.last_key_value());
                let created_at = newest.map_or(now_us, |(newest, _)| now_us.max(newest + 1));
                records.drop_expired(now_ms, DROPPED_BY_A_WRITE);
                (Version::FIRST, None, created_at)
            }
        };
        let expires_at = match options.expiry {
            Expiry::Keep => kept_expiry,
            Expiry::Never => None,
            Expiry::After(_) => duration.map(|duration| now_ms + 1 + duration),
        };
        records.remove(key);
        records.insert(key, Stored { data, version, expires_at, created_at });
        Ok(Written { version, expires_at: expires_at.map(from_millis) })
    }
}

fn check_quota(
    key: &TaskKey,
    owner: Option<&Owner>,
    quota: Option<u64>,
    now_ms: u64,
) -> Result<(), StorageError> {
    let Some(quota) = quota else { return Ok(()) };
    let held = owner.map_or(0, |owner| owner.tasks.len() as u64);
    if held < quota {
        return Ok(());
    }
    let live = owner.map_or(0, |owner| owner.tasks.values().filter(|task| task.is_live(now_ms)).count());
    if (live as u64) < quota {
        return Ok(());
    }
    Err(StorageError::CapacityExceeded {
        reason: format!("owner {:?} has {live} live records of {quota}", key.owner),
        quota: Some(quota),
        source: None,
    })
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBackend")
            .field("max_value_bytes", &self.max_value_bytes)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl StorageBackend for MemoryBackend {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        let records = self.lock();
        records
            .live(key, self.now_ms())
            .map(Stored::read)
            .ok_or_else(|| StorageError::NotFound { key: key.to_string() })
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.write(key, data, options, None)
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.write(key, data, options, Some(expected))
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        let removed = self.lock().remove(key);
        Ok(removed.is_some_and(|stored| stored.is_live(self.now_ms())))
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        let (limit, below) = page.check(owner)?;
        let records = self.lock();
        let now_ms = self.now_ms();
        let mut page = Page::default();
        let Some(held) = records.owners.get(owner) else {
            return Ok(page);
        };
        let mut older = held.by_creation.range(..below.unwrap_or(u64::MAX)).rev().filter_map(|(at, task)| {
            held.tasks.get(task).filter(|stored| stored.is_live(now_ms)).map(|stored| (*at, task, stored))
        });
        for (created_at, task, stored) in older.by_ref().take(limit) {
            page.records.push(ListedRecord::new(task.clone(), stored.read(), from_micros(created_at)));
            page.next = Some(Cursor::new(owner, created_at));
        }
        if older.next().is_none() {
            page.next = None;
        }
        Ok(page)
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        let now_ms = self.now_ms();
        Ok(self.lock().drop_expired(now_ms, usize::MAX))
    }

    fn now(&self) -> DateTime<Utc> {
        from_micros((self.clock)())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    const SECOND: u64 = 1_000_000;

    fn with_a_clock_to_set() -> (MemoryBackend, Arc<AtomicU64>) {
        let clock = Arc::new(AtomicU64::new(1_000 * SECOND));
        let backend = MemoryBackend::with_clock({
            let clock = Arc::clone(&clock);
            move || clock.load(Ordering::SeqCst)
        });
        (backend, clock)
    }

    fn key(owner: &str, task: &str) -> TaskKey {
        TaskKey::new(owner, task).unwrap()
    }

    fn after(millis: u64) -> PutOptions {
        Expiry::After(Duration::from_millis(millis)).into()
    }

    #[tokio::test]
    async fn past_the_last_version_a_write_is_version_exhausted() {
        let backend = MemoryBackend::new();
        let key = key("alice", "t1");
        let put = backend.put(&key, "old".into(), PutOptions::default());
        put.await.unwrap();
        let last = Version::from(Version::MAX.get() - 1);
        backend.lock().owners.get_mut(&key.owner).unwrap().tasks.get_mut(&key.task).unwrap().version = last;

        let options = PutOptions::default();
        let written = backend.put_if_version(&key, "last".into(), options, last).await.unwrap();
        assert_eq!(written.version, Version::MAX);
        for refused in [
            backend.put(&key, "new".into(), options).await,
            backend.put_if_version(&key, "new".into(), options, Version::MAX).await,
        ] {
            assert!(matches!(refused, Err(StorageError::VersionExhausted { .. })));
        }
        assert_eq!(backend.get(&key).await.unwrap().data, "last");
        assert!(backend.delete(&key).await.unwrap());
    }

    #[tokio::test]
    async fn creation_times_increase_after_the_clock_steps_back() {
        let (backend, clock) = with_a_clock_to_set();
        for (step, task) in ["first", "second", "third"].into_iter().enumerate() {
            clock.store((1_000 - step as u64) * SECOND, Ordering::SeqCst);
            backend.put(&key("alice", task), Bytes::new(), PutOptions::default()).await.unwrap();
        }
        let page = backend.list(&"alice".try_into().unwrap(), PageRequest::new(10)).await.unwrap();
        let newest_first: Vec<_> = page.records.iter().map(|record| record.task.as_str()).collect();
        assert_eq!(newest_first, ["third", "second", "first"]);
    }

    #[tokio::test]
    async fn a_record_expires_at_its_expires_at_to_the_millisecond() {
        let (backend, clock) = with_a_clock_to_set();
        let key = key("alice", "t1");
        let written = backend.put(&key, Bytes::new(), after(5)).await.unwrap();
        let at = written.expires_at.unwrap().timestamp_micros() as u64;
        assert_eq!(at, 1_000 * SECOND + 6_000);
        clock.store(at - 1, Ordering::SeqCst);
        backend.get(&key).await.unwrap();
        clock.store(at, Ordering::SeqCst);
        assert!(matches!(backend.get(&key).await, Err(StorageError::NotFound { .. })));
    }

    #[tokio::test]
    async fn nothing_is_held_of_owners_whose_records_have_expired_or_were_deleted() {
        let (backend, clock) = with_a_clock_to_set();
        for task in 0..100 {
            backend.put(&key("expiring", &task.to_string()), Bytes::new(), after(10)).await.unwrap();
        }
        backend.put(&key("deleting", "t1"), Bytes::new(), after(10)).await.unwrap();
        assert!(backend.delete(&key("deleting", "t1")).await.unwrap());
        clock.store(1_001 * SECOND, Ordering::SeqCst);
        backend.put(&key("other", "t1"), Bytes::new(), PutOptions::default()).await.unwrap();
        assert_eq!(backend.lock().by_expiry.len(), 100 - DROPPED_BY_A_WRITE);
        assert_eq!(backend.cleanup_expired().await.unwrap(), 100 - DROPPED_BY_A_WRITE as u64);
        let records = backend.lock();
        assert_eq!(records.owners.keys().map(OwnerId::as_str).collect::<Vec<_>>(), ["other"]);
        assert!(records.by_expiry.is_empty());
    }
}
