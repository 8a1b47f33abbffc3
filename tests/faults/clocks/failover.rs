//! A failover to a server with another clock.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use mcp_task_store::PageRequest;
use mcp_task_store::{
    Expiry, NewTask, RedisBackend, StorageBackend, StorageError, StoreConfig, StoredTask, TaskError, TaskKey,
    TaskStatus, TaskStore, Version, Written,
};
use rstest::rstest;
use serde_json::json;
use tokio::task::block_in_place;

use super::process::Process;
use super::{HOUR_MS, MOST_LAG, SOON_MS, figure, time_of};
use crate::support::clock::libraries;
use crate::support::redis::command;
use crate::support::sentinel::{MASTER, Watched};
use crate::support::{after_ms, in_an_hour, key, owner};

/// A master, and a replica whose clock is wrong.
struct Servers(Watched);

impl Servers {
    fn start(offset: &str, wrong_by: TimeDelta) -> Self {
        let servers = Self(Watched::start(&[
            ("LD_PRELOAD", &libraries()),
            ("FAKETIME", offset),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]));
        let apart = servers.new_time() - time_of(&servers.0.master) - wrong_by;
        assert!(apart.abs() < TimeDelta::minutes(1), "the clock of the replica is wrong by {apart} more");
        servers
    }

    async fn connect(&self) -> RedisBackend {
        let (urls, master) = (self.0.sentinel_urls(), format!("redis://{MASTER}"));
        RedisBackend::builder().connect_sentinel(urls, &master).await.unwrap()
    }

    /// Kills the master, and waits until the replica is the new one.
    fn fail_over(&mut self) {
        let replicated: u64 = command(&mut self.0.master.connection(), ["WAIT", "1", "20000"]);
        assert_eq!(replicated, 1);
        self.0.master.kill();
        self.0.failed_over();
    }

    /// Returns the time of the new master.
    fn new_time(&self) -> DateTime<Utc> {
        time_of(&self.0.replica)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // A server that is killed leaves the shared memory of `faketime` behind.
        self.0.replica.shut_down();
    }
}

/// Repeats a call until the backend has found the new master.
async fn answered<T>(call: impl AsyncFn() -> Result<T, StorageError>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match call().await {
            Ok(reply) => return reply,
            Err(error) => assert!(error.is_retryable() && Instant::now() < deadline, "{error:?}"),
        }
    }
}

/// What the old master stored.
struct Before {
    long: StoredTask,
    done: StoredTask,
    half_an_hour: StoredTask,
    record: Written,
}

struct Stores {
    backend: RedisBackend,
    tasks: TaskStore<RedisBackend>,
}

impl Stores {
    fn new(backend: RedisBackend) -> Self {
        let config = StoreConfig::new().retention(Duration::from_secs(4 * 3600));
        Self { tasks: TaskStore::with_config(backend.clone(), config), backend }
    }

    async fn create(&self, minutes: u64) -> StoredTask {
        let new = NewTask::new("tools/call").ttl(Duration::from_secs(60 * minutes));
        self.tasks.create(&owner("alice"), new).await.unwrap()
    }

    async fn write(&self) -> Before {
        let (long, done, half_an_hour) =
            (self.create(120).await, self.create(120).await, self.create(30).await);
        let done = self.tasks.complete(&done, json!("done")).await.unwrap();
        self.backend.put(&key("bob", "never"), "stays".into(), Expiry::Never.into()).await.unwrap();
        let brief = key("bob", "half an hour");
        let record = self.backend.put(&brief, "goes".into(), after_ms(HOUR_MS / 2)).await.unwrap();
        Before { long, done, half_an_hour, record }
    }

