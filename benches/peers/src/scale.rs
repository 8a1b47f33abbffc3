//! Measures a million records: spread over 10,000 owners, and of one owner. `peers scale` runs it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use mcp_task_store::{
    Expiry, OwnerId, PageRequest, PutOptions, RedisBackend, StorageBackend, TaskKey, Version,
};

use crate::contender::HOUR;
use crate::format::{short, thousands};
use crate::page::show_in;
use crate::record::{TYPICAL, record};
use crate::rounds::{Numbers, time};
use crate::server::Server;

const RECORDS: usize = 1_000_000;
const IN_FLIGHT: usize = 64;
const PAGES: usize = 200;
const DELETES: usize = 100;
/// The most calls of one kind.
const CALLS: usize = 200_000;

/// Writes the figures to the page, and prints them.
pub async fn run(divisor: usize, page: Option<&Path>) -> Result<()> {
    let records = RECORDS / divisor;
    let (over_many, version) = Scale::of(records, 10_000).measure().await?;
    let (of_one, _) = Scale::of(records, 1).measure().await?;
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header([&format!("{} records", thousands(records)), "over 10,000 owners", "of one owner"]);
    for (number, (what, of_one)) in of_one.iter().enumerate() {
        let over_many = over_many.get(number).map_or("", |(_, figure)| figure);
        table.add_row([what, over_many, of_one]);
    }
    let text =
        format!("Redis {version} on loopback without persistence, {IN_FLIGHT} calls in flight.\n\n{table}");
    println!("{text}");
    match page {
        Some(page) => show_in(page, "make bench-scale", &text),
        None => Ok(()),
    }
}

#[derive(Clone, Copy)]
struct Scale {
    records: usize,
    owners: usize,
}

/// The names of the figures, and the figures.
type Figures = Vec<(String, String)>;

impl Scale {
    fn of(records: usize, owners: usize) -> Self {
        Self { records, owners }
    }

    /// Returns the figures, and the version of the server.
    async fn measure(self) -> Result<(Figures, String)> {
        let server = Server::start()?;
        let backend = RedisBackend::builder().response_timeout(Duration::from_secs(20));
        let backend = backend.connect(&server.url()).await?;
        eprintln!("measuring {} records over {} owners", thousands(self.records), thousands(self.owners));
        let mut figures = Figures::new();
        self.writes(&server, &backend, &mut figures).await?;
        self.reads(&server, &backend, &mut figures).await?;
        self.deletes(&backend, &mut figures).await?;
        if self.owners == 1 {
            expiry_of_the_index(&server, &mut figures).await?;
        }
        Ok((figures, server.info_text("server", "redis_version")?))
    }

    fn key(self, number: usize) -> Result<TaskKey> {
        // The length of a UUID.
        let task = format!("{number:08x}-aaaa-4aaa-8aaa-{number:012x}");
        Ok(TaskKey::new(&format!("owner-{}", number % self.owners), &task)?)
    }

    async fn writes(self, server: &Server, backend: &RedisBackend, figures: &mut Figures) -> Result<()> {
        let empty = server.info("memory", "used_memory")?;
        let create = PutOptions::new(Expiry::After(HOUR));
        let creates = self.write(backend, self.records, create, Version::ABSENT, |number| number).await?;
        let bytes = (server.info("memory", "used_memory")? - empty) / self.records as f64;
        figures.push(("Redis memory per record".into(), format!("{bytes:.0} B")));
        figures.push(("create".into(), per_second(creates)));
        let records = self.records;
        let calls = (records / 5).min(CALLS);
        let swaps = self.write(backend, calls, Expiry::Keep.into(), Version::FIRST, move |number| {
            spread(number, records)
        });
        figures.push(("`put_if_version` with `Keep`".into(), per_second(swaps.await?)));
        Ok(())
    }

