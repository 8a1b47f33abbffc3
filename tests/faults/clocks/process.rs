//! The calls that one process makes, for itself or for another process.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use mcp_task_store::{
    NewTask, PageRequest, RedisBackend, StorageBackend, StorageError, StoreConfig, StoredTask, TaskKey,
    TaskStatus, TaskStore,
};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{HOUR_MS, MOST_LAG};
use crate::support::{after_ms, keep, key, owner};

/// A call that one process requests from another. All calls concern one owner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Call {
    Clocks,
    Put { task: String, lives_ms: u64 },
    PutIfVersion { task: String, expected: u64 },
    Get { task: String },
    Delete { task: String },
    List,
    SeeExpire { task: String },
    Create { ttl_ms: u64 },
    GetTask { task: String },
    Complete { task: String },
    ListTasks,
    SeeFail { task: String },
}

/// The connections of one process.
pub struct Process {
    pub backend: RedisBackend,
    tasks: TaskStore<RedisBackend>,
    server: MultiplexedConnection,
    pub started: Instant,
}

impl Process {
    pub async fn start(url: &str) -> Self {
        let backend = RedisBackend::connect(url).await.unwrap();
        let config = StoreConfig::new().retention(Duration::from_millis(HOUR_MS));
        let tasks = TaskStore::with_config(backend.clone(), config);
        let server = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        Self { backend, tasks, server, started: Instant::now() }
    }

    async fn server_time(&self) -> DateTime<Utc> {
        let (seconds, micros) = redis::cmd("TIME").query_async(&mut self.server.clone()).await.unwrap();
        moment(seconds, micros)
    }

    pub async fn perform(&self, call: Call) -> Value {
        let (alice, all) = (owner("alice"), PageRequest::new(256));
        let of = |task: &str| key("alice", task);
        match call {
            Call::Clocks => self.clocks().await,
            Call::Put { task, lives_ms } => {
                let written = self.backend.put(&of(&task), task.into(), after_ms(lives_ms)).await.unwrap();
                json!([written.version.get(), instant(written.expires_at)])
            }
            Call::PutIfVersion { task, expected } => {
                let key = of(&task);
                match self.backend.put_if_version(&key, task.into(), keep(), expected.into()).await {
                    Ok(written) => json!([written.version.get(), instant(written.expires_at)]),
                    Err(error) => json!(error.to_string()),
                }
            }
            Call::Get { task } => match self.backend.get(&of(&task)).await {
                Ok(record) => json!([&*record.data, record.version.get(), instant(record.expires_at)]),
                Err(error) => json!(error.to_string()),
            },
            Call::Delete { task } => json!(self.backend.delete(&of(&task)).await.unwrap()),
            Call::List => {
                let page = self.backend.list(&alice, all).await.unwrap();
                assert!(page.next.is_none() && page.corrupt.is_empty());
                let records = page.records.iter();
                json!(
                    records
                        .map(|r| json!([r.task, r.version.get(), instant(r.expires_at)]))
                        .collect::<Vec<_>>()
                )
            }
            Call::SeeExpire { task } => json!(self.see_expire(&of(&task)).await),
            Call::Create { ttl_ms } => {
                let new = NewTask::new("tools/call").ttl(Duration::from_millis(ttl_ms));
                shown(&self.tasks.create(&alice, new).await.unwrap())
            }
            Call::GetTask { task } => shown(&self.tasks.get(&of(&task)).await.unwrap()),
            Call::Complete { task } => match self.tasks.complete(&of(&task), json!("done")).await {
                Ok(done) => shown(&done),
                Err(error) => json!(error.to_string()),
            },
            Call::ListTasks => {
                let page = self.tasks.list(&alice, all).await.unwrap();
                assert!(page.next.is_none());
                json!(page.tasks.iter().map(shown).collect::<Vec<_>>())
            }
            Call::SeeFail { task } => json!(self.see_fail(&of(&task)).await),
        }
    }

    /// Returns the wall clock, the monotonic clock, and how far `now()` lags behind the server.
    async fn clocks(&self) -> Value {
        // The reply to a call corrects `now()`.
        let _ = self.backend.get(&key("nobody", "nothing")).await;
        let now = self.backend.now();
        let after = self.server_time().await;
        assert!(now <= after, "now() returns {now}, ahead of the server, which says {after} later");
        json!(Clocks {
            wall_us: Utc::now().timestamp_micros(),
            monotonic: self.started.elapsed(),
            lag_us: micros(after - now)
        })
    }

    /// Reads a record until it has expired. It must exist before `expires_at` and at no time after it, by the clock of the server,
    /// which is read before and after each read of the record. Returns how many times the record existed.
    pub async fn see_expire(&self, key: &TaskKey) -> u64 {
        let mut expires_at = None;
        for seen in 0.. {
            let before = self.server_time().await;
            let read = self.backend.get(key).await;
            let between = self.server_time().await;
            let page = self.backend.list(&key.owner, PageRequest::new(256)).await.unwrap();
            let after = self.server_time().await;
            let is_listed = page.records.iter().any(|record| record.task == key.task);
            match read {
                Ok(record) => {
                    expires_at = record.expires_at;
                    assert!(before < expires_at.unwrap(), "{expires_at:?} was read after {before}");
                }
                Err(StorageError::NotFound { .. }) => {
                    // The record must have been read once before.
                    assert!(expires_at.unwrap() <= between, "{expires_at:?} was absent before {between}");
                    assert!(!is_listed);
                    return seen;
                }
                Err(error) => panic!("{error:?}"),
            }
            if is_listed {
                assert!(between < expires_at.unwrap(), "{expires_at:?} was listed after {between}");
            } else {
                assert!(expires_at.unwrap() <= after, "{expires_at:?} was not listed before {after}");
            }
        }
        unreachable!()
    }

    /// Reads a task until its TTL has made it fail. By the clock of the server, that must be after the deadline, but not long after.
    /// Returns how many times the task was still working.
    async fn see_fail(&self, key: &TaskKey) -> u64 {
        for seen in 0.. {
            let before = self.server_time().await;
            let task = self.tasks.get(key).await.unwrap().task;
            let after = self.server_time().await;
            let deadline = task.deadline().unwrap();
            match task.status {
                TaskStatus::Working => assert!(before < deadline + MOST_LAG, "{before} {deadline}"),
                TaskStatus::Failed => {
                    assert!(deadline <= after, "failed before {after}, and the deadline is {deadline}");
                    return seen;
                }
                other => panic!("{other}"),
            }
        }
        unreachable!()
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Clocks {
    /// In microseconds since the epoch.
    pub wall_us: i64,
    pub monotonic: Duration,
    /// How far `now()` lags behind the server. It includes the time of the round trip.
    pub lag_us: i64,
}

fn micros(delta: TimeDelta) -> i64 {
    delta.num_microseconds().unwrap()
}

/// Returns a time in microseconds, so that two processes can return exactly the same.
fn instant(at: Option<DateTime<Utc>>) -> i64 {
    at.unwrap().timestamp_micros()
}

fn shown(stored: &StoredTask) -> Value {
    json!([stored.task, stored.version.get(), instant(stored.expires_at)])
}

pub fn moment(seconds: u64, micros: u64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(i64::try_from(seconds * 1_000_000 + micros).unwrap()).unwrap()
}
