//! An engine that counts what it is asked, and answers as a test wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::BoxStream;
use mcp_task_store::{
    Agenda, Cursor, Due, Next, OwnerId, OwnerPage, Page, PageRequest, Part, PartName, PutOptions, Queue,
    Record, StorageBackend, StorageError, Taken, TaskKey, TimerPage, Version, Written,
};

pub struct Spy {
    engine: Arc<dyn Agenda>,
    /// How many records were read.
    pub reads: AtomicUsize,
    /// How many timers of leases were scheduled.
    pub scheduled: AtomicUsize,
    /// How often the clock was asked for.
    pub clocks: AtomicUsize,
    /// By how many milliseconds the estimate of the clock leads.
    pub leads_by_ms: AtomicI64,
    /// Writes are refused, as by a server that is full.
    pub is_full: AtomicBool,
    /// How many milliseconds a write takes.
    pub writes_take_ms: AtomicU64,
    /// How many milliseconds the answer to a conditional write takes that was applied.
    pub answers_take_ms: AtomicU64,
    /// What is scheduled is lost, as by a failover.
    pub loses_timers: AtomicBool,
    /// The clock cannot be asked.
    pub has_no_clock: AtomicBool,
    /// So many of the next reads fail.
    pub failing_reads: AtomicUsize,
    /// How many writes were refused.
    pub refused: AtomicUsize,
}

fn refusal(reason: &str) -> StorageError {
    StorageError::Unavailable {
        address: "the spy".to_owned(),
        reason: reason.to_owned(),
        outcome_unknown: false,
        source: None,
    }
}

impl Spy {
    pub fn new(engine: &Arc<dyn Agenda>) -> Arc<Self> {
        Arc::new(Self {
            engine: Arc::clone(engine),
            reads: AtomicUsize::new(0),
            scheduled: AtomicUsize::new(0),
            clocks: AtomicUsize::new(0),
            leads_by_ms: AtomicI64::new(0),
            is_full: AtomicBool::new(false),
            writes_take_ms: AtomicU64::new(0),
            answers_take_ms: AtomicU64::new(0),
            loses_timers: AtomicBool::new(false),
            has_no_clock: AtomicBool::new(false),
            failing_reads: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        })
    }

    pub fn agenda(self: &Arc<Self>) -> Arc<dyn Agenda> {
        Arc::<Self>::clone(self)
    }

    async fn write(&self) -> Result<&dyn Agenda, StorageError> {
        if self.is_full.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(refusal("OOM command not allowed"));
        }
        let takes = self.writes_take_ms.load(Ordering::SeqCst);
        if takes > 0 {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        Ok(&*self.engine)
    }
}

#[async_trait]
impl StorageBackend for Spy {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let fails = |left: usize| left.checked_sub(1);
        if self.failing_reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
            return Err(refusal("connection reset"));
        }
        self.engine.get(key).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        self.engine.part(key, name).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.write().await?.put(key, data, options).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        let written = self.write().await?.put_if_version(key, data, options, expected).await;
        let takes = self.answers_take_ms.load(Ordering::SeqCst);
        if takes > 0 {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        written
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.write().await?.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        self.engine.list(owner, page).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.engine.cleanup_expired().await
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        self.clocks.fetch_add(1, Ordering::SeqCst);
        if self.has_no_clock.load(Ordering::SeqCst) {
            return Err(refusal("connection reset"));
        }
        self.engine.clock(key).await
    }

    fn now(&self) -> DateTime<Utc> {
        self.engine.now() + TimeDelta::milliseconds(self.leads_by_ms.load(Ordering::SeqCst))
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
impl Agenda for Spy {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        if *queue == Queue::leases() {
            self.scheduled.fetch_add(1, Ordering::SeqCst);
        }
        if self.loses_timers.load(Ordering::SeqCst) {
            return Ok(());
        }
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
