//! What the test programs share: a store of its own on each engine for every test, servers, proxies and engines with faults.

// Each test program uses only a part of this module.
#![allow(dead_code, unused_macros)]

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
#[cfg(feature = "encryption")]
pub mod encryption;
#[cfg(feature = "redis-tests")]
pub mod eval;
#[cfg(feature = "pmcp")]
pub mod failing;
#[cfg(feature = "redis-tests")]
pub mod fake;
#[cfg(feature = "rmcp")]
pub mod gate;
pub mod intercept;
#[cfg(feature = "redis-tests")]
pub mod place;
mod polled;
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
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "redis-tests")]
pub mod tap;
#[cfg(feature = "redis-tests")]
pub mod throttle;
#[cfg(feature = "redis-tests")]
pub mod tls;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use mcp_task_store::{
    Agenda, Cursor, Expiry, ListedRecord, LocalAgenda, MemoryBackend, OwnerId, PageRequest, PutOptions,
    Queue, TaskKey, Timer,
};
use polled::polled;

// A test that applies `on_every_engine` runs once on each engine.

#[cfg(feature = "redis-tests")]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::sqlite(Engine::Sqlite)]
#[case::redis(Engine::Redis)]
fn on_every_engine(#[case] engine: Engine) {}

#[cfg(not(feature = "redis-tests"))]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
fn on_every_engine(#[case] engine: Engine) {}

// `on_every_shared_engine` runs the test on each engine that several processes can use.

#[cfg(feature = "redis-tests")]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::redis(Engine::Redis)]
fn on_every_shared_engine(#[case] engine: Engine) {}

// `on_every_watch` also runs the test on an engine whose watches poll.

#[cfg(feature = "redis-tests")]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::polled(Engine::Polled)]
#[case::sqlite(Engine::Sqlite)]
#[case::redis(Engine::Redis)]
fn on_every_watch(#[case] engine: Engine) {}

#[cfg(not(feature = "redis-tests"))]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::polled(Engine::Polled)]
fn on_every_watch(#[case] engine: Engine) {}

// `on_every_agenda` also runs the test on the timers of this process, and on timers in several shards.

#[cfg(feature = "redis-tests")]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::local(Engine::Polled)]
#[case::sqlite(Engine::Sqlite)]
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
    #[cfg(feature = "sqlite")]
    Sqlite,
    #[cfg(feature = "redis-tests")]
    Redis,
    /// Redis with hash-tagged keys.
    #[cfg(feature = "redis-tests")]
    Sharded,
}

/// A store that no other test uses, on one engine. Dropping it removes its keys from Redis, or its file.
pub struct Store {
    pub backend: Arc<dyn Agenda>,
    #[cfg(feature = "sqlite")]
    pub sqlite: Option<sqlite::Folder>,
    #[cfg(feature = "redis-tests")]
    pub redis: Option<redis::Namespace>,
}

impl std::ops::Deref for Store {
    type Target = dyn Agenda;

    fn deref(&self) -> &Self::Target {
        &*self.backend
    }
}

/// Pseudo-random numbers, the same in every run with the same seed.
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

/// Collects everything that is written to its clones.
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

/// Prints the events of this thread until the guard is dropped.
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

/// Registers a second subscriber. With a single one, `tracing` asks only the subscriber of the thread that reaches a line first
/// whether the line is enabled. If that thread has none, no thread logs the line.
pub fn ask_every_subscriber() {
    static ANOTHER: std::sync::LazyLock<tracing::Dispatch> = std::sync::LazyLock::new(|| {
        tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish())
    });
    std::sync::LazyLock::force(&ANOTHER);
}

/// Returns a page of the repository.
pub fn page(path: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The largest value that the stores of the tests accept.
pub const MAX_VALUE_BYTES: usize = 4096;

/// The largest part that the stores of the tests accept.
pub const MAX_PART_BYTES: usize = 16 * 1024;

impl Engine {
    pub async fn open(self) -> Store {
        let memory = || MemoryBackend::new().max_value_bytes(MAX_VALUE_BYTES).max_part_bytes(MAX_PART_BYTES);
        match self {
            Self::Memory => Store::new(memory()),
            Self::Polled => Store::new(LocalAgenda::new(polled(memory()))),
            #[cfg(feature = "sqlite")]
            Self::Sqlite => sqlite::Folder::new().store().await,
            #[cfg(feature = "redis-tests")]
            Self::Redis => redis::Namespace::new().store().await,
            #[cfg(feature = "redis-tests")]
            Self::Sharded => redis::Namespace::new().sharded_store().await,
        }
    }

    /// Returns whether the engine holds expired records until it removes them itself.
    pub fn holds_expired_records(self) -> bool {
        match self {
            #[cfg(feature = "redis-tests")]
            Self::Redis | Self::Sharded => false,
            _ => true,
        }
    }

    /// Opens a store with the default limits of the engine.
    pub async fn open_roomy(self) -> Store {
        match self {
            Self::Memory => Store::new(MemoryBackend::new()),
            Self::Polled => Store::new(LocalAgenda::new(polled(MemoryBackend::new()))),
            #[cfg(feature = "sqlite")]
            Self::Sqlite => sqlite::Folder::roomy().store().await,
            #[cfg(feature = "redis-tests")]
            Self::Redis => redis::Namespace::roomy().store().await,
            #[cfg(feature = "redis-tests")]
            Self::Sharded => redis::Namespace::roomy().sharded_store().await,
        }
    }
}

impl Store {
    /// Returns a store on an engine in this process.
    fn new(engine: impl Agenda) -> Self {
        Self {
            backend: Arc::new(engine),
            #[cfg(feature = "sqlite")]
            sqlite: None,
            #[cfg(feature = "redis-tests")]
            redis: None,
        }
    }

    /// Returns the engine as another process uses it: over connections of its own.
    pub async fn of_another_process(&self) -> Arc<dyn Agenda> {
        #[cfg(feature = "redis-tests")]
        if let Some(redis) = &self.redis {
            return Arc::new(redis.backend().await);
        }
        #[cfg(feature = "sqlite")]
        if let Some(folder) = &self.sqlite {
            return Arc::new(folder.backend().await);
        }
        Arc::clone(&self.backend)
    }

    /// Waits until the estimate of the engine's clock has reached `at`. The estimate may lag behind the clock.
    pub async fn until(&self, at: DateTime<Utc>) {
        let mut asked = 0;
        while self.now() < at {
            tokio::time::sleep(Duration::from_millis(1)).await;
            // The next reply corrects an estimate that lags.
            asked += 1;
            if asked % 20 == 0 {
                let nobody = "nobody".try_into().unwrap();
                self.list(&nobody, PageRequest::new(1)).await.unwrap();
            }
        }
    }

    /// Writes a record and waits until it has expired.
    pub async fn put_expired(&self, key: &TaskKey) {
        let written = self.put(key, "expired".into(), after_ms(1)).await.unwrap();
        self.until(written.expires_at.unwrap()).await;
    }

    /// Returns all records of an owner, read page by page.
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

    /// Returns the task ids of an owner, newest first.
    pub async fn ids(&self, owner: &str) -> Vec<String> {
        let owner = owner.try_into().unwrap();
        self.walk(&owner, 256).await.into_iter().map(|record| record.task.to_string()).collect()
    }
}

/// Waits for the other heavy tests of this program. A heavy test holds the guard, so that only one of them loads the machine.
pub async fn heavy() -> tokio::sync::MutexGuard<'static, ()> {
    static HEAVY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    HEAVY.lock().await
}

/// Returns all timers of a queue, with the times at which they fire.
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

/// Runs a future in a runtime of its own, then drops the runtime, as `SIGKILL` ends a process. Returns the output.
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
