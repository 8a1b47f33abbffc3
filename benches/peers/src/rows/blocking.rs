//! How long one script blocks the server, at 100,000 records of one owner.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mcp_task_store::{OwnerId, PageRequest, RedisBackend, StorageBackend, TaskKey};
use redis::Value;

use crate::bench::Bench;
use crate::contender::{Contender, HOUR, Ours};
use crate::format::{short, thousands};
use crate::record::{TYPICAL, record};
use crate::report::Report;
use crate::rounds::{Numbers, time};
use crate::row::{Row, Target};

const RECORDS: usize = 100_000;
const IN_FLIGHT: usize = 64;
/// The percentiles that the server reports in `INFO latencystats`. The last one is the maximum.
const PERCENTILES: &str = "50 99.9 100";
const FIELDS: [&str; 3] = ["p50=", "p99.9=", "p100="];

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("the longest script");
    bench.server.clear()?;
    let count = bench.form.count(RECORDS);
    let expiry = fill(&bench.ours, count).await?;
    let until = expiry + Duration::from_secs(if bench.form.is_check() { 1 } else { 3 });

    bench.server.run::<String>(&["CONFIG", "SET", "latency-tracking-info-percentiles", PERCENTILES])?;
    bench.server.run::<String>(&["CONFIG", "SET", "latency-monitor-threshold", "1"])?;
    bench.server.run::<String>(&["CONFIG", "RESETSTAT"])?;
    let load = load(&bench.ours, until).await?;
    let events = slow_events(bench)?;
    let [median, high, longest] = percentiles(bench, "eval")?;
    let (calls, micros) = bench.server.command_stats("eval")?;
    bench.server.run::<String>(&["CONFIG", "SET", "latency-monitor-threshold", "0"])?;

    let row = Row::new(format!(
        "how long one script blocks the server (`INFO latencystats`): {} records of one owner, half of which expire at one moment",
        thousands(count)
    ));
    let millis = |micros: f64| format!("{} ms", short(micros / 1e3));
    let row = row.ours(format!("99.9th percentile {}, maximum {}", millis(high), millis(longest)));
    let row = row.figure(&format!("99.9th percentile {}", millis(high)), high / 1e3, Target::AtMost(2.0));
    let scripts = thousands(calls as usize);
    let row = row.remark(format!(
        "{load}; {scripts} scripts, median {} µs, mean {} µs",
        short(median),
        short(micros / calls)
    ));
    report.add(row.remark(format!("LATENCY: {events}")));
    Ok(())
}

/// Writes the records, and returns when half of them expire. The first half shows how long the second one takes.
async fn fill(ours: &Ours, count: usize) -> Result<Instant> {
    let begun = Instant::now();
    let in_an_hour = begun + HOUR;
    fill_half(ours, count / 2, in_an_hour).await?;
    let expiry = Instant::now() + 2 * begun.elapsed() + Duration::from_secs(2);
    fill_half(ours, count / 2, expiry).await?;
    anyhow::ensure!(Instant::now() < expiry, "writing took so long that records have expired meanwhile");
    Ok(expiry)
}

/// Writes records that expire at the same moment: the TTL of each is the time until that moment.
async fn fill_half(ours: &Ours, count: usize, expiry: Instant) -> Result<()> {
    let worker = |numbers: Numbers| {
        let ours = ours.clone();
        async move {
            for _ in numbers {
                let (task, data) = record("owner-0", TYPICAL, HOUR);
                let left = expiry.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
                ours.create(&Ours::key("owner-0", &task), data, left).await?;
            }
            Ok(())
        }
    };
    time(count, IN_FLIGHT, worker).await.map(drop)
}

/// How many calls the load made.
struct Load {
    pages: usize,
    writes: usize,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} pages of 256, {} writes {IN_FLIGHT} in flight",
            thousands(self.pages),
            thousands(self.writes)
        )
    }
}

/// One client reads pages. Others create and update records, so that the writes meet.
async fn load(ours: &Ours, until: Instant) -> Result<Load> {
    let pages = tokio::spawn(read_pages(ours.0.clone(), until));
    let writers: Vec<_> = (0..IN_FLIGHT).map(|_| tokio::spawn(write(ours.clone(), until))).collect();
    let mut writes = 0;
    for writer in writers {
        writes += writer.await??;
    }
    Ok(Load { pages: pages.await??, writes })
}

/// Walks over all pages again and again.
async fn read_pages(backend: RedisBackend, until: Instant) -> Result<usize> {
    let owner = OwnerId::try_from("owner-0")?;
    let (mut pages, mut page) = (0, PageRequest::new(256));
    while Instant::now() < until {
        let read = backend.list(&owner, page).await?;
        pages += 1;
        page = PageRequest::new(256);
        if let Some(next) = read.next {
            page = page.after(next);
        }
    }
    Ok(pages)
}

/// Creates records and updates each once.
async fn write(ours: Ours, until: Instant) -> Result<usize> {
    let mut writes = 0;
    while Instant::now() < until {
        let (task, data) = record("owner-0", TYPICAL, HOUR);
        let key: TaskKey = Ours::key("owner-0", &task);
        // Some expire sooner than others, so that the index does not always expire with the newest.
        let after = if writes % 4 == 0 { HOUR / 2 } else { HOUR };
        ours.create(&key, data.clone(), after).await?;
        ours.swap(&key, data, 1).await?;
        writes += 2;
    }
    Ok(writes)
}

/// Returns the percentiles of a command's time, in microseconds.
fn percentiles(bench: &Bench, command: &str) -> Result<[f64; 3]> {
    let line = bench.server.info_text("latencystats", &format!("latency_percentiles_usec_{command}"))?;
    let mut found = [0.0; 3];
    for (figure, field) in found.iter_mut().zip(FIELDS) {
        let text = line.split(',').find_map(|part| part.strip_prefix(field));
        *figure = text.with_context(|| format!("INFO latencystats has no {field}"))?.parse()?;
    }
    Ok(found)
}

/// Returns the longest of each event that blocked the server for a millisecond or more.
fn slow_events(bench: &Bench) -> Result<String> {
    let events: Vec<Vec<Value>> = bench.server.run(&["LATENCY", "LATEST"])?;
    let mut listed = Vec::new();
    for event in events {
        let (name, most) = (event.first().context("an event without a name")?, event.get(3));
        let name: String = redis::from_redis_value(name.clone())?;
        let most: u64 = redis::from_redis_value(most.context("an event without a maximum")?.clone())?;
        listed.push(format!("{name} {most} ms"));
    }
    Ok(if listed.is_empty() { "no event".to_owned() } else { listed.join(", ") })
}
