//! Updates of different tasks through `TaskStore`: by key, and by a copy of the task.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use mcp_task_store::{NewTask, OwnerId, RedisBackend, StoredTask, TaskStore};
use pmcp_tasks::GenericTaskStore;
use serde_json::json;
use tokio::sync::Mutex;

use crate::bench::Bench;
use crate::format::micros;
use crate::report::Report;
use crate::rounds::{Numbers, alternate, time};
use crate::row::{Row, Target};

const TASKS: usize = 64;
const IN_FLIGHT: usize = 64;

pub type Ours = TaskStore<RedisBackend>;
pub type Theirs = Arc<GenericTaskStore<pmcp_tasks::RedisBackend>>;

/// The ways in which an update names its task, and the target of each with 64 calls in flight.
const WAYS: [(&str, f64); 3] =
    [("by key", 1.7), ("of the copy just returned", 2.8), ("of a copy 5 s old", 1.7)];

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.server.clear()?;
    let store = TaskStore::new(bench.ours.0.clone());
    let (held, old) = (Held::new(&store).await?, our_tasks(&store).await?);
    let old = Arc::new(old);
    let peer = PeerTasks::new(bench).await?;
    // The store trusts a copy for one second.
    tokio::time::sleep(if bench.form.is_check() {
        Duration::from_millis(1_100)
    } else {
        Duration::from_secs(5)
    })
    .await;

    for (in_flight, name) in [(IN_FLIGHT, "64 in flight"), (1, "one at a time")] {
        bench.step(&format!("status updates, {name}"));
        let calls = bench.form.count(if in_flight == 1 { 640 } else { 6_400 });
        let [by_key, by_copy, by_old_copy, peer] = alternate(bench.form.rounds, async |turn| match turn {
            0 => by_key(&store, &old, calls, in_flight).await,
            1 => held.update(&store, calls, in_flight).await,
            2 => by_old_copy(&store, &old, calls, in_flight).await,
            _ => peer.update(calls, in_flight).await,
        })
        .await?;
        for ((way, least), ours) in WAYS.into_iter().zip([by_key, by_copy, by_old_copy]) {
            let target = (in_flight > 1).then_some(Target::AtLeast(least));
            let row =
                Row::new(format!("a status update {way}, {name}")).ours(micros(&ours)).peer(micros(&peer));
            report.add(row.ratio("the peer's throughput", &peer.over(&ours), target).reason(
                "the client encodes the task as JSON, and decodes it unless the copy is younger than a second: about a third of its instructions; the rest is a `get` and a compare-and-swap",
            ));
        }
    }
    Ok(())
}

pub fn new_task() -> NewTask {
    // The record has 700 bytes, like that of the peer.
    NewTask::new("tools/call").arguments(json!({ "name": "render", "pad": "x".repeat(390) }))
}

async fn our_tasks(store: &Ours) -> Result<Vec<StoredTask>> {
    let mut tasks = Vec::with_capacity(TASKS);
    for number in 0..TASKS {
        let owner = OwnerId::try_from(format!("owner-{number}"))?;
        tasks.push(store.create(&owner, new_task()).await?);
    }
    Ok(tasks)
}

pub fn status(number: usize) -> String {
    format!("frame {number} of 240")
}

/// Returns the microseconds per update by key.
async fn by_key(store: &Ours, tasks: &Arc<Vec<StoredTask>>, calls: usize, in_flight: usize) -> Result<f64> {
    let worker = |numbers: Numbers| {
        let (store, tasks) = (store.clone(), Arc::clone(tasks));
        async move {
            for number in numbers {
                store.set_status_message(&tasks[number % TASKS].key, status(number)).await?;
            }
            Ok(())
        }
    };
    time(calls, in_flight, worker).await
}

/// Returns the microseconds per update of a copy that is older than the store trusts. The copies stay as they are.
async fn by_old_copy(
    store: &Ours,
    tasks: &Arc<Vec<StoredTask>>,
    calls: usize,
    in_flight: usize,
) -> Result<f64> {
    let worker = |numbers: Numbers| {
        let (store, tasks) = (store.clone(), Arc::clone(tasks));
        async move {
            for number in numbers {
                store.set_status_message(&tasks[number % TASKS], status(number)).await?;
            }
            Ok(())
        }
    };
    time(calls, in_flight, worker).await
}

/// Tasks as the last update returned them.
pub struct Held(Arc<Vec<Mutex<StoredTask>>>);

impl Held {
    pub async fn new(store: &Ours) -> Result<Self> {
        Ok(Self(Arc::new(our_tasks(store).await?.into_iter().map(Mutex::new).collect())))
    }

    /// Returns the microseconds per update of the `StoredTask` that the previous call returned.
    pub async fn update(&self, store: &Ours, calls: usize, in_flight: usize) -> Result<f64> {
        // The copies of the last round are too old.
        for task in self.0.iter() {
            let mut task = task.lock().await;
            *task = store.get(&task.key).await?;
        }
        let worker = |numbers: Numbers| {
            let (store, held) = (store.clone(), Arc::clone(&self.0));
            async move {
                for number in numbers {
                    let mut task = held[number % TASKS].lock().await;
                    *task = store.set_status_message(&*task, status(number)).await?;
                }
                Ok(())
            }
        };
        time(calls, in_flight, worker).await
    }
}

pub async fn their_task(store: &Theirs, owner: &str) -> Result<String> {
    let task = store.create(owner, "tools/call", Some(3_600_000)).await?.task.task_id;
    let pad = json!({ "pad": "x".repeat(330) });
    let pad = pad.as_object().context("an object")?.clone().into_iter().collect();
    store.set_variables(&task, owner, pad).await?;
    Ok(task)
}

/// The id and the owner of each task of the peer.
struct PeerTasks {
    store: Theirs,
    tasks: Arc<Vec<Mutex<(String, String)>>>,
}

impl PeerTasks {
    async fn new(bench: &Bench) -> Result<Self> {
        let store: Theirs = Arc::new(GenericTaskStore::new(bench.peer.0.clone()));
        let mut tasks = Vec::with_capacity(TASKS);
        for number in 0..TASKS {
            let owner = format!("peer-{number}");
            tasks.push(Mutex::new((their_task(&store, &owner).await?, owner)));
        }
        Ok(Self { store, tasks: Arc::new(tasks) })
    }

    async fn update(&self, calls: usize, in_flight: usize) -> Result<f64> {
        let worker = |numbers: Numbers| {
            let (store, tasks) = (Arc::clone(&self.store), Arc::clone(&self.tasks));
            async move {
                for number in numbers {
                    // This crate queues the writers of one task. The lock does the same for the peer, whose updates would fail
                    // otherwise.
                    let task = tasks[number % TASKS].lock().await;
                    store.set_status_message(&task.0, &task.1, Some(status(number))).await?;
                }
                Ok(())
            }
        };
        time(calls, in_flight, worker).await
    }
}
