//! The memory engine: the reference implementation of the contract, in one file and without a server.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;

use crate::backend::engine::{
    Change, PageBounds, Timers, Watchers, WriteMode, check_part_count, check_parts, check_size, cursor,
    expiry_millis, from_micros, from_millis, watch_by_notifications,
};
use crate::backend::{
    Agenda, Cursor, DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES, Due, Expiry, ListedRecord, Next,
    OwnerId, OwnerPage, Page, PageRequest, Part, PartChange, PartChanges, PartName, PutOptions, Queue,
    Record, StorageBackend, StorageError, Taken, TaskId, TaskKey, TimerPage, Version, Written,
};

/// How many shards hold the owners. Each shard has a lock of its own, so that few calls wait for each other.
const SHARDS: usize = 16;

/// The maximum number of expired records of a shard that one insert drops, so that no insert is slow after many
/// records have expired at once.
const DROPPED_BY_A_WRITE: usize = 32;

/// Stores records in the memory of this process: for tests, examples, and servers whose tasks need not outlive the process.
///
/// Clones share their records. The engine's clock is the wall clock at construction, advanced by the monotonic clock,
/// so a step of the wall clock expires no record. Each insert frees the memory of a few expired records, and
/// [`cleanup_expired`](StorageBackend::cleanup_expired) frees all of them.
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
#[derive(Clone)]
pub struct MemoryBackend {
    max_value_bytes: usize,
    max_part_bytes: usize,
    contents: Arc<Contents>,
}

/// What the clones of an engine share.
struct Contents {
    shards: Box<[Mutex<Shard>]>,
    /// Selects the shard of an owner. The seed is random, so nobody can choose owner ids that all fall into one
    /// shard.
    hasher: RandomState,
    timers: Timers,
    /// The number of the shard that the next insert sweeps in addition to its own.
    next_swept: AtomicUsize,
    /// Microseconds since the epoch.
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// Some of the owners, under one lock. An owner without records has no entry.
#[derive(Default)]
struct Shard {
    owners: HashMap<OwnerId, Owner>,
    /// The owners that have a record with an expiry, each by its earliest expiry.
    by_first_expiry: BTreeSet<(u64, OwnerId)>,
    watchers: Watchers<TaskKey>,
}

/// The records of an owner, and two indexes of them. The Redis engine stores the same in hashes and one sorted set.
#[derive(Default)]
struct Owner {
    tasks: HashMap<TaskId, Stored>,
    by_creation: BTreeMap<u64, TaskId>,
    /// The records that have an expiry.
    by_expiry: BTreeSet<(u64, TaskId)>,
}

struct Stored {
    data: Bytes,
    version: Version,
    /// Milliseconds since the epoch.
    expires_at: Option<u64>,
    /// Microseconds since the epoch, strictly increasing within an owner.
    created_at: u64,
    parts: BTreeMap<PartName, Bytes>,
}

impl Stored {
    fn is_live(&self, now_ms: u64) -> bool {
        self.expires_at.is_none_or(|at| now_ms < at)
    }

    fn read(&self) -> Record {
        let parts = self.parts.iter().map(|(name, data)| (name.clone(), data.len())).collect();
        Record::new(self.data.clone(), self.version, self.expires_at.map(from_millis), parts)
    }
}

/// Applies the changes of a write to the parts of a record.
///
/// # Errors
/// `TooLarge` for more parts than a record may have. The parts are then unchanged.
fn change_parts(parts: &mut BTreeMap<PartName, Bytes>, changes: PartChanges) -> Result<(), StorageError> {
    let changed = |name: &PartName| changes.get(name);
    let kept = parts.keys().filter(|name| changed(name).is_none()).count();
    let set = changes.values().filter(|change| matches!(change, PartChange::Set(_))).count();
    check_part_count(kept + set)?;
    for (name, change) in changes {
        match change {
            PartChange::Set(data) => drop(parts.insert(name, data)),
            PartChange::Clear => drop(parts.remove(&name)),
        }
    }
    Ok(())
}

/// Moves a member of an index by expiry. Does nothing if the expiry is unchanged.
fn update_index<T: Clone + Ord>(
    index: &mut BTreeSet<(u64, T)>,
    member: &T,
    before: Option<u64>,
    after: Option<u64>,
) {
    if before == after {
        return;
    }
    if let Some(at) = before {
        index.remove(&(at, member.clone()));
    }
    if let Some(at) = after {
        index.insert((at, member.clone()));
    }
}

impl Owner {
    fn first_expiry(&self) -> Option<u64> {
        self.by_expiry.first().map(|(at, _)| *at)
    }

