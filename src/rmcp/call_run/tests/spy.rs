//! An engine that counts the calls about tasks, and delays or fails them when a test says so.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use crate::MemoryBackend;
use crate::backend::{
    Agenda, Cursor, Due, Next, OwnerId, OwnerPage, Page, PageRequest, Part, PartName, PutOptions, Queue,
    Record, StorageBackend, StorageError, Taken, TaskKey, TimerPage, Version, Written,
};

pub(super) struct Spy {
    engine: MemoryBackend,
    /// How many calls it has received. The background tasks take timers whether or not there are calls, so a take does not
    /// count.
    calls: AtomicUsize,
    /// Creates wait while this is `true`.
    pub(super) holds_creates: watch::Sender<bool>,
    /// How many creates have arrived.
    pub(super) creates: watch::Sender<usize>,
    /// Fails every call.
    pub(super) is_down: AtomicBool,
    /// Applies the next create, loses its reply, and is down from then on.
    pub(super) loses_reply: AtomicBool,
}

impl Spy {
    pub(super) fn new() -> Self {
        Self {
            engine: MemoryBackend::new(),
            calls: AtomicUsize::new(0),
            holds_creates: watch::Sender::new(false),
            creates: watch::Sender::new(0),
            is_down: AtomicBool::new(false),
            loses_reply: AtomicBool::new(false),
        }
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Waits until this many creates have arrived.
    pub(super) async fn receives_creates(&self, number: usize) {
        self.creates.subscribe().wait_for(|creates| *creates >= number).await.unwrap();
    }

    fn count(&self) -> Result<(), StorageError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.is_down.load(Ordering::SeqCst) { Err(unavailable(false)) } else { Ok(()) }
    }

    async fn create(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.creates.send_modify(|creates| *creates += 1);
        self.holds_creates.subscribe().wait_for(|holds| !*holds).await.unwrap();
        let written = self.engine.put_if_version(key, data, options, Version::ABSENT).await;
        if self.loses_reply.swap(false, Ordering::SeqCst) {
            self.is_down.store(true, Ordering::SeqCst);
            return Err(unavailable(true));
        }
        written
    }
}

fn unavailable(outcome_unknown: bool) -> StorageError {
    StorageError::Unavailable {
        address: "the spy".to_owned(),
        reason: "connection reset".to_owned(),
        outcome_unknown,
        source: None,
    }
}

#[async_trait]
impl StorageBackend for Spy {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.count()?;
        self.engine.get(key).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        self.count()?;
        self.engine.part(key, name).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.count()?;
        self.engine.put(key, data, options).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.count()?;
        match expected {
            Version::ABSENT => self.create(key, data, options).await,
            expected => self.engine.put_if_version(key, data, options, expected).await,
        }
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.count()?;
        self.engine.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        self.count()?;
        self.engine.list(owner, page).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.count()?;
        self.engine.cleanup_expired().await
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        self.count()?;
        self.engine.clock(key).await
    }

    fn now(&self) -> DateTime<Utc> {
        self.engine.now()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.engine.watch(key)
    }
}

#[async_trait]
impl Agenda for Spy {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        self.count()?;
        self.engine.schedule(queue, key, after).await
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
        self.count()?;
        self.engine.resolve(due, next).await
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.engine.wakeups(queues)
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        self.count()?;
        self.engine.owners(after).await
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        self.count()?;
        self.engine.timers(queue, after).await
    }
}
