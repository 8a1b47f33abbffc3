//! Large payloads on a slow network: what they cost those who do not ask for them.

#![cfg(feature = "redis-tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mcp_task_store::{
    NewTask, PageRequest, PayloadKind, RedisBackend, StorageBackend, StoreConfig, TaskKey, TaskStatus,
    TaskStore,
};
use serde_json::{Value, json};
use support::owner;
use support::redis::Server;
use support::throttle::Throttle;
use tokio::sync::Mutex;

type Tasks = TaskStore<RedisBackend>;

const MEGABITS: f64 = 100.0;
/// Held by the test that measures.
static ALONE: Mutex<()> = Mutex::const_new(());
const LATENCY: Duration = Duration::from_millis(1);

async fn open(url: &str) -> Tasks {
    let backend =
        RedisBackend::builder().response_timeout(Duration::from_secs(20)).connect(url).await.unwrap();
    TaskStore::with_config(backend, StoreConfig::new().max_tasks_per_owner(None))
}

fn of_bytes(count: usize) -> Value {
    json!({ "pad": "x".repeat(count) })
}

/// How long each poll takes, until `is_over`.
async fn poll(tasks: &Tasks, key: &TaskKey, is_over: impl Fn() -> bool) -> Vec<Duration> {
    let mut times = Vec::new();
    while !is_over() {
        let since = Instant::now();
        let task = tasks.get(key).await.unwrap().task;
        times.push(since.elapsed());
        assert_eq!(task.status, TaskStatus::Working);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times.sort();
    times
}

/// One open task beside 99 finished ones of 1 MB. A client polls the open one; another walks all pages; a third fetches
/// results.
/// `quick` is the share of polls that must take less than ten times their median alone.
async fn polls_beside_large_results(lasts: Duration, quick: f64) {
    let _alone = ALONE.lock().await;
    let server = Server::start(&[]);
    let straight = open(&server.url()).await;
    let alice = owner("alice");
    let open_task = straight.create(&alice, NewTask::new("tools/call")).await.unwrap().key;
    let mut finished = Vec::new();
    for _ in 0..99 {
        let task = straight.create(&alice, NewTask::new("tools/call")).await.unwrap();
        finished.push(straight.complete(&task, of_bytes(1_000_000)).await.unwrap());
    }
    let line = Throttle::start(server.port, MEGABITS, LATENCY);
    let tasks = open(&line.url()).await;
    let since = Instant::now();
    let alone = poll(&tasks, &open_task, || since.elapsed() > Duration::from_secs(1)).await;
    let alone = alone[alone.len() / 2];

    let is_over = Arc::new(AtomicBool::new(false));
    let walking = tokio::spawn({
        let (tasks, is_over) = (tasks.clone(), Arc::clone(&is_over));
        async move {
            let mut walks = 0;
            while !is_over.load(Ordering::SeqCst) {
                let page = tasks.list(&alice, PageRequest::new(256)).await.unwrap();
                assert_eq!((page.tasks.len(), page.next), (100, None));
                walks += 1;
            }
            walks
        }
    });
    let fetching = tokio::spawn({
        let (tasks, is_over) = (tasks.clone(), Arc::clone(&is_over));
        async move {
            let mut fetched = 0;
            while !is_over.load(Ordering::SeqCst) {
                let result = tasks.payload(&finished[fetched % 99], PayloadKind::Output).await.unwrap();
                assert_eq!(result.unwrap()["pad"].as_str().unwrap().len(), 1_000_000);
                fetched += 1;
            }
            fetched
        }
    });
    let since = Instant::now();
    let beside = poll(&tasks, &open_task, || since.elapsed() > lasts).await;
    is_over.store(true, Ordering::SeqCst);
    let (walks, fetched) = (walking.await.unwrap(), fetching.await.unwrap());
    let (median, slowest) = (beside[beside.len() / 2], beside[beside.len() - 1]);
    println!("figure | 100 Mbit/s: a poll alone, median | {alone:.1?}");
    println!(
        "figure | 100 Mbit/s: a poll beside {fetched} results of 1 MB and {walks} walks, median | {median:.1?}"
    );
    println!("figure | 100 Mbit/s: the slowest of {} polls | {slowest:.1?}", beside.len());
    assert!(walks > 0 && fetched as f64 > lasts.as_secs_f64() * 3.0, "the line is in use: {walks} {fetched}");
    let highest = beside[(beside.len() as f64 * quick) as usize - 1];
    assert!(highest < alone * 10, "{alone:?} alone, {highest:?} at the most, {slowest:?} at the slowest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_does_not_wait_behind_large_results_and_pages() {
    // Few polls, beside the work of other tests.
    polls_beside_large_results(Duration::from_secs(3), 0.95).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: polls for half a minute"]
async fn long_a_poll_does_not_wait_behind_large_results_and_pages() {
    polls_beside_large_results(Duration::from_secs(30), 1.0).await;
}

#[tokio::test]
async fn status_messages_of_a_task_with_large_arguments_send_little() {
    let _alone = ALONE.lock().await;
    let server = Server::start(&[]);
    let line = Throttle::start(server.port, 10_000.0, Duration::ZERO);
    let tasks = open(&line.url()).await;
    let new = NewTask::new("tools/call").arguments(of_bytes(4_000_000));
    let task = tasks.create(&owner("alice"), new).await.unwrap();
    let before = line.to_server();
    assert!(before > 4_000_000);
    for number in 0..20 {
        tasks.set_status_message(&task.key, format!("frame {number} of 20")).await.unwrap();
    }
    let sent = line.to_server() - before;
    println!("figure | twenty status messages on a task with 4 MB of arguments send | {sent} bytes");
    assert!(sent < 100_000, "{sent}");
    let arguments = tasks.payload(&tasks.get(&task.key).await.unwrap(), PayloadKind::Input).await.unwrap();
    assert_eq!(arguments, Some(of_bytes(4_000_000)));
}

/// As the adapter of pmcp-tasks stores a result: in the record itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_walk_over_records_of_the_largest_size_comes_to_its_end_on_a_slow_line() {
    let _alone = ALONE.lock().await;
    let server = Server::start(&[]);
    let straight = RedisBackend::connect(&server.url()).await.unwrap();
    let data = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    for task in 0..40 {
        let key = support::key("alice", &task.to_string());
        straight.put(&key, data.clone(), support::in_an_hour()).await.unwrap();
    }
    let line = Throttle::start(server.port, MEGABITS, LATENCY);
    // With the default limit of 2 s, in which such a line carries 25 MB.
    let backend = RedisBackend::connect(&line.url()).await.unwrap();
    let (mut request, mut listed) = (PageRequest::new(40), 0);
    loop {
        let page = backend.list(&owner("alice"), request).await.unwrap();
        listed += page.records.len();
        match page.next {
            Some(next) => request = PageRequest::new(40).after(next),
            None => break,
        }
    }
    assert_eq!(listed, 40);
}
