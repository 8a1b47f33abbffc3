//! Measures this crate, `pmcp-tasks` and the bare Redis commands in one run on one server, and this crate, `turul-mcp-task-storage` and
//! bare SQLite statements on one disk. Writes the results as Markdown and charts. `make bench` runs it.

mod bench;
mod calls;
mod chart;
mod contender;
mod format;
mod page;
mod proxy;
mod record;
mod report;
mod rounds;
mod row;
mod rows;
mod scale;
mod server;
mod sqlite;
mod tried;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use tokio::runtime::{Builder, Runtime};

use bench::{Bench, Form};
use page::show_in;
use report::Reports;
use rows::Subject;
use rows::client::allocations::Counting;
use rows::client::callgrind::Calls;

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
        /// Measures only the rows of SQLite, and writes only their tables
        #[arg(long)]
        only_sqlite: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Measures the rows of some subjects, and prints them.
    Rows {
        subjects: Vec<Subject>,
        #[command(flatten)]
        form: Form,
    },
    /// Measures a million records over 10,000 owners, and one owner with a million.
    Scale {
        /// Divides the number of records
        #[arg(long, default_value_t = 1)]
        divisor: usize,
        /// The page to write the figures to, between its two marks
        #[arg(long)]
        page: Option<PathBuf>,
    },
    /// Measures bare scripts: what was tried on the way to those of this crate.
    Tried {
        /// The page to write the figures to, between its two marks
        #[arg(long)]
        page: PathBuf,
    },
    /// Measures the rows of the memory engine, and writes them to a file.
    InProcess { results: PathBuf, divisor: usize },
    /// Makes the calls of one contender on a SQLite file, as another process asks for them.
    Sqlite { contender: sqlite::Contender },
    /// Prepares records and makes some calls, for callgrind to count.
    Calls(Calls),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Measure::Table { charts, page, readme, only_sqlite, form } => {
            let subjects = if only_sqlite { &[Subject::Sqlite] } else { Subject::value_variants() };
            let reports = measure(subjects, &charts, form)?;
            if !only_sqlite {
                show_in(&page, "make bench", &reports.redis.markdown())?;
                show_in(&readme, "make bench", &reports.redis.headline())?;
            }
            show_in(&page, "make bench on SQLite", &reports.sqlite.markdown())?;
            show_in(&readme, "make bench on SQLite", &reports.sqlite.headline())
        }
        Measure::Rows { subjects, form } => {
            measure(&subjects, tempfile::tempdir()?.path(), form)?;
            Ok(())
        }
        Measure::Scale { divisor, page } => runtime()?.block_on(scale::run(divisor, page.as_deref())),
        Measure::Tried { page } => tried::run(&page),
        Measure::Sqlite { contender } => contender.serve(),
        Measure::InProcess { results, divisor } => rows::in_process::measure(&runtime()?, &results, divisor),
        // One thread, so that the count is the same each time.
        Measure::Calls(calls) => {
            // One thread, so that the count is the same each time.
            Builder::new_current_thread().enable_all().build()?.block_on(calls.make())
        }
    }
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().enable_all().build()?)
}

/// Measures the rows, draws the charts, and prints the tables.
fn measure(subjects: &[Subject], charts: &Path, form: Form) -> Result<Reports> {
    std::fs::create_dir_all(charts)?;
    let mut reports = Reports::default();
    let server = runtime()?.block_on(async {
        let bench = Bench::start(form).await?;
        for subject in subjects {
            subject.measure(&bench, charts, &mut reports).await?;
        }
        bench.done(subjects.len() == Subject::value_variants().len())?;
        bench.server.info_text("server", "redis_version")
    })?;
    reports.describe(&server, form.rounds);
    println!("{}", reports.terminal());
    Ok(reports)
}
