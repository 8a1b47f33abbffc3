//! Two instances of a server, each in a process, on one store: how fast a change in one process reaches the other one,
//! and which tasks remain when a process is killed.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::place::Place;
use crate::support::{Engine, Store, heavy, on_every_shared_engine, owner};
use futures_util::future::join_all;
use mcp_task_store::{
    Agenda, DurableTaskManager, OnWorkerLost, OwnerId, PageRequest, RegisteredOptions, StoreConfig,
    TaskContext, TaskKey, TaskStatus, TaskStore,
};
use rmcp::model::{
    CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams, ElicitationSchema, InputRequest,
    TaskPayload,
};
use rmcp::task_manager::{TaskExit, TaskFuture, TaskOptions};
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

type Manager = DurableTaskManager<Arc<dyn Agenda>>;

/// The environment variables of the other process: the place of the store, and the lease in milliseconds.
const STORE: &str = "TWO_PROCESSES_STORE";
const LEASE_MS: &str = "TWO_PROCESSES_LEASE_MS";
/// Precedes a message of the other process, among the lines that the test harness prints.
const MESSAGE: &str = "other> ";

/// How long a write in one process should take to reach the other one. Ten times as much fails the test.
fn wake_up(engine: Engine) -> Duration {
    match engine {
        // It looks for changes of other processes every 10 ms.
        Engine::Sqlite => Duration::from_millis(20),
        _ => Duration::from_millis(10),
    }
}
const REACHES_THE_OPERATION: Duration = Duration::from_millis(50);

fn alice() -> OwnerId {
    owner("alice")
}

fn key(task_id: &str) -> TaskKey {
    crate::support::key("alice", task_id)
}

fn text(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

fn question() -> InputRequest {
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: "Go on?".to_owned(),
        requested_schema: ElicitationSchema::new([].into()),
    }))
}

/// Returns the microseconds since the epoch. Both processes run on one machine.
fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

fn send(words: Value) {
    println!("{MESSAGE}{words}");
}

/// Requests input, and reports the time at which the answer arrived.
fn ask(context: TaskContext) -> TaskFuture {
    Box::pin(async move {
        context.request_input("go", question()).await?;
        send(json!({ "received": context.task_id(), "at": now_us() }));
        Ok(text("answered"))
    })
}

/// Waits until its task is cancelled, and reports the time.
fn idle(context: TaskContext) -> TaskFuture {
    Box::pin(async move {
        context.cancelled().await;
        send(json!({ "received": context.task_id(), "at": now_us() }));
        Err(TaskExit::Cancelled)
    })
}

/// Sets a few status messages, at the pace that its arguments state.
fn steps(context: TaskContext, arguments: Value) -> TaskFuture {
    Box::pin(async move {
        for step in 0..5 {
            context.set_status_message(format!("step {step}"));
            tokio::time::sleep(Duration::from_millis(arguments["pace_ms"].as_u64().unwrap())).await;
        }
        Ok(text(format!("attempt {}", context.attempt())))
    })
}

/// Kills its process in every attempt.
fn crash(context: TaskContext, _: Value) -> TaskFuture {
    Box::pin(async move {
        send(json!({ "crash": context.attempt() }));
        // Second attempts of the other operations in this process end first.
        tokio::time::sleep(Duration::from_millis(if context.attempt() == 1 { 0 } else { 1_000 })).await;
        std::process::abort()
    })
}

/// Hangs in its first attempt. The second one completes.
fn innocent(context: TaskContext, _: Value) -> TaskFuture {
    Box::pin(async move {
        if context.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        Ok(text(format!("attempt {}", context.attempt())))
    })
}

fn config(lease: Duration) -> StoreConfig {
    StoreConfig::new().lease(lease).call_timeout(Duration::from_secs(1)).max_tasks_per_owner(None)
}

async fn instance(store: &Store, lease: Duration) -> Manager {
    let backend = store.of_another_process().await;
    let manager = DurableTaskManager::new(TaskStore::with_config(backend, config(lease)));
    manager.register("steps", steps);
    manager
}

