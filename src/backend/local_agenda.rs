//! Timers for an engine without timers of its own.

use std::fmt;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;

use super::agenda::{Agenda, Due, Next, OwnerPage, Taken, TimerPage};
use super::engine::Timers;
use super::error::StorageError;
use super::key::{OwnerId, TaskKey};
use super::page::{Cursor, Page, PageRequest};
use super::parts::{Part, PartName};
use super::queue::Queue;
use super::record::{PutOptions, Record, Written};
use super::storage::StorageBackend;
use super::version::Version;

/// Wraps an engine, and adds an [`Agenda`] in the memory of this process.
///
/// The timers run on the monotonic clock and end with the process. This process finds a task of a lost worker in
/// another process only when it reads the task. [`owners`](Agenda::owners) is not supported.
///
/// ```
/// use mcp_task_store::{LocalAgenda, MemoryBackend, TaskStore};
///
/// // Use any `StorageBackend` here. This example uses the memory engine, although it has an agenda of its own.
/// let store = TaskStore::new(LocalAgenda::new(MemoryBackend::new()));
/// # let _ = store;
/// ```
pub struct LocalAgenda<B> {
    engine: B,
    timers: Timers,
    started: Instant,
    started_at: DateTime<Utc>,
}

impl<B: StorageBackend> LocalAgenda<B> {
    /// Wraps an engine.
    pub fn new(engine: B) -> Self {
        Self { engine, timers: Timers::default(), started: Instant::now(), started_at: Utc::now() }
    }

    /// Returns the wrapped engine.
    pub fn engine(&self) -> &B {
        &self.engine
    }

    /// Returns the wall clock at construction, advanced by the monotonic clock.
    fn timer_clock(&self) -> DateTime<Utc> {
        self.started_at + self.started.elapsed()
    }
}

impl<B> fmt::Debug for LocalAgenda<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalAgenda").finish_non_exhaustive()
    }
}

#[async_trait]
impl<B: StorageBackend> StorageBackend for LocalAgenda<B> {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.engine.get(key).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        self.engine.part(key, name).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.engine.put(key, data, options).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.engine.put_if_version(key, data, options, expected).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.engine.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        self.engine.list(owner, page).await
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
        self.engine.max_value_bytes()
    }

    fn generation(&self) -> u64 {
        self.engine.generation()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.engine.watch(key)
    }
}

#[async_trait]
impl<B: StorageBackend> Agenda for LocalAgenda<B> {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        self.timers.schedule(queue, key, after, self.timer_clock())
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        self.timers.take_due(queues, limit, hide_for, self.timer_clock())
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        self.timers.resolve(due, next, self.timer_clock())
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.timers.wakeups(queues)
    }

    /// # Errors
    /// Always `Backend`: a `StorageBackend` has no call across owners.
    async fn owners(&self, _after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        Err(StorageError::Backend {
            address: "LocalAgenda".to_owned(),
            reason: "the engine cannot list owners; name the owner instead".to_owned(),
            outcome_unknown: false,
            source: None,
        })
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        self.timers.timers(queue, after)
    }
}
