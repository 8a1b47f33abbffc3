//! Large payloads on a slow network must not delay or burden calls that do not read them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::elsewhere::elsewhere;
use crate::support::redis::Server;
use crate::support::throttle::Throttle;
use crate::support::{Random, in_a_process_that_dies, owner};
use mcp_task_store::{
    Agenda, Attempt, NewTask, PageRequest, PayloadKind, RedisBackend, StorageBackend, StoreConfig,
    StoredTask, TaskKey, TaskStatus, TaskStore,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

type Tasks = TaskStore<RedisBackend>;

const MEGABITS: f64 = 100.0;
/// The test that measures holds this lock, so only one test measures at a time.
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

/// 99 finished tasks of alice, each with a result of 1 MB.
async fn finished(server: &Server) -> Vec<StoredTask> {
    let (straight, mut finished) = (open(&server.url()).await, Vec::new());
    for _ in 0..99 {
        let task = straight.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
        finished.push(straight.complete(&task, of_bytes(1_000_000)).await.unwrap());
    }
    finished
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

/// Lists all tasks of alice again and again, until `is_over`. Returns how often.
async fn walk(tasks: Tasks, is_over: Arc<AtomicBool>) -> usize {
    let mut walks = 0;
    while !is_over.load(Ordering::SeqCst) {
        let page = tasks.list(&owner("alice"), PageRequest::new(256)).await.unwrap();
        assert_eq!((page.tasks.len(), page.next), (100, None));
        walks += 1;
    }
    walks
}

/// Reads one result after the other, until `is_over`. Returns how many.
async fn fetch(tasks: Tasks, finished: Vec<StoredTask>, is_over: Arc<AtomicBool>) -> usize {
    let mut fetched = 0;
    while !is_over.load(Ordering::SeqCst) {
        let result = tasks.payload(&finished[fetched % 99], PayloadKind::Output).await.unwrap();
        assert_eq!(result.unwrap()["pad"].as_str().unwrap().len(), 1_000_000);
        fetched += 1;
    }
    fetched
}

/// There are one open task and 99 finished tasks with a result of 1 MB. One client polls the open task, another walks
/// all pages, and a third fetches results. `quick` is the share of polls that must take less than ten times their
/// median alone.
async fn polls_during_large_reads(lasts: Duration, quick: f64) {
    let _alone = ALONE.lock().await;
    let server = Server::start(&[]);
    let straight = open(&server.url()).await;
    let open_task = straight.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap().key;
    let finished = finished(&server).await;
    let line = Throttle::start(server.port, MEGABITS, LATENCY);
    let tasks = open(&line.url()).await;
    let since = Instant::now();
    let alone = poll(&tasks, &open_task, || since.elapsed() > Duration::from_secs(1)).await;
    let alone = alone[alone.len() / 2];

    let is_over = Arc::new(AtomicBool::new(false));
    let walking = tokio::spawn(walk(tasks.clone(), Arc::clone(&is_over)));
    let fetching = tokio::spawn(fetch(tasks.clone(), finished, Arc::clone(&is_over)));
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
    assert!(
        walks > 0 && fetched as f64 > lasts.as_secs_f64() * 3.0,
        "the large reads must keep the network busy: {walks} walks, {fetched} results"
    );
    let highest = beside[(beside.len() as f64 * quick) as usize - 1];
    assert!(highest < alone * 10, "{alone:?} alone, {highest:?} for the share {quick}, {slowest:?} at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_does_not_wait_behind_large_results_and_pages() {
    // The share is lower because there are few polls and other tests run at the same time.
    polls_during_large_reads(Duration::from_secs(3), 0.95).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: polls for half a minute"]
async fn long_a_poll_does_not_wait_behind_large_results_and_pages() {
    polls_during_large_reads(Duration::from_secs(30), 1.0).await;
}

/// How long one result of 1 MB occupies the network.
const A_RESULT: Duration = Duration::from_millis(80);
/// How many reads are given up.
const GIVEN_UP: usize = 40;

/// The times of small calls of a client and of a worker: a poll, a renewal and a create.
#[derive(Debug, Default)]
struct SmallCalls([Vec<Duration>; 3]);

impl SmallCalls {
    const NAMES: [&str; 3] = ["poll", "renewal", "create"];

    async fn make(tasks: &Tasks, attempt: &Attempt<RedisBackend>, is_over: impl Fn() -> bool) -> Self {
        let mut times = Self::default();
        while !is_over() {
            let since = Instant::now();
            tasks.get(attempt.key()).await.unwrap();
            times.0[0].push(since.elapsed());
            let since = Instant::now();
            attempt.renew().await.unwrap();
            times.0[1].push(since.elapsed());
            let since = Instant::now();
            let created = tasks.create(&owner("bob"), NewTask::new("tools/call")).await.unwrap();
            times.0[2].push(since.elapsed());
            tasks.delete(&created.key).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.0.iter_mut().for_each(|times| times.sort());
        times
    }

    /// Compares the times with those of the same calls alone.
    fn assert_are_not_delayed(&self, alone: &Self) {
        for ((name, alone), beside) in Self::NAMES.iter().zip(&alone.0).zip(&self.0) {
            let (alone, median, slowest) =
                (alone[alone.len() / 2], beside[beside.len() / 2], beside[beside.len() - 1]);
            println!(
                "figure | 100 Mbit/s, {GIVEN_UP} reads of 1 MB given up: a {name}, median alone, median, slowest of {} | \
                 {alone:.1?}, {median:.1?}, {slowest:.1?}",
                beside.len()
            );
            assert!(median < alone * 10, "a {name}: {alone:?} alone, {median:?}");
            assert!(slowest < A_RESULT * 10, "a {name} waited for more than one result: {slowest:?}");
        }
    }
}

/// Reads results and gives up in the middle of the reply, `GIVEN_UP` times. Then sets `is_over`.
async fn give_up_reads(tasks: Tasks, finished: Vec<StoredTask>, is_over: Arc<AtomicBool>) {
    let mut random = Random(18);
    let mut given_up = 0;
    while given_up < GIVEN_UP {
        let read = tasks.payload(&finished[given_up], PayloadKind::Output);
        let patience = Duration::from_millis(10 + random.below(60));
        given_up += usize::from(tokio::time::timeout(patience, read).await.is_err());
    }
    is_over.store(true, Ordering::SeqCst);
}

/// There are one open task and 99 finished tasks with a result of 1 MB. Callers read results and give up in the middle
/// of the reply.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_large_reads_do_not_delay_polls_renewals_and_creates() {
    let _alone = ALONE.lock().await;
    let server = Server::start(&[]);
    let finished = finished(&server).await;
    let line = Throttle::start(server.port, MEGABITS, LATENCY);
    let tasks = open(&line.url()).await;
    let (_, attempt) = tasks.start(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
    let since = Instant::now();
    let alone = SmallCalls::make(&tasks, &attempt, || since.elapsed() > Duration::from_secs(1)).await;

    let (before, is_over) = (line.to_client(), Arc::new(AtomicBool::new(false)));
    let giving_up = tokio::spawn(give_up_reads(tasks.clone(), finished, Arc::clone(&is_over)));
    // Returns whether the network has carried the abandoned replies, so that only small calls remain.
    let carried = || line.to_client() - before;
    let large = Cell::new((carried(), Instant::now()));
    let is_drained = || {
        let (until, since) = large.get();
        if carried() > until + 100_000 {
            large.set((carried(), Instant::now()));
        }
        is_over.load(Ordering::SeqCst) && since.elapsed() > A_RESULT * 6
    };
    let beside = SmallCalls::make(&tasks, &attempt, is_drained).await;
    giving_up.await.unwrap();
    // A read that was given up before it was sent would cost nothing.
    assert!(
        carried() > GIVEN_UP as u64 * 500_000,
        "the reads must be given up in the middle of the reply: {} bytes",
        carried()
    );
    beside.assert_are_not_delayed(&alone);
}

/// A large read shares the connection with the read before it, which was given up. It waits for the bytes of that read
/// only.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_read_after_an_abandoned_one_waits_only_for_its_bytes() {
    let _alone = ALONE.lock().await;
    let server = Server::start(&[]);
    let finished = finished(&server).await;
    let line = Throttle::start(server.port, MEGABITS, LATENCY);
    let tasks = open(&line.url()).await;
    let mut longest = Duration::ZERO;
    for pair in finished.chunks_exact(2).take(12) {
        let given_up = tasks.payload(&pair[0], PayloadKind::Output);
        assert!(
            tokio::time::timeout(A_RESULT / 4, given_up).await.is_err(),
            "the read must be given up in the middle of the reply"
        );
        let (before, since) = (line.to_client(), Instant::now());
        let read = tasks.payload(&pair[1], PayloadKind::Output).await.unwrap();
        assert_eq!(read, Some(of_bytes(1_000_000)));
        longest = longest.max(since.elapsed());
        // The bytes of this read, and the rest of the reply that was given up.
        let carried = line.to_client() - before;
        assert!(carried < 2_100_000, "{carried} bytes crossed the network");
    }
    println!(
        "figure | 100 Mbit/s: a read of 1 MB after one that was given up, longest of 12 | {longest:.1?}"
    );
    assert!(longest < A_RESULT * 2 * 10, "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_task_of_a_store_reads_no_results() {
    let _alone = ALONE.lock().await;
    let server = Server::start(&[]);
    // The store of another process, which has died.
    let url = server.url();
    let orphans = in_a_process_that_dies(async move {
        let engine: Arc<dyn Agenda> = Arc::new(RedisBackend::connect(&url).await.unwrap());
        let config = StoreConfig::new().max_tasks_per_owner(None).lease(Duration::from_millis(600));
        let tasks = TaskStore::with_config(elsewhere(&engine), config);
        let mut orphans = Vec::new();
        for number in 0..99 {
            let (task, attempt) = tasks.start(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
            if number % 20 == 0 {
                orphans.push(task.key);
                // A process that dies runs no destructors.
                std::mem::forget(attempt);
            } else {
                attempt.complete(of_bytes(1_000_000)).await.unwrap();
            }
        }
        orphans
    })
    .await;
    let line = Throttle::start(server.port, MEGABITS, LATENCY);
    let tasks = open(&line.url()).await;
    // The first call starts the background task of the store.
    tasks.create(&owner("bob"), NewTask::new("tools/call")).await.unwrap();
    let (before, since) = (line.to_client(), Instant::now());
    let straight = RedisBackend::connect(&server.url()).await.unwrap();
    for key in &orphans {
        loop {
            let task: Value = serde_json::from_slice(&straight.get(key).await.unwrap().data).unwrap();
            if task["status"] == "failed" {
                break;
            }
            assert!(
                since.elapsed() < Duration::from_secs(60),
                "the store must detect the lost worker: {task}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let read = line.to_client() - before;
    println!(
        "figure | to find {} lost workers beside 94 results of 1 MB a store reads | {read} bytes, in {:.1?}",
        orphans.len(),
        since.elapsed()
    );
    assert!(read < 250_000, "{read} bytes");
}

#[tokio::test]
async fn a_status_message_of_a_task_with_large_arguments_does_not_send_them() {
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

/// The adapter for pmcp-tasks stores a result in the data of the record, as this test does.
#[tokio::test(flavor = "multi_thread")]
async fn a_walk_over_records_of_the_maximum_size_succeeds_on_a_slow_network() {
    let _alone = ALONE.lock().await;
    let server = Server::start(&[]);
    let straight = RedisBackend::connect(&server.url()).await.unwrap();
    let data = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    for task in 0..40 {
        let key = crate::support::key("alice", &task.to_string());
        straight.put(&key, data.clone(), crate::support::in_an_hour()).await.unwrap();
    }
    let line = Throttle::start(server.port, MEGABITS, LATENCY);
    // The backend has the default response timeout of 2 s, in which this network carries 25 MB.
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
