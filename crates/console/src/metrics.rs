//! `/metrics`: what the console knows of the store, and what the process records.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use chrono::{DateTime, Utc};
use mcp_task_store::{StorageBackend, TaskStatus};
use metrics::{Unit, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;

use crate::router::Shared;
use crate::snapshot::query::Counts;
use crate::snapshot::{Tasks, Workers};

/// Returns what the recorder of the process has recorded, as Prometheus text.
pub(crate) type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// The label of tasks without a tool, and of all tools but those with the most tasks.
const OTHER: &str = "other";

/// A gauge of the snapshot.
struct Gauge {
    name: &'static str,
    unit: Unit,
    description: &'static str,
}

const TASKS: Gauge = count("mcp_store_tasks", "Tasks in the store.");
const QUEUED: Gauge = count("mcp_store_queued_tasks", "Tasks that a worker could claim, and none has.");
const STUCK: Gauge = count("mcp_store_stuck_tasks", "Open tasks that nobody works on.");
const DEAD: Gauge = count("mcp_store_dead_tasks", "Tasks that failed because their attempts are used up.");
const OLDEST_OPEN: Gauge = seconds("mcp_store_oldest_open_seconds", "The age of the oldest open task.");
const OLDEST_QUEUED: Gauge = seconds(
    "mcp_store_oldest_queued_seconds",
    "For how long a worker could have claimed the oldest queued task.",
);
const LOST: Gauge =
    count("mcp_store_tasks_that_lost_a_worker", "Tasks that lost a worker within the last hour.");
const WORKERS: Gauge =
    count("mcp_store_workers", "Workers that have announced themselves. Lost ones count for an hour.");
const UNREADABLE: Gauge =
    count("mcp_store_unreadable_records", "Records that this version cannot read as tasks.");
const LEFT_OUT: Gauge =
    count("mcp_store_left_out_tasks", "Tasks that the other gauges leave out for lack of memory.");
const AGE: Gauge =
    seconds("mcp_store_snapshot_age_seconds", "How long ago the last complete pass over the store began.");

const GAUGES: &[Gauge] =
    &[TASKS, QUEUED, STUCK, DEAD, OLDEST_OPEN, OLDEST_QUEUED, LOST, WORKERS, UNREADABLE, LEFT_OUT, AGE];

const fn count(name: &'static str, description: &'static str) -> Gauge {
    Gauge { name, unit: Unit::Count, description }
}

const fn seconds(name: &'static str, description: &'static str) -> Gauge {
    Gauge { name, unit: Unit::Seconds, description }
}

pub(crate) async fn show(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let mut text = gauges(&shared.snapshot.read(), shared.store.backend().now());
    if let Some(render) = &shared.render {
        text.push_str(&render());
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// Returns the gauges of the snapshot. A recorder of its own formats them, so no label stays that the snapshot no longer has.
fn gauges(tasks: &Tasks, now: DateTime<Utc>) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        for Gauge { name, unit, description } in GAUGES {
            describe_gauge!(*name, *unit, *description);
        }
        set(tasks, now);
    });
    recorder.handle().render()
}

fn set(tasks: &Tasks, now: DateTime<Utc>) {
    let totals = tasks.totals(None, now);
    let mut tools: BTreeMap<&str, Counts> = BTreeMap::new();
    tools.entry(OTHER).or_default().add_all(&totals.other_tools);
    for (tool, counts) in &totals.tools {
        tools.entry(tool.as_deref().unwrap_or(OTHER)).or_default().add_all(counts);
    }
    tools.iter().for_each(|(tool, counts)| set_tool(tool, counts));
    let age = |since: DateTime<Utc>| (now - since).to_std().unwrap_or_default().as_secs_f64();
    let value = |gauge: &Gauge, value: f64| gauge!(gauge.name).set(value);
    value(&OLDEST_OPEN, totals.oldest_open.map_or(0.0, |(_, created)| age(created)));
    value(&OLDEST_QUEUED, totals.oldest_queued.map_or(0.0, age));
    value(&LOST, totals.lost as f64);
    value(&UNREADABLE, tasks.unreadable.last_pass as f64);
    value(&LEFT_OUT, tasks.left_out.last_pass as f64);
    value(&AGE, age(tasks.as_of.unwrap_or(tasks.since)));
    if let Some(Workers { running, lost }) = tasks.workers {
        for (state, number) in [("running", running), ("lost", lost)] {
            gauge!(WORKERS.name, "state" => state).set(number as f64);
        }
    }
}

fn set_tool(tool: &str, counts: &Counts) {
    for (status, number) in [
        (TaskStatus::Working, counts.working),
        (TaskStatus::InputRequired, counts.input_required),
        (TaskStatus::Completed, counts.completed),
        (TaskStatus::Failed, counts.failed),
        (TaskStatus::Cancelled, counts.cancelled),
    ] {
        gauge!(TASKS.name, "tool" => tool.to_owned(), "status" => status.as_str()).set(number as f64);
    }
    for (gauge, number) in [(QUEUED, counts.queued), (STUCK, counts.stuck), (DEAD, counts.dead)] {
        gauge!(gauge.name, "tool" => tool.to_owned()).set(number as f64);
    }
}

#[cfg(test)]
mod tests {
    use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStore};

    use super::*;
    use crate::snapshot::Snapshot;
    use crate::snapshot::query::MAX_TOOLS;

    #[tokio::test]
    async fn the_number_of_tools_is_bounded_and_hostile_names_are_escaped() {
        let store = TaskStore::new(MemoryBackend::new());
        let snapshot = Snapshot::new(store.backend().now(), 1_000);
        let owner = OwnerId::try_from("alice-of-the-metrics").unwrap();
        for number in 0..MAX_TOOLS + 20 {
            let tool = format!("tool \"{number}\"\n}} 1\nfake 1");
            let new = NewTask::new("tools/call").operation(tool);
            let stored = store.create(&owner, new).await.unwrap();
            snapshot.write().record(&stored, store.backend().now());
        }
        let text = gauges(&snapshot.read(), store.backend().now());
        let tools = text.lines().filter(|line| line.starts_with("mcp_store_dead_tasks{")).count();
        assert_eq!(tools, MAX_TOOLS + 1, "{text}");
        assert!(text.contains("mcp_store_tasks{tool=\"other\",status=\"working\"} 20\n"), "{text}");
        assert!(!text.contains("alice-of-the-metrics"));
        for line in text.lines().filter(|line| !line.is_empty()) {
            assert!(line.starts_with("# ") || line.starts_with("mcp_store_"), "{line}");
        }
    }

    #[test]
    fn the_guide_lists_every_gauge() {
        let guide = include_str!("../../../docs/guide/console.md");
        let listed: Vec<&str> = guide.lines().filter(|line| line.starts_with("| `mcp_store_")).collect();
        assert_eq!(listed.len(), GAUGES.len());
        for (line, gauge) in listed.iter().zip(GAUGES) {
            assert!(
                line.starts_with(&format!("| `{}` |", gauge.name)) && line.contains(gauge.description),
                "{line}"
            );
        }
    }
}
