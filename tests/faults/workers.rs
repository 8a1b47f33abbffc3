//! Workers in processes of their own: how soon they start enqueued tasks, how they share a queue, and how they stop.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mcp_task_store::{
    Agenda, NewTask, OnWorkerLost, StoreConfig, TaskContext, TaskKey, TaskStatus, TaskStore, TaskTools,
    Worker,
};
use rmcp::model::{CallToolResult, ContentBlock};
use rmcp::schemars;
use rmcp::task_manager::TaskExit;
use rstest::rstest;
use rstest_reuse::apply;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::support::place::Place;
use crate::support::{Engine, Store, on_every_shared_engine, owner};

/// The environment variable with the settings of a worker process.
const SETTINGS: &str = "WORKER_PROCESS_SETTINGS";
/// Precedes a message of a worker process, among the lines that the test harness prints.
const MESSAGE: &str = "worker> ";
const PATIENCE: Duration = Duration::from_secs(60);

/// The settings of a worker process.
#[derive(Serialize, Deserialize)]
struct Settings {
    place: Place,
    concurrency: usize,
    lease: Duration,
    drain: Duration,
}

type Tasks = TaskStore<Arc<dyn Agenda>>;

/// Opens a store as another process does.
async fn open(place: &Place, lease: Duration) -> Tasks {
    let config = StoreConfig::new().lease(lease).max_tasks_per_owner(None);
    TaskStore::with_config(place.open().await.unwrap(), config)
}

fn send(message: Value) {
    println!("{MESSAGE}{message}");
}

/// Returns the microseconds since the epoch. All processes run on one machine.
fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Nap {
    ms: u64,
}

/// Reports its start, and works for as long as its arguments say.
async fn nap(task: TaskContext, nap: Nap) -> Result<CallToolResult, TaskExit> {
    send(json!({ "started": task.task_id(), "attempt": task.attempt(), "at": now_us() }));
    tokio::time::sleep(Duration::from_millis(nap.ms)).await;
    let said = format!("attempt {}", task.attempt());
    Ok(CallToolResult::success(vec![ContentBlock::text(said)]))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests of this file, in a process of its own"]
async fn worker_process() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let Settings { place, concurrency, lease, drain } = serde_json::from_str(&settings).unwrap();
    let store = open(&place, lease).await;
    let tools = TaskTools::new().tool("nap", "Works for a while", nap).resumable();
    let worker = Worker::new(store).operations(tools).concurrency(concurrency).drain(drain);
    send(json!("ready"));
    worker.run().await.unwrap();
    send(json!("stopped"));
}

/// A worker in a process of its own.
struct WorkerProcess {
    process: Child,
    messages: mpsc::UnboundedReceiver<Value>,
}

impl WorkerProcess {
    async fn start(store: &Store, concurrency: usize, lease: Duration, drain: Duration) -> Self {
        let settings = Settings { place: Place::of(store), concurrency, lease, drain };
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "workers::worker_process", "--nocapture", "--test-threads", "1"])
            .env(SETTINGS, serde_json::to_string(&settings).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (sender, messages) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, message)) = line.split_once(MESSAGE) {
                    let _ = sender.send(serde_json::from_str(message).unwrap());
                }
            }
        });
        let mut worker = Self { process, messages };
        assert_eq!(worker.message().await, Some(json!("ready")));
        worker
    }

    /// Returns the next message, or `None` after the process has ended.
    async fn message(&mut self) -> Option<Value> {
        tokio::time::timeout(PATIENCE, self.messages.recv()).await.expect("the worker sends a message")
    }

    /// Waits until the worker has started a task. Returns its id, the number of the attempt and the time.
    async fn started(&mut self) -> (String, u64, u64) {
        let message = self.message().await.expect("the worker runs");
        let number = |name: &str| message[name].as_u64().unwrap();
        (message["started"].as_str().unwrap().to_owned(), number("attempt"), number("at"))
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until the process has ended. Returns the messages that nobody has read.
    async fn end(mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        while let Some(message) = self.message().await {
            messages.push(message);
        }
        tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("the process ends").unwrap();
        messages
    }
}

async fn enqueue(tasks: &Tasks, ms: u64) -> TaskKey {
    let new = NewTask::new("tools/call").operation("nap").arguments(json!({ "ms": ms }));
    tasks.enqueue(&owner("alice"), new.on_worker_lost(OnWorkerLost::Resume)).await.unwrap().key
}

async fn ended(tasks: &Tasks, key: &TaskKey) -> TaskStatus {
    tokio::time::timeout(PATIENCE, tasks.wait(key)).await.expect("the task ends").unwrap().task.status
}

const LEASE: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(30);

#[rstest]
#[case::sqlite(Engine::Sqlite, Duration::from_millis(20))]
#[case::redis(Engine::Redis, Duration::from_millis(10))]
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_in_another_process_starts_an_enqueued_task_at_once(
    #[case] engine: Engine,
    #[case] promised: Duration,
) {
    let store = engine.open_roomy().await;
    let mut worker = WorkerProcess::start(&store, 4, LEASE, DRAIN).await;
    let tasks = open(&Place::of(&store), LEASE).await;
    let mut times = Vec::new();
    for _ in 0..60 {
        let begun = now_us();
        let key = enqueue(&tasks, 0).await;
        let (started, attempt, at) = worker.started().await;
        assert_eq!((started.as_str(), attempt), (key.task.as_str(), 1));
        times.push(Duration::from_micros(at.saturating_sub(begun)));
        assert_eq!(ended(&tasks, &key).await, TaskStatus::Completed);
    }
    times.sort();
    let (median, p95) = (times[times.len() / 2], times[times.len() * 95 / 100]);
    println!(
        "figure | {engine:?}: from enqueue to the start in an idle worker of another process | median {median:.1?}, 95th percentile {p95:.1?} (limit {promised:?} at the median)"
    );
    assert!(median < promised * 10, "ten times what is promised: {median:?}");
}

