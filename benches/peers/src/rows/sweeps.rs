//! Two charts: throughput by calls in flight, and by size of the records.

use std::path::Path;

use anyhow::Result;

use super::records::CREATE;
use crate::bench::Bench;
use crate::calls::{create, get, swap};
use crate::chart::{Line, draw};
use crate::contender::{Contender, HOUR, Ours, Peer};
use crate::format::short;
use crate::record::{Records, TYPICAL, records};
use crate::report::Report;
use crate::rounds::{Samples, alternate_all};
use crate::row::{Row, Target};

const OWNERS: usize = 64;
const WORK: [&str; 3] = ["create", "put_if_version", "get"];
const IN_FLIGHT: [usize; 10] = [1, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
const SIZES: [(usize, &str); 5] =
    [(100, "100 B"), (1_000, "1 kB"), (10_000, "10 kB"), (100_000, "100 kB"), (1 << 20, "1 MiB")];

/// The times of this crate and of the peer, for each kind of work.
type Times = [[Samples; 2]; 3];

pub async fn rows(bench: &Bench, folder: &Path, report: &mut Report) -> Result<()> {
    by_calls_in_flight(bench, folder, report).await?;
    by_size(bench, folder).await
}

async fn by_calls_in_flight(bench: &Bench, folder: &Path, report: &mut Report) -> Result<()> {
    // The check leaves out what only makes a curve smooth.
    let points = IN_FLIGHT.into_iter().filter(|at| !bench.form.is_check() || [1, 4, 32, 1024].contains(at));
    let mut at = Vec::new();
    for in_flight in points {
        bench.step(&format!("chart: {in_flight} in flight"));
        // Few calls in flight take long. Many need many calls, so that most of the time all are in flight.
        let calls = match in_flight {
            ..8 => 1_024,
            8..512 => 2_560,
            _ => 4_096,
        };
        let count = bench.form.count(calls).max(in_flight);
        at.push((in_flight, times(bench, bench.form.rounds, count, TYPICAL, in_flight).await?));
    }
    for (work, name, from) in [(1, "`put_if_version` with `Keep`", 4), (0, "create", 32)] {
        report.add(ahead(name, from, at.iter().map(|(in_flight, times)| (*in_flight, &times[work]))));
    }
    let marks: Vec<_> = at.iter().map(|(at, _)| (*at as f64, at.to_string())).collect();
    let at: Vec<_> = at.into_iter().map(|(at, times)| (at as f64, times)).collect();
    let title = "Calls per second by calls in flight (records of 700 bytes)";
    plot(&folder.join("concurrency.svg"), title, "calls in flight", &marks, &at)
}

/// Shows that this crate is ahead of the peer at `from` calls in flight and more. The target is for the least ratio of them.
fn ahead<'a>(name: &str, from: usize, points: impl Iterator<Item = (usize, &'a [Samples; 2])>) -> Row {
    let ratios: Vec<_> = points.map(|(at, [ours, peer])| (at, peer.over(ours))).collect();
    let all: Vec<_> = ratios.iter().map(|(at, ratio)| format!("{at}: {} x", short(ratio.median()))).collect();
    let row = Row::new(format!("{name}, by calls in flight"));
    let row = row.ours(all.join(", "));
    let counted = ratios.iter().filter(|(at, _)| *at >= from);
    match counted.min_by(|(_, one), (_, other)| one.median().total_cmp(&other.median())) {
        Some((at, least)) => {
            let what = format!("the peer's throughput at {at} in flight, the least from {from} on");
            row.ratio(&what, least, Target::AtLeast(1.0)).reason(CREATE)
        }
        None => row,
    }
}

async fn by_size(bench: &Bench, folder: &Path) -> Result<()> {
    let mut at = Vec::new();
    for (size, name) in SIZES {
        bench.step(&format!("chart: records of {name}"));
        let count = bench.form.count(40_000_000 / (size + 10_000));
        let count = if size > 10_000 { (40_000_000 / size / bench.form.divisor).max(8) } else { count };
        at.push((size as f64, times(bench, bench.form.few_rounds(), count, size, 64).await?));
    }
    let marks = SIZES.map(|(size, name)| (size as f64, name.to_owned()));
    let title = "Calls per second by size of the records (64 calls in flight)";
    plot(&folder.join("size.svg"), title, "bytes per record", &marks, &at)
}

async fn times(bench: &Bench, rounds: usize, count: usize, size: usize, in_flight: usize) -> Result<Times> {
    let ours = records::<Ours>(count, OWNERS, size, HOUR);
    let peer = records::<Peer>(count, OWNERS, size, HOUR);
    alternate_all(rounds, async |turn| {
        bench.server.clear()?;
        match turn {
            0 => round(&bench.ours, &ours, in_flight).await,
            _ => round(&bench.peer, &peer, in_flight).await,
        }
    })
    .await
}

async fn round<C: Contender>(contender: &C, records: &Records<C>, in_flight: usize) -> Result<[f64; 3]> {
    Ok([
        create(contender, records, in_flight).await?,
        swap(contender, records, in_flight, 1).await?,
        get(contender, records, in_flight, records.len()).await?,
    ])
}

fn plot(file: &Path, title: &str, along: &str, marks: &[(f64, String)], at: &[(f64, Times)]) -> Result<()> {
    let mut lines = Vec::new();
    for (colour, work) in WORK.into_iter().enumerate() {
        for (who, name) in ["this crate", "pmcp-tasks"].into_iter().enumerate() {
            let points = at.iter().map(|(x, times)| (*x, 1e6 / times[colour][who].median())).collect();
            lines.push(Line { name: format!("{work}, {name}"), colour, is_ours: who == 0, points });
        }
    }
    let marks: Vec<_> = marks.iter().map(|(at, name)| (*at, name.as_str())).collect();
    draw(file, title, [along, "calls per second"], &marks, &lines)
}
