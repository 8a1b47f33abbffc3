//! `mcp-tasks workers`

use std::io::{self, Write};

use chrono::{DateTime, Utc};
use mcp_task_store::{StorageBackend, WorkerStatus};
use serde_json::{Value, json};

use crate::args::WorkersArgs;
use crate::engine::Store;
use crate::failure::Failure;
use crate::key;
use crate::output::table::{self, BAD, Column, ColumnKind, Line, PLAIN};
use crate::output::{Target, json, remark, text};

const COLUMNS: [Column; 9] = [
    Column { title: "HOLDER", kind: ColumnKind::Name },
    Column { title: "STATE", kind: ColumnKind::Text },
    Column { title: "HOST", kind: ColumnKind::Text },
    Column { title: "PROCESS", kind: ColumnKind::Number },
    Column { title: "VERSION", kind: ColumnKind::Detail },
    Column { title: "RUNS", kind: ColumnKind::Number },
    Column { title: "STARTED", kind: ColumnKind::Detail },
    Column { title: "SEEN", kind: ColumnKind::Number },
    Column { title: "TASKS", kind: ColumnKind::Text },
];

/// How many characters of a holder the table shows, as many as the history of a task.
const HOLDER: usize = 8;

pub async fn run(store: &Store, args: &WorkersArgs, quiet: bool) -> Result<(), Failure> {
    let (mut shown, mut unreadable, mut cursor) = (0, 0, None);
    loop {
        let mut page = store.workers(cursor.as_ref()).await?;
        let now = store.backend().now();
        unreadable += page.unreadable;
        let is_cut = page.workers.len() > args.limit - shown;
        page.workers.truncate(args.limit - shown);
        print(&page.workers, args.form.json, shown == 0, now)?;
        shown += page.workers.len();
        if is_cut {
            let limit = text::count(args.limit as u64, "worker");
            remark(quiet, format_args!("stopped after {limit}; --limit N shows more"));
            break;
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    if shown == 0 {
        remark(quiet, "no worker has announced itself");
    }
    if unreadable > 0 {
        let records = text::count(unreadable as u64, "record");
        remark(quiet, format_args!("{records} of workers cannot be read by this version"));
    }
    Ok(())
}

fn print(workers: &[WorkerStatus], as_json: bool, is_first: bool, now: DateTime<Utc>) -> io::Result<()> {
    if as_json {
        let mut out = io::stdout().lock();
        for worker in workers {
            writeln!(out, "{}", json::line(&object(worker, now)))?;
        }
        return out.flush();
    }
    if workers.is_empty() {
        return Ok(());
    }
    let lines: Vec<Line> = workers.iter().map(|worker| line(worker, now)).collect();
    table::print(Target::of_stdout(), &COLUMNS, &lines, is_first)
}

fn line(worker: &WorkerStatus, now: DateTime<Utc>) -> Line {
    let is_lost = worker.is_lost(now);
    let tasks: Vec<String> = worker.tasks.iter().map(|task| key::display(&task.key())).collect();
    let more = worker.task_count.saturating_sub(tasks.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let cells = vec![
        text::plain(&worker.holder.chars().take(HOLDER).collect::<String>()),
        if is_lost { "lost" } else { "running" }.to_owned(),
        worker.host.clone(),
        worker.process_id.to_string(),
        text::plain(&worker.version),
        format!("{}/{}", worker.task_count, worker.capacity),
        text::age(worker.started_at, now),
        text::age(worker.last_seen_at, now),
        format!("{}{more}", tasks.join(" ")),
    ];
    Line { cells, style: if is_lost { BAD } else { PLAIN } }
}

fn object(worker: &WorkerStatus, now: DateTime<Utc>) -> Value {
    json!({
        "holder": worker.holder,
        "lost": worker.is_lost(now),
        "host": worker.host,
        "processId": worker.process_id,
        "version": worker.version,
        "operations": worker.operations,
        "operationCount": worker.operation_count,
        "capacity": worker.capacity,
        "tasks": worker.tasks,
        "taskCount": worker.task_count,
        "startedAt": text::time(worker.started_at),
        "lastSeenAt": text::time(worker.last_seen_at),
    })
}