/// Runs in the other process, and handles one request for each line of its input.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests of this file, in a process of its own"]
async fn other_process() {
    let (Ok(place), Ok(lease)) = (std::env::var(STORE), std::env::var(LEASE_MS)) else { return };
    let backend = serde_json::from_str::<Place>(&place).unwrap().open().await.unwrap();
    let lease = Duration::from_millis(lease.parse().unwrap());
    let manager = DurableTaskManager::new(TaskStore::with_config(backend, config(lease)));
    manager.register("steps", steps);
    manager.register("crash", crash);
    manager.register("innocent", innocent);
    send(json!("ready"));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let request: Value = serde_json::from_str(&line).unwrap();
        let manager = manager.clone();
        tokio::spawn(async move {
            let options = TaskOptions::new();
            let spawned = match request["do"].as_str().unwrap() {
                "ask" => manager.spawn(&alice(), "ask", options, ask).await.unwrap(),
                "idle" => manager.spawn(&alice(), "idle", options, idle).await.unwrap(),
                "closure" => manager
                    .spawn(&alice(), "closure", options, |context| steps(context, request))
                    .await
                    .unwrap(),
                what @ ("resumable" | "crash" | "innocent") => {
                    let name = if what == "resumable" { "steps" } else { what }.to_owned();
                    let options = RegisteredOptions::new().on_worker_lost(OnWorkerLost::Resume);
                    manager.spawn_registered(&alice(), &name, request, options).await.unwrap()
                }
                "wait" => {
                    let task = manager.store().wait(&key(request["task"].as_str().unwrap())).await.unwrap();
                    send(json!({ "received": task.key.task, "at": now_us() }));
                    return;
                }
                "shutdown" => {
                    manager.shutdown().await;
                    send(json!("down"));
                    return;
                }
                other => panic!("{other}"),
            };
            send(json!({ "spawned": spawned.task_id }));
        });
    }
}

struct Other {
    process: Child,
    requests: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    async fn start(store: &Store, lease: Duration) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "two_processes::other_process",
                "--nocapture",
                "--test-threads",
                "1",
            ])
            .env(STORE, serde_json::to_string(&Place::of(store)).unwrap())
            .env(LEASE_MS, lease.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (requests, out) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut other = Self { process, requests, lines: BufReader::new(out).lines() };
        assert_eq!(other.message().await, Some(json!("ready")));
        other
    }

    async fn request(&mut self, request: Value) {
        self.requests.write_all(format!("{request}\n").as_bytes()).await.unwrap();
    }

    /// Returns the next message of the process, or `None` after it has ended.
    async fn message(&mut self) -> Option<Value> {
        let line = async {
            loop {
                let line = self.lines.next_line().await.unwrap()?;
                if let Some((_, said)) = line.split_once(MESSAGE) {
                    return Some(serde_json::from_str(said).unwrap());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), line).await.expect("the other process sends a message")
    }

    async fn spawn(&mut self, what: &str) -> String {
        self.request(json!({ "do": what })).await;
        self.message().await.unwrap()["spawned"].as_str().unwrap().to_owned()
    }

    /// Returns how long after `since` a change of this task reached the process.
    async fn received(&mut self, task_id: &str, since: u64) -> Duration {
        let received = self.message().await.unwrap();
        assert_eq!(received["received"], task_id);
        Duration::from_micros(received["at"].as_u64().unwrap().saturating_sub(since))
    }

    /// Kills the process. Returns its last messages.
    async fn kill(mut self) -> Vec<Value> {
        self.process.start_kill().unwrap();
        let mut messages = Vec::new();
        while let Some(message) = self.message().await {
            messages.push(message);
        }
        self.process.wait().await.unwrap();
        messages
    }
}

async fn until(mut reached: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the condition is met");
}

/// Prints the figures, and compares them with ten times the limit.
fn check_times(what: &str, mut times: Vec<Duration>, limit: Duration) {
    times.sort();
    let (median, p99) = (times[times.len() / 2], times[(times.len() * 99 / 100).min(times.len() - 1)]);
    let count = times.len();
    println!(
        "figure | {what} | median {median:.1?}, 99th percentile {p99:.1?}, of {count} (limit {limit:?})"
    );
    assert!(p99 < limit * 10, "{what}: median {median:?}, 99th percentile {p99:?}");
}

