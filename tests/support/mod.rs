//! What several test files share: a store of their own on each engine.

#![allow(dead_code, unused_macros, unused_imports)]

/// Asserts that a call failed with an error of this pattern.
macro_rules! assert_refused {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            other => panic!("expected {}, got {other:?}", stringify!($pattern)),
        }
    };
}

#[cfg(feature = "redis-tests")]
pub mod bus;
#[cfg(feature = "redis-tests")]
pub mod clock;
#[cfg(feature = "redis-tests")]
pub mod cluster;
#[cfg(feature = "redis-tests")]
pub mod deployment;
pub mod elsewhere;
#[cfg(feature = "pmcp")]
pub mod failing;
#[cfg(feature = "redis-tests")]
pub mod fake;
#[cfg(feature = "redis-tests")]
pub mod proxy;
pub mod recording;
#[cfg(feature = "redis-tests")]
pub mod redis;
#[cfg(feature = "redis-tests")]
pub mod refusing;
#[cfg(feature = "redis-tests")]
pub mod relay;
#[cfg(feature = "rmcp")]
pub mod rmcp;
#[cfg(feature = "redis-tests")]
pub mod sentinel;
pub mod spy;
#[cfg(feature = "redis-tests")]
pub mod throttle;
#[cfg(feature = "redis-tests")]
pub mod tls;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use mcp_task_store::backend::engine::watch_by_polling;
use mcp_task_store::{
    Agenda, Cursor, Expiry, ListedRecord, LocalAgenda, MemoryBackend, OwnerId, Page, PageRequest, Part,
    PartName, PutOptions, Queue, Record, StorageBackend, StorageError, TaskKey, Timer, Version, Written,
};

// A test that applies `on_every_engine` runs on each of them.

