//! The cost of a call in the client: allocations, and instructions that callgrind counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use clap::ValueEnum;
use mcp_task_store::{OwnerId, PageRequest, StorageBackend};

use crate::bench::Bench;
use crate::contender::{Bare, Contender, HOUR, Ours, Peer};
use crate::record::{TYPICAL, records};
use crate::report::{Report, Row, short};

/// The system's allocator. It counts allocations while counting is on.
pub struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

fn note(bytes: usize) {
    if ON.load(Ordering::Relaxed) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size.saturating_sub(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// The calls that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    Put,
    Swap,
    Get,
    /// A page of 20. Only this crate has it.
    Page,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Who {
    Ours,
    Peer,
    Bare,
}

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("allocations");
    for (work, name) in [(Work::Put, "put"), (Work::Swap, "put_if_version"), (Work::Get, "get")] {
        let mut row = Row::new(format!("allocations per `{name}` in the client, and their bytes"));
        for who in [Who::Ours, Who::Peer, Who::Bare] {
            let (calls, bytes) = allocated(bench, who, work, TYPICAL).await?;
            row = cell(row, who, format!("{}, {bytes:.0} B", short(calls)));
        }
        report.add(row);
    }
    const LARGE: usize = 1 << 20;
    for (work, name) in [(Work::Put, "written"), (Work::Get, "read")] {
        let mut row = Row::new(format!("allocated bytes per byte of a record of 1 MiB that is {name}"));
        for who in [Who::Ours, Who::Peer, Who::Bare] {
            let (_, bytes) = allocated(bench, who, work, LARGE).await?;
            row = cell(row, who, short(bytes / LARGE as f64));
        }
        report.add(row);
    }
    bench.step("instructions");
    for (work, name) in [
        (Work::Put, "`put`"),
        (Work::Swap, "`put_if_version`"),
        (Work::Get, "`get`"),
        (Work::Page, "page of 20"),
    ] {
        let mut row = Row::new(format!("instructions per {name} in the client, by callgrind"));
        let all = [Who::Ours, Who::Peer, Who::Bare];
        for who in if work == Work::Page { &all[..1] } else { &all[..] } {
            row = cell(row, *who, format!("{:.0}", instructions(bench, *who, work)?));
        }
        report.add(row);
    }
    Ok(())
}

fn cell(row: Row, who: Who, text: String) -> Row {
    match who {
        Who::Ours => row.ours(text),
        Who::Peer => row.peer(text),
        Who::Bare => row.bare(text),
    }
}

const COUNTED: usize = 50;

/// Returns the mean allocations of one call, and their bytes.
async fn allocated(bench: &Bench, who: Who, work: Work, size: usize) -> Result<(f64, f64)> {
    bench.server.clear()?;
    let count = async |counted| match who {
        Who::Ours => run(&bench.ours, work, COUNTED, size, counted).await,
        Who::Peer => run(&bench.peer, work, COUNTED, size, counted).await,
        Who::Bare => run(&bench.bare, work, COUNTED, size, counted).await,
    };
    count(false).await?;
    bench.server.clear()?;
    CALLS.store(0, Ordering::Relaxed);
    BYTES.store(0, Ordering::Relaxed);
    count(true).await?;
    let each = |all: &AtomicUsize| all.load(Ordering::Relaxed) as f64 / COUNTED as f64;
    Ok((each(&CALLS), each(&BYTES)))
}

/// Makes calls one after the other on new records, and counts their allocations on request.
async fn run<C: Contender>(
    contender: &C,
    work: Work,
    calls: usize,
    size: usize,
    counted: bool,
) -> Result<()> {
    let records = records::<C>(calls, 4, size, HOUR);
    for (key, data) in records.iter() {
        if work != Work::Put {
            contender.put(key, data.clone(), HOUR).await?;
        }
        let data = data.clone();
        ON.store(counted, Ordering::SeqCst);
        match work {
            Work::Put => contender.put(key, data, HOUR).await?,
            Work::Swap => contender.swap(key, data, 1).await?,
            Work::Get | Work::Page => drop(contender.get(key).await?),
        }
        ON.store(false, Ordering::SeqCst);
    }
    Ok(())
}

const FEW: usize = 100;
const MANY: usize = 400;

/// Returns the instructions of one call. Two processes under callgrind make many calls and few calls; the difference is the cost
/// of the additional calls.
fn instructions(bench: &Bench, who: Who, work: Work) -> Result<f64> {
    let (few, many) = (FEW / bench.form.divisor, MANY / bench.form.divisor);
    let count = |calls| count_instructions(bench, who, work, many, calls);
    Ok((count(many)? - count(few)?) / (many - few) as f64)
}

fn count_instructions(bench: &Bench, who: Who, work: Work, prepared: usize, calls: usize) -> Result<f64> {
    bench.server.clear()?;
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind.out");
    let value = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| -> Result<String> {
        Ok(value().context("a value with a name")?.get_name().to_owned())
    };
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())])
        .arg(std::env::current_exe()?)
        .args(["calls", &bench.server.url(), &value(&|| who.to_possible_value())?])
        .args([&value(&|| work.to_possible_value())?, &prepared.to_string(), &calls.to_string()])
        .output()
        .context("cannot start valgrind")?;
    anyhow::ensure!(output.status.success(), "valgrind: {}", String::from_utf8_lossy(&output.stderr));
    let counted = std::fs::read_to_string(&out)?;
    let total =
        counted.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    total.and_then(|total| total.trim().parse().ok()).context("the output of callgrind has no total")
}

/// Runs under callgrind: prepares some calls, and makes them.
pub async fn calls(url: &str, who: Who, work: Work, prepared: usize, calls: usize) -> Result<()> {
    if work == Work::Page {
        let backend = mcp_task_store::RedisBackend::connect(url).await?;
        run(&Ours(backend.clone()), Work::Put, 100, TYPICAL, false).await?;
        let owner = OwnerId::try_from("owner-0")?;
        for _ in 0..calls {
            anyhow::ensure!(backend.list(&owner, PageRequest::new(20)).await?.records.len() == 20);
        }
        return Ok(());
    }
    match who {
        Who::Ours => {
            alone(&Ours(mcp_task_store::RedisBackend::connect(url).await?), work, prepared, calls).await
        }
        Who::Peer => alone(&Peer(pmcp_tasks::RedisBackend::new(url).await?), work, prepared, calls).await,
        Who::Bare => {
            let client = redis::Client::open(url)?;
            alone(&Bare(client.get_multiplexed_async_connection().await?), work, prepared, calls).await
        }
    }
}

/// Makes `calls` calls of this work on the first of the prepared records. The preparation does not depend on `calls`, so the
/// difference of two runs contains only calls.
async fn alone<C: Contender>(contender: &C, work: Work, prepared: usize, calls: usize) -> Result<()> {
    let records = records::<C>(prepared, 4, TYPICAL, HOUR);
    if work != Work::Put {
        for (key, data) in records.iter() {
            contender.put(key, data.clone(), HOUR).await?;
        }
    }
    for (key, data) in &records[..calls] {
        match work {
            Work::Put => contender.put(key, data.clone(), HOUR).await?,
            Work::Swap => contender.swap(key, data.clone(), 1).await?,
            Work::Get | Work::Page => drop(contender.get(key).await?),
        }
    }
    Ok(())
}