async fn assert_changes_reach_the_other_process(engine: Engine, rounds: usize) {
    let _alone = heavy().await;
    let store = engine.open_roomy().await;
    let here = instance(&store, Duration::from_secs(30)).await;
    let mut other = Other::start(&store, Duration::from_secs(30)).await;
    let (mut answers, mut cancels, mut waits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let task_id = other.spawn("ask").await;
        assert_eq!(here.store().wait(&key(&task_id)).await.unwrap().task.status, TaskStatus::InputRequired);
        let since = now_us();
        here.update_task(&alice(), &task_id, [("go".to_owned(), json!(true))]).await.unwrap();
        answers.push(other.received(&task_id, since).await);
        assert_eq!(here.store().wait(&key(&task_id)).await.unwrap().task.status, TaskStatus::Completed);

        let task_id = other.spawn("idle").await;
        let since = now_us();
        here.cancel_task(&alice(), &task_id).await.unwrap();
        cancels.push(other.received(&task_id, since).await);
        assert_eq!(here.store().wait(&key(&task_id)).await.unwrap().task.status, TaskStatus::Cancelled);

        // In the other direction: the other process waits for a task that ends here.
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let owner = alice();
        let spawned = here.spawn(&owner, "done", TaskOptions::new(), |_| {
            Box::pin(async move {
                wait.await.unwrap();
                Ok(text("done"))
            })
        });
        let task_id = spawned.await.unwrap().task_id;
        other.request(json!({ "do": "wait", "task": task_id })).await;
        // The other process needs time to begin its wait.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let since = now_us();
        go.send(()).unwrap();
        waits.push(other.received(&task_id, since).await);
    }
    let check = |what: &str, times, limit| check_times(&format!("{engine:?}: {what}"), times, limit);
    check("an answer reaches the operation in another process", answers, REACHES_THE_OPERATION);
    check("a cancel reaches the operation in another process", cancels, REACHES_THE_OPERATION);
    check("an end wakes a wait in another process", waits, wake_up(engine));
}

#[apply(on_every_shared_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn answers_cancels_and_ends_reach_the_other_process(engine: Engine) {
    assert_changes_reach_the_other_process(engine, 20).await;
}

#[apply(on_every_shared_engine)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the long form"]
async fn long_answers_cancels_and_ends_reach_the_other_process(engine: Engine) {
    assert_changes_reach_the_other_process(engine, 500).await;
}

#[apply(on_every_shared_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn another_process_resumes_a_released_task_at_once(engine: Engine) {
    let store = engine.open_roomy().await;
    // No lease lapses in this test.
    let lease = Duration::from_secs(3);
    let mut other = Other::start(&store, Duration::from_secs(3600)).await;
    other.request(json!({ "do": "resumable", "pace_ms": 200 })).await;
    let task_id = other.message().await.unwrap()["spawned"].as_str().unwrap().to_owned();
    let here = instance(&store, lease).await;
    other.request(json!({ "do": "shutdown" })).await;
    assert_eq!(other.message().await.unwrap(), "down");
    let done = tokio::time::timeout(Duration::from_secs(60), here.store().wait(&key(&task_id))).await;
    let done = done.expect("the other process resumes the task").unwrap().task;
    assert_eq!(done.result.as_ref().unwrap().as_inline().unwrap()["content"][0]["text"], "attempt 2");
}

/// How many tasks of killed workers had each end.
#[derive(Debug, Default)]
struct Ends {
    in_time: usize,
    failed: usize,
    resumed: usize,
}

