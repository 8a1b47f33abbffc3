//! Stores with tasks, and ways to run the command.

mod keys;
mod run;
#[cfg(feature = "redis-tests")]
pub mod server;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use mcp_task_store::{
    Agenda, NewTask, OnWorkerLost, OwnerId, PutOptions, RpcError, SqliteBackend, StorageBackend, StoreConfig,
    StoredTask, TaskKey, TaskStore,
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use keys::Keys;
pub use run::{Ended, Running, command};

pub const LONG: Duration = Duration::from_secs(3600);

// A test that applies `on_every_engine` runs once on each engine.

#[cfg(feature = "redis-tests")]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::redis(Engine::Redis)]
pub fn on_every_engine(#[case] engine: Engine) {}

#[cfg(not(feature = "redis-tests"))]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::sqlite(Engine::Sqlite)]
pub fn on_every_engine(#[case] engine: Engine) {}

// A test that applies `in_every_direction` runs once for each pair of engines.

#[cfg(feature = "redis-tests")]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::sqlite_to_redis(Engine::Sqlite, Engine::Redis)]
#[case::redis_to_sqlite(Engine::Redis, Engine::Sqlite)]
#[case::sqlite_to_sqlite(Engine::Sqlite, Engine::Sqlite)]
pub fn in_every_direction(#[case] from: Engine, #[case] to: Engine) {}

#[cfg(not(feature = "redis-tests"))]
#[rstest_reuse::template]
#[rstest::rstest]
#[case::sqlite_to_sqlite(Engine::Sqlite, Engine::Sqlite)]
pub fn in_every_direction(#[case] from: Engine, #[case] to: Engine) {}

#[derive(Clone, Copy)]
pub enum Engine {
    Sqlite,
    #[cfg(feature = "redis-tests")]
    Redis,
}

/// A store of a test's own. Dropping it removes everything.
pub struct Store {
    pub tasks: TaskStore<Arc<dyn Agenda>>,
    /// The value of `MCP_TASKS_URL`.
    pub url: String,
    /// The options that the command needs to find the store.
    pub options: Vec<String>,
    _removed: Box<dyn std::any::Any + Send + Sync>,
}

impl Engine {
    pub async fn open(self) -> Store {
        match self {
            Self::Sqlite => {
                let folder = TempDir::new().unwrap();
                let path = folder.path().join("tasks.db");
                let backend = Arc::new(SqliteBackend::open(&path).await.unwrap());
                Store::new(backend, format!("sqlite:{}", path.display()), Vec::new(), folder)
            }
            #[cfg(feature = "redis-tests")]
            Self::Redis => {
                let keys = server::Keys::new();
                let backend = Arc::new(keys.backend().await);
                let options = vec!["--prefix".to_owned(), keys.prefix.clone()];
                Store::new(backend, server::url(), options, keys)
            }
        }
    }
}

impl Store {
    fn new(
        backend: Arc<dyn Agenda>,
        url: String,
        options: Vec<String>,
        removed: impl Send + Sync + 'static,
    ) -> Self {
        // No keeper ends the tasks of a test.
        let config = StoreConfig::new().observer(true).lease(LONG).retention(LONG).max_ttl(None);
        let tasks = TaskStore::with_config(backend, config);
        Self { tasks, url, options, _removed: Box::new(removed) }
    }

    /// Creates a task that a worker works on.
    pub async fn running(&self, owner: &str, tool: &str) -> StoredTask {
        let (stored, attempt) = self.tasks.start(&self::owner(owner), resumable(tool)).await.unwrap();
        // A worker in another process never drops its attempt here.
        std::mem::forget(attempt);
        stored
    }

    /// Creates a task that waits for a worker.
    pub async fn waiting(&self, owner: &str, tool: &str) -> StoredTask {
        self.tasks.enqueue(&self::owner(owner), resumable(tool)).await.unwrap()
    }

    /// Creates a task that failed because its attempts are used up.
    pub async fn dead(&self, owner: &str, tool: &str) -> StoredTask {
        let (stored, attempt) =
            self.tasks.start(&self::owner(owner), resumable(tool).max_attempts(1)).await.unwrap();
        attempt.retry(RpcError::new(-32000, "the printer is down")).await.unwrap();
        self.tasks.get(&stored.key).await.unwrap()
    }

    /// Creates a task that has ended with a result.
    pub async fn completed(&self, owner: &str, tool: &str) -> StoredTask {
        let stored = self.tasks.create(&self::owner(owner), NewTask::new("tools/call").operation(tool)).await;
        self.tasks.complete(&stored.unwrap(), json!({ "content": [] })).await.unwrap()
    }

    /// Writes a record with these fields, as no call of the library writes it.
    pub async fn put(&self, owner: &str, task: &str, fields: Value) -> TaskKey {
        let now = time(self.tasks.backend().now());
        let mut record = json!({
            "taskId": task, "status": "working", "method": "tools/call", "ttlMs": null,
            "createdAt": now, "lastUpdatedAt": now,
        });
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let key = TaskKey::new(owner, task).unwrap();
        let data = record.to_string().into();
        self.tasks.backend().put(&key, data, PutOptions::default()).await.unwrap();
        key
    }

    /// Returns the JSON of a record, read without a call that may change it.
    pub async fn record(&self, key: &TaskKey) -> Option<Value> {
        let record = self.tasks.backend().get(key).await.ok()?;
        Some(serde_json::from_slice(&record.data).unwrap())
    }

    /// Returns the time this long ago, as records state it.
    pub fn ago(&self, seconds: i64) -> String {
        time(self.tasks.backend().now() - TimeDelta::seconds(seconds))
    }

    /// Runs the command in a pipe.
    pub fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, "")
    }

    /// Runs the command in a pipe, with this stdin.
    pub fn run_with(&self, args: &[&str], stdin: &str) -> Ended {
        Ended::of(self.command(args), stdin)
    }

    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = command();
        command.env("MCP_TASKS_URL", &self.url).args(args).args(&self.options);
        command
    }
}

pub fn resumable(tool: &str) -> NewTask {
    NewTask::new("tools/call")
        .operation(tool)
        .on_worker_lost(OnWorkerLost::Resume)
        .arguments(json!({ "n": 1 }))
}

pub fn owner(id: &str) -> OwnerId {
    id.try_into().unwrap()
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// The key as the command line takes it.
pub fn name(key: &TaskKey) -> String {
    key.to_string()
}
