//! The size of the scripts, the network bytes of calls, and how long one script blocks the server.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mcp_task_store::{
    Expiry, OwnerId, PageRequest, PutOptions, RedisBackend, StorageBackend, TaskKey, Version,
};
use redis::Value;

use crate::bench::Bench;
use crate::contender::{Contender, HOUR};
use crate::record::{TYPICAL, record, records};
use crate::report::{Report, Row, Target, short, thousands};
use crate::rounds::{Numbers, time};

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("bytes");
    wire(bench, report).await?;
    texts(bench, report).await?;
    held(bench, report).await
}

/// Measures the network bytes of a call, sent and received.
async fn wire(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = bytes(bench, &bench.ours).await?;
    let peer = bytes(bench, &bench.peer).await?;
    let bare = bytes(bench, &bench.bare).await?;
    for (number, work) in ["put", "put_if_version", "get"].into_iter().enumerate() {
        let row = Row::new(format!("network bytes per `{work}`, sent + received"));
        report.add(row.ours(&ours[number]).peer(&peer[number]).bare(&bare[number]));
    }
    bytes(bench, &bench.ours).await?;
    let (owner, backend) = (OwnerId::try_from("owner-0")?, &bench.ours.0);
    let page = traffic(bench, async || {
        for _ in 0..CALLS {
            backend.list(&owner, PageRequest::new(20)).await?;
        }
        Ok(())
    });
    report.add(Row::new("network bytes per page of 20, sent + received").ours(page.await?));
    Ok(())
}

const CALLS: usize = 2_000;

async fn bytes<C: Contender>(bench: &Bench, contender: &C) -> Result<[String; 3]> {
    bench.server.clear()?;
    let records = records::<C>(CALLS, 20, TYPICAL, HOUR);
    let put = traffic(bench, async || super::records::put(contender, &records, 1).await.map(drop)).await?;
    let swap =
        traffic(bench, async || super::records::swap(contender, &records, 1, 1).await.map(drop)).await?;
    let get =
        traffic(bench, async || super::records::get(contender, &records, 1, CALLS).await.map(drop)).await?;
    Ok([put, swap, get])
}

/// Returns the bytes that each of `CALLS` calls sends and receives.
async fn traffic(bench: &Bench, calls: impl AsyncFnOnce() -> Result<()>) -> Result<String> {
    let read = || -> Result<[f64; 2]> {
        Ok([
            bench.server.info("stats", "total_net_input_bytes")?,
            bench.server.info("stats", "total_net_output_bytes")?,
        ])
    };
    // Reading the figures sends and receives bytes too.
    let (first, second) = (read()?, read()?);
    calls().await?;
    let after = read()?;
    let each = |at: usize| (after[at] - second[at] - (second[at] - first[at])) / CALLS as f64;
    Ok(format!("{:.0} + {:.0}", each(0), each(1)))
}

/// Measures the length of each script as sent. The log of the server (`MONITOR`) shows it.
async fn texts(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut monitor = BufReader::new(TcpStream::connect(bench.server.address())?);
    monitor.get_mut().write_all(b"MONITOR\r\n")?;
    monitor.get_ref().set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    monitor.read_line(&mut line)?;

    let backend = &bench.ours.0;
    let key = TaskKey::new("texts", "t1")?;
    let options = PutOptions::new(Expiry::Keep);
    let mut texts = BTreeMap::new();
    let mut sent = |name: &'static str| -> Result<()> {
        loop {
            line.clear();
            monitor.read_line(&mut line).context("the server shows no EVAL")?;
            if let Some((_, text)) = line.split_once("\"EVAL\" \"") {
                // The log escapes quotes and line ends.
                let text = text.split("\" \"").next().unwrap_or_default();
                texts.insert(name, text.len() - text.matches("\\n").count() - text.matches("\\\"").count());
                return Ok(());
            }
        }
    };
    backend.put(&key, "data".into(), options.clone()).await?;
    sent("put")?;
    backend.put_if_version(&key, "data".into(), options, Version::FIRST).await?;
    sent("cas_put")?;
    backend.list(&key.owner, PageRequest::new(1)).await?;
    sent("list")?;
    bench.server.run::<i64>(&["DEL", "pmcp:tasks:texts:t1"])?;
    backend.list(&key.owner, PageRequest::new(1)).await?;
    sent("list")?;
    sent("reap")?;
    backend.delete(&key).await?;
    sent("delete")?;
    let listed: Vec<_> = texts.iter().map(|(name, length)| format!("{name} {length}")).collect();
    report.add(Row::new("length of each script as sent, in bytes").ours(listed.join(", ")));
    Ok(())
}

