//! Two charts: throughput by calls in flight, and by size of the records.

use std::path::Path;

use anyhow::Result;

use super::records::{get, put, swap};
use crate::bench::Bench;
use crate::chart::{Line, draw};
use crate::contender::{Contender, HOUR};
use crate::record::{TYPICAL, records};
use crate::rounds::alternate_all;

const OWNERS: usize = 64;
const WORK: [&str; 3] = ["put", "put_if_version", "get"];

pub async fn charts(bench: &Bench, folder: &Path) -> Result<()> {
    let in_flight = [1, 4, 16, 64, 256, 1024];
    let marks = in_flight.map(|at| (at as f64, at.to_string()));
    let mut at = Vec::new();
    for in_flight in in_flight {
        bench.step(&format!("chart: {in_flight} in flight"));
        let count = bench.form.count(4_096).max(in_flight);
        at.push((in_flight as f64, rates(bench, count, TYPICAL, in_flight).await?));
    }
    let title = "Calls per second by calls in flight (records of 700 bytes)";
    plot(&folder.join("concurrency.svg"), title, "calls in flight", &marks, &at)?;

    let sizes = [(100, "100 B"), (1_000, "1 kB"), (10_000, "10 kB"), (100_000, "100 kB"), (1 << 20, "1 MiB")];
    let marks = sizes.map(|(size, name)| (size as f64, name.to_owned()));
    let mut at = Vec::new();
    for (size, name) in sizes {
        bench.step(&format!("chart: records of {name}"));
        let count = bench.form.count(40_000_000 / (size + 10_000)).min(4_096);
        at.push((size as f64, rates(bench, count, size, 64).await?));
    }
    let title = "Calls per second by size of the records (64 calls in flight)";
    plot(&folder.join("size.svg"), title, "bytes per record", &marks, &at)
}

/// The calls per second of this crate and of the peer, for each kind of work.
type Rates = Vec<[f64; 2]>;

async fn rates(bench: &Bench, count: usize, size: usize, in_flight: usize) -> Result<Rates> {
    let times = alternate_all::<2, 3>(bench.form.rounds, async |turn| match turn {
        0 => round(bench, &bench.ours, count, size, in_flight).await,
        _ => round(bench, &bench.peer, count, size, in_flight).await,
    })
    .await?;
    Ok(times.iter().map(|both| [0, 1].map(|who| 1e6 / both[who].median())).collect())
}

async fn round<C: Contender>(
    bench: &Bench,
    contender: &C,
    count: usize,
    size: usize,
    in_flight: usize,
) -> Result<[f64; 3]> {
    bench.server.clear()?;
    let records = records::<C>(count, OWNERS, size, HOUR);
    Ok([
        put(contender, &records, in_flight).await?,
        swap(contender, &records, in_flight, 1).await?,
        get(contender, &records, in_flight, count).await?,
    ])
}

fn plot(file: &Path, title: &str, along: &str, marks: &[(f64, String)], at: &[(f64, Rates)]) -> Result<()> {
    let mut lines = Vec::new();
    for (colour, work) in WORK.into_iter().enumerate() {
        for (who, name) in ["this crate", "pmcp-tasks"].into_iter().enumerate() {
            let points = at.iter().map(|(x, rates)| (*x, rates[colour][who])).collect();
            lines.push(Line { name: format!("{work}, {name}"), colour, is_ours: who == 0, points });
        }
    }
    let marks: Vec<_> = marks.iter().map(|(at, name)| (*at, name.as_str())).collect();
    draw(file, title, [along, "calls per second"], &marks, &lines)
}
