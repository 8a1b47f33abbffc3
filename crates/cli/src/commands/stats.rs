//! `mcp-tasks stats`

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use chrono::{DateTime, Utc};
use mcp_task_store::{StoredTask, Task, TaskFilter, TaskStatus};
use serde_json::json;

use crate::args::StatsArgs;
use crate::engine::Store;
use crate::failure::Failure;
use crate::output::table::{self, Column, ColumnKind, FAINT, Line, PLAIN};
use crate::output::{Target, json, remark, text};
use crate::selection::Wanted;

/// How many tools have lines of their own. The tasks of further tools are counted together.
const MAX_TOOLS: usize = 1_000;

const COLUMNS: [Column; 7] = [
    Column { title: "TOOL", kind: ColumnKind::Name },
    Column { title: "STATUS", kind: ColumnKind::Text },
    Column { title: "TASKS", kind: ColumnKind::Number },
    Column { title: "STUCK", kind: ColumnKind::Number },
    Column { title: "DEAD", kind: ColumnKind::Number },
    Column { title: "OLDEST", kind: ColumnKind::Number },
    Column { title: "NEWEST", kind: ColumnKind::Number },
];

/// The statuses in the order of a task's life.
const STATUSES: [TaskStatus; 5] = [
    TaskStatus::Working,
    TaskStatus::InputRequired,
    TaskStatus::Completed,
    TaskStatus::Failed,
    TaskStatus::Cancelled,
];

/// The tasks of one tool and one status.
#[derive(Default)]
struct Group {
    tasks: u64,
    stuck: u64,
    dead: u64,
    /// The times from which the ages count.
    oldest: Option<DateTime<Utc>>,
    newest: Option<DateTime<Utc>>,
}

/// Whose tasks a group counts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Tool {
    Named(String),
    Unnamed,
    Others,
}

#[derive(Default)]
struct Groups {
    /// By tool, and by the number of the status in the life of a task.
    groups: BTreeMap<(Tool, usize), Group>,
    tools: HashSet<String>,
}

pub async fn run(store: &Store, args: &StatsArgs, quiet: bool) -> Result<(), Failure> {
    let wanted = Wanted::new(&args.filter, args.rate, quiet);
    wanted.announce();
    let (mut selection, mut groups) = (wanted.select(store), Groups::default());
    while let Some(page) = selection.next_page().await? {
        let now = store.backend().now();
        page.iter().for_each(|stored| groups.count(stored, now));
    }
    selection.mention_unreadable(quiet);
    drop(selection);
    let mut dead = wanted.dead().select(store);
    while let Some(page) = dead.next_page().await? {
        page.iter().for_each(|stored| groups.count_dead(stored));
    }
    drop(dead);
    groups.groups.retain(|_, group| group.tasks > 0);
    let now = store.backend().now();
    match args.form.json {
        true => groups.print_json(now)?,
        false => groups.print_table(now)?,
    }
    if groups.groups.is_empty() {
        remark(quiet, "no task matches");
    }
    Ok(())
}

impl Groups {
    fn count(&mut self, stored: &StoredTask, now: DateTime<Utc>) {
        let task = &stored.task;
        let from = if task.status.is_terminal() { task.last_updated_at } else { task.created_at };
        let group = self.group_of(task);
        group.tasks += 1;
        group.stuck += u64::from(TaskFilter::new().stuck().matches(stored, now));
        group.oldest = Some(group.oldest.map_or(from, |oldest| oldest.min(from)));
        group.newest = Some(group.newest.map_or(from, |newest| newest.max(from)));
    }

    /// Counts a task on the list of dead tasks. Its record alone does not say whether it was requeued. A task that has died since the
    /// scan is left out, as a task that was created since then.
    fn count_dead(&mut self, stored: &StoredTask) {
        let group = self.group_of(&stored.task);
        group.dead = group.tasks.min(group.dead + 1);
    }

    fn group_of(&mut self, task: &Task) -> &mut Group {
        let tool = match task.tool() {
            None => Tool::Unnamed,
            Some(name) if self.tools.contains(name) => Tool::Named(name.to_owned()),
            Some(name) if self.tools.len() < MAX_TOOLS => {
                self.tools.insert(name.to_owned());
                Tool::Named(name.to_owned())
            }
            Some(_) => Tool::Others,
        };
        let status = STATUSES.iter().position(|status| *status == task.status).unwrap_or(STATUSES.len());
        self.groups.entry((tool, status)).or_default()
    }

    fn print_table(&self, now: DateTime<Utc>) -> io::Result<()> {
        if self.groups.is_empty() {
            return Ok(());
        }
        let mut total = Group::default();
        let mut lines: Vec<Line> = Vec::new();
        for ((tool, status), group) in &self.groups {
            let status = STATUSES.get(*status).map_or("-", |status| status.as_str());
            lines.push(Line { cells: group.cells(tool.shown(), status, now), style: PLAIN });
            total.tasks += group.tasks;
            total.stuck += group.stuck;
            total.dead += group.dead;
            total.oldest = [total.oldest, group.oldest].into_iter().flatten().min();
            total.newest = [total.newest, group.newest].into_iter().flatten().max();
        }
        lines.push(Line { cells: total.cells("total", "", now), style: FAINT });
        table::print(Target::of_stdout(), &COLUMNS, &lines, true)
    }

    fn print_json(&self, now: DateTime<Utc>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let seconds = |from: Option<DateTime<Utc>>| from.map(|from| (now - from).num_seconds().max(0));
        for ((tool, status), group) in &self.groups {
            let line = json!({
                "tool": tool.name(),
                "otherTools": *tool == Tool::Others,
                "status": STATUSES.get(*status),
                "tasks": group.tasks,
                "stuck": group.stuck,
                "dead": group.dead,
                "oldestSeconds": seconds(group.oldest),
                "newestSeconds": seconds(group.newest),
            });
            writeln!(out, "{}", json::line(&line))?;
        }
        out.flush()
    }
}

impl Group {
    fn cells(&self, tool: &str, status: &str, now: DateTime<Utc>) -> Vec<String> {
        let age = |from: Option<DateTime<Utc>>| from.map_or("-".to_owned(), |from| text::age(from, now));
        let [tasks, stuck, dead] = [self.tasks, self.stuck, self.dead].map(text::with_commas);
        vec![tool.to_owned(), status.to_owned(), tasks, stuck, dead, age(self.oldest), age(self.newest)]
    }
}

impl Tool {
    fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Unnamed | Self::Others => None,
        }
    }

    fn shown(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Unnamed => "-",
            Self::Others => "(other tools)",
        }
    }
}
