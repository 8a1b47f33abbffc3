//! Updates of tasks through `TaskStore`: of different tasks, and concurrent updates of one task.

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context, Result};
use mcp_task_store::{NewTask, OwnerId, RedisBackend, StoredTask, TaskKey, TaskStore};
use pmcp_tasks::GenericTaskStore;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::bench::Bench;
use crate::report::{Report, Row, Target, micros};
use crate::rounds::{Numbers, alternate, time};

const TASKS: usize = 64;
const IN_FLIGHT: usize = 64;

type Ours = TaskStore<RedisBackend>;
type Theirs = Arc<GenericTaskStore<pmcp_tasks::RedisBackend>>;

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.server.clear()?;
    for (in_flight, name) in [(IN_FLIGHT, "64 in flight"), (1, "one at a time")] {
        bench.step(&format!("status updates, {name}"));
        let calls = bench.form.count(if in_flight == 1 { 1_500 } else { 12_800 });
        let [by_key, by_copy, peer] = alternate(bench.form.rounds, async |turn| match turn {
            0 => update_by_key(bench, calls, in_flight).await,
            1 => update_by_copy(bench, calls, in_flight).await,
            _ => update_peer(bench, calls, in_flight).await,
        })
        .await?;
        let target = |ratio| (in_flight > 1).then_some(Target::AtLeast(ratio));
        let row = |how: &str, ours| {
            Row::new(format!("a status update {how}, {name}")).ours(micros(ours)).peer(micros(&peer))
        };
        let ratio = peer.over(&by_key);
        report.add(row("by key", &by_key).ratio("the peer's throughput", &ratio, target(1.3)));
        let ratio = peer.over(&by_copy);
        report.add(row("by `StoredTask`", &by_copy).ratio("the peer's throughput", &ratio, target(1.8)));
    }
    races(bench, report).await
}