/// Kills a worker at a random moment. Asserts that every acknowledged task exists and ends.
async fn killed_at_a_random_moment(engine: Engine, round: u64) -> Ends {
    let mut ends = Ends::default();
    let lease = Duration::from_millis(300);
    let store = engine.open_roomy().await;
    let mut other = Other::start(&store, lease).await;
    let mut random = crate::support::Random(now_us() ^ round);
    for number in 0..6 {
        let what = if number % 2 == 0 { "closure" } else { "resumable" };
        other.request(json!({ "do": what, "pace_ms": random.below(60) })).await;
    }
    // In every second round, the test kills the process while it still creates tasks.
    let latest = if round.is_multiple_of(2) { 400_000 } else { 8_000 };
    tokio::time::sleep(Duration::from_micros(random.below(latest))).await;
    let words = other.kill().await;
    let acknowledged: Vec<&str> = words.iter().filter_map(|word| word["spawned"].as_str()).collect();

    let reader = TaskStore::with_config(store.of_another_process().await, config(lease));
    let here = instance(&store, lease).await;
    for task_id in &acknowledged {
        reader.get(&key(task_id)).await.expect("an acknowledged task is not lost");
        until(async || here.get_task(&alice(), task_id).await.unwrap().status().is_terminal()).await;
    }
    for task_id in acknowledged {
        let task = reader.get(&key(task_id)).await.unwrap().task;
        if task.on_worker_lost == OnWorkerLost::Fail {
            match &task.error {
                Some(error) => {
                    assert!(error.message.contains("worker"), "{error:?}");
                    ends.failed += 1;
                }
                None => ends.in_time += 1,
            }
            continue;
        }
        let TaskPayload::Completed { result } = here.get_task(&alice(), task_id).await.unwrap().payload
        else {
            panic!("round {round}: a task that can resume must complete: {task:?}")
        };
        let said = result["content"][0]["text"].as_str().unwrap();
        match said {
            "attempt 1" => ends.in_time += 1,
            "attempt 2" => ends.resumed += 1,
            other => panic!("round {round}: {other}"),
        }
    }
    here.shutdown().await;
    ends
}

#[apply(on_every_shared_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_at_any_of_twenty_moments_loses_no_task_and_leaves_no_task_working(engine: Engine) {
    let _alone = heavy().await;
    let mut all = Ends::default();
    for batch in 0..5 {
        for ends in join_all((0..4).map(|round| killed_at_a_random_moment(engine, batch * 4 + round))).await {
            all.in_time += ends.in_time;
            all.failed += ends.failed;
            all.resumed += ends.resumed;
        }
    }
    let Ends { in_time, failed, resumed } = all;
    println!(
        "figure | {engine:?}: tasks of 20 killed workers | {in_time} ended before, {failed} failed, {resumed} resumed"
    );
    assert!(in_time > 0 && failed > 0 && resumed > 0, "the moments are spread out: {all:?}");
}

/// Waits until a task kills its process. Returns the messages of the process, in order.
async fn until_it_dies(mut other: Other) -> Vec<Value> {
    let mut words = Vec::new();
    while let Some(word) = other.message().await {
        words.push(word);
    }
    let ended = other.process.wait().await.unwrap();
    assert!(!ended.success(), "a task killed the process");
    words
}

#[apply(on_every_shared_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_kills_its_process_fails_after_three_attempts_and_other_tasks_complete(
    engine: Engine,
) {
    const INNOCENTS: usize = 5;
    let lease = Duration::from_millis(300);
    let store = engine.open_roomy().await;
    // This instance has no operation. It only detects lost workers.
    let reader = TaskStore::with_config(store.of_another_process().await, config(lease));
    let mut other = Other::start(&store, lease).await;
    let mut innocents = Vec::new();
    for _ in 0..INNOCENTS {
        innocents.push(other.spawn("innocent").await);
    }
    other.request(json!({ "do": "crash" })).await;
    let mut words = until_it_dies(other).await;
    for _ in 1..3 {
        words.extend(until_it_dies(Other::start(&store, lease).await).await);
    }
    let crashes: Vec<&Value> =
        words.iter().map(|word| &word["crash"]).filter(|attempt| !attempt.is_null()).collect();
    assert_eq!(crashes, [1, 2, 3], "no attempt runs twice");
    // The task is open until its last worker is lost. The page has every task.
    let tasks = async || reader.list(&alice(), PageRequest::new(10)).await.unwrap().tasks;
    until(async || tasks().await.iter().all(|stored| stored.task.status.is_terminal())).await;
    let ended = tasks().await;
    assert_eq!(ended.len(), INNOCENTS + 1);
    for stored in ended {
        let task = &stored.task;
        if innocents.contains(&stored.key.task.to_string()) {
            let said = &task.result.as_ref().unwrap().as_inline().unwrap()["content"][0]["text"];
            assert_eq!(said, "attempt 2", "the task lost one worker");
        } else {
            let error = task.error.as_ref().unwrap();
            assert_eq!(
                (task.status, error.code, &*error.message),
                (TaskStatus::Failed, -32603, "gave up after 3 attempts: the worker was lost")
            );
        }
    }
}