    /// Returns the microseconds per write of the records with these numbers.
    async fn write(
        self,
        backend: &RedisBackend,
        calls: usize,
        options: PutOptions,
        expected: Version,
        number_of: impl Fn(usize) -> usize + Copy + Send + 'static,
    ) -> Result<f64> {
        let data: Bytes = record("owner-0", TYPICAL, HOUR).1;
        let worker = |numbers: Numbers| {
            let (backend, data, options) = (backend.clone(), data.clone(), options.clone());
            async move {
                for number in numbers {
                    let key = self.key(number_of(number))?;
                    backend.put_if_version(&key, data.clone(), options.clone(), expected).await?;
                }
                Ok(())
            }
        };
        time(calls, IN_FLIGHT, worker).await
    }

    async fn reads(self, server: &Server, backend: &RedisBackend, figures: &mut Figures) -> Result<()> {
        let worker = |numbers: Numbers| {
            let backend = backend.clone();
            async move {
                for number in numbers {
                    backend.get(&self.key(spread(number, self.records))?).await?;
                }
                Ok(())
            }
        };
        let gets = time((self.records / 5).min(CALLS), IN_FLIGHT, worker).await?;
        figures.push(("`get`".into(), per_second(gets)));
        for (command, name) in [("eval", "script"), ("hmget", "`HMGET`")] {
            let (calls, micros) = server.command_stats(command)?;
            figures.push((format!("server time per {name}"), format!("{} µs", short(micros / calls))));
        }
        let times = pages(backend).await?;
        let figure = format!("{} µs, {} µs", short(times[PAGES / 2]), short(times[PAGES - 1]));
        figures.push((format!("a page of 20, median and slowest of {PAGES}"), figure));
        Ok(())
    }

    /// A delete of the longest-lived record adjusts the expiry of the index.
    async fn deletes(self, backend: &RedisBackend, figures: &mut Figures) -> Result<()> {
        let begun = Instant::now();
        for number in (self.records - DELETES..self.records).rev() {
            anyhow::ensure!(backend.delete(&self.key(number)?).await?);
        }
        let micros = begun.elapsed().as_secs_f64() * 1e6 / DELETES as f64;
        figures.push(("a delete of the longest-lived record".into(), format!("{} µs", short(micros))));
        Ok(())
    }
}

/// Spreads calls over the records: 7,919 is a prime.
fn spread(number: usize, records: usize) -> usize {
    number * 7_919 % records
}

fn per_second(micros: f64) -> String {
    format!("{} per second", thousands((1e6 / micros) as usize))
}

/// Returns the microseconds of each page of 20, in ascending order.
async fn pages(backend: &RedisBackend) -> Result<Vec<f64>> {
    let owner = OwnerId::try_from("owner-0")?;
    let (mut times, mut page) = (Vec::new(), PageRequest::new(20));
    for _ in 0..PAGES {
        let begun = Instant::now();
        let read = backend.list(&owner, page).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        page = PageRequest::new(20);
        if let Some(next) = read.next {
            page = page.after(next);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Measures how long the expiry of one owner's index blocks the server, without and with `lazyfree-lazy-expire`.
async fn expiry_of_the_index(server: &Server, figures: &mut Figures) -> Result<()> {
    // The first call on an expired index removes it. The first measurement uses a copy of the index.
    const INDEX: [&str; 2] = ["pmcp:idx:owner-0", "copy:idx"];
    server.run::<i64>(&["COPY", INDEX[0], INDEX[1]]).context("the index is missing")?;
    for (index, lazily) in [(INDEX[1], "no"), (INDEX[0], "yes")] {
        server.run::<String>(&["CONFIG", "SET", "lazyfree-lazy-expire", lazily])?;
        server.run::<i64>(&["PEXPIRE", index, "50"])?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let begun = Instant::now();
        server.run::<i64>(&["EXISTS", index])?;
        let text = format!("{} ms", short(begun.elapsed().as_secs_f64() * 1e3));
        figures
            .push((format!("the first call after the index expired, `lazyfree-lazy-expire {lazily}`"), text));
    }
    Ok(())
}