    /// Returns the records that have expired and are still held.
    fn due(&self, now_ms: u64) -> impl Iterator<Item = &TaskId> {
        self.by_expiry.iter().take_while(move |(at, _)| *at <= now_ms).map(|(_, task)| task)
    }

    /// Inserts a new record. Replaces an expired record that is still held.
    fn insert(&mut self, task: &TaskId, stored: Stored) {
        let (created_at, expires_at) = (stored.created_at, stored.expires_at);
        let expired = self.tasks.insert(task.clone(), stored);
        if let Some(expired) = &expired {
            self.by_creation.remove(&expired.created_at);
        }
        self.by_creation.insert(created_at, task.clone());
        update_index(&mut self.by_expiry, task, expired.and_then(|expired| expired.expires_at), expires_at);
    }

    fn remove(&mut self, task: &TaskId) -> Option<Stored> {
        let stored = self.tasks.remove(task)?;
        self.by_creation.remove(&stored.created_at);
        update_index(&mut self.by_expiry, task, stored.expires_at, None);
        Some(stored)
    }
}

impl Shard {
    fn live(&mut self, key: &TaskKey, now_ms: u64) -> Option<&mut Stored> {
        self.owners.get_mut(&key.owner)?.tasks.get_mut(&key.task).filter(|stored| stored.is_live(now_ms))
    }

    /// Changes the records of an owner or their expiry. Every such change calls this method: it updates the index of
    /// the owners, and removes an owner without records.
    fn change<T>(&mut self, owner: &OwnerId, change: impl FnOnce(&mut Owner) -> T) -> T {
        let mut held = match self.owners.entry(owner.clone()) {
            Entry::Occupied(held) => held,
            Entry::Vacant(none) => none.insert_entry(Owner::default()),
        };
        let first_expiry = held.get().first_expiry();
        let outcome = change(held.get_mut());
        update_index(&mut self.by_first_expiry, owner, first_expiry, held.get().first_expiry());
        if held.get().tasks.is_empty() {
            held.remove();
        }
        outcome
    }