fn new_task() -> NewTask {
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

fn status(number: usize) -> String {
    format!("frame {number} of 240")
}

/// Returns the microseconds per update by key.
async fn update_by_key(bench: &Bench, calls: usize, in_flight: usize) -> Result<f64> {
    let store = TaskStore::new(bench.ours.0.clone());
    let keys: Arc<Vec<TaskKey>> =
        Arc::new(our_tasks(&store).await?.into_iter().map(|task| task.key).collect());
    let worker = |numbers: Numbers| {
        let (store, keys) = (store.clone(), Arc::clone(&keys));
        async move {
            for number in numbers {
                store.set_status_message(&keys[number % TASKS], status(number)).await?;
            }
            Ok(())
        }
    };
    time(calls, in_flight, worker).await
}

/// Returns the microseconds per update of the `StoredTask` that the previous call returned.
async fn update_by_copy(bench: &Bench, calls: usize, in_flight: usize) -> Result<f64> {
    let store = TaskStore::new(bench.ours.0.clone());
    let held: Vec<_> = our_tasks(&store).await?.into_iter().map(Mutex::new).collect();
    let held = Arc::new(held);
    let worker = |numbers: Numbers| {
        let (store, held) = (store.clone(), Arc::clone(&held));
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

async fn their_task(store: &Theirs, owner: &str) -> Result<String> {
    let task = store.create(owner, "tools/call", Some(3_600_000)).await?.task.task_id;
    let pad = json!({ "pad": "x".repeat(330) });
    let pad = pad.as_object().context("an object")?.clone().into_iter().collect();
    store.set_variables(&task, owner, pad).await?;
    Ok(task)
}

async fn update_peer(bench: &Bench, calls: usize, in_flight: usize) -> Result<f64> {
    let store: Theirs = Arc::new(GenericTaskStore::new(bench.peer.0.clone()));
    let mut tasks = Vec::with_capacity(TASKS);
    for number in 0..TASKS {
        let owner = format!("peer-{}-{number}", uuid::Uuid::new_v4());
        tasks.push(Mutex::new((their_task(&store, &owner).await?, owner)));
    }
    let tasks = Arc::new(tasks);
    let worker = |numbers: Numbers| {
        let (store, tasks) = (Arc::clone(&store), Arc::clone(&tasks));
        async move {
            for number in numbers {
                // This crate queues the writers of one task. The lock does the same for the peer, whose updates would fail otherwise.
                let task = tasks[number % TASKS].lock().await;
                store.set_status_message(&task.0, &task.1, Some(status(number))).await?;
            }
            Ok(())
        }
    };
    time(calls, in_flight, worker).await
}

/// The outcomes of concurrent updates.
#[derive(Default)]
struct Race {
    succeeded: usize,
    failed: usize,
    /// Updates that succeeded, but are missing in the task.
    lost: usize,
    /// How many writes the updates needed in addition to one each.
    retries: f64,
}

impl std::fmt::Display for Race {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { succeeded, failed, lost, retries } = self;
        write!(f, "{succeeded} succeeded, {failed} failed, {lost} lost, {retries} extra writes")
    }
}

const WRITERS: usize = 16;
const UPDATES: usize = 100;

async fn races(bench: &Bench, report: &mut Report) -> Result<()> {
    let updates = bench.form.count(UPDATES * WRITERS) / WRITERS;
    for (stores, through) in [(1, "through one store"), (4, "through four stores")] {
        bench.step(&format!("concurrent updates {through}"));
        let ours = race(bench, stores, updates).await?;
        let peer = if stores == 1 { race_peer(bench, updates).await?.to_string() } else { String::new() };
        let not_there = (ours.failed + ours.lost) as f64;
        let row =
            Row::new(format!("{WRITERS} Tokio tasks with {updates} updates each of one record, {through}"));
        let row = row.ours(&ours).peer(peer);
        report.add(row.figure(&format!("{not_there} failed or lost"), not_there, Some(Target::AtMost(0.0))));
    }
    Ok(())
}

/// Each of 16 writers increments its own variable in one task. Each store has its own connection, so the stores behave like stores
/// in separate processes.
async fn race(bench: &Bench, count: usize, updates: usize) -> Result<Race> {
    bench.server.clear()?;
    let mut stores = Vec::with_capacity(count);
    for _ in 0..count {
        stores.push(TaskStore::new(RedisBackend::connect(&bench.server.url()).await?));
    }
    let key = stores[0].create(&OwnerId::try_from("alice")?, new_task()).await?.key;
    let (first, task) = (stores[0].clone(), key.clone());
    let race = run(bench, "eval", updates, move |writer, number| {
        let (store, key) = (stores[writer % count].clone(), key.clone());
        async move { store.set_variables(&key, [(variable(writer), json!(number))]).await.is_ok() }
    });
    let race = race.await?;
    Ok(race.counted(first.get(&task).await?.task.variables.values()))
}

async fn race_peer(bench: &Bench, updates: usize) -> Result<Race> {
    let store: Theirs = Arc::new(GenericTaskStore::new(bench.peer.0.clone()));
    let task = their_task(&store, "alice").await?;
    let (first, id) = (Arc::clone(&store), task.clone());
    let race = run(bench, "evalsha", updates, move |writer, number| {
        let (store, task) = (Arc::clone(&store), task.clone());
        let counted = [(variable(writer), json!(number))].into_iter().collect();
        async move { store.set_variables(&task, "alice", counted).await.is_ok() }
    });
    let race = race.await?;
    Ok(race.counted(first.get(&id, "alice").await?.variables.values()))
}

fn variable(writer: usize) -> String {
    format!("writer-{writer}")
}

/// Runs the writers. `update` receives the number of the writer and its count, and returns whether it succeeded.
async fn run<F: Future<Output = bool> + Send>(
    bench: &Bench,
    command: &str,
    updates: usize,
    update: impl Fn(usize, usize) -> F + Send + Sync + 'static,
) -> Result<Race> {
    let (before, _) = bench.server.command_stats(command)?;
    let update = Arc::new(update);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let update = Arc::clone(&update);
            tokio::spawn(async move {
                let mut counted = 0;
                for _ in 0..updates {
                    counted += usize::from(update(writer, counted + 1).await);
                }
                counted
            })
        })
        .collect();
    let mut succeeded = 0;
    for writer in writers {
        succeeded += writer.await?;
    }
    let (after, _) = bench.server.command_stats(command)?;
    let all = WRITERS * updates;
    Ok(Race { succeeded, failed: all - succeeded, lost: 0, retries: after - before - all as f64 })
}

impl Race {
    /// Compares the successful updates with the variables of the task at the end.
    fn counted<'a>(self, variables: impl Iterator<Item = &'a Value>) -> Self {
        let counted = variables.filter_map(Value::as_u64).sum::<u64>() as usize;
        Self { lost: self.succeeded.saturating_sub(counted), ..self }
    }
}
