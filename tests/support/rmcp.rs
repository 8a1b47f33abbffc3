//! What the tests of the durable manager for rmcp share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::rmcp::model::{
    CallToolResult, ContentBlock, DetailedTask, ElicitRequest, ElicitRequestParams, ElicitationSchema,
    InputRequest, TaskPayload, TaskStatus,
};
use ::rmcp::task_manager::{TaskExit, TaskFuture, TaskOptions};
use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use mcp_task_store::{
    Agenda, Cursor, Due, DurableTaskManager, Next, OnWorkerLost, OwnerId, OwnerPage, Page, PageRequest, Part,
    PartName, PutOptions, Queue, Record, RegisteredOptions, StorageBackend, StorageError, StoreConfig, Taken,
    TaskContext, TaskKey, TaskStore, TimerPage, Version, Written,
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::elsewhere::elsewhere;
use super::{Engine, Store, owner};

pub type Manager = DurableTaskManager<Arc<dyn Agenda>>;

/// A lease that does not lapse in a test, and one that does.
pub const LONG: Duration = Duration::from_secs(3600);
pub const SHORT: Duration = Duration::from_millis(300);

pub fn manager(backend: &Arc<dyn Agenda>, lease: Duration) -> Manager {
    // A task whose TTL has elapsed can be looked at for as long as a test takes.
    let config = StoreConfig::new().lease(lease).retention(LONG);
    DurableTaskManager::new(TaskStore::with_config(Arc::clone(backend), config))
}

/// Two instances of a server on one engine.
pub async fn open(engine: Engine, lease: Duration) -> (Store, Manager, Manager) {
    let store = engine.open().await;
    // As in two processes.
    let (one, other) = (manager(&elsewhere(&store.backend), lease), manager(&store.backend, lease));
    (store, one, other)
}

pub fn alice() -> OwnerId {
    owner("alice")
}

pub fn text(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

pub fn elicitation(message: &str) -> InputRequest {
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: message.to_owned(),
        requested_schema: ElicitationSchema::new([].into()),
    }))
}

pub async fn spawn<F>(manager: &Manager, operation: impl FnOnce(TaskContext) -> F) -> String
where
    F: Future<Output = Result<CallToolResult, TaskExit>> + Send + 'static,
{
    let options = TaskOptions::new();
    manager.spawn(&alice(), "test", options, |context| Box::pin(operation(context))).await.unwrap().task_id
}

pub fn key(task_id: &str) -> TaskKey {
    super::key("alice", task_id)
}

pub fn resume() -> RegisteredOptions {
    RegisteredOptions::new().on_worker_lost(OnWorkerLost::Resume)
}

