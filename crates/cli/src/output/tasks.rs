//! Tasks as lines of a table, and as JSON lines.

use std::io::{self, Write};

use anstyle::Style;
use chrono::{DateTime, Utc};
use mcp_task_store::{StoredTask, Task, TaskFilter, TaskKey, TaskStatus};

use super::Target;
use super::table::{self, BAD, Column, ColumnKind, FAINT, GOOD, Line, NOTABLE, PLAIN};
use super::{json, text};
use crate::key;

pub const COLUMNS: [Column; 7] = [
    Column { title: "TASK", kind: ColumnKind::Name },
    Column { title: "STATUS", kind: ColumnKind::Text },
    Column { title: "TOOL", kind: ColumnKind::Text },
    Column { title: "AGE", kind: ColumnKind::Number },
    Column { title: "CHANGED", kind: ColumnKind::Detail },
    Column { title: "ATTEMPT", kind: ColumnKind::Detail },
    Column { title: "MESSAGE", kind: ColumnKind::Text },
];

/// Returns a task as the line of a table.
pub fn line(stored: &StoredTask, now: DateTime<Utc>) -> Line {
    let task = &stored.task;
    let cells = vec![
        key::display(&stored.key),
        status(stored, now),
        task.tool().unwrap_or("-").to_owned(),
        text::age(task.created_at, now),
        text::age(task.last_updated_at, now),
        task.lease.as_ref().map_or("-".to_owned(), |lease| lease.attempt.to_string()),
        message(task),
    ];
    Line { cells, style: style(stored, now) }
}

/// Returns the status, with what an operator must know of it.
pub fn status(stored: &StoredTask, now: DateTime<Utc>) -> String {
    let status = stored.task.status;
    let notes = [
        (TaskFilter::new().stuck().matches(stored, now), "stuck"),
        (TaskFilter::new().dead().matches(stored, now), "dead"),
        (!status.is_terminal() && stored.task.cancel_requested, "cancel requested"),
    ];
    let notes: Vec<&str> = notes.iter().filter(|(holds, _)| *holds).map(|(_, note)| *note).collect();
    if notes.is_empty() { status.to_string() } else { format!("{status} ({})", notes.join(", ")) }
}

/// Returns the progress and the message of a task.
pub fn message(task: &Task) -> String {
    let progress = task.progress.as_ref().filter(|_| !task.status.is_terminal()).map(progress);
    let message = task.status_message.clone().or_else(|| Some(task.error.as_ref()?.message.clone()));
    [progress, message].into_iter().flatten().collect::<Vec<_>>().join("  ")
}

pub fn progress(progress: &mcp_task_store::Progress) -> String {
    match progress.total {
        Some(total) => format!("{}/{total}", progress.done),
        None => progress.done.to_string(),
    }
}

pub fn style(stored: &StoredTask, now: DateTime<Utc>) -> Style {
    match stored.task.status {
        TaskStatus::Failed => BAD,
        TaskStatus::InputRequired => NOTABLE,
        _ if TaskFilter::new().stuck().matches(stored, now) => NOTABLE,
        TaskStatus::Completed => GOOD,
        TaskStatus::Cancelled => FAINT,
        TaskStatus::Working => PLAIN,
    }
}

/// How many tasks one part of a table has. Its columns have one width.
const PART: usize = 1_000;

/// Prints tasks as they come: JSON at once, tables in parts.
pub struct TaskPrinter {
    target: Target,
    json: bool,
    is_first: bool,
    part: Vec<Line>,
}

impl TaskPrinter {
    pub fn new(json: bool) -> Self {
        Self { target: Target::of_stdout(), json, is_first: true, part: Vec::new() }
    }

    /// Adds tasks. Call [`finish`](Self::finish) after the last ones.
    pub fn print(&mut self, tasks: &[StoredTask], now: DateTime<Utc>) -> io::Result<()> {
        if self.json {
            let mut out = io::stdout().lock();
            for stored in tasks {
                writeln!(out, "{}", json::line(&json::task(stored, now)))?;
            }
            return out.flush();
        }
        self.part.extend(tasks.iter().map(|stored| line(stored, now)));
        if self.part.len() >= PART { self.finish() } else { Ok(()) }
    }

    /// Adds records that cannot be read as tasks.
    pub fn print_unreadable(&mut self, keys: &[TaskKey]) -> io::Result<()> {
        if self.json {
            let mut out = io::stdout().lock();
            for key in keys {
                writeln!(out, "{}", json::line(&json::unreadable(key)))?;
            }
            return out.flush();
        }
        let cells = |key: &TaskKey| {
            let absent = ["-", "-", "-", "-", ""].map(str::to_owned);
            [key::display(key), "unreadable".to_owned()].into_iter().chain(absent).collect()
        };
        self.part.extend(keys.iter().map(|key| Line { cells: cells(key), style: FAINT }));
        if self.part.len() >= PART { self.finish() } else { Ok(()) }
    }

    /// Prints what is left.
    pub fn finish(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        if part.is_empty() {
            return Ok(());
        }
        table::print(self.target, &COLUMNS, &part, std::mem::take(&mut self.is_first))
    }
}
