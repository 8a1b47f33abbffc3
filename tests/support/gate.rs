//! An engine that a test can close, so that one instance of a server is cut off from it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use mcp_task_store::{Agenda, PutOptions, StorageError, TaskKey};
use serde_json::Value;

use super::elsewhere::elsewhere;
use super::intercept::{Call, Hooks, Intercept, Reply, unavailable};
use super::rmcp::until;
use super::{Store, key};

pub struct Gate {
    pub backend: Arc<dyn Agenda>,
    /// The error of every call while the gate is closed.
    pub error: fn() -> StorageError,
    pub is_closed: AtomicBool,
    /// How long a call takes to fail while the gate is closed.
    pub fails_after: Duration,
    /// The size above which the gate refuses a record as too large.
    pub most_bytes: usize,
    /// Refuses writes with a part.
    pub refuses_parts: AtomicBool,
    /// Does not answer reads of a record.
    pub reads_hang: AtomicBool,
    /// Does not answer writes of a record.
    pub writes_hang: AtomicBool,
    /// Does not answer writes of a status message.
    pub message_hangs: AtomicBool,
    /// Applies the next write, loses the reply, and closes.
    pub loses_replies: AtomicBool,
    /// Watches yield no items.
    pub watch_hangs: AtomicBool,
    /// The error of every read of a part.
    pub part_error: Mutex<Option<fn() -> StorageError>>,
    /// Does not answer any call.
    pub is_silent: AtomicBool,
    /// How many calls the gate has refused.
    pub refused: AtomicUsize,
    /// How many records were read.
    pub reads: AtomicUsize,
    /// How many watches were opened.
    pub watches: AtomicUsize,
}

pub fn unreachable_error() -> StorageError {
    unavailable("the gate is closed", false)
}

/// Returns an error that is not retryable, after which the outcome is unknown.
pub fn backend_error() -> StorageError {
    StorageError::Backend {
        address: "the gate".to_owned(),
        reason: "the gate fails every call".to_owned(),
        outcome_unknown: true,
        source: None,
    }
}

/// Returns an error that occurs while an operator changes a password.
pub fn denied_error() -> StorageError {
    StorageError::Denied {
        address: "the gate".to_owned(),
        reason: "the gate denies every call".to_owned(),
        source: None,
    }
}

pub fn corrupt_error() -> StorageError {
    StorageError::Corrupt {
        key: key("alice", "t1"),
        reason: "the record is damaged".to_owned(),
        source: None,
    }
}

impl Gate {
    pub fn new(store: &Store) -> Arc<Intercept<Self>> {
        Self::with(store, unreachable_error)
    }

    /// Returns an engine for the stores of another process, which this error cuts off.
    pub fn with(store: &Store, error: fn() -> StorageError) -> Arc<Intercept<Self>> {
        Intercept::new(Self { error, ..Self::of(elsewhere(&store.backend)) })
    }

    pub fn of(backend: Arc<dyn Agenda>) -> Self {
        Self {
            backend,
            error: unreachable_error,
            fails_after: Duration::ZERO,
            most_bytes: usize::MAX,
            is_closed: AtomicBool::new(false),
            refuses_parts: AtomicBool::new(false),
            reads_hang: AtomicBool::new(false),
            writes_hang: AtomicBool::new(false),
            message_hangs: AtomicBool::new(false),
            loses_replies: AtomicBool::new(false),
            watch_hangs: AtomicBool::new(false),
            part_error: Mutex::default(),
            is_silent: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
        }
    }

    pub fn set_closed(&self, is_closed: bool) {
        self.is_closed.store(is_closed, Ordering::SeqCst);
    }

    /// Waits until the gate has refused one more call.
    pub async fn refuses(&self) {
        let before = self.refused.load(Ordering::SeqCst);
        until(|| self.refused.load(Ordering::SeqCst) > before).await;
    }

    fn refuse<T>(&self, error: fn() -> StorageError) -> Result<T, StorageError> {
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(error())
    }

    /// Applies the faults of every call.
    async fn pass(&self) -> Result<(), StorageError> {
        hang_if(self.is_silent.load(Ordering::SeqCst)).await;
        if self.is_closed.load(Ordering::SeqCst) {
            tokio::time::sleep(self.fails_after).await;
            return self.refuse(self.error);
        }
        Ok(())
    }

    /// Applies the faults of conditional writes.
    async fn pass_write(&self, data: &Bytes, options: &PutOptions) -> Result<(), StorageError> {
        if data.len() > self.most_bytes {
            let what = "bytes of data".to_owned();
            return Err(StorageError::TooLarge { what, size: data.len(), max: self.most_bytes });
        }
        if !options.parts.is_empty() && self.refuses_parts.load(Ordering::SeqCst) {
            return self.refuse(self.error);
        }
        hang_if(self.writes_hang.load(Ordering::SeqCst)).await;
        hang_if(self.message_hangs.load(Ordering::SeqCst) && has_message(data)).await;
        Ok(())
    }

    async fn write(&self, call: Call) -> Result<Reply, StorageError> {
        let reply = call.send(&*self.backend).await;
        if self.loses_replies.swap(false, Ordering::SeqCst) {
            self.set_closed(true);
            return Err((self.error)());
        }
        reply
    }
}

async fn hang_if(hangs: bool) {
    if hangs {
        std::future::pending::<()>().await;
    }
}

/// Returns whether this is the record of a working task with a status message.
fn has_message(data: &Bytes) -> bool {
    let task: Value = serde_json::from_slice(data).unwrap();
    task["status"] == "working" && !task["statusMessage"].is_null()
}

#[async_trait]
impl Hooks for Gate {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.backend)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        match &call {
            Call::Get { .. } => {
                self.reads.fetch_add(1, Ordering::SeqCst);
                hang_if(self.reads_hang.load(Ordering::SeqCst)).await;
            }
            Call::Part { .. } => {
                let error = *self.part_error.lock().unwrap();
                error.map_or(Ok(()), |error| self.refuse(error))?;
            }
            Call::PutIfVersion { data, options, .. } => self.pass_write(data, options).await?,
            _ => {}
        }
        self.pass().await?;
        match call {
            Call::PutIfVersion { .. } => self.write(call).await,
            call => call.send(&*self.backend).await,
        }
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.watches.fetch_add(1, Ordering::SeqCst);
        if self.watch_hangs.load(Ordering::SeqCst) {
            return Box::pin(stream::pending());
        }
        let watch = self.engine().watch(key);
        if !self.is_closed.load(Ordering::SeqCst) {
            return watch;
        }
        let error = (self.error)();
        let goes_on = error.is_retryable();
        let refusal = stream::unfold(Some(error), async |error| Some((Err(error?), None)));
        if goes_on { Box::pin(refusal.chain(watch)) } else { Box::pin(refusal) }
    }
}