    fn drop_expired(&mut self, now_ms: u64, most: usize) -> usize {
        let mut dropped = 0;
        while dropped < most
            && let Some((_, owner)) = self.by_first_expiry.first().filter(|(at, _)| *at <= now_ms).cloned()
        {
            let of_owner = self.change(&owner, |owner| {
                let due: Vec<_> = owner.due(now_ms).take(most - dropped).cloned().collect();
                due.iter().filter_map(|task| owner.remove(task)).count()
            });
            // This happens only if an index is wrong. The loop must not spin while it holds the lock.
            if of_owner == 0 {
                break;
            }
            dropped += of_owner;
        }
        dropped
    }
}

/// Locks a shard. No code panics while it holds the lock, so the records behind a poisoned lock are consistent.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryBackend {
    /// Creates an engine without records.
    pub fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = Instant::now();
        Self::with_clock(SHARDS, move || (wall + started.elapsed()).as_micros() as u64)
    }

    /// Sets the largest data of a record in bytes; 1 MiB by default.
    #[must_use]
    pub fn max_value_bytes(mut self, max: usize) -> Self {
        self.max_value_bytes = max;
        self
    }

    /// Sets the largest part in bytes; 4 MiB by default.
    #[must_use]
    pub fn max_part_bytes(mut self, max: usize) -> Self {
        self.max_part_bytes = max;
        self
    }

    fn with_clock(shards: usize, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let contents = Contents {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            timers: Timers::default(),
            next_swept: AtomicUsize::new(0),
            clock: Box::new(clock),
        };
        Self {
            max_value_bytes: DEFAULT_MAX_VALUE_BYTES,
            max_part_bytes: DEFAULT_MAX_PART_BYTES,
            contents: Arc::new(contents),
        }
    }

    fn now_ms(&self) -> u64 {
        (self.contents.clock)() / 1000
    }

    /// Locks the shard of an owner. A call for one owner waits for no other lock.
    fn shard(&self, owner: &OwnerId) -> MutexGuard<'_, Shard> {
        lock(
            &self.contents.shards[self.contents.hasher.hash_one(owner) as usize % self.contents.shards.len()],
        )
    }

    /// Drops expired records of the next shard in turn. This also frees the memory of owners that write no more.
    /// Skips a shard that is locked: otherwise two inserts could wait for each other's shard without end.
    fn sweep_another(&self, now_ms: u64) {
        let next = self.contents.next_swept.fetch_add(1, Ordering::Relaxed) % self.contents.shards.len();
        if let Ok(mut shard) = self.contents.shards[next].try_lock() {
            shard.drop_expired(now_ms, DROPPED_BY_A_WRITE);
        }
    }

    /// Implements `put` and `put_if_version`.
    fn write(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        mode: WriteMode,
    ) -> Result<Written, StorageError> {
        check_size(&data, self.max_value_bytes)?;
        check_parts(&options.parts, self.max_part_bytes)?;
        let (notifies, millis) = (options.notifies(), expiry_millis(options.expiry)?);
        let mut shard = self.shard(&key.owner);
        let now_us = (self.contents.clock)();
        let expiry_after = |before| match options.expiry {
            Expiry::Keep => before,
            Expiry::Never => None,
            Expiry::After(_) => millis.map(|millis| now_us / 1000 + 1 + millis),
        };

        let live = shard.live(key, now_us / 1000);
        let version = mode.next_version(key, live.as_ref().map(|live| live.version))?;
        let expires_at = match live {
            Some(live) => {
                change_parts(&mut live.parts, options.parts)?;
                let (before, after) = (live.expires_at, expiry_after(live.expires_at));
                (live.data, live.version, live.expires_at) = (data, version, after);
                if before != after {
                    shard.change(&key.owner, |owner| {
                        update_index(&mut owner.by_expiry, &key.task, before, after)
                    });
                }
                after
            }
            None => {
                let mut parts = BTreeMap::new();
                change_parts(&mut parts, options.parts)?;
                let stored =
                    Stored { data, version, expires_at: expiry_after(None), created_at: now_us, parts };
                self.insert(&mut shard, key, stored, options.quota)?
            }
        }
        .map(from_millis);
        if notifies {
            shard.watchers.notify(key, Change::Written(expires_at));
        }
        Ok(Written::new(version, expires_at))
    }

    /// Inserts a new record, within the owner's quota. Returns when it expires.
    fn insert(
        &self,
        shard: &mut Shard,
        key: &TaskKey,
        mut stored: Stored,
        quota: Option<u64>,
    ) -> Result<Option<u64>, StorageError> {
        let (now_ms, owner) = (stored.created_at / 1000, shard.owners.get(&key.owner));
        if let Some(quota) = quota {
            check_quota(&key.owner, owner, quota, now_ms)?;
        }
        if let Some((newest, _)) = owner.and_then(|owner| owner.by_creation.last_key_value()) {
            stored.created_at = stored.created_at.max(newest + 1);
        }
        shard.drop_expired(now_ms, DROPPED_BY_A_WRITE);
        self.sweep_another(now_ms);
        let expires_at = stored.expires_at;
        shard.change(&key.owner, |owner| owner.insert(&key.task, stored));
        Ok(expires_at)
    }
}

