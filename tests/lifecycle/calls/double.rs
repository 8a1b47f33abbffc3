//! An engine that does what a test wants, in front of the memory engine.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use mcp_task_store::{
    Agenda, Cursor, Due, MemoryBackend, Next, OwnerId, OwnerPage, Page, PageRequest, Part, PartName,
    PutOptions, Queue, Record, StorageBackend, StorageError, Taken, TaskKey, TimerPage, Version, Written,
};
use tokio::sync::watch;

/// What the server does with what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Answers,
    /// Nothing is answered until it is asked to go on. What it was asked meanwhile is done then.
    Hangs,
    /// Writes are answered, and reads are not.
    HangsOnReads,
    /// Whatever it is asked is done, and nothing is answered.
    AppliesOnly,
    Refuses,
}

pub struct Double {
    memory: Mutex<Arc<MemoryBackend>>,
    server: watch::Sender<Server>,
    generation: AtomicU64,
    /// How many milliseconds each answer takes.
    pub takes_ms: AtomicU64,
    /// How many milliseconds a page takes in addition.
    pub page_takes_ms: AtomicU64,
    pub reads: AtomicUsize,
    pub writes: AtomicUsize,
    /// The server of this owner refuses all.
    refused_owner: Mutex<Option<OwnerId>>,
    /// So many of the next writes are lost before they are applied.
    pub loses_writes: AtomicUsize,
}

impl Double {
    pub fn new() -> Arc<Self> {
        Self::of(MemoryBackend::new())
    }

    pub fn of(memory: MemoryBackend) -> Arc<Self> {
        Arc::new(Self {
            memory: Mutex::new(Arc::new(memory)),
            server: watch::Sender::new(Server::Answers),
            generation: AtomicU64::new(0),
            takes_ms: AtomicU64::new(0),
            page_takes_ms: AtomicU64::new(0),
            reads: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            refused_owner: Mutex::default(),
            loses_writes: AtomicUsize::new(0),
        })
    }

    pub fn memory(&self) -> Arc<MemoryBackend> {
        Arc::clone(&self.memory.lock().unwrap())
    }

    /// From now on the server has another history.
    pub fn replace(&self, memory: Arc<MemoryBackend>) {
        *self.memory.lock().unwrap() = memory;
    }

    pub fn reconnect(&self) {
        self.generation.fetch_add(1, SeqCst);
    }

    pub fn set(&self, server: Server) {
        self.server.send_replace(server);
    }

    pub fn refuses_owner(&self, owner: &str) {
        *self.refused_owner.lock().unwrap() = Some(owner.try_into().unwrap());
    }

    pub fn counts(&self) -> (usize, usize) {
        (self.reads.load(SeqCst), self.writes.load(SeqCst))
    }

    /// The memory, once the server does what it was asked.
    async fn asked(&self) -> Result<Arc<MemoryBackend>, StorageError> {
        let takes = self.takes_ms.load(SeqCst);
        if takes > 0 {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        let server = *self.server.subscribe().wait_for(|server| *server != Server::Hangs).await.unwrap();
        match server {
            Server::Refuses => Err(unavailable("connection refused", false)),
            _ => Ok(self.memory()),
        }
    }

    /// Waits as long as answers do not come.
    async fn answer<T>(&self, answer: Result<T, StorageError>) -> Result<T, StorageError> {
        self.server.subscribe().wait_for(|server| *server != Server::AppliesOnly).await.unwrap();
        answer
    }
}

fn unavailable(reason: &str, outcome_unknown: bool) -> StorageError {
    StorageError::Unavailable {
        address: "the double".to_owned(),
        reason: reason.to_owned(),
        outcome_unknown,
        source: None,
    }
}

#[async_trait]
impl StorageBackend for Double {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.reads.fetch_add(1, SeqCst);
        self.server.subscribe().wait_for(|server| *server != Server::HangsOnReads).await.unwrap();
        let read = self.asked().await?.get(key).await;
        self.answer(read).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        let read = self.asked().await?.part(key, name).await;
        self.answer(read).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.writes.fetch_add(1, SeqCst);
        let written = self.asked().await?.put(key, data, options).await;
        self.answer(written).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.writes.fetch_add(1, SeqCst);
        if self.loses_writes.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(unavailable("connection reset", true));
        }
        let written = self.asked().await?.put_if_version(key, data, options, expected).await;
        self.answer(written).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.writes.fetch_add(1, SeqCst);
        let removed = self.asked().await?.delete(key).await;
        self.answer(removed).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        self.reads.fetch_add(1, SeqCst);
        if self.refused_owner.lock().unwrap().as_ref() == Some(owner) {
            return Err(unavailable("connection refused", false));
        }
        tokio::time::sleep(Duration::from_millis(self.page_takes_ms.load(SeqCst))).await;
        let page = self.asked().await?.list(owner, page).await;
        self.answer(page).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        let removed = self.asked().await?.cleanup_expired().await;
        self.answer(removed).await
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        let clock = self.asked().await?.clock(key).await;
        self.answer(clock).await
    }

    fn now(&self) -> DateTime<Utc> {
        self.memory().now()
    }

    fn max_value_bytes(&self) -> usize {
        StorageBackend::max_value_bytes(&*self.memory())
    }

    fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.memory().watch(key)
    }
}

#[async_trait]
impl Agenda for Double {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        let scheduled = self.asked().await?.schedule(queue, key, after).await;
        self.answer(scheduled).await
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        let taken = self.asked().await?.take_due(queues, limit, hide_for).await;
        self.answer(taken).await
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        let resolved = self.asked().await?.resolve(due, next).await;
        self.answer(resolved).await
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.memory().wakeups(queues)
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        self.memory().owners(after).await
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        self.memory().timers(queue, after).await
    }
}
