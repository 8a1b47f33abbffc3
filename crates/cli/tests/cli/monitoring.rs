//! The dashboard and the alert rules of docs/monitoring use only metrics that exist, under the names and labels that Prometheus sees.

mod expressions;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, Expiry, NewTask, OnWorkerLost, PutOptions, RedisBackend, RpcError, StorageBackend, StoreConfig,
    TaskKey, TaskStore, telemetry,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use self::expressions::{Check, Shown};
use crate::serving::Serving;
use crate::support::server::{Server, until};
use crate::support::{command, owner};

type Tasks = TaskStore<Arc<dyn Agenda>>;

const DASHBOARD: &str = include_str!("../../../../docs/monitoring/dashboard.json");
const ALERTS: &str = include_str!("../../../../docs/monitoring/alerts.yaml");

#[derive(Deserialize)]
struct Alerts {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn rules() -> Vec<Rule> {
    let alerts: Alerts = serde_saphyr::from_str(ALERTS).unwrap();
    alerts.groups.into_iter().flat_map(|group| group.rules).collect()
}

/// Returns the expressions of all panels.
fn panels() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let targets: Vec<&Value> = panels.flat_map(|panel| panel["targets"].as_array().unwrap()).collect();
    targets.iter().map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

fn new(tool: &str) -> NewTask {
    NewTask::new("tools/call").operation(tool).on_worker_lost(OnWorkerLost::Resume)
}

/// Lets tasks end in every way, and calls of the engine conflict. Returns an open task.
async fn drive(tasks: &Tasks, other: &Tasks) -> TaskKey {
    let alice = owner("alice");
    let enqueue = async |new: NewTask| tasks.enqueue(&alice, new).await.unwrap().key;
    let claim = async |key: &TaskKey| tasks.claim(key).await.unwrap().unwrap().1;
    let completed = enqueue(new("render")).await;
    claim(&completed).await.release().await.unwrap();
    claim(&completed).await.complete(json!(1)).await.unwrap();
    claim(&enqueue(new("render")).await).await.retry(RpcError::new(1, "again")).await.unwrap();
    claim(&enqueue(new("render").max_attempts(1)).await).await.retry(RpcError::new(1, "x")).await.unwrap();
    tasks.cancel(&enqueue(new("render")).await).await.unwrap();
    let expires = tasks.create(&alice, new("render").ttl(Duration::from_millis(1))).await.unwrap();
    let lost = enqueue(new("render").max_attempts(1)).await;
    drop(claim(&lost).await);
    for key in [&expires.key, &lost] {
        while !tasks.get(key).await.unwrap().task.status.is_terminal() {
            sleep(Duration::from_millis(5)).await;
        }
    }
    let raced = tasks.create(&alice, new("render")).await.unwrap();
    for _ in 0..20 {
        let stale = tasks.get(&raced.key).await.unwrap();
        other.set_status_message(&raced.key, "meanwhile").await.unwrap();
        tasks.set_status_message(&stale, "again").await.unwrap();
    }
    raced.key
}

/// Waits until the recorder shows a metric.
async fn until_shown(recorder: &PrometheusHandle, name: &str) {
    while !recorder.render().contains(name) {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Returns what a process on Redis records, as Prometheus reads it.
async fn recorded(server: &Server) -> String {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &[0.01, 1.0, 60.0])
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_writes".to_owned()), &[1.0, 32.0])
        })
        .unwrap()
        .build_recorder();
    let handle = recorder.handle();
    // The runtime has one thread, so this recorder gets everything.
    let _guard = metrics::set_default_local_recorder(&recorder);
    telemetry::describe();
    telemetry::register_tool("render");
    let backend: Arc<dyn Agenda> = Arc::new(RedisBackend::connect(&server.url()).await.unwrap());
    let config = StoreConfig::new().retention(Duration::from_secs(3600));
    let [tasks, other] = [(); 2].map(|()| TaskStore::with_config(Arc::clone(&backend), config.clone()));
    let open = timeout(Duration::from_secs(60), drive(&tasks, &other)).await.unwrap();
    tokio::select! {
        ended = tasks.wait(&open) => panic!("nobody ends the task: {ended:?}"),
        subscribed = timeout(Duration::from_secs(60), until_shown(&handle, "mcp_watch_subscriptions")) => subscribed.unwrap(),
    }
    let _: redis::Value = server.send(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let reconnects = async {
        loop {
            // The first call may find the connection broken.
            let _ = tasks.owners(None).await;
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = reconnects => {}
        shown = timeout(Duration::from_secs(60), until_shown(&handle, "mcp_engine_reconnects_total")) => shown.unwrap(),
    }
    handle.render()
}

/// Returns what `mcp-tasks serve` shows at `/metrics`, once it has counted the workers.
async fn served(server: &Server) -> String {
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let now = backend.now();
    let worker = json!({
        "holder": "h", "host": "a", "processId": 7, "version": "1", "operations": [], "operationCount": 0, "capacity": 1,
        "tasks": [], "taskCount": 0, "startedAt": now, "lastSeenAt": now, "periodMs": 10_000,
    });
    let key = TaskKey::new("\0mcp/workers", "h").unwrap();
    let expires = PutOptions::new(Expiry::After(Duration::from_secs(600)));
    backend.put(&key, worker.to_string().into(), expires).await.unwrap();
    let mut serve: Command = command();
    serve.args(["serve", "--listen", "127.0.0.1:0", "--url", &server.url()]);
    let serving = Serving::start(serve);
    let mut text = String::new();
    until("the console has counted the workers", || {
        text = serving.get("/metrics", "");
        text.contains("mcp_store_workers{") && text.contains("mcp_store_dead_tasks{tool=\"render\"")
    });
    text
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_use_metrics_that_a_run_shows() {
    let server = Server::start(&[]);
    let texts = [recorded(&server).await, served(&server).await];
    let check = Check { shown: texts.iter().map(|text| Shown::parse(text)).collect(), tables: tables() };
    let mut used = BTreeSet::new();
    for expr in panels().iter().chain(rules().iter().map(|rule| &rule.expr)) {
        used.extend(check.names(expr).unwrap_or_else(|error| panic!("{expr}: {error}")));
    }
    for metric in telemetry::METRICS {
        assert!(used.contains(metric.name), "no panel shows {}", metric.name);
    }
    // The check refuses names and labels that do not exist, and what is no PromQL.
    for wrong in [
        "mcp_tasks_created",
        "rate(mcp_task_run_seconds[5m])",
        "sum by (owner) (mcp_tasks_created_total)",
        "mcp_tasks_created_total{owner=\"alice\"}",
        "mcp_engine_call_seconds_count{kind=\"get\"}",
        "sum by (le) (mcp_tasks_created_total)",
        "rate(mcp_tasks_created_total)",
        "up",
    ] {
        assert!(check.names(wrong).is_err(), "{wrong}");
    }
    let variables: Value = serde_json::from_str(DASHBOARD).unwrap();
    let query = variables["templating"]["list"][1]["query"].as_str().unwrap();
    let selected = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(", tool)"));
    check.names(&format!("sum by (tool) ({})", selected.unwrap())).unwrap();
}

/// Returns the labels of each metric, as the library and the guide list them.
fn tables() -> BTreeMap<String, Vec<String>> {
    let of_library = telemetry::METRICS.iter().map(|metric| {
        (metric.name.to_owned(), metric.labels.iter().map(|label| (*label).to_owned()).collect())
    });
    let guide = include_str!("../../../../docs/guide/console.md");
    let rows = guide.lines().filter(|line| line.starts_with("| `mcp_store_"));
    let of_console = rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[2].split(", ").filter(|label| !label.is_empty());
        (cells[1].replace('`', ""), labels.map(|label| label.replace('`', "")).collect())
    });
    of_library.chain(of_console).collect()
}

#[test]
fn each_alert_says_what_happens_and_what_to_do() {
    let rules = rules();
    let names: Vec<&str> = rules.iter().map(|rule| rule.alert.as_str()).collect();
    assert_eq!(
        names,
        ["McpEngineErrors", "McpOldestQueuedTask", "McpDeadTasks", "McpLeaseLosses", "McpNoWorkers"]
    );
    for Rule { alert, labels, annotations, .. } in &rules {
        assert!(["warning", "critical"].contains(&labels["severity"].as_str()), "{alert}");
        assert!(!annotations["summary"].is_empty() && annotations["description"].len() > 40, "{alert}");
    }
}
