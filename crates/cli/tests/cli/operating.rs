//! The incident in the guide "Operating": its commands run against a real worker process that is killed, and print what the guide shows.

mod guide;
mod worker;

use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use mcp_task_store::{
    NewTask, OnWorkerLost, PutOptions, Retry, StorageBackend, StoreConfig, TaskFilter, TaskKey, TaskStore,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Store, on_every_engine, owner};
use guide::{Block, Guide};
use worker::{Release, Worker};

const PATIENCE: Duration = Duration::from_secs(120);
/// What the folders of a night are called.
const FOLDERS: [&str; 5] = ["orders", "invoices", "returns", "stock", "prices"];

/// The deployment of the guide: a store, and the one worker of its tool.
struct Incident {
    store: Store,
    worker: Option<Worker>,
    /// The releases that `systemctl restart` starts, one after the other.
    releases: std::vec::IntoIter<Release>,
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_walk_through_an_incident_shows_what_the_commands_print(#[case] engine: Engine) {
    let is_sqlite = matches!(engine, Engine::Sqlite);
    let mut incident = Incident::begin(engine.open().await).await;
    let mut guide = Guide::read();
    let mut blocks = guide.blocks();
    for block in &mut blocks {
        incident.run(block, is_sqlite, &mut guide).await;
    }
    assert!(incident.releases.next().is_none(), "the guide restarts the worker after each deed");
    if is_sqlite {
        guide.write_if_asked(&blocks);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test of this file, in a process of its own"]
async fn worker_process() {
    worker::serve().await;
}

impl Incident {
    /// Begins with a worker that is killed while it works, and with tasks that nobody works on for some minutes.
    async fn begin(store: Store) -> Self {
        let mut keys = Vec::new();
        for folder in FOLDERS {
            keys.push(enqueue(&store, &format!("/srv/nightly/2026-11-27/{folder}")).await);
        }
        let worker = Worker::start(&store, Release::Slow).await;
        let first = &keys[0];
        until("the worker works", async || {
            store.tasks.get(first).await.unwrap().task.status_message.is_some()
        })
        .await;
        worker.kill().await;
        for key in &keys {
            make_older(&store, key, TimeDelta::minutes(9)).await;
        }
        let releases = vec![Release::Good, Release::Broken, Release::Good].into_iter();
        Self { store, worker: None, releases }
    }

    async fn run(&mut self, block: &mut Block, is_sqlite: bool, guide: &mut Guide) {
        for step in &mut block.steps {
            let words: Vec<String> = shell_words(&guide.actual(&step.command));
            let printed = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["systemctl", "restart", "digest-worker"] => {
                    self.restart().await;
                    String::new()
                }
                ["mcp-tasks", ref args @ ..] => guide::printed(self.store.command(args)),
                _ => panic!("the test cannot run {}", step.command),
            };
            if words[1] == "doctor" && !is_sqlite {
                assert_healthy_index(&printed);
                continue;
            }
            guide.compare(step, &printed);
            if words.contains(&"--yes".to_owned()) {
                self.until_all_have_ended().await;
            }
        }
    }

    /// Stops the worker, and starts its next release, which ends all tasks. With the broken release, a new night begins.
    async fn restart(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.kill().await;
        }
        let release = self.releases.next().expect("the guide restarts the worker three times");
        self.worker = Some(Worker::start(&self.store, release).await);
        if release == Release::Broken {
            for folder in &FOLDERS[..3] {
                enqueue(&self.store, &format!("/srv/nightly/2026-11-28/{folder}")).await;
                // They end in this order.
                self.until_all_have_ended().await;
            }
        }
        self.until_all_have_ended().await;
    }

    async fn until_all_have_ended(&self) {
        let all_ended = async || {
            let mut scan = self.store.tasks.scan(TaskFilter::new());
            while let Some(page) = scan.next_page().await.unwrap() {
                if page.tasks.iter().any(|stored| !stored.task.status.is_terminal()) {
                    return false;
                }
            }
            true
        };
        until("all tasks have ended", all_ended).await;
    }
}

async fn enqueue(store: &Store, folder: &str) -> TaskKey {
    let config = StoreConfig::new().observer(true).lease(worker::LEASE);
    let server = TaskStore::with_config(std::sync::Arc::clone(store.tasks.backend()), config);
    let new = NewTask::new("tools/call")
        .operation("digest_folder")
        .on_worker_lost(OnWorkerLost::Resume)
        .retry(Retry::exponential(3, Duration::from_millis(200), Duration::from_secs(1)))
        .arguments(json!({ "folder": folder }));
    server.enqueue(&owner("acme"), new).await.unwrap().key
}

/// Moves all times in the record of a task back, as if it had waited since then.
async fn make_older(store: &Store, key: &TaskKey, by: TimeDelta) {
    let mut record = store.record(key).await.unwrap();
    for time in ["/createdAt", "/lastUpdatedAt", "/lease/deadline", "/history/0/0"] {
        let time = record.pointer_mut(time).unwrap();
        let earlier = time.as_str().unwrap().parse::<DateTime<Utc>>().unwrap() - by;
        *time = Value::String(earlier.to_rfc3339_opts(SecondsFormat::Millis, true));
    }
    let data = record.to_string().into();
    store.tasks.backend().put(key, data, PutOptions::default()).await.unwrap();
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// On Redis, the other lines tell of the server of the tests.
fn assert_healthy_index(doctor: &str) {
    for check in ["unreadable records", "tasks, no timer", "overdue timers", "timers, no task"] {
        let line = doctor.lines().find(|line| line.contains(check));
        assert!(line.is_some_and(|line| line.starts_with("green")), "{check}: {doctor}");
    }
}

/// Splits a command without quotes.
fn shell_words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}
