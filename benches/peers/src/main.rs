//! Measures this crate, `pmcp-tasks` and the bare Redis commands in one run on one server. Writes the results as Markdown and
//! charts. `make bench` runs it.

mod bench;
mod chart;
mod contender;
mod record;
mod report;
mod rounds;
mod rows;
mod scale;
mod server;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use bench::{Bench, Form};
use report::Report;
use rows::client::{Counting, Who, Work, calls};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    command: Measure,
}

#[derive(Subcommand)]
enum Measure {
    /// Measures all rows and draws the charts.
    Table {
        /// The folder for the charts
        #[arg(long)]
        charts: PathBuf,
        /// The page to write all rows to, between its two marks
        #[arg(long)]
        page: PathBuf,
        /// The README to write the headline rows to, between its two marks
        #[arg(long)]
        readme: PathBuf,
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        /// Divides the number of calls and records, for a quick check that everything runs
        #[arg(long, default_value_t = 1)]
        divisor: usize,
    },
    /// Measures a million records over 10,000 owners, and one owner with a million.
    Scale {
        /// Divides the number of records
        #[arg(long, default_value_t = 1)]
        divisor: usize,
    },
    /// Measures the rows of the memory engine, and writes them to a file.
    InProcess { results: PathBuf, divisor: usize },
    /// Prepares records and makes some calls one after the other, for callgrind to count.
    Calls { url: String, who: Who, work: Work, prepared: usize, calls: usize },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Measure::Table { charts, page, readme, rounds, divisor } => {
            let report = measure(&charts, Form { rounds, divisor })?;
            show_in(&page, &report.markdown())?;
            show_in(&readme, &report.headline())
        }
        Measure::Scale { divisor } => runtime()?.block_on(scale::run(divisor)),
        Measure::InProcess { results, divisor } => rows::in_process::measure(&runtime()?, &results, divisor),
        // One thread, so that the count is the same each time.
        Measure::Calls { url, who, work, prepared, calls: count } => Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(calls(&url, who, work, prepared, count)),
    }
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().enable_all().build()?)
}

/// How many steps the progress bar has.
const STEPS: usize = 37;

/// Measures all rows, draws the charts, and prints the table.
fn measure(charts: &Path, form: Form) -> Result<Report> {
    std::fs::create_dir_all(charts)?;
    let mut report = Report::default();
    let server = runtime()?.block_on(async {
        let bench = Bench::start(form, STEPS).await?;
        rows::records::rows(&bench, &mut report).await?;
        rows::lists::rows(&bench, &mut report).await?;
        rows::tasks::rows(&bench, &mut report).await?;
        rows::parts::rows(&bench, &mut report).await?;
        rows::agenda::rows(&bench, &mut report).await?;
        rows::memory::rows(&bench, &mut report).await?;
        rows::scripts::rows(&bench, &mut report).await?;
        rows::watch::rows(&bench, &mut report).await?;
        rows::client::rows(&bench, &mut report).await?;
        rows::sweeps::charts(&bench, charts).await?;
        bench.step("the memory engine");
        rows::in_process::rows(form, &mut report)?;
        bench.done();
        bench.server.info_text("server", "redis_version")
    })?;
    report.describe(&server, form.rounds);
    println!("{}", report.terminal());
    println!("{} rows miss a target", report.missed());
    Ok(report)
}

/// Replaces the text between the two marks of a file.
fn show_in(file: &Path, text: &str) -> Result<()> {
    const MARKS: [&str; 2] =
        ["<!-- results of make bench: begin -->\n", "<!-- results of make bench: end -->"];
    let whole = std::fs::read_to_string(file)?;
    let (before, rest) = whole
        .split_once(MARKS[0])
        .with_context(|| format!("{} has no line {}", file.display(), MARKS[0].trim()))?;
    let (_, after) = rest
        .split_once(MARKS[1])
        .with_context(|| format!("{} has no line {}", file.display(), MARKS[1].trim()))?;
    std::fs::write(file, format!("{before}{}\n{text}\n\n{}{after}", MARKS[0], MARKS[1]))?;
    Ok(())
}
