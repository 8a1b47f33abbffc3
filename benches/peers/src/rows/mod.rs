//! The rows of the table, by subject.

mod agenda;
mod blocking;
pub mod client;
pub mod in_process;
mod lifetimes;
mod lists;
mod memory;
mod network;
mod parts;
mod processor;
mod races;
mod records;
mod sweeps;
mod tasks;
mod watch;
mod wire;

use std::path::Path;

use anyhow::Result;

use crate::bench::Bench;
use crate::report::Report;

/// Measures all rows, and draws the charts.
pub async fn measure(bench: &Bench, charts: &Path, report: &mut Report) -> Result<()> {
    records::rows(bench, report).await?;
    sweeps::rows(bench, charts, report).await?;
    network::rows(bench, report).await?;
    processor::rows(bench, report).await?;
    tasks::rows(bench, report).await?;
    races::rows(bench, report).await?;
    lifetimes::rows(bench, report).await?;
    lists::rows(bench, report).await?;
    memory::rows(bench, report).await?;
    blocking::rows(bench, report).await?;
    client::rows(bench, report).await?;
    parts::rows(bench, report).await?;
    agenda::rows(bench, report).await?;
    watch::rows(bench, report).await?;
    wire::rows(bench, report).await?;
    bench.step("the memory engine");
    in_process::rows(bench.form, report)
}