    /// Checks that the clock of the new master decides whether a record of the old master has expired.
    async fn check_what_was_written_before(&self, before: &Before, is_ahead: bool) {
        for task in [&before.long, &before.done] {
            assert_eq!(&self.tasks.get(&task.key).await.unwrap(), task);
        }
        let short = self.tasks.get(&before.half_an_hour.key).await.unwrap();
        match (is_ahead, self.backend.get(&key("bob", "half an hour")).await) {
            (true, Err(StorageError::NotFound { .. })) => assert_eq!(short.task.status, TaskStatus::Failed),
            (false, Ok(record)) => {
                assert_eq!(record.expires_at, before.record.expires_at);
                assert_eq!(short, before.half_an_hour);
            }
            (_, other) => panic!("{other:?}"),
        }
    }

    /// Checks that new tasks get their times from the new master, and that the newest task comes first even if the new
    /// master's clock is behind.
    async fn check_new_tasks(&self, before: &Before, servers: &Servers, is_ahead: bool) {
        let Before { long, done, half_an_hour, .. } = before;
        let earliest = servers.new_time() - MOST_LAG;
        let newest = self.create(60).await;
        assert!(newest.task.created_at <= servers.new_time() && newest.task.created_at > earliest);
        let page = self.tasks.list(&owner("alice"), PageRequest::new(9)).await.unwrap();
        let listed: Vec<&TaskKey> = page.tasks.iter().map(|task| &task.key).collect();
        assert_eq!(listed, [&newest.key, &half_an_hour.key, &done.key, &long.key]);
        let completed = self.tasks.complete(long, json!("done")).await.unwrap();
        assert!(
            completed.task.last_updated_at >= completed.task.created_at,
            "a task must not be updated before its creation"
        );
        assert_eq!(self.tasks.get(&long.key).await.unwrap(), completed);
        let late = self.tasks.complete(half_an_hour, json!("late")).await;
        assert_eq!(matches!(late, Err(TaskError::InvalidTransition { .. })), is_ahead, "{late:?}");
    }

    async fn check_new_records(&self, servers: &Servers) {
        let before = servers.new_time();
        let written = self.backend.put(&key("bob", "an hour"), "x".into(), in_an_hour()).await.unwrap();
        let since = written.expires_at.unwrap() - TimeDelta::hours(1);
        assert!(before <= since && since <= servers.new_time() + TimeDelta::milliseconds(1), "{since}");
        let process = Process::start(&servers.0.replica.url()).await;
        self.backend.put(&key("bob", "soon"), "x".into(), after_ms(SOON_MS)).await.unwrap();
        assert!(process.see_expire(&key("bob", "soon")).await > 0);
    }
}

fn check_estimate(backend: &RedisBackend, servers: &Servers) {
    let now = backend.now();
    let latest = servers.new_time();
    assert!(now <= latest, "now() returns {now}, ahead of the new server, which says {latest} later");
    figure("most that now() lags behind the new server after a failover", latest - now);
    assert!(latest - now < MOST_LAG);
}

#[rstest]
#[case::an_hour_behind("-1h", TimeDelta::hours(-1))]
#[case::an_hour_ahead("+1h", TimeDelta::hours(1))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_to_a_server_with_another_clock_the_backend_follows_the_new_one(
    #[case] offset: &str,
    #[case] wrong_by: TimeDelta,
) {
    let is_ahead = wrong_by > TimeDelta::zero();
    let mut servers = block_in_place(|| Servers::start(offset, wrong_by));
    let stores = Stores::new(servers.connect().await);
    let before = stores.write().await;
    block_in_place(|| servers.fail_over());
    let failed_over = Instant::now();
    let read = answered(async || stores.backend.get(&key("bob", "never")).await).await;
    figure("failover by the sentinels to first reply", TimeDelta::from_std(failed_over.elapsed()).unwrap());
    assert_eq!((&*read.data, read.version), (&b"stays"[..], Version::FIRST));
    check_estimate(&stores.backend, &servers);
    stores.check_what_was_written_before(&before, is_ahead).await;
    stores.check_new_tasks(&before, &servers, is_ahead).await;
    stores.check_new_records(&servers).await;
}
