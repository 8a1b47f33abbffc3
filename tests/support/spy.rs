//! An engine that counts calls, and delays or refuses them when a test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use mcp_task_store::{Agenda, Queue, StorageError};

use super::intercept::{Call, Hooks, Intercept, Reply, unavailable};

pub struct Spy {
    engine: Arc<dyn Agenda>,
    /// How many records were read.
    pub reads: AtomicUsize,
    /// How many timers of leases were scheduled.
    pub scheduled: AtomicUsize,
    /// How many times the clock was read.
    pub clocks: AtomicUsize,
    /// By how many milliseconds the estimate is ahead of the clock.
    pub leads_by_ms: AtomicI64,
    /// Refuses writes, like a server that is out of memory.
    pub is_full: AtomicBool,
    /// How many milliseconds a write takes.
    pub writes_take_ms: AtomicU64,
    /// How many milliseconds the reply to a conditional write takes after the engine has applied it.
    pub answers_take_ms: AtomicU64,
    /// Loses timers that are scheduled, as a failover does.
    pub loses_timers: AtomicBool,
    /// Refuses to read the clock.
    pub has_no_clock: AtomicBool,
    /// How many of the next reads fail.
    pub failing_reads: AtomicUsize,
    /// How many writes were refused.
    pub refused: AtomicUsize,
}

impl Spy {
    pub fn new(engine: &Arc<dyn Agenda>) -> Arc<Intercept<Self>> {
        Intercept::new(Self {
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

    fn read(&self) -> Result<(), StorageError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let one_less = |left: usize| left.checked_sub(1);
        match self.failing_reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
            Ok(_) => Err(unavailable("connection reset", false)),
            Err(_) => Ok(()),
        }
    }

    fn read_clock(&self) -> Result<(), StorageError> {
        self.clocks.fetch_add(1, Ordering::SeqCst);
        if self.has_no_clock.load(Ordering::SeqCst) {
            return Err(unavailable("connection reset", false));
        }
        Ok(())
    }

    async fn write(&self) -> Result<(), StorageError> {
        if self.is_full.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(unavailable("OOM command not allowed", false));
        }
        take(&self.writes_take_ms).await;
        Ok(())
    }

    /// Counts a timer. Returns whether it is lost.
    fn schedule(&self, queue: &Queue) -> bool {
        if *queue == Queue::leases() {
            self.scheduled.fetch_add(1, Ordering::SeqCst);
        }
        self.loses_timers.load(Ordering::SeqCst)
    }
}

/// Sleeps for this number of milliseconds.
async fn take(millis: &AtomicU64) {
    let millis = millis.load(Ordering::SeqCst);
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

#[async_trait]
impl Hooks for Spy {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        match &call {
            Call::Get { .. } => self.read()?,
            Call::Clock { .. } => self.read_clock()?,
            Call::Schedule { queue, .. } if self.schedule(queue) => return Ok(Reply::Scheduled(())),
            call if call.is_write() => self.write().await?,
            _ => {}
        }
        let is_conditional = matches!(call, Call::PutIfVersion { .. });
        let reply = call.send(&*self.engine).await;
        if is_conditional {
            take(&self.answers_take_ms).await;
        }
        reply
    }

    fn now(&self) -> DateTime<Utc> {
        self.engine.now() + TimeDelta::milliseconds(self.leads_by_ms.load(Ordering::SeqCst))
    }
}
