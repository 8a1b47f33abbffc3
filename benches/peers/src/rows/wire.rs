//! The size of the scripts, and the network bytes of calls.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future::try_join_all;
use mcp_task_store::{Expiry, OwnerId, PageRequest, PutOptions, StorageBackend, TaskKey, Version};

use crate::bench::Bench;
use crate::calls;
use crate::contender::{Contender, HOUR};
use crate::record::{TYPICAL, records};
use crate::report::Report;
use crate::row::Row;

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("bytes");
    wire(bench, report).await?;
    texts(bench, report).await
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

const CALLS: usize = 500;

async fn bytes<C: Contender>(bench: &Bench, contender: &C) -> Result<[String; 3]> {
    bench.server.clear()?;
    let records = records::<C>(CALLS, 20, TYPICAL, HOUR);
    let put = traffic(bench, async || calls::put(contender, &records, 1).await.map(drop)).await?;
    let swap = traffic(bench, async || calls::swap(contender, &records, 1, 1).await.map(drop)).await?;
    let get = traffic(bench, async || calls::get(contender, &records, 1, CALLS).await.map(drop)).await?;
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

/// Measures the length of each script as sent.
async fn texts(bench: &Bench, report: &mut Report) -> Result<()> {
    let (mut log, backend) = (Log::start(bench)?, &bench.ours.0);
    let keys: Vec<_> =
        (0..4).map(|task| TaskKey::new("texts", &format!("t{task}"))).collect::<Result<_, _>>()?;
    let (hour, keep) = (PutOptions::new(Expiry::After(HOUR)), PutOptions::new(Expiry::Keep));
    let data = || Bytes::from_static(b"data");

    backend.put(&keys[0], data(), hour.clone()).await?;
    log.note("`put`")?;
    backend.put_if_version(&keys[1], data(), hour.clone(), Version::ABSENT).await?;
    log.note("create")?;
    try_join_all(
        keys[2..].iter().map(|key| backend.put_if_version(key, data(), hour.clone(), Version::ABSENT)),
    )
    .await?;
    log.note("two creates together")?;
    backend.put_if_version(&keys[0], data(), keep.clone(), Version::FIRST).await?;
    log.note("compare-and-swap")?;
    // The first is sent at once, so the others are queued.
    try_join_all(
        keys[1..].iter().map(|key| backend.put_if_version(key, data(), keep.clone(), Version::FIRST)),
    )
    .await?;
    log.note("three compare-and-swaps together")?;
    backend.list(&keys[0].owner, PageRequest::new(1)).await?;
    log.note("page")?;
    bench.server.run::<i64>(&["DEL", "pmcp:tasks:texts:t3"])?;
    backend.list(&keys[0].owner, PageRequest::new(1)).await?;
    log.note("page over a lost record")?;
    backend.delete(&keys[0]).await?;
    log.note("delete")?;
    report.add(Row::new("length of the scripts as sent, in bytes").ours(log.noted.join("; ")));
    Ok(())
}

/// The log of the server (`MONITOR`), which shows the text of each script.
struct Log<'a> {
    bench: &'a Bench,
    lines: BufReader<TcpStream>,
    noted: Vec<String>,
}

impl<'a> Log<'a> {
    fn start(bench: &'a Bench) -> Result<Self> {
        let mut lines = BufReader::new(TcpStream::connect(bench.server.address())?);
        lines.get_mut().write_all(b"MONITOR\r\n")?;
        lines.get_ref().set_read_timeout(Some(Duration::from_secs(5)))?;
        lines.read_line(&mut String::new())?;
        Ok(Self { bench, lines, noted: Vec::new() })
    }

    /// Notes the length of each script that ran since the last call.
    fn note(&mut self, what: &str) -> Result<()> {
        const MARK: &str = "end-of-the-scripts";
        self.bench.server.run::<String>(&["ECHO", MARK])?;
        let (mut lengths, mut line) = (Vec::new(), String::new());
        while !line.contains(MARK) {
            line.clear();
            self.lines.read_line(&mut line).context("the log of the server ended")?;
            let Some((_, text)) = line.split_once("\"EVAL\" \"") else { continue };
            // The log escapes quotes and line ends.
            let text = text.split("\" \"").next().unwrap_or_default();
            let length = text.len() - text.matches("\\n").count() - text.matches("\\\"").count();
            lengths.push(length.to_string());
        }
        self.noted.push(format!("{what}: {}", lengths.join(" + ")));
        Ok(())
    }
}
