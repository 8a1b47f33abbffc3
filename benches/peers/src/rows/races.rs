//! Concurrent updates of one task through `TaskStore`.

use std::future::Future;
use std::sync::Arc;

use anyhow::Result;
use mcp_task_store::{OwnerId, RedisBackend, TaskStore};
use pmcp_tasks::GenericTaskStore;
use serde_json::{Value, json};

use super::tasks::{Theirs, new_task, their_task};
use crate::bench::Bench;
use crate::report::Report;
use crate::row::{Row, Target};

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

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    let updates = bench.form.count(UPDATES * WRITERS) / WRITERS;
    for (stores, through) in [(1, "through one store"), (4, "through four stores")] {
        bench.step(&format!("concurrent updates {through}"));
        let ours = race(bench, stores, updates).await?;
        let peer = if stores == 1 { race_peer(bench, updates).await?.to_string() } else { String::new() };
        let not_there = (ours.failed + ours.lost) as f64;
        let row =
            Row::new(format!("{WRITERS} Tokio tasks with {updates} updates each of one record, {through}"));
        let row = row.ours(&ours).peer(peer);
        report.add(row.figure(&format!("{not_there} failed or lost"), not_there, Target::AtMost(0.0)));
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