/// Runs tasks on this many workers. Returns how many tasks a second they ended.
async fn throughput(engine: Engine, workers: usize, number: usize) -> f64 {
    let store = engine.open_roomy().await;
    let tasks = open(&Place::of(&store), LEASE).await;
    let start = (0..workers).map(|_| WorkerProcess::start(&store, 4, LEASE, DRAIN));
    let mut processes = futures_util::future::join_all(start).await;
    let begun = Instant::now();
    let keys = futures_util::future::join_all((0..number).map(|_| enqueue(&tasks, 50))).await;
    for key in &keys {
        assert_eq!(ended(&tasks, key).await, TaskStatus::Completed);
    }
    let rate = number as f64 / begun.elapsed().as_secs_f64();
    processes.iter_mut().for_each(|process| process.signal("-TERM"));
    let mut starts = BTreeMap::new();
    for process in processes {
        for message in process.end().await {
            if let Some(task) = message["started"].as_str() {
                *starts.entry(task.to_owned()).or_insert(0) += 1;
            }
        }
    }
    let expected: BTreeSet<_> = keys.iter().map(|key| key.task.as_str().to_owned()).collect();
    assert_eq!(starts.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert!(starts.values().all(|count| *count == 1), "no task starts twice");
    rate
}

#[apply(on_every_shared_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn workers_share_a_queue_and_start_no_task_twice(#[case] engine: Engine) {
    let mut rates = Vec::new();
    for workers in [1, 2, 4, 8] {
        let rate = throughput(engine, workers, 40 * workers).await;
        rates.push(format!("{workers} workers {rate:.0}"));
    }
    println!(
        "figure | {engine:?}: tasks of 50 ms a second, each worker with 4 at once | {}",
        rates.join(", ")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_workers_on_one_queue_do_not_hold_each_other_up() {
    let rate = throughput(Engine::Redis, 20, 200).await;
    println!("figure | Redis: tasks of 50 ms a second by 20 workers, each with 4 at once | {rate:.0}");
}

#[apply(on_every_shared_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_receives_sigterm_ends_what_it_can_and_releases_the_rest_to_others_at_once(
    #[case] engine: Engine,
) {
    let store = engine.open_roomy().await;
    let tasks = open(&Place::of(&store), LEASE).await;
    let mut first = WorkerProcess::start(&store, 2, LEASE, Duration::from_secs(2)).await;
    let (short, long) = (enqueue(&tasks, 1_000).await, enqueue(&tasks, 3_600_000).await);
    let begun: BTreeSet<_> = [first.started().await.0, first.started().await.0].into();
    assert_eq!(begun, [&short, &long].map(|key| key.task.as_str().to_owned()).into());
    first.signal("-TERM");
    // The process has received the signal once it claims no more tasks. Until then it has no free slot.
    let waiting = enqueue(&tasks, 0).await;
    let mut second = WorkerProcess::start(&store, 2, LEASE, Duration::ZERO).await;
    assert_eq!(second.started().await.0, waiting.task.as_str(), "the first worker takes no more");
    assert_eq!(ended(&tasks, &short).await, TaskStatus::Completed, "within the drain limit");
    let (resumed, attempt, _) = second.started().await;
    assert_eq!((resumed.as_str(), attempt), (long.task.as_str(), 2));
    assert_eq!(tasks.get(&long).await.unwrap().task.lease.as_ref().unwrap().losses, 0);
    assert_eq!(first.end().await, [json!("stopped")]);
    second.signal("-TERM");
    assert_eq!(second.end().await, [json!("stopped")]);
    assert_eq!(tasks.cancel(&long).await.unwrap().task.status, TaskStatus::Cancelled);
}

#[apply(on_every_shared_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn another_worker_resumes_the_tasks_of_a_worker_that_is_killed(#[case] engine: Engine) {
    let (store, lease) = (engine.open_roomy().await, Duration::from_secs(1));
    let tasks = open(&Place::of(&store), lease).await;
    let mut first = WorkerProcess::start(&store, 4, lease, DRAIN).await;
    let keys = futures_util::future::join_all((0..4).map(|_| enqueue(&tasks, 3_000))).await;
    for _ in &keys {
        first.started().await;
    }
    let mut second = WorkerProcess::start(&store, 4, lease, DRAIN).await;
    first.signal("-KILL");
    first.end().await;
    let mut resumed = BTreeSet::new();
    for _ in &keys {
        let (task, attempt, _) = second.started().await;
        assert_eq!(attempt, 2);
        resumed.insert(task);
    }
    assert_eq!(resumed, keys.iter().map(|key| key.task.as_str().to_owned()).collect());
    for key in &keys {
        assert_eq!(ended(&tasks, key).await, TaskStatus::Completed);
    }
}
