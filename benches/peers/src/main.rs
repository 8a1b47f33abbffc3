//! Measures this crate beside `pmcp-tasks` and the bare Redis commands, all in one run on one server, and writes
//! what it found as Markdown and charts. `make bench` runs it.

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
    /// All rows and charts.
    Table {
        /// Where the Markdown and the charts go.
        #[arg(long)]
        folder: PathBuf,
        /// A file that shows the rows with a figure to reach between two marks.
        #[arg(long)]
        readme: Option<PathBuf>,
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        /// Divides the number of calls and records, for a quick look whether all runs.
        #[arg(long, default_value_t = 1)]
        divisor: usize,
    },
    /// A million records over 10,000 owners, and one owner with a million.
    Scale {
        /// Divides the number of records.
        #[arg(long, default_value_t = 1)]
        divisor: usize,
    },
    /// The rows of the memory engine, to be written to a file.
    InProcess { results: PathBuf, divisor: usize },
    /// Some calls one after the other, to be counted by callgrind.
    Calls { url: String, who: Who, work: Work, calls: usize },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Measure::Table { folder, readme, rounds, divisor } => {
            table(&folder, readme.as_deref(), Form { rounds, divisor })
        }
        Measure::Scale { divisor } => runtime()?.block_on(scale::run(divisor)),
        Measure::InProcess { results, divisor } => rows::in_process::measure(&runtime()?, &results, divisor),
        // Alone on its thread, so that the count is the same each time.
        Measure::Calls { url, who, work, calls: count } => {
            Builder::new_current_thread().enable_all().build()?.block_on(calls(&url, who, work, count))
        }
    }
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().enable_all().build()?)
}

/// How many steps the progress bar has.
const STEPS: usize = 37;

fn table(folder: &Path, readme: Option<&Path>, form: Form) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let runtime = runtime()?;
    let mut report = Report::default();
    let server = runtime.block_on(async {
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
        rows::sweeps::charts(&bench, folder).await?;
        bench.step("the memory engine");
        rows::in_process::rows(form, &mut report)?;
        bench.done();
        bench.server.info_text("server", "redis_version")
    })?;

    println!("{}", report.terminal());
    println!("Redis {server}, {} rounds; {} rows fall short of a figure", form.rounds, report.short_rows());
    let head = format!(
        "<!-- Written by `make bench`. -->\n\nRedis {server} on loopback without persistence, {} rounds, medians, the \
         least and the most of the ratios of the rounds behind them.\n\n",
        form.rounds
    );
    std::fs::write(folder.join("table.md"), format!("{head}{}\n", report.markdown()))?;
    match readme {
        Some(readme) => show_in(readme, &report.summary()),
        None => Ok(()),
    }
}

/// Puts the text between the two marks of a file.
fn show_in(file: &Path, text: &str) -> Result<()> {
    const MARKS: [&str; 2] =
        ["<!-- begin of what make bench measured -->\n", "<!-- end of what make bench measured -->"];
    let whole = std::fs::read_to_string(file)?;
    let (before, rest) =
        whole.split_once(MARKS[0]).with_context(|| format!("no mark in {}", file.display()))?;
    let (_, after) =
        rest.split_once(MARKS[1]).with_context(|| format!("no end mark in {}", file.display()))?;
    std::fs::write(file, format!("{before}{}\n{text}\n\n{}{after}", MARKS[0], MARKS[1]))?;
    Ok(())
}