/// Polls as a client does, until the task is as wanted.
pub async fn polled(
    manager: &Manager,
    task_id: &str,
    wanted: impl Fn(&DetailedTask) -> bool,
) -> DetailedTask {
    let polling = async {
        loop {
            let task = manager.get_task(&alice(), task_id).await.unwrap();
            if wanted(&task) {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), polling).await.expect("it comes to that")
}

pub async fn ended(manager: &Manager, task_id: &str) -> TaskPayload {
    polled(manager, task_id, |task| task.status().is_terminal()).await.payload
}

pub async fn asks(manager: &Manager, task_id: &str) -> TaskPayload {
    polled(manager, task_id, |task| task.status() == TaskStatus::InputRequired).await.payload
}

/// The text of a completed task, or the message of a failed one.
pub fn said(payload: &TaskPayload) -> String {
    match payload {
        TaskPayload::Completed { result } => result["content"][0]["text"].as_str().unwrap().to_owned(),
        TaskPayload::Failed { error } => error["message"].as_str().unwrap().to_owned(),
        other => format!("{other:?}"),
    }
}

pub async fn until(reached: impl Fn() -> bool) {
    within(async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it comes to an end")
}

/// An instance in a runtime of its own, which takes all that runs in it along when it is lost.
pub struct Mortal {
    pub runtime: tokio::runtime::Runtime,
    pub manager: Manager,
}

impl Mortal {
    pub fn start(store: &Store, lease: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let guard = runtime.enter();
        let manager = manager(&elsewhere(&store.backend), lease);
        drop(guard);
        Self { runtime, manager }
    }

    /// Begins a task in its runtime.
    pub async fn spawn<T: Send + 'static>(&self, begin: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.spawn(begin).await.unwrap()
    }

    /// Like a `SIGKILL`: nothing is released.
    pub fn kill(self) {
        self.runtime.shutdown_background();
    }
}

/// Registers an operation that tells of its attempts and waits; from the second attempt on it completes.
pub fn register(manager: &Manager) -> mpsc::UnboundedReceiver<(u32, Value)> {
    let (tell, told) = mpsc::unbounded_channel();
    manager.register("wait", move |context: TaskContext, arguments: Value| -> TaskFuture {
        let tell = tell.clone();
        Box::pin(async move {
            // Nobody listens in a test that does not care.
            let _ = tell.send((context.attempt(), arguments));
            if context.attempt() > 1 {
                return Ok(text(format!("attempt {}", context.attempt())));
            }
            context.cancelled().await;
            Err(TaskExit::Cancelled)
        })
    });
    told
}

/// An engine that one instance can be cut off from.
pub struct Gate {
    pub backend: Arc<dyn Agenda>,
    /// What it says while it is closed.
    pub error: fn() -> StorageError,
    pub is_closed: AtomicBool,
    /// After how long a call fails that finds it closed.
    pub fails_after: Duration,
    /// Larger records are refused as too large.
    pub most_bytes: usize,
    /// It takes no payload that is a part.
    pub refuses_parts: AtomicBool,
    /// It does not answer when a record is read.
    pub reads_hang: AtomicBool,
    /// It does not answer when a record is written.
    pub writes_hang: AtomicBool,
    /// It does not answer when a status message is written.
    pub message_hangs: AtomicBool,
    /// The reply to the next write is lost, and so is the connection.
    pub loses_replies: AtomicBool,
    /// Its watches have no items.
    pub watch_hangs: AtomicBool,
    /// What it says when a part is read.
    pub part_error: Mutex<Option<fn() -> StorageError>>,
    /// It does not even say that it is closed.
    pub is_silent: AtomicBool,
    /// How many calls it has refused.
    pub refused: AtomicUsize,
    /// How many records were read.
    pub reads: AtomicUsize,
    /// How many watches were begun.
    pub watches: AtomicUsize,
}

pub fn is_away() -> StorageError {
    StorageError::Unavailable {
        address: "the gate".to_owned(),
        reason: "it is closed".to_owned(),
        outcome_unknown: false,
        source: None,
    }
}

/// Nothing says that the same call may succeed later, and it may have succeeded now.
pub fn is_broken() -> StorageError {
    StorageError::Backend {
        address: "the gate".to_owned(),
        reason: "it is broken".to_owned(),
        outcome_unknown: true,
        source: None,
    }
}

/// A password that is being changed, for instance.
pub fn is_denied() -> StorageError {
    StorageError::Denied { address: "the gate".to_owned(), reason: "not today".to_owned(), source: None }
}

/// What is stored cannot be read.
pub fn is_corrupt() -> StorageError {
    StorageError::Corrupt { key: super::key("alice", "t1"), reason: "it is corrupt".to_owned(), source: None }
}

impl Gate {
    pub fn new(store: &Store) -> Arc<Self> {
        Self::with(store, is_away)
    }

    /// Whoever is cut off is another process.
    pub fn with(store: &Store, error: fn() -> StorageError) -> Arc<Self> {
        Arc::new(Self { error, ..Self::of(elsewhere(&store.backend)) })
    }

    pub fn of(backend: Arc<dyn Agenda>) -> Self {
        Self {
            backend,
            error: is_away,
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

    /// Waits until it has refused one more call.
    pub async fn refuses(&self) {
        let before = self.refused.load(Ordering::SeqCst);
        until(|| self.refused.load(Ordering::SeqCst) > before).await;
    }

    async fn pass(&self) -> Result<&dyn Agenda, StorageError> {
        if self.is_silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.is_closed.load(Ordering::SeqCst) {
            tokio::time::sleep(self.fails_after).await;
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err((self.error)());
        }
        Ok(&*self.backend)
    }
}

#[async_trait]
impl StorageBackend for Gate {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.reads_hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.pass().await?.get(key).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        let error = *self.part_error.lock().unwrap();
        if let Some(error) = error {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(error());
        }
        self.pass().await?.part(key, name).await
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        self.pass().await?.clock(key).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.pass().await?.put(key, data, options).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        if data.len() > self.most_bytes {
            let what = "bytes of data".to_owned();
            return Err(StorageError::TooLarge { what, size: data.len(), max: self.most_bytes });
        }
        if !options.parts.is_empty() && self.refuses_parts.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err((self.error)());
        }
        let is_message = || {
            let task: Value = serde_json::from_slice(&data).unwrap();
            task["status"] == "working" && !task["statusMessage"].is_null()
        };
        if self.writes_hang.load(Ordering::SeqCst)
            || self.message_hangs.load(Ordering::SeqCst) && is_message()
        {
            std::future::pending::<()>().await;
        }
        let written = self.pass().await?.put_if_version(key, data, options, expected).await;
        if self.loses_replies.swap(false, Ordering::SeqCst) {
            self.set_closed(true);
            return Err((self.error)());
        }
        written
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.pass().await?.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        self.pass().await?.list(owner, page).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.pass().await?.cleanup_expired().await
    }

    fn now(&self) -> DateTime<Utc> {
        self.backend.now()
    }

    fn max_value_bytes(&self) -> usize {
        self.backend.max_value_bytes()
    }

    fn generation(&self) -> u64 {
        self.backend.generation()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.watches.fetch_add(1, Ordering::SeqCst);
        if self.watch_hangs.load(Ordering::SeqCst) {
            return Box::pin(stream::pending());
        }
        let watch = self.backend.watch(key);
        if !self.is_closed.load(Ordering::SeqCst) {
            return watch;
        }
        let error = (self.error)();
        let goes_on = error.is_retryable();
        let refusal = stream::unfold(Some(error), async |error| Some((Err(error?), None)));
        if goes_on { Box::pin(refusal.chain(watch)) } else { Box::pin(refusal) }
    }
}

#[async_trait]
impl Agenda for Gate {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        self.pass().await?.schedule(queue, key, after).await
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        self.pass().await?.take_due(queues, limit, hide_for).await
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        self.pass().await?.resolve(due, next).await
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.backend.wakeups(queues)
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        self.pass().await?.owners(after).await
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        self.pass().await?.timers(queue, after).await
    }
}