#[cfg(feature = "redis-tests")]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::redis(Engine::Redis)]
fn on_every_engine(#[case] engine: Engine) {}

#[cfg(not(feature = "redis-tests"))]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
fn on_every_engine(#[case] engine: Engine) {}

// The same, and on an engine that has only the `watch` that the trait provides.

#[cfg(feature = "redis-tests")]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::polled(Engine::Polled)]
#[case::redis(Engine::Redis)]
fn on_every_watch(#[case] engine: Engine) {}

#[cfg(not(feature = "redis-tests"))]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::polled(Engine::Polled)]
fn on_every_watch(#[case] engine: Engine) {}

// A test of the agenda, whose timers may be in one shard or in many, and those of the process.

#[cfg(feature = "redis-tests")]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::local(Engine::Polled)]
#[case::redis(Engine::Redis)]
#[case::sharded(Engine::Sharded)]
fn on_every_agenda(#[case] engine: Engine) {}

#[cfg(not(feature = "redis-tests"))]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::local(Engine::Polled)]
fn on_every_agenda(#[case] engine: Engine) {}

/// The engines that a test runs on.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    Memory,
    Polled,
    #[cfg(feature = "redis-tests")]
    Redis,
    /// Redis with hash-tagged keys.
    #[cfg(feature = "redis-tests")]
    Sharded,
}

/// A store that no other test uses, on one engine. What it leaves in Redis is removed when it is dropped.
pub struct Store {
    pub backend: Arc<dyn Agenda>,
    #[cfg(feature = "redis-tests")]
    pub redis: Option<redis::Namespace>,
}

impl std::ops::Deref for Store {
    type Target = dyn Agenda;

    fn deref(&self) -> &Self::Target {
        &*self.backend
    }
}

/// Numbers that look random, the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// All that was printed to its clones.
#[derive(Clone, Default)]
pub struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Prints what this thread logs, until the guard is dropped.
pub fn subscribe(printed: &Printed, level: tracing::Level) -> tracing::subscriber::DefaultGuard {
    ask_every_subscriber();
    let printed = printed.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(move || printed.clone())
        .finish();
    tracing::subscriber::set_default(subscriber)
}

/// While there is one subscriber, `tracing` asks only that of the thread that logs a line first, and no thread logs the line
/// if that thread has none. From now on there is another.
pub fn ask_every_subscriber() {
    static ANOTHER: std::sync::LazyLock<tracing::Dispatch> = std::sync::LazyLock::new(|| {
        tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish())
    });
    std::sync::LazyLock::force(&ANOTHER);
}

/// The page for operators, which has the ACL rule.
pub fn readme() -> String {
    page("docs/operations.md")
}

/// A page of the repository.
pub fn page(path: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The largest value that the stores of these tests take.
pub const MAX_VALUE_BYTES: usize = 4096;

/// The largest part that they take.
pub const MAX_PART_BYTES: usize = 16 * 1024;

impl Engine {
    pub async fn open(self) -> Store {
        let memory = || MemoryBackend::new().max_value_bytes(MAX_VALUE_BYTES).max_part_bytes(MAX_PART_BYTES);
        match self {
            Self::Memory => Store::new(memory()),
            Self::Polled => Store::new(LocalAgenda::new(Polled(memory()))),
            #[cfg(feature = "redis-tests")]
            Self::Redis => redis::Namespace::new().store().await,
            #[cfg(feature = "redis-tests")]
            Self::Sharded => redis::Namespace::new().sharded_store().await,
        }
    }

    /// A store that takes as much data as the engine takes by default.
    pub async fn open_roomy(self) -> Store {
        match self {
            Self::Memory => Store::new(MemoryBackend::new()),
            Self::Polled => Store::new(LocalAgenda::new(Polled(MemoryBackend::new()))),
            #[cfg(feature = "redis-tests")]
            Self::Redis => redis::Namespace::roomy().store().await,
            #[cfg(feature = "redis-tests")]
            Self::Sharded => redis::Namespace::roomy().sharded_store().await,
        }
    }
}

/// An engine that does not watch by itself.
#[derive(Clone)]
struct Polled(MemoryBackend);

#[async_trait::async_trait]
impl StorageBackend for Polled {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.0.get(key).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        self.0.part(key, name).await
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        self.0.clock(key).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.0.put(key, data, options).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.0.put_if_version(key, data, options, expected).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.0.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        self.0.list(owner, page).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.0.cleanup_expired().await
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.now()
    }

    fn max_value_bytes(&self) -> usize {
        StorageBackend::max_value_bytes(&self.0)
    }

    fn generation(&self) -> u64 {
        self.0.generation()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        watch_by_polling(self.clone(), key.clone())
    }
}

impl Store {
    /// A store on an engine in this process.
    fn new(engine: impl Agenda) -> Self {
        Self {
            backend: Arc::new(engine),
            #[cfg(feature = "redis-tests")]
            redis: None,
        }
    }

    /// Waits until the engine's clock, which may lag and never leads, has reached `at`.
    pub async fn until(&self, at: DateTime<Utc>) {
        let mut asked = 0;
        while self.now() < at {
            tokio::time::sleep(Duration::from_millis(1)).await;
            // A clock that lags is set right by the next reply.
            asked += 1;
            if asked % 20 == 0 {
                let nobody = "nobody".try_into().unwrap();
                self.list(&nobody, PageRequest::new(1)).await.unwrap();
            }
        }
    }

    /// Writes a record that has expired when this returns.
    pub async fn put_expired(&self, key: &TaskKey) {
        let written = self.put(key, "expired".into(), after_ms(1)).await.unwrap();
        self.until(written.expires_at.unwrap()).await;
    }

    /// All records of an owner, page by page.
    pub async fn walk(&self, owner: &OwnerId, limit: usize) -> Vec<ListedRecord> {
        let (mut records, mut after) = (Vec::new(), None::<Cursor>);
        loop {
            let mut request = PageRequest::new(limit);
            request = match after {
                Some(cursor) => request.after(cursor),
                None => request,
            };
            let page = self.list(owner, request).await.unwrap();
            assert!(page.records.len() <= limit);
            records.extend(page.records);
            after = page.next;
            if after.is_none() {
                return records;
            }
        }
    }

    /// The task ids of an owner, newest first.
    pub async fn ids(&self, owner: &str) -> Vec<String> {
        let owner = owner.try_into().unwrap();
        self.walk(&owner, 256).await.into_iter().map(|record| record.task.to_string()).collect()
    }
}

/// All timers of a queue, with the times at which they fire.
pub async fn timers(agenda: &dyn Agenda, queue: &Queue) -> Vec<Timer> {
    let (mut timers, mut after) = (Vec::new(), None);
    loop {
        let page = agenda.timers(queue, after.as_ref()).await.unwrap();
        timers.extend(page.timers);
        after = page.next;
        if after.is_none() {
            return timers;
        }
    }
}

/// Like a `SIGKILL`: runs a future in a process of its own, of which nothing is left afterwards but its output.
pub async fn in_a_process_that_dies<T: Send + 'static>(life: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let output = runtime.spawn(life).await.unwrap();
    runtime.shutdown_background();
    output
}

pub fn key(owner: &str, task: &str) -> TaskKey {
    TaskKey::new(owner, task).unwrap()
}

pub fn owner(id: &str) -> OwnerId {
    id.try_into().unwrap()
}

pub fn keep() -> PutOptions {
    PutOptions::default()
}

pub fn never() -> PutOptions {
    PutOptions::new(Expiry::Never)
}

pub fn after_ms(millis: u64) -> PutOptions {
    PutOptions::new(Expiry::After(Duration::from_millis(millis)))
}

pub fn in_an_hour() -> PutOptions {
    after_ms(3_600_000)
}
