//! The metrics: each one grows when it should, the documented table lists them all, and no label holds an owner or the id of a task.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mcp_task_store::telemetry::{self, METRICS, MetricKind};
use mcp_task_store::{RpcError, StoreConfig, TaskError, TaskKey, TaskStore};
use metrics::LocalRecorderGuard;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use rstest_reuse::apply;
use serde_json::json;

use crate::common::{LONG, Tasks, claim_now, has_ended, plain, resumable, until, within};
use crate::support::{Engine, Store, on_every_engine, owner, page};

/// Text that must not be in any label.
const OWNER: &str = "alice-of-the-metrics";
const TOOL: &str = "render";

/// Records the metrics of this thread. Tests with a runtime of one thread record all of theirs, except for those of the threads of SQLite.
struct Recorder {
    snapshotter: Snapshotter,
    /// A snapshot sets every value to zero.
    totals: RefCell<Values>,
    _guard: LocalRecorderGuard<'static>,
}

/// The values by name and labels, for example `mcp_engine_call_seconds{call=get,outcome=ok}`.
type Values = BTreeMap<String, f64>;

impl Recorder {
    fn install() -> Self {
        let recorder = Box::leak(Box::new(DebuggingRecorder::new()));
        let (snapshotter, guard) = (recorder.snapshotter(), metrics::set_default_local_recorder(recorder));
        telemetry::describe();
        telemetry::register_tool(TOOL);
        Self { snapshotter, totals: RefCell::default(), _guard: guard }
    }

    /// Returns the counters and gauges, and how many values each histogram has received. Checks each metric against the list.
    fn values(&self) -> Values {
        let mut totals = self.totals.borrow_mut();
        for (key, unit, description, value) in self.snapshotter.snapshot().into_vec() {
            let key = key.key();
            let metric = METRICS
                .iter()
                .find(|metric| metric.name == key.name())
                .unwrap_or_else(|| panic!("{}", key.name()));
            let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
            let names: Vec<_> = labels.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, metric.labels, "{}", metric.name);
            assert_eq!((unit, description.as_deref()), (Some(metric.unit), Some(metric.description)));
            let (kind, number) = match value {
                DebugValue::Counter(number) => (MetricKind::Counter, number as f64),
                DebugValue::Gauge(number) => (MetricKind::Gauge, number.into_inner()),
                DebugValue::Histogram(received) => {
                    assert!(received.iter().all(|value| value.is_finite() && value.is_sign_positive()));
                    (MetricKind::Histogram, received.len() as f64)
                }
            };
            assert_eq!(kind, metric.kind, "{}", metric.name);
            let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            *totals.entry(format!("{}{{{}}}", metric.name, labels.join(","))).or_default() += number;
        }
        totals.clone()
    }

    /// Sets every value to zero.
    fn reset(&self) {
        self.values();
        self.totals.borrow_mut().clear();
    }
}

fn open(store: &Store) -> Tasks {
    TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().lease(LONG).retention(LONG))
}

async fn enqueue(tasks: &Tasks, tool: &str) -> TaskKey {
    tasks.enqueue(&owner(OWNER), resumable().operation(tool).max_attempts(2)).await.unwrap().key
}