fn check_quota(id: &OwnerId, owner: Option<&Owner>, quota: u64, now_ms: u64) -> Result<(), StorageError> {
    let held = owner.map_or(0, |owner| owner.tasks.len() as u64);
    if held < quota {
        return Ok(());
    }
    // Only the few expired records that the engine still holds are counted. The count never walks the live records.
    let live = held - owner.map_or(0, |owner| owner.due(now_ms).count() as u64);
    if live < quota {
        return Ok(());
    }
    Err(StorageError::CapacityExceeded {
        reason: format!(
            "owner {id:?} has {live} live records, and its quota is {quota}; delete records or raise the quota"
        ),
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
        let mut shard = self.shard(&key.owner);
        match shard.live(key, self.now_ms()) {
            Some(live) => Ok(live.read()),
            None => Err(StorageError::NotFound { key: key.clone() }),
        }
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        let mut shard = self.shard(&key.owner);
        let Some(live) = shard.live(key, self.now_ms()) else {
            return Err(StorageError::NotFound { key: key.clone() });
        };
        let version = live.version;
        Ok(live.parts.get(name).map(|data| Part::new(data.clone(), version)))
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.write(key, data, options, WriteMode::Upsert)
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.write(key, data, options, WriteMode::expecting(expected))
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        let mut shard = self.shard(&key.owner);
        let removed = shard.change(&key.owner, |owner| owner.remove(&key.task));
        shard.watchers.notify(key, Change::Unknown);
        Ok(removed.is_some_and(|stored| stored.is_live(self.now_ms())))
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        let PageBounds { limit, max_bytes, below } = PageBounds::check(&page, owner)?;
        let mut bytes = 0;
        let shard = self.shard(owner);
        let now_ms = self.now_ms();
        let mut page = Page::default();
        let Some(held) = shard.owners.get(owner) else {
            return Ok(page);
        };
        let older = held.by_creation.range(..below.unwrap_or(u64::MAX)).rev().filter_map(|(at, task)| {
            held.tasks.get(task).filter(|stored| stored.is_live(now_ms)).map(|stored| (*at, task, stored))
        });
        for (created_at, task, stored) in older {
            bytes += stored.data.len();
            if page.records.len() == limit || !page.records.is_empty() && bytes > max_bytes {
                return Ok(page);
            }
            page.records.push(ListedRecord::new(task.clone(), stored.read(), from_micros(created_at)));
            page.next = Some(cursor(owner, created_at));
        }
        page.next = None;
        Ok(page)
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        let now_ms = self.now_ms();
        let dropped = self.contents.shards.iter().map(|shard| lock(shard).drop_expired(now_ms, usize::MAX));
        Ok(dropped.sum::<usize>() as u64)
    }

    async fn clock(&self, _key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        Ok(self.now())
    }

    fn max_value_bytes(&self) -> usize {
        self.max_value_bytes
    }

    fn now(&self) -> DateTime<Utc> {
        from_micros((self.contents.clock)())
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        let subscription = self.shard(&key.owner).watchers.subscribe(key.clone());
        watch_by_notifications(self.clone(), key.clone(), subscription, true)
    }
}

/// The minimum number of owners of a page, except for the last page.
const OWNERS: usize = 256;

#[async_trait]
impl Agenda for MemoryBackend {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        self.contents.timers.schedule(queue, key, after, self.now())
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        self.contents.timers.take_due(queues, limit, hide_for, self.now())
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        self.contents.timers.resolve(due, next, self.now())
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.contents.timers.wakeups(queues)
    }

    /// The cursor is the number of the next shard.
    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        let shard = match after {
            Some(cursor) => cursor.as_str().parse().ok().filter(|shard| *shard < self.contents.shards.len()),
            None => Some(0),
        };
        let mut shard = shard
            .ok_or_else(|| StorageError::InvalidPage { reason: "the cursor is malformed".to_owned() })?;
        let (now_ms, mut owners) = (self.now_ms(), Vec::new());
        while shard < self.contents.shards.len() && owners.len() < OWNERS {
            let held = lock(&self.contents.shards[shard]);
            let has_live = |owner: &Owner| owner.tasks.values().any(|stored| stored.is_live(now_ms));
            owners.extend(held.owners.iter().filter(|(_, owner)| has_live(owner)).map(|(id, _)| id.clone()));
            shard += 1;
        }
        let next = (shard < self.contents.shards.len()).then(|| Cursor::from(shard.to_string()));
        Ok(OwnerPage::new(owners, next))
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        self.contents.timers.timers(queue, after)
    }
}

#[cfg(test)]
mod tests;
