//! Workers, and servers that only enqueue the calls of their tools.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mcp_task_store::{
    Agenda, DurableTaskManager, ManagerConfig, MemoryBackend, OwnerSource, PageRequest, Priority,
    RegisteredOptions, StoreConfig, TaskContext, TaskError, TaskServer, TaskServerConfig, TaskStore,
    TaskTools, Worker,
};
use rmcp::model::{CallToolResult, TaskStatus};
use rmcp::task_manager::TaskExit;
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::support::elsewhere::elsewhere;
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};
use crate::task_server::flaky::Flaky;
use crate::task_server::raw::{Kind, RawClient};
use crate::task_server::{Render, Router, Server, render, until_cancelled};

fn store(engine: &Arc<dyn Agenda>) -> TaskStore<Arc<dyn Agenda>> {
    TaskStore::with_config(Arc::clone(engine), StoreConfig::new().lease(LONG).retention(LONG))
}

/// Returns a server that runs no operation.
fn enqueues(tasks: &Manager, tools: TaskTools) -> Server<Router> {
    let config = TaskServerConfig::new().enqueue_only();
    TaskServer::with_config(Router, tasks.clone(), OwnerSource::fixed(alice()), tools, config).unwrap()
}

/// A worker of this process, until it is stopped.
struct Running {
    stop: oneshot::Sender<()>,
    worker: JoinHandle<Result<(), TaskError>>,
}

impl Running {
    fn start(worker: Worker<Arc<dyn Agenda>>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let run = worker.run_until(async { stopped.await.unwrap() });
        Self { stop, worker: tokio::spawn(run) }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        within(self.worker).await.unwrap().unwrap();
    }
}

fn tools() -> TaskTools {
    TaskTools::new().tool("render", "Renders a scene", render)
}