/// Drives tasks to every end. Returns their keys.
async fn drive(store: &Store, tasks: &Tasks) -> Vec<TaskKey> {
    let completed = enqueue(tasks, TOOL).await;
    claim_now(tasks, &completed).await.release().await.unwrap();
    claim_now(tasks, &completed).await.complete(json!(1)).await.unwrap();

    let dead = enqueue(tasks, TOOL).await;
    claim_now(tasks, &dead).await.retry(RpcError::new(1, "x")).await.unwrap();
    drop(claim_now(tasks, &dead).await);
    until(&**store, &dead, has_ended).await;

    let cancelled = enqueue(tasks, "not registered").await;
    tasks.request_cancel(&cancelled).await.unwrap();

    let expired = tasks.create(&owner(OWNER), plain().ttl(Duration::from_millis(1))).await.unwrap();
    store.until(expired.task.deadline().unwrap()).await;
    tasks.get(&expired.key).await.unwrap();
    vec![completed, dead, cancelled, expired.key]
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_lives_of_tasks_are_counted_by_tool(#[case] engine: Engine) {
    let recorder = Recorder::install();
    let store = engine.open().await;
    let tasks = open(&store);
    drive(&store, &tasks).await;
    let values = recorder.values();
    let of = |tool: &str| {
        let suffix = format!("{{tool={tool}}}");
        let of_tool = values.iter().filter_map(|(name, number)| Some((name.strip_suffix(&suffix)?, *number)));
        of_tool.map(|(name, number)| (name.to_owned(), number as u32)).collect::<BTreeMap<_, _>>()
    };
    let expected = |counts: &[(&str, u32)]| {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<BTreeMap<_, _>>()
    };
    let of_tool = [
        ("mcp_tasks_created_total", 2),
        ("mcp_tasks_started_total", 2),
        ("mcp_tasks_resumed_total", 2),
        ("mcp_tasks_completed_total", 1),
        ("mcp_tasks_failed_total", 1),
        ("mcp_tasks_dead_total", 1),
        ("mcp_task_retries_total", 1),
        ("mcp_task_lease_losses_total", 1),
        ("mcp_task_queue_seconds", 4),
        ("mcp_task_run_seconds", 4),
        ("mcp_task_total_seconds", 2),
    ];
    assert_eq!(of(TOOL), expected(&of_tool));
    let of_others = [
        ("mcp_tasks_created_total", 2),
        ("mcp_tasks_cancelled_total", 1),
        ("mcp_tasks_failed_total", 1),
        ("mcp_tasks_expired_total", 1),
        ("mcp_task_total_seconds", 2),
    ];
    assert_eq!(of("other"), expected(&of_others));
    assert_eq!(values["mcp_attempts_running{}"], 0.0);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn attempts_and_subscriptions_count_while_they_last(#[case] engine: Engine) {
    let recorder = Recorder::install();
    let store = engine.open().await;
    let tasks = open(&store);
    let gauges = || {
        let values = recorder.values();
        let gauge = |name: &str| values.get(name).copied().unwrap_or_default() as i32;
        (gauge("mcp_attempts_running{}"), gauge("mcp_watch_subscriptions{}"))
    };
    assert_eq!(gauges(), (0, 0));
    let attempts = [claim_now(&tasks, &enqueue(&tasks, TOOL).await).await, start(&tasks).await];
    assert_eq!(gauges(), (2, 0));
    let keys = attempts.each_ref().map(|attempt| attempt.key().clone());
    let mut waits = Box::pin(futures_util::future::join_all(keys.iter().map(|key| tasks.wait(key))));
    let subscribed = async {
        while gauges() != (2, 2) {
            assert!((&mut waits).now_or_never().is_none(), "the tasks have not ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(subscribed).await;
    let [first, second] = attempts;
    first.complete(json!(1)).await.unwrap();
    assert_eq!(gauges(), (1, 2), "an attempt is over once its task has ended");
    drop(second);
    assert_eq!(gauges().0, 0);
    drop(waits);
    assert_eq!(gauges(), (0, 0));
}

async fn start(tasks: &Tasks) -> crate::common::TaskAttempt {
    tasks.start(&owner(OWNER), resumable()).await.unwrap().1
}

#[apply(on_every_engine)]
#[tokio::test]
async fn calls_of_the_engine_are_measured_by_kind_and_outcome(#[case] engine: Engine) {
    let recorder = Recorder::install();
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    let created = tasks.create(&owner(OWNER), plain()).await.unwrap();
    recorder.reset();

    tasks.set_status_message(&created.key, "read and written").await.unwrap();
    assert_refused!(tasks.get(&crate::support::key(OWNER, "none")).await, TaskError::NotFound { .. });
    tasks.list(&owner(OWNER), mcp_task_store::PageRequest::new(9)).await.unwrap();
    tasks.delete(&created.key).await.unwrap();
    let values = recorder.values();
    let calls = |call: &str, outcome: &str| {
        let name = format!("mcp_engine_call_seconds{{call={call},outcome={outcome}}}");
        values.get(&name).copied().unwrap_or_default() as u32
    };
    assert_eq!((calls("get", "ok"), calls("get", "not_found")), (1, 1));
    assert_eq!((calls("put", "ok"), calls("list", "ok"), calls("delete", "ok")), (1, 1, 1));
    assert_eq!(values.get("mcp_task_conflicts_total{}"), None);

    let raced = tasks.create(&owner(OWNER), plain()).await.unwrap().key;
    let conflicts = async {
        loop {
            // A copy saves the read only while the connections of the engine stay the same.
            let stale = tasks.get(&raced).await.unwrap();
            other.set_status_message(&raced, "meanwhile").await.unwrap();
            tasks.set_status_message(&stale, "again").await.unwrap();
            let values = recorder.values();
            if let Some(conflicts) = values.get("mcp_engine_call_seconds{call=put,outcome=conflict}") {
                return assert_eq!(values.get("mcp_task_conflicts_total{}"), Some(conflicts));
            }
        }
    };
    within(conflicts).await;

    let enqueued = enqueue(&tasks, TOOL).await;
    let taken = async {
        let taken = "mcp_engine_call_seconds{call=take_due,outcome=ok}";
        while !recorder.values().contains_key(taken) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(async {
        tokio::join!(taken, async { claim_now(&tasks, &enqueued).await.complete(json!(1)).await })
    })
    .await
    .1
    .unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn no_label_holds_an_owner_or_the_id_of_a_task_and_each_has_few_values(#[case] engine: Engine) {
    let recorder = Recorder::install();
    let store = engine.open().await;
    let tasks = open(&store);
    let keys = drive(&store, &tasks).await;
    for number in 0..50 {
        let key = enqueue(&tasks, &format!("tool of a client {number}")).await;
        tasks.cancel(&key).await.unwrap();
    }
    let values = recorder.values();
    let ids: Vec<&str> = keys.iter().map(|key| key.task.as_str()).collect();
    let mut tools = BTreeSet::new();
    for name in values.keys() {
        assert!(!name.contains(OWNER) && ids.iter().all(|id| !name.contains(id)), "{name}");
        tools.extend(name.split_once("{tool=").map(|(_, tool)| tool.trim_end_matches('}').to_owned()));
    }
    assert_eq!(tools.into_iter().collect::<Vec<_>>(), ["other", TOOL]);
    assert_eq!(values["mcp_tasks_created_total{tool=other}"], 52.0);
}

#[test]
fn the_documented_table_lists_every_metric() {
    let page = page("docs/operations.md");
    let documented: Vec<&str> = page.lines().filter(|line| line.starts_with("| `mcp_")).collect();
    let expected: Vec<String> = METRICS
        .iter()
        .map(|metric| {
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let unit = metric.unit.as_str();
            format!(
                "| `{}` | {kind} | {unit} | {} | {} |",
                metric.name,
                labels.join(", "),
                metric.description
            )
        })
        .collect();
    assert_eq!(documented, expected);
    for metric in METRICS {
        assert_eq!(metric.name.ends_with("_total"), metric.kind == MetricKind::Counter, "{}", metric.name);
        assert_eq!(
            metric.name.ends_with("_seconds"),
            metric.unit == metrics::Unit::Seconds,
            "{}",
            metric.name
        );
    }
}

#[cfg(feature = "redis-tests")]
#[tokio::test]
async fn scripts_and_reconnects_of_redis_are_counted() {
    use mcp_task_store::{RedisBackend, StorageBackend};
    use redis::Value;

    use crate::support::redis::{Server, command};
    use crate::support::{keep, key};

    let recorder = Recorder::install();
    let server = Server::start(&[]);
    let backend = RedisBackend::builder().connect(&server.url()).await.unwrap();
    let keys: Vec<_> = (0..20).map(|number| key(OWNER, &number.to_string())).collect();
    let put = |key| backend.put(key, "data".into(), keep());
    let written: Result<Vec<_>, _> =
        futures_util::future::join_all(keys.iter().map(put)).await.into_iter().collect();
    written.unwrap();
    let version = backend.get(&keys[0]).await.unwrap().version;
    backend.put_if_version(&keys[0], "data".into(), keep(), version).await.unwrap();
    let values = recorder.values();
    assert!((1.0..=21.0).contains(&values["mcp_engine_batch_writes{engine=redis}"]), "{values:?}");
    assert_eq!(values.get("mcp_engine_reconnects_total{}"), None);

    let _: Value = command(&mut server.connection(), ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let reconnected = async {
        while !recorder.values().contains_key("mcp_engine_reconnects_total{}") {
            // The first call may find the connection broken.
            let _ = backend.get(&keys[0]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(reconnected).await;
}
