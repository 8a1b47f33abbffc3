//! Calls on a SQLite file, with the same durability for each contender.

use std::time::Duration;

use anyhow::Result;
use sqlite_calls::{Call, PAGE, Request};
use tempfile::TempDir;

use crate::bench::Bench;
use crate::format::{micros, short};
use crate::report::Report;
use crate::rounds::{Samples, alternate_all};
use crate::row::{Row, Target};
use crate::sqlite::{Contender, Process};

const PEER: &str = "the peer's throughput";
/// Why a write may miss a target.
const ONE_SYNC: &str = "one at a time, a write of each contender waits for one sync of the disk, so even bare statements miss the target; \
     this crate also passes each write to a thread and back, and checks it";
const SHARED_SYNC: &str = "the slower the disk, the more of the time is the sync, which every contender waits for; the bare statements \
     check nothing and notify nobody";
/// A page needs as many records of an owner.
const AN_OWNER: usize = 2 * PAGE;
const PROCESSES: usize = 4;
/// In how many slices a round makes the calls of a contender.
const SLICES: usize = 10;

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    calls(bench, report, &ONE_AT_A_TIME).await?;
    calls(bench, report, &IN_FLIGHT).await?;
    processes(bench, report).await
}

/// The calls of a round, and their targets.
struct Calls {
    name: &'static str,
    in_flight: usize,
    records: usize,
    gets: usize,
    pages: usize,
    /// Why a write may miss its target.
    reason: &'static str,
    /// At least these multiples of the peer's throughput: create, compare-and-swap, get, page.
    peer: [f64; 4],
    /// A create reaches at least this share of the throughput of bare statements, and these are the ones.
    bare: (f64, Contender, &'static str),
}

const ONE_AT_A_TIME: Calls = Calls {
    name: "one at a time",
    in_flight: 1,
    records: 320,
    gets: 2_560,
    pages: 640,
    reason: ONE_SYNC,
    peer: [3.0, 4.0, 2.0, 3.0],
    bare: (0.8, Contender::OneByOne, "the throughput of bare statements, one transaction a write"),
};

const IN_FLIGHT: Calls = Calls {
    name: "64 in flight",
    in_flight: 64,
    records: 2_560,
    gets: 12_800,
    pages: 2_560,
    reason: SHARED_SYNC,
    peer: [20.0, 40.0, 2.5, 3.0],
    bare: (
        0.7,
        Contender::GroupCommit,
        "the throughput of bare statements, one transaction for those that wait",
    ),
};

async fn calls(bench: &Bench, report: &mut Report, calls: &Calls) -> Result<()> {
    bench.step(&format!("SQLite, {}", calls.name));
    let mut figures: [[Samples; 4]; 4] = Default::default();
    for number in 0..bench.form.rounds {
        for (figures, round) in figures.iter_mut().zip(round(bench, calls, number)?) {
            figures.iter_mut().zip(round).for_each(|(samples, figure)| samples.0.push(figure));
        }
    }
    let [creates, swaps, gets, pages] = figures;
    let (least, bare, what) = calls.bare;
    let place = Contender::ALL.iter().position(|contender| *contender == bare).unwrap_or_default();
    let row = |work: &str, [ours, peer, ..]: &[Samples; 4], bare: &Samples, target: f64| {
        let row = Row::new(format!("{work}, {}", calls.name));
        let row = row.ours(micros(ours)).peer(micros(peer)).bare(micros(bare));
        let row = row.ratio(PEER, &peer.over(ours), Target::AtLeast(target));
        if calls.in_flight > 1 { row.headline(&peer.over(ours)) } else { row }
    };
    let line = row("create (`put_if_version` 0)", &creates, &creates[place], calls.peer[0]);
    let line = line.reason(calls.reason);
    report.add(line.ratio(what, &creates[place].over(&creates[0]), Target::AtLeast(least)));
    let line = row("`put_if_version` with `Keep`", &swaps, &swaps[place], calls.peer[1]);
    let line = line.reason(calls.reason);
    report.add(line.ratio(what, &swaps[place].over(&swaps[0]), None));
    const ON_THE_THREAD: &str = "the throughput of bare statements on the caller's own thread";
    for (work, figures, target) in [("`get`", &gets, calls.peer[2]), ("a page of 20", &pages, calls.peer[3])]
    {
        let line = row(work, figures, &figures[2], target);
        let line =
            line.reason("to wake a thread and the caller takes most of the time, also that of the peer");
        report.add(line.ratio(ON_THE_THREAD, &figures[2].over(&figures[0]), None));
    }
    for (work, figures, place) in [("create", &creates, place), ("swap", &swaps, place), ("`get`", &gets, 2)]
    {
        report.note_noise(&format!("{work}, {}", calls.name), &figures[place]);
    }
    Ok(())
}

/// Returns the microseconds per create, compare-and-swap, get and page of each contender, on a file of its own.
fn round(bench: &Bench, calls: &Calls, number: usize) -> Result<[[f64; 4]; 4]> {
    let folders = [(); 4].map(|()| TempDir::new());
    let records = bench.form.count(calls.records);
    let mut processes = Vec::with_capacity(folders.len());
    for (contender, folder) in Contender::ALL.into_iter().zip(&folders) {
        let folder = folder.as_ref().map_err(|error| anyhow::anyhow!("no folder for a file: {error}"))?;
        let mut process = Process::start(contender)?;
        let file = folder.path().join("tasks.db");
        process.call(&Request::Open { file, records, owners: (records / AN_OWNER).max(1) })?;
        processes.push(process);
    }
    let mut time = |call, calls_of_all| slices(&mut processes, call, calls_of_all, calls.in_flight, number);
    Ok([
        time(Call::Create, records)?,
        time(Call::Swap { version: 1 }, records)?,
        time(Call::Get, bench.form.count(calls.gets))?,
        time(Call::Page, bench.form.count(calls.pages))?,
    ])
}

/// Makes the calls of each contender in slices, in which the contenders alternate: the speed of a disk that others use too changes from
/// one second to the next. Returns the microseconds per call of each.
fn slices(
    processes: &mut [Process],
    call: Call,
    calls: usize,
    in_flight: usize,
    round: usize,
) -> Result<[f64; 4]> {
    let slice = (calls / SLICES).max(in_flight);
    let mut spent = [0.0; 4];
    for (number, from) in (0..calls).step_by(slice).enumerate() {
        for turn in 0..processes.len() {
            let contender = (round + number + turn) % processes.len();
            let calls = slice.min(calls - from);
            spent[contender] += processes[contender].call(&Request::Time { call, from, calls, in_flight })?;
        }
    }
    Ok(spent.map(|micros| micros / calls as f64))
}

/// Shows how the processes on one file share its throughput.
async fn processes(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("SQLite, four processes on one file");
    const CONTENDERS: [Contender; 3] = [Contender::Ours, Contender::Turul, Contender::OneByOne];
    let lasts = Duration::from_secs(if bench.form.is_check() { 1 } else { 2 });
    let figures = alternate_all(bench.form.few_rounds(), async |turn| shares(lasts, CONTENDERS[turn]));
    let [totals, least]: [[Samples; CONTENDERS.len()]; 2] = figures.await?;
    let share = |samples: &Samples| format!("slowest {} x the mean", short(samples.median()));
    let row =
        Row::new(format!("four processes on one file create for {} s, 8 in flight each", lasts.as_secs()));
    let row = row.ours(share(&least[0])).peer(share(&least[1])).bare(share(&least[2]));
    let row = row.ratio("the mean, by the slowest", &least[0], Target::AtLeast(0.5));
    report.add(row.ratio("the peer's throughput, all together", &totals[0].over(&totals[1]), None));
    Ok(())
}

/// Creates records from all processes at the same time. Returns the number of creates a second, and the share of the slowest in the
/// mean.
fn shares(lasts: Duration, contender: Contender) -> Result<[f64; 2]> {
    let folder = TempDir::new()?;
    let file = folder.path().join("tasks.db");
    let mut processes = Vec::with_capacity(PROCESSES);
    for _ in 0..PROCESSES {
        let mut process = Process::start(contender)?;
        process.call(&Request::Open { file: file.clone(), records: 0, owners: 16 })?;
        processes.push(process);
    }
    let request = Request::CreateFor { millis: lasts.as_millis() as u64, in_flight: 8 };
    processes.iter_mut().try_for_each(|process| process.send(&request))?;
    let created = processes.iter_mut().map(Process::receive).collect::<Result<Vec<_>>>()?;
    let total: f64 = created.iter().sum();
    let least = created.iter().copied().fold(f64::INFINITY, f64::min);
    Ok([total / lasts.as_secs_f64(), least / (total / PROCESSES as f64)])
}
