//! Times the calls of one contender on a SQLite file. Each contender runs in a process of its own, because two versions of SQLite
//! cannot be linked into one program. The harness sends one [`Request`] a line, and the process answers each with one [`Reply`].

use std::future::Future;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

/// The size of a record, in bytes.
pub const SIZE: usize = 700;
/// How long a record lives.
pub const TTL: Duration = Duration::from_secs(3600);
/// The number of records on a page.
pub const PAGE: usize = 20;

/// What the harness asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Opens a file, and prepares the keys of this many records of so many owners.
    Open { file: PathBuf, records: usize, owners: usize },
    /// Makes calls, the first one on this record, and replies with the microseconds of all.
    Time { call: Call, from: usize, calls: usize, in_flight: usize },
    /// Creates records for so many milliseconds, and replies with their number.
    CreateFor { millis: u64, in_flight: usize },
}

/// A call on the records, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    Create,
    /// Replaces a record that has this version.
    Swap {
        version: u64,
    },
    Get,
    /// Reads the first page of the owner of the record.
    Page,
}

/// The answer to a request: a figure, or why there is none.
pub type Reply = Result<f64, String>;

/// The calls of a contender. The records are prepared before the clock starts, because a real server also reuses its keys.
pub trait Contender: Send + Sync + Sized + 'static {
    type Record: Send + Sync + 'static;

    fn open(file: &Path) -> impl Future<Output = Result<Self>> + Send;
    fn record(owner: &str, task: &str) -> Self::Record;
    fn create(&self, record: &Self::Record) -> impl Future<Output = Result<()>> + Send;
    fn swap(&self, record: &Self::Record, version: u64) -> impl Future<Output = Result<()>> + Send;
    /// Reads a record, and returns whether it is the right one.
    fn get(&self, record: &Self::Record) -> impl Future<Output = Result<bool>> + Send;
    /// Reads a page of the owner of this record. Returns how many records it has.
    fn page(&self, record: &Self::Record) -> impl Future<Output = Result<usize>> + Send;
}

/// Handles requests until the input ends.
pub fn serve<C: Contender>() -> Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut opened = None;
    for line in std::io::stdin().lock().lines() {
        let reply: Reply = handle::<C>(&runtime, serde_json::from_str(&line?)?, &mut opened)
            .map_err(|error| format!("{error:#}"));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&reply)?)?;
        out.flush()?;
    }
    Ok(())
}

/// An open file and its records.
struct Opened<C: Contender> {
    contender: Arc<C>,
    records: Arc<Vec<C::Record>>,
    owners: usize,
}

fn handle<C: Contender>(runtime: &Runtime, request: Request, opened: &mut Option<Opened<C>>) -> Result<f64> {
    match request {
        Request::Open { file, records, owners } => {
            // In a spawned task, because contenders start tasks and threads of their own.
            let contender = runtime.block_on(runtime.spawn(async move { C::open(&file).await }))??;
            let records = (0..records).map(|number| record::<C>(number, owners)).collect();
            *opened = Some(Opened { contender: Arc::new(contender), records: Arc::new(records), owners });
            Ok(0.0)
        }
        Request::Time { call, from, calls, in_flight } => {
            let opened = opened.as_ref().context("no file is open")?;
            runtime.block_on(opened.time(call, from, calls, in_flight))
        }
        Request::CreateFor { millis, in_flight } => {
            let opened = opened.as_ref().context("no file is open")?;
            runtime.block_on(opened.create_for(Duration::from_millis(millis), in_flight))
        }
    }
}

fn record<C: Contender>(number: usize, owners: usize) -> C::Record {
    C::record(&format!("owner-{}", number % owners), &uuid::Uuid::new_v4().to_string())
}

impl<C: Contender> Opened<C> {
    /// Makes `calls` calls, `in_flight` at a time. Returns the microseconds of all.
    async fn time(&self, call: Call, from: usize, calls: usize, in_flight: usize) -> Result<f64> {
        let (next, end) = (Arc::new(AtomicUsize::new(from)), from + calls);
        let begun = Instant::now();
        let callers: Vec<_> = (0..in_flight)
            .map(|_| {
                let (contender, records, next) =
                    (Arc::clone(&self.contender), Arc::clone(&self.records), Arc::clone(&next));
                tokio::spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= end {
                            return Ok::<_, anyhow::Error>(());
                        }
                        make(&*contender, call, &records[number % records.len()]).await?;
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await?.with_context(|| format!("{call:?}"))?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    }

    /// Creates records until the time is over. Returns their number.
    async fn create_for(&self, lasts: Duration, in_flight: usize) -> Result<f64> {
        let until = Instant::now() + lasts;
        let callers: Vec<_> = (0..in_flight)
            .map(|caller| {
                let (contender, owners) = (Arc::clone(&self.contender), self.owners);
                tokio::spawn(async move {
                    let mut created = 0;
                    while Instant::now() < until {
                        contender.create(&record::<C>(caller, owners)).await?;
                        created += 1;
                    }
                    Ok::<_, anyhow::Error>(created)
                })
            })
            .collect();
        let mut created = 0;
        for caller in callers {
            created += caller.await??;
        }
        Ok(f64::from(created))
    }
}

async fn make<C: Contender>(contender: &C, call: Call, record: &C::Record) -> Result<()> {
    match call {
        Call::Create => contender.create(record).await,
        Call::Swap { version } => contender.swap(record, version).await,
        Call::Get => {
            anyhow::ensure!(contender.get(record).await?, "another record was read");
            Ok(())
        }
        Call::Page => {
            let read = contender.page(record).await?;
            anyhow::ensure!(read == PAGE, "{read} records are on the page");
            Ok(())
        }
    }
}
