//! The same work on `MemoryBackend`, without a network. Criterion measures it.

mod timing;
mod work;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use criterion::Criterion;
use tokio::runtime::Runtime;

use crate::bench::Bench;
use crate::format::{short, thousands};
use crate::report::Report;
use crate::row::{Row, Target};
use timing::InProcess;
use work::{Store, Work};

const TASKS: [usize; 3] = [1, 2, 8];
const RECORDS: usize = 10_000;
const OWNERS: usize = 64;

/// Measures the rows in another process, because criterion writes to the terminal.
pub fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("the memory engine");
    let results = tempfile::NamedTempFile::new()?;
    let output = Command::new(std::env::current_exe()?)
        .arg("in-process")
        .arg(results.path())
        .arg(bench.form.divisor.to_string())
        .stdin(Stdio::null())
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    report.extend(serde_json::from_slice(&std::fs::read(results.path())?)?);
    Ok(())
}

/// Measures the rows, and writes them as JSON.
pub fn measure(runtime: &Runtime, results: &Path, divisor: usize) -> Result<()> {
    let mut report = Report::default();
    let folder = tempfile::tempdir()?;
    let millis = |full: u64| Duration::from_millis((full / divisor as u64).max(1));
    let mut criterion = Criterion::default()
        .output_directory(folder.path())
        .without_plots()
        .sample_size(10)
        .nresamples(1_000)
        .warm_up_time(millis(100))
        .measurement_time(millis(400));
    let mut bench = InProcess { runtime, criterion: &mut criterion, folder: folder.path(), measured: 0 };
    by_tasks(&mut bench, &mut report)?;
    by_records_of_others(&mut bench, &mut report, 200_000 / divisor)?;
    by_own_records(&mut bench, &mut report, 100_000 / divisor)?;
    std::fs::write(results, serde_json::to_vec(&report)?)?;
    Ok(())
}

fn by_tasks(bench: &mut InProcess, report: &mut Report) -> Result<()> {
    for work in Work::ALL {
        let mut figures = Vec::new();
        for tasks in TASKS {
            let time = work.measure(bench, tasks, Store::of(RECORDS, OWNERS))?;
            figures.push(format!("{tasks}: {} ns", short(time)));
        }
        let row = Row::new(format!("`MemoryBackend`, {}, by number of Tokio tasks", work.name()));
        report.add(row.ours(figures.join(", ")));
    }
    Ok(())
}

fn by_records_of_others(bench: &mut InProcess, report: &mut Report, others: usize) -> Result<()> {
    for work in [Work::Put, Work::Swap, Work::Get, Work::Page] {
        let (few, many) = (Store::of(100, 1), Store { own: 100, owners: 1, others });
        let (few, many) = (work.measure(bench, 1, few)?, work.measure(bench, 1, many)?);
        let (name, others) = (work.name(), thousands(others));
        let row = Row::new(format!("`MemoryBackend`, {name}, with 0 and {others} records of other owners"));
        let row = row.ours(format!("{} ns, {} ns", short(few), short(many)));
        let ratio = many / few;
        // Cache misses can double the time. A walk over the records of others would cost far more.
        report.add(row.figure(&format!("{} x", short(ratio)), ratio, Target::AtMost(2.0)));
    }
    Ok(())
}

fn by_own_records(bench: &mut InProcess, report: &mut Report, most: usize) -> Result<()> {
    for work in [Work::Put, Work::Swap, Work::Get, Work::Page, Work::Create] {
        let (few, many) = (Store::of(100, 1), Store::of(most, 1));
        let (few, many) = (work.measure(bench, 1, few)?, work.measure(bench, 1, many)?);
        let (name, most) = (work.name(), thousands(most));
        let row = Row::new(format!("`MemoryBackend`, {name}, owner with 100 and {most} records"));
        let row = row.ours(format!("{} ns, {} ns", short(few), short(many)));
        report.add(row.remark(format!("{} x", short(many / few))));
    }
    Ok(())
}