const HELD_RECORDS: usize = 100_000;
/// The server logs commands that take more microseconds.
const NOTED: &str = "100";

/// Measures the longest time that one script blocks the server. One owner has 100,000 records. Meanwhile two clients read pages and
/// insert records, and half of all records expire at once.
async fn held(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("the longest script");
    bench.server.clear()?;
    let count = bench.form.count(HELD_RECORDS);
    let backend = &bench.ours.0;
    let begun = Instant::now();
    let soon = Duration::from_secs(12);
    let worker = |numbers: Numbers| {
        let backend = backend.clone();
        async move {
            for number in numbers {
                let (task, data) = record("owner-0", TYPICAL, HOUR);
                // All odd records expire at the same moment: the TTL of each is the time until that moment.
                let left = soon.saturating_sub(begun.elapsed()).max(SECOND);
                let after = if number % 2 == 0 { HOUR } else { left };
                backend.put(&TaskKey::new("owner-0", &task)?, data, Expiry::After(after).into()).await?;
            }
            Ok(())
        }
    };
    time(count, 64, worker).await?;
    for setting in [
        ["slowlog-log-slower-than", NOTED],
        ["slowlog-max-len", "100000"],
        ["latency-monitor-threshold", "1"],
    ] {
        bench.server.run::<String>(&["CONFIG", "SET", setting[0], setting[1]])?;
    }
    bench.server.run::<String>(&["SLOWLOG", "RESET"])?;
    bench.server.run::<String>(&["CONFIG", "RESETSTAT"])?;

    let until = begun + soon + Duration::from_secs(4);
    let pages = tokio::spawn(read_pages(backend.clone(), until));
    let inserts = tokio::spawn(insert_records(backend.clone(), until));
    let (pages, inserts) = (pages.await??, inserts.await??);
    // `SLOWLOG GET` is itself slow, so the events are read before it.
    let events: Vec<Vec<Value>> = bench.server.run(&["LATENCY", "LATEST"])?;
    let events: Vec<_> = events
        .into_iter()
        .filter_map(|event| {
            let name: String = redis::from_redis_value(event.first()?.clone()).ok()?;
            let most: u64 = redis::from_redis_value(event.get(3)?.clone()).ok()?;
            Some(format!("{name} {most} ms"))
        })
        .collect();
    let slow: Vec<Vec<Value>> = bench.server.run(&["SLOWLOG", "GET", "-1"])?;
    let scripts = slow.iter().filter_map(|entry| {
        let words: Vec<Vec<u8>> = redis::from_redis_value(entry.get(3)?.clone()).ok()?;
        let micros: u64 = redis::from_redis_value(entry.get(2)?.clone()).ok()?;
        words.first()?.eq_ignore_ascii_case(b"EVAL").then_some(micros)
    });
    let longest = scripts.max().unwrap_or(0) as f64 / 1000.0;
    // The next rows are measured without the log.
    for [setting, value] in [["slowlog-log-slower-than", "10000"], ["latency-monitor-threshold", "0"]] {
        bench.server.run::<String>(&["CONFIG", "SET", setting, value])?;
    }
    let (calls, micros) = bench.server.command_stats("eval")?;
    let work =
        format!("longest time that one script blocks the server, {} records of one owner", thousands(count));
    let text = format!(
        "{} pages of 256, {} inserts; mean {} µs per script",
        thousands(pages),
        thousands(inserts),
        short(micros / calls)
    );
    let row = Row::new(work).ours(format!("{} ms", short(longest)));
    let row = row.figure(&format!("{} ms", short(longest)), longest, Some(Target::AtMost(2.0))).remark(text);
    report.add(row.remark(format!(
        "LATENCY: {}",
        if events.is_empty() { "no event".into() } else { events.join(", ") }
    )));
    Ok(())
}

const SECOND: Duration = Duration::from_secs(1);

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

async fn insert_records(backend: RedisBackend, until: Instant) -> Result<usize> {
    let mut inserts = 0;
    while Instant::now() < until {
        let (task, data) = record("owner-0", TYPICAL, HOUR);
        // Some expire sooner than others, so that the script reads the index.
        let after = if inserts % 4 == 0 { HOUR / 2 } else { HOUR };
        backend.put(&TaskKey::new("owner-0", &task)?, data, Expiry::After(after).into()).await?;
        inserts += 1;
    }
    Ok(inserts)
}
