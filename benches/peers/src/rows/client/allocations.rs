//! How often and how much a call allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;

use super::{ALL, COUNTED, Who, Work, cell, prepare, run};
use crate::bench::Bench;
use crate::calls::create;
use crate::contender::Contender;
use crate::format::short;
use crate::record::TYPICAL;
use crate::report::Report;
use crate::row::{Row, Target};

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

/// Calls for each one in flight.
const CALLS_IN_A_ROW: usize = 20;
const LARGE: usize = 1 << 20;

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("allocations");
    for counted in &COUNTED {
        let mut row =
            Row::new(format!("allocations and allocated bytes per call in the client: {}", counted.name));
        for who in ALL {
            let (calls, bytes) = allocated(bench, who, counted.work, TYPICAL, counted.in_flight).await?;
            row = cell(row, who, format!("{}, {bytes:.0} B", short(calls)));
            if let (Who::Ours, Some(before)) = (who, &counted.before_group_commit) {
                let text = format!(
                    "{} allocations, {} before group commit",
                    short(calls),
                    short(before.allocations)
                );
                row = row.figure(&text, (calls * 10.0).round() / 10.0, Target::AtMost(before.allocations));
            }
        }
        report.add(row);
    }
    for (work, name) in [(Work::Create, "written"), (Work::Get, "read")] {
        let mut row = Row::new(format!("allocated bytes per byte of a record of 1 MiB that is {name}"));
        for who in ALL {
            let (_, bytes) = allocated(bench, who, work, LARGE, 1).await?;
            row = cell(row, who, short(bytes / LARGE as f64));
        }
        report.add(row);
    }
    Ok(())
}

/// Returns the mean allocations of one call, and their bytes.
async fn allocated(bench: &Bench, who: Who, work: Work, size: usize, in_flight: usize) -> Result<(f64, f64)> {
    match who {
        Who::Ours => count(bench, &bench.ours, work, size, in_flight).await,
        Who::Peer => count(bench, &bench.peer, work, size, in_flight).await,
        Who::Bare => count(bench, &bench.bare, work, size, in_flight).await,
    }
}

async fn count<C: Contender>(
    bench: &Bench,
    contender: &C,
    work: Work,
    size: usize,
    in_flight: usize,
) -> Result<(f64, f64)> {
    let in_a_row = if bench.form.is_check() { 2 } else { CALLS_IN_A_ROW };
    let records = prepare::<C>(in_a_row * in_flight, size);
    // The first time, the server and the client fill their caches.
    for counts in [false, true] {
        bench.server.clear()?;
        if work != Work::Create {
            create(contender, &records, in_flight).await?;
        }
        CALLS.store(0, Ordering::Relaxed);
        BYTES.store(0, Ordering::Relaxed);
        ON.store(counts, Ordering::SeqCst);
        let result = run(contender, &records, work, in_flight).await;
        ON.store(false, Ordering::SeqCst);
        result?;
    }
    let each = |all: &AtomicUsize| all.load(Ordering::Relaxed) as f64 / records.len() as f64;
    Ok((each(&CALLS), each(&BYTES)))
}