/// Works for as many seconds as it has frames.
async fn seconds(_: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
    sleep(Duration::from_secs(render.frames)).await;
    Ok(text("slept"))
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_runs_the_calls_of_a_server_that_only_enqueues_them(#[case] engine: Engine) {
    let opened = engine.open().await;
    let tasks = manager(&elsewhere(&opened.backend), LONG);
    let worker = Running::start(Worker::new(store(&opened.backend)).operations(tools()));
    for kind in [Kind::Tasks, Kind::Plain, Kind::Old] {
        let config = TaskServerConfig::new().enqueue_only().answer_within(LONG).hold_for(LONG);
        let owners = OwnerSource::fixed(alice());
        let server = TaskServer::with_config(Router, tasks.clone(), owners, tools(), config).unwrap();
        let mut client = RawClient::connect(server, kind).await;
        let response = within(client.call("render", json!({ "frames": 3 }))).await;
        assert_eq!(response["result"]["content"][0]["text"], "3 frames in attempt 1", "{response}");
        let response = client.call("render", json!({ "frames": "three" })).await;
        assert_eq!(response["error"]["code"], -32602, "before anything is stored: {response}");
    }
    assert_eq!(tasks.running_task_count(), 0);
    let stored = tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap().tasks;
    assert_eq!(stored.len(), 3);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_only_enqueues_answers_a_slow_call_with_its_task_and_runs_nothing_itself() {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = manager(&engine, LONG);
    let tools = || TaskTools::new().tool("seconds", "Works for seconds", seconds).resumable();
    let mut client = RawClient::connect(enqueues(&tasks, tools()), Kind::Tasks).await;
    let begun = Instant::now();
    let response = client.call("seconds", json!({ "frames": 3 })).await;
    assert!((200..300).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let task_id = response["result"]["taskId"].as_str().unwrap().to_owned();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(tasks.running_task_count(), 0);
    assert_eq!(tasks.get_task(&alice(), &task_id).await.unwrap().status(), TaskStatus::Working);

    let worker = Running::start(Worker::new(store(&engine)).operations(tools()));
    assert_eq!(said(&ended(&tasks, &task_id).await), "slept");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_is_held_until_it_can_be_enqueued_and_is_enqueued_once() {
    let engine = Flaky::new();
    let tasks = manager(&engine.agenda(), LONG);
    let mut client = RawClient::connect(enqueues(&tasks, tools()), Kind::Tasks).await;
    engine.is_down.store(true, Ordering::Relaxed);
    let call = client.begin("tools/call", json!({ "name": "render", "arguments": { "frames": 1 } })).await;
    sleep(Duration::from_secs(5)).await;
    engine.loses_replies.store(true, Ordering::Relaxed);
    engine.is_down.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(30)).await;
    engine.loses_replies.store(false, Ordering::Relaxed);
    let response = client.response(call).await;
    assert_eq!(response["result"]["resultType"], "task", "{response}");
    let stored = tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap().tasks;
    assert_eq!(stored.len(), 1);

    engine.is_down.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let response = client.call("render", json!({ "frames": 1 })).await;
    assert_eq!(response["error"]["code"], -32603, "{response}");
    assert!((50..60).contains(&begun.elapsed().as_secs()), "until hold_for: {:?}", begun.elapsed());
}

#[tokio::test]
async fn calls_of_one_key_that_are_enqueued_share_a_task() {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = manager(&engine, LONG);
    let tools = || {
        TaskTools::new()
            .tool("render", "Renders a scene", until_cancelled::<Render>)
            .unique_by(|render: &Render| render.frames)
    };
    let mut client = RawClient::connect(enqueues(&tasks, tools()), Kind::Tasks).await;
    let mut ids = Vec::new();
    for frames in [1, 1, 2] {
        let response = client.call("render", json!({ "frames": frames })).await;
        ids.push(response["result"]["taskId"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
    let worker = Worker::new(store(&engine)).operations(tools()).drain(Duration::ZERO);
    let worker = Running::start(worker);
    for id in &ids[1..] {
        tasks.cancel_task(&alice(), id).await.unwrap();
        assert!(said(&ended(&tasks, id).await).contains("Cancelled"));
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_task_of_a_lower_priority_starts_after_all_others_also_of_other_operations() {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = manager(&engine, LONG);
    for (name, priority) in
        [("a", Priority::Low), ("b", Priority::Normal), ("a", Priority::High), ("b", Priority::Low)]
    {
        let options = RegisteredOptions::new().priority(priority);
        tasks.enqueue(&alice(), name, json!(format!("{name} {priority:?}")), options).await.unwrap();
    }
    let (started, mut order) = mpsc::unbounded_channel();
    let one_at_a_time = ManagerConfig::new().max_concurrent(1);
    let worker = DurableTaskManager::with_config(store(&engine), one_at_a_time);
    for name in ["a", "b"] {
        let started = started.clone();
        worker.register(name, move |_, arguments: Value| {
            started.send(arguments.as_str().unwrap().to_owned()).unwrap();
            Box::pin(async { Ok(text("done")) })
        });
    }
    let mut names = Vec::new();
    for _ in 0..4 {
        names.push(within(order.recv()).await.unwrap());
    }
    names[2..].sort_unstable();
    assert_eq!(names, ["a High", "b Normal", "a Low", "b Low"]);
}

#[tokio::test]
async fn no_operation_waits_while_another_one_always_has_tasks() {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = manager(&engine, LONG);
    let options = RegisteredOptions::new;
    for number in 0..50 {
        tasks.enqueue(&alice(), ["a", "b"][number / 25], Value::Null, options()).await.unwrap();
    }
    let (started, mut order) = mpsc::unbounded_channel();
    let worker = DurableTaskManager::with_config(store(&engine), ManagerConfig::new().max_concurrent(1));
    for name in ["a", "b"] {
        let started = started.clone();
        worker.register(name, move |_, _| {
            started.send(name).unwrap();
            Box::pin(async { Ok(text("done")) })
        });
    }
    let mut names = Vec::new();
    for _ in 0..10 {
        names.push(within(order.recv()).await.unwrap());
    }
    let of_a = names.iter().filter(|name| **name == "a").count();
    assert!((3..=7).contains(&of_a), "{names:?}");
}

/// Opens a store in memory with two enqueued tasks of these seconds, and a worker that has started both.
async fn started(
    first: u64,
    second: u64,
    drain: Duration,
) -> (Arc<dyn Agenda>, Manager, Running, [String; 2]) {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = manager(&engine, LONG);
    let mut ids = Vec::new();
    for frames in [first, second] {
        let arguments = json!({ "frames": frames });
        ids.push(tasks.enqueue(&alice(), "seconds", arguments, resume()).await.unwrap().task_id);
    }
    let tools = TaskTools::new().tool("seconds", "Works for seconds", seconds).resumable();
    let worker = Running::start(Worker::new(store(&engine)).operations(tools).concurrency(2).drain(drain));
    for id in &ids {
        let has_holder = async || {
            let stored = tasks.store().get(&key(id)).await.unwrap();
            stored.task.lease.as_ref().is_some_and(|lease| lease.holder.is_some())
        };
        while !has_holder().await {
            sleep(Duration::from_millis(1)).await;
        }
    }
    (engine, tasks, worker, ids.try_into().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_takes_no_more_waits_for_its_tasks_and_releases_the_rest() {
    let drain = Duration::from_secs(30);
    let (_engine, tasks, worker, [short, long]) = started(20, 3600, drain).await;
    let begun = Instant::now();
    worker.stop.send(()).unwrap();
    sleep(Duration::from_secs(1)).await;
    let late = tasks.enqueue(&alice(), "seconds", json!({ "frames": 0 }), resume()).await.unwrap().task_id;
    assert_eq!(said(&ended(&tasks, &short).await), "slept");
    within(worker.worker).await.unwrap().unwrap();
    assert!((30..32).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    for id in [&late, &long] {
        let stored = tasks.store().get(&key(id)).await.unwrap();
        let lease = stored.task.lease.as_ref().unwrap();
        assert_eq!((&lease.holder, lease.losses), (&None, 0), "{id} waits for another worker");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_tasks_have_ended_stops_at_once() {
    let (_engine, tasks, worker, ids) = started(1, 2, Duration::from_secs(3600)).await;
    for id in &ids {
        ended(&tasks, id).await;
    }
    let begun = Instant::now();
    worker.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_loses_the_store_keeps_its_tasks_alive_and_stores_their_outcomes_later() {
    let engine = Flaky::new();
    let config = StoreConfig::new().lease(Duration::from_secs(30)).retention(LONG);
    let of = |engine: Arc<dyn Agenda>| TaskStore::with_config(engine, config.clone());
    let server = DurableTaskManager::new(of(engine.agenda()));
    let arguments = json!({ "frames": 20 });
    let id = server.enqueue(&alice(), "seconds", arguments, resume()).await.unwrap().task_id;
    let tools = TaskTools::new().tool("seconds", "Works for seconds", seconds).resumable();
    let worker = Running::start(Worker::new(of(engine.agenda())).operations(tools));
    sleep(Duration::from_secs(5)).await;
    engine.is_down.store(true, Ordering::Relaxed);
    // The operation ends, and its lease lapses.
    sleep(Duration::from_secs(120)).await;
    engine.is_down.store(false, Ordering::Relaxed);
    assert_eq!(said(&ended(&server, &id).await), "slept");
    let stored = server.store().get(&key(&id)).await.unwrap();
    assert_eq!(stored.task.status, mcp_task_store::TaskStatus::Completed);
    worker.stop().await;
}

#[tokio::test]
async fn a_mistake_in_a_worker_is_an_error_before_it_claims_anything() {
    let worker = || {
        let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
        Worker::new(store(&engine))
    };
    let twice = tools().tool("render", "Renders again", render);
    for (worker, expected) in [(worker(), "no operations"), (worker().operations(twice), "exists twice")] {
        let error = worker.run_until(std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[rstest]
#[tokio::test]
async fn an_enqueued_task_of_a_tool_that_is_not_resumable_has_its_arguments(
    #[values(true, false)] is_resumable: bool,
) {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = manager(&engine, LONG);
    let tools = || if is_resumable { tools().resumable() } else { tools() };
    let worker = Running::start(Worker::new(store(&engine)).operations(tools()));
    let config = TaskServerConfig::new().enqueue_only().answer_within(Duration::ZERO);
    let owners = OwnerSource::fixed(alice());
    let server = TaskServer::with_config(Router, tasks.clone(), owners, tools(), config).unwrap();
    let mut client = RawClient::connect(server, Kind::Tasks).await;
    let response = client.call("render", json!({ "frames": 7 })).await;
    let id = response["result"]["taskId"].as_str().unwrap();
    assert_eq!(said(&ended(&tasks, id).await), "7 frames in attempt 1");
    worker.stop().await;
}
