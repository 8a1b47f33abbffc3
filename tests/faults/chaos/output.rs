//! Prints the figures of a run, and everything that is known about its violations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

use super::Store;
use super::checker::{Report, Rule};
use super::history::History;
use super::operation::LEASE;
use super::run::{Checked, Ended, Run};
use crate::support::deployment::Topology;

struct Figures(&'static str);

impl Figures {
    fn print(&self, what: &str, value: impl Display) {
        println!("figure | chaos{}: {what} | {value}", self.0);
    }
}

pub fn print_figures(run: &Run, ended: &Ended, report: &Report) {
    let figures = Figures(match run.form.store {
        Store::Server => "",
        Store::Servers(Topology::Cluster) => " on a cluster",
        Store::Servers(_) => " behind sentinels",
        Store::File => " on SQLite",
    });
    print_tasks(&figures, report);
    print_faults(&figures, run, ended, report);
    let seconds = |time: std::time::Duration| format!("{:.1} s", time.as_secs_f64());
    figures.print("time under faults", seconds(ended.time_under_faults));
    figures.print("time until the last task had ended", seconds(ended.time_after_faults));
    figures.print("violations", report.violations.len());
}

fn print_tasks(figures: &Figures, report: &Report) {
    figures.print("leases of", format!("{LEASE:?}"));
    figures.print("tasks acknowledged", report.acknowledged);
    figures.print("records by status", format!("{:?}", report.by_status));
    figures.print("resumptions", report.resumptions);
    figures.print("results that must not be replaced", report.kept_results);
    figures.print("results whose worker was disturbed before it could store them", report.excused_results);
    let cancels = format!("{}, {}", report.cancels, report.cancels_of_running);
    figures.print("cancels acknowledged, of running tasks", cancels);
    let failed = format!("{}, {}, {}", report.lost, report.gave_up, report.overdue);
    figures.print("failed: worker lost, gave up, overdue", failed);
}

fn print_faults(figures: &Figures, run: &Run, ended: &Ended, report: &Report) {
    let counts = &ended.counts;
    figures.print("workers killed, shut down", format!("{}, {}", counts.killed, counts.shut_down));
    figures.print("workers stopped, cut off", format!("{}, {}", counts.paused, counts.cut_off));
    match run.form.store {
        Store::Server => {
            let servers = format!("{}, {}", counts.servers_killed, counts.servers_paused);
            figures.print("servers killed, stopped", servers);
            figures.print("steps of the server's clock", counts.clocks_stepped);
            let (resets, closes, stalls) = run.network_counts();
            figures.print("connections reset, closed, stalled", format!("{resets}, {closes}, {stalls}"));
        }
        Store::Servers(_) => {
            figures.print("faults of the servers", format!("{:?}", counts.replicated));
            figures.print("violations caused by writes that a failover lost", report.lost_writes.len());
        }
        Store::File => {
            let outages = format!("{}, {}", counts.files_locked, counts.files_filled);
            figures.print("the file was locked by another process, full", outages);
            figures.print("workers stopped while they held its lock", counts.paused_with_the_lock);
        }
    }
}

/// Prints the violations, and for the first of each rule the record, the log and the traces of its task.
pub fn explain(run: &Run, Checked { report, lines, ends }: &Checked) {
    let mut alike = BTreeMap::<(Rule, &str), Vec<&str>>::new();
    for violation in &report.violations {
        alike.entry((violation.rule, &violation.what)).or_default().push(&violation.task);
    }
    for ((rule, what), tasks) in alike {
        println!("violation: {rule:?}: {what}: {} tasks, {:?}", tasks.len(), &tasks[..tasks.len().min(3)]);
    }
    let history = History::of(lines);
    let mut explained = BTreeSet::new();
    for violation in report.violations.iter().filter(|violation| explained.insert(violation.rule)) {
        println!("\n{violation}");
        println!("  record: {}", ends.get(&violation.task).map_or("none", |end| &end.record));
        for line in history.about(&violation.task) {
            println!("  {}", serde_json::to_string(line).unwrap());
        }
        print_traces(run.folder.path(), &violation.task);
    }
}

/// Prints what the worker processes traced about a task.
fn print_traces(folder: &Path, task: &str) {
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "trace") {
            continue;
        }
        let trace = std::fs::read_to_string(&path).unwrap_or_default();
        for line in trace.lines().filter(|line| line.contains(task)) {
            println!("  {}: {line}", path.file_stem().unwrap().to_string_lossy());
        }
    }
}

/// Copies the logs to the folder that `CHAOS_KEEP` names.
pub fn keep_logs(run: &Run) {
    let Some(kept) = std::env::var_os("CHAOS_KEEP") else { return };
    let kept = Path::new(&kept).join(run.seed.to_string());
    std::fs::create_dir_all(&kept).unwrap();
    for file in std::fs::read_dir(run.folder.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), kept.join(file.file_name())).unwrap();
    }
}
