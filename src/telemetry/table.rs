//! Every metric: its name, unit, labels and description.

use metrics::Unit;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// A number that grows and shrinks.
    Gauge,
    /// Measured values.
    Histogram,
}

/// One metric of the library.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// The name, which ends with the unit, and with `_total` for a counter.
    pub name: &'static str,
    /// What it is.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The unit.
    pub unit: Unit,
    /// What it measures.
    pub description: &'static str,
}

const TOOL: &[&str] = &["tool"];

pub(super) const CREATED: Metric = counter("mcp_tasks_created_total", TOOL, "Tasks created.");
pub(super) const STARTED: Metric = counter("mcp_tasks_started_total", TOOL, "First attempts begun.");
pub(super) const RESUMED: Metric = counter("mcp_tasks_resumed_total", TOOL, "Further attempts begun.");
pub(super) const COMPLETED: Metric = counter("mcp_tasks_completed_total", TOOL, "Tasks ended with a result.");
pub(super) const FAILED: Metric =
    counter("mcp_tasks_failed_total", TOOL, "Tasks failed, with those that expired and those that are dead.");
pub(super) const CANCELLED: Metric = counter("mcp_tasks_cancelled_total", TOOL, "Tasks cancelled.");
pub(super) const EXPIRED: Metric =
    counter("mcp_tasks_expired_total", TOOL, "Tasks failed because their TTL elapsed.");
pub(super) const DEAD: Metric =
    counter("mcp_tasks_dead_total", TOOL, "Tasks failed because their attempts are used up.");
pub(super) const RETRIED: Metric = counter(
    "mcp_task_retries_total",
    TOOL,
    "Attempts that failed, and after which the task waits for the next one.",
);
pub(super) const LEASE_LOSSES: Metric =
    counter("mcp_task_lease_losses_total", TOOL, "Workers that were lost, as this process detected.");
pub(super) const QUEUE: Metric = seconds(
    "mcp_task_queue_seconds",
    TOOL,
    "How long a task waited for a worker before an attempt began, with the delay of a retry.",
);
pub(super) const RUN: Metric = seconds("mcp_task_run_seconds", TOOL, "How long an attempt lasted.");
pub(super) const TOTAL: Metric =
    seconds("mcp_task_total_seconds", TOOL, "How long a task lasted from its creation to its end.");
pub(super) const RUNNING: Metric = Metric {
    name: "mcp_attempts_running",
    kind: MetricKind::Gauge,
    labels: &[],
    unit: Unit::Count,
    description: "Attempts that run in this process.",
};
pub(super) const CONFLICTS: Metric = counter(
    "mcp_task_conflicts_total",
    &[],
    "Compare-and-swaps of a task that lost to another writer. The call reads the task again.",
);
pub(super) const ENGINE_CALL: Metric = seconds(
    "mcp_engine_call_seconds",
    &["call", "outcome"],
    "How long a call of the engine took. A conflict is an answer. The outcome of a call that the caller gave up is `abandoned`.",
);
pub(super) const BATCH: Metric = Metric {
    name: "mcp_engine_batch_writes",
    kind: MetricKind::Histogram,
    labels: &["engine"],
    unit: Unit::Count,
    description: "Writes in one script of Redis, or in one transaction of SQLite.",
};
pub(super) const RECONNECTS: Metric =
    counter("mcp_engine_reconnects_total", &[], "Connections to Redis that replaced an earlier one.");
pub(super) const WATCHES: Metric = Metric {
    name: "mcp_watch_subscriptions",
    kind: MetricKind::Gauge,
    labels: &[],
    unit: Unit::Count,
    description: "Subscriptions of this process to changes of a task.",
};

/// Every metric of the library. A metric appears in the recorder once it has a value.
pub const METRICS: &[Metric] = &[
    CREATED,
    STARTED,
    RESUMED,
    COMPLETED,
    FAILED,
    CANCELLED,
    EXPIRED,
    DEAD,
    RETRIED,
    LEASE_LOSSES,
    QUEUE,
    RUN,
    TOTAL,
    RUNNING,
    CONFLICTS,
    ENGINE_CALL,
    BATCH,
    RECONNECTS,
    WATCHES,
];

const fn counter(name: &'static str, labels: &'static [&'static str], description: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, labels, unit: Unit::Count, description }
}

const fn seconds(name: &'static str, labels: &'static [&'static str], description: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram, labels, unit: Unit::Seconds, description }
}
