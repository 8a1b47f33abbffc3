//! `mcp-tasks watch`: a live table on a terminal, a line for each change in a pipe.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};

use chrono::{DateTime, Utc};
use console::Term;
use mcp_task_store::{StoredTask, TaskError, TaskKey};
use tokio::time::sleep;

use crate::args::WatchArgs;
use crate::engine::Store;
use crate::failure::{Failure, with_causes};
use crate::key;
use crate::output::tasks::{COLUMNS, line, message, status};
use crate::output::{Target, json, remark, table, text};
use crate::selection::{Selection, Wanted};

/// How many lines of the terminal are not for tasks.
const OTHER_LINES: u16 = 4;
/// The lines of a terminal that does not state its height.
const DEFAULT_LINES: u16 = 24;
/// How many tasks the command remembers to find changes.
const MAX_REMEMBERED: usize = 100_000;

pub async fn run(store: &Store, args: &WatchArgs, quiet: bool) -> Result<(), Failure> {
    let wanted = Wanted::new(&args.filter, args.rate, quiet);
    wanted.announce();
    let target = Target::of_stdout();
    if target.is_terminal() && !args.form.json {
        let live = LiveTable {
            target,
            term: Term::stdout(),
            interval: humantime::format_duration(args.interval).to_string(),
        };
        return live.run(store, &wanted.silent(), args).await;
    }
    let mut shown = None;
    loop {
        match print_changes(&mut wanted.silent().select(store), store, args.form.json, &mut shown).await {
            Ok(()) => {}
            Err(Round::Store(error)) if error.is_retryable() => {
                remark(
                    quiet,
                    format_args!(
                        "the store fails, and the command tries again: {}",
                        text::plain(&with_causes(&error))
                    ),
                );
            }
            Err(Round::Store(error)) => return Err(error.into()),
            Err(Round::Ended(failure)) => return Err(failure),
        }
        sleep(args.interval).await;
    }
}

/// Why a round did not succeed.
enum Round {
    Store(TaskError),
    Ended(Failure),
}

impl From<TaskError> for Round {
    fn from(error: TaskError) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for Round {
    fn from(error: io::Error) -> Self {
        Self::Ended(error.into())
    }
}

/// Prints the tasks that have changed since the last round; in the first round, the open ones.
async fn print_changes(
    selection: &mut Selection,
    store: &Store,
    as_json: bool,
    shown: &mut Option<HashMap<TaskKey, u64>>,
) -> Result<(), Round> {
    let mut seen = HashMap::new();
    while let Some(page) = selection.next_page().await? {
        let (now, mut out) = (store.backend().now(), io::stdout().lock());
        for stored in page {
            let line = change(&stored, now, as_json);
            let hash = hash(&line);
            let is_new = match shown {
                None => !stored.task.status.is_terminal(),
                Some(shown) => shown.get(&stored.key) != Some(&hash),
            };
            if is_new {
                writeln!(out, "{line}")?;
            }
            if seen.len() == MAX_REMEMBERED {
                let most = text::count(MAX_REMEMBERED as u64, "task");
                return Err(Round::Ended(Failure::failed(format!(
                    "more than {most} match; narrow the filters"
                ))));
            }
            seen.insert(stored.key, hash);
        }
        out.flush()?;
    }
    *shown = Some(seen);
    Ok(())
}

/// Returns what stands for a line in memory. The version of a record would not do: each renewal of a lease changes it, and no line.
fn hash(line: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

fn change(stored: &StoredTask, now: DateTime<Utc>, as_json: bool) -> String {
    if as_json {
        return json::line(&json::task(stored, now));
    }
    let (time, task) = (text::time(stored.task.last_updated_at), key::display(&stored.key));
    let line = format!("{time}  {task}  {}  {}", status(stored, now), text::plain(&message(&stored.task)));
    line.trim_end().to_owned()
}

/// A table that is drawn again after each scan.
struct LiveTable {
    target: Target,
    term: Term,
    interval: String,
}

impl LiveTable {
    async fn run(&self, store: &Store, wanted: &Wanted, args: &WatchArgs) -> Result<(), Failure> {
        let mut drawn = 0;
        loop {
            let lines = match self.scan(&mut wanted.select(store), store).await {
                Ok(lines) => lines,
                Err(error) if error.is_retryable() => {
                    vec![text::cut(
                        &format!("the store fails, and the command tries again: {}", with_causes(&error)),
                        self.width(),
                    )]
                }
                Err(error) => return Err(error.into()),
            };
            self.term.clear_last_lines(drawn)?;
            let mut out = anstream::stdout().lock();
            for line in &lines {
                writeln!(out, "{line}")?;
            }
            out.flush()?;
            drop(out);
            drawn = lines.len();
            sleep(args.interval).await;
        }
    }

    fn width(&self) -> usize {
        match self.target {
            Target::Terminal { width } => width,
            Target::Pipe => usize::MAX,
        }
    }

    /// Returns the lines of the table: the tasks that changed last, and how many there are.
    async fn scan(&self, selection: &mut Selection, store: &Store) -> Result<Vec<String>, TaskError> {
        let lines = self.term.size_checked().map_or(DEFAULT_LINES, |(lines, _)| lines);
        let most =
            usize::from(if lines == 0 { DEFAULT_LINES } else { lines }.saturating_sub(OTHER_LINES).max(1));
        let (mut latest, mut counts): (Vec<StoredTask>, BTreeMap<&str, u64>) = Default::default();
        while let Some(page) = selection.next_page().await? {
            for stored in &page {
                *counts.entry(stored.task.status.as_str()).or_default() += 1;
            }
            latest.extend(page);
            latest.sort_by_key(|stored| (is_ended(stored), std::cmp::Reverse(stored.task.last_updated_at)));
            latest.truncate(most);
        }
        let now = store.backend().now();
        let counts: Vec<String> =
            counts.iter().map(|(status, count)| format!("{} {status}", text::with_commas(*count))).collect();
        let counts = if counts.is_empty() { "no task matches".to_owned() } else { counts.join(", ") };
        let heading = format!("{}  {counts}  (every {}; Ctrl-C ends)", now.format("%H:%M:%S"), self.interval);
        let table: Vec<table::Line> = latest.iter().map(|stored| line(stored, now)).collect();
        let rendered = table::render(self.target, &COLUMNS, &table, !table.is_empty());
        Ok([text::cut(&heading, self.width())].into_iter().chain(rendered).collect())
    }
}

/// Open tasks stand above ended ones.
fn is_ended(stored: &StoredTask) -> bool {
    stored.task.status.is_terminal()
}
