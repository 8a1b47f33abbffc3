//! A model of crashes. Creators, workers, claimers, readers and the background tasks of several stores run against a
//! real engine. A gate lets their calls through one by one in a random order, and actors and whole processes die at any
//! step. At the end, every open task has a timer, and no timer is late. No attempt counts as more than one loss or runs
//! twice, and a task fails for good with its last permitted loss, not earlier.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::elsewhere::elsewhere;
use crate::support::intercept::{Call, Hooks, Intercept, Reply, unavailable};
use crate::support::{Engine, Random, owner, timers};
use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use mcp_task_store::{
    Agenda, Attempt, NewTask, Next, OnWorkerLost, OwnerId, PageRequest, PutOptions, Queue, StorageBackend,
    StorageError, StoreConfig, Task, TaskKey, TaskStore, Version,
};
use rstest::rstest;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

type Tasks = TaskStore<Arc<dyn Agenda>>;

const LEASE: Duration = Duration::from_millis(500);
/// How long the write of a lease may take. After that, the store schedules its timer again.
const LIMIT: Duration = Duration::from_millis(500 / 3 + 500);
/// The time limit of calls is longer, so a write may exceed `LIMIT`.
const CALL_LIMIT: Duration = Duration::from_secs(2);
/// The maximum time for which a store hides a timer that it takes: one observation plus two seconds.
const HIDDEN: Duration = Duration::from_millis(500 / 3 + 1 + 1000 + 2000);
/// How long the actors of a history live.
const LIFE: Duration = Duration::from_millis(3_500);
const OPERATION: &str = "render";

// The gate before the engine

/// The decision of the scheduler about a call that waits before the engine, or about a reply that waits after it.
enum Decision {
    Go,
    /// The connection breaks.
    Fail,
}

struct Request {
    process: usize,
    decision: oneshot::Sender<Decision>,
}

/// The calls that reached the engine, and their outcomes.
#[derive(Default)]
struct Log {
    scheduled: HashMap<TaskKey, Instant>,
    /// Tasks created later than `LIMIT` after their timer was scheduled. Such a task needs no timer until it is
    /// acknowledged.
    slow: HashSet<TaskKey>,
    acknowledged: HashSet<TaskKey>,
    /// The records that were written, by version.
    written: HashMap<TaskKey, BTreeMap<u64, Task>>,
}

/// The engine of one process, behind the gate.
struct Gated {
    engine: Arc<dyn Agenda>,
    process: usize,
    requests: mpsc::UnboundedSender<Request>,
    log: Arc<Mutex<Log>>,
}

impl Gated {
    async fn step(&self, outcome_unknown: bool) -> Result<(), StorageError> {
        let (decision, decided) = oneshot::channel();
        let _ = self.requests.send(Request { process: self.process, decision });
        match decided.await {
            Ok(Decision::Go) => Ok(()),
            // An error means that the history has ended.
            Ok(Decision::Fail) | Err(_) => Err(unavailable("connection reset", outcome_unknown)),
        }
    }

    /// Sends a call to the engine, and logs what a test checks later.
    async fn apply(&self, call: Call) -> Result<Reply, StorageError> {
        match &call {
            Call::PutIfVersion { key, data, expected, .. } => {
                let (key, expected, task) = (key.clone(), *expected, serde_json::from_slice(data).unwrap());
                self.write(key, expected, task, call).await
            }
            Call::Schedule { queue, key, .. } => {
                if *queue == Queue::leases() {
                    self.log.lock().unwrap().scheduled.entry(key.clone()).or_insert_with(Instant::now);
                }
                call.send(&*self.engine).await
            }
            _ => call.send(&*self.engine).await,
        }
    }

    async fn write(
        &self,
        key: TaskKey,
        expected: Version,
        task: Task,
        call: Call,
    ) -> Result<Reply, StorageError> {
        // A write that is dropped before the engine replies may arrive at any time.
        if expected == Version::ABSENT {
            self.log.lock().unwrap().slow.insert(key.clone());
        }
        let reply = call.send(&*self.engine).await;
        let mut log = self.log.lock().unwrap();
        if log.scheduled.get(&key).is_some_and(|at| at.elapsed() + LIMIT / 10 <= LIMIT) {
            log.slow.remove(&key);
        }
        if let Ok(Reply::Written(written)) = &reply {
            log.written.entry(key).or_default().insert(written.version.get(), task);
        }
        reply
    }
}

#[async_trait]
impl Hooks for Gated {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        self.step(false).await?;
        let reply = self.apply(call).await;
        self.step(true).await?;
        reply
    }
}

// The actors

async fn sleep_below(random: &mut Random, millis: u64) {
    tokio::time::sleep(Duration::from_millis(random.below(millis))).await;
}

/// Works on a task for a while, and ends it, releases it, or is lost. Other actors may cause errors, so errors are
/// ignored.
async fn work(attempt: Attempt<Arc<dyn Agenda>>, random: &mut Random) {
    for _ in 0..random.below(5) {
        match random.below(4) {
            0 => sleep_below(random, 300).await,
            1 => drop(attempt.set_status_message("at work").await),
            _ => drop(attempt.renew().await),
        }
    }
    match random.below(16) {
        0..=3 => drop(attempt.release().await),
        4..=5 => drop(attempt.complete(json!("done")).await),
        // The worker hangs.
        6 => std::future::pending().await,
        7..=8 => {
            sleep_below(random, 2_000).await;
            drop(attempt.complete(json!("late")).await);
        }
        // The attempt is dropped.
        _ => {}
    }
}

async fn creates(tasks: Tasks, owner: OwnerId, log: Arc<Mutex<Log>>, mut random: Random) {
    loop {
        sleep_below(&mut random, 80).await;
        let mut new = NewTask::new("tools/call");
        if random.below(3) > 0 {
            new = new.operation(OPERATION).on_worker_lost(OnWorkerLost::Resume);
            if random.below(2) == 0 {
                new = new.max_attempts(1 + random.below(2) as u32);
            }
        }
        if let Ok((stored, attempt)) = tasks.start(&owner, new).await {
            log.lock().unwrap().acknowledged.insert(stored.key);
            work(attempt, &mut random).await;
        }
    }
}

/// Returns an acknowledged task at random.
fn any(log: &Mutex<Log>, random: &mut Random) -> Option<TaskKey> {
    let known: Vec<TaskKey> = log.lock().unwrap().acknowledged.iter().cloned().collect();
    (!known.is_empty()).then(|| known[random.below(known.len() as u64) as usize].clone())
}

async fn claims(tasks: Tasks, log: Arc<Mutex<Log>>, mut random: Random) {
    let queues = [Queue::work(OPERATION).unwrap()];
    let engine = Arc::clone(tasks.backend());
    loop {
        sleep_below(&mut random, 30).await;
        // Timers are hints: a worker may claim a task without taking its timer.
        if random.below(4) == 0
            && let Some(key) = any(&log, &mut random)
        {
            if let Ok(Some((_, attempt))) = tasks.claim(&key).await {
                work(attempt, &mut random).await;
            }
            continue;
        }
        let Ok(taken) = engine.take_due(&queues, 2, Duration::from_secs(1)).await else { continue };
        for due in taken.due {
            let claimed = tasks.claim(&due.key).await;
            let next = if claimed.is_ok() { Next::Remove } else { Next::After(Duration::from_millis(50)) };
            drop(engine.resolve(&due, next).await);
            if let Ok(Some((_, attempt))) = claimed {
                work(attempt, &mut random).await;
            }
        }
    }
}

async fn reads(tasks: Tasks, log: Arc<Mutex<Log>>, mut random: Random) {
    loop {
        sleep_below(&mut random, 40).await;
        let Some(key) = any(&log, &mut random) else { continue };
        match random.below(12) {
            0 => drop(tasks.request_cancel(&key).await),
            _ => drop(tasks.get(&key).await),
        }
    }
}

// A history

struct History {
    engine: Arc<dyn Agenda>,
    random: Random,
    log: Arc<Mutex<Log>>,
    requests: mpsc::UnboundedSender<Request>,
    /// The actors of each live process.
    processes: HashMap<usize, Vec<AbortHandle>>,
    begun: usize,
    kills: usize,
    steps: usize,
}

impl History {
    fn begin_process(&mut self) {
        let process = self.begun;
        self.begun += 1;
        let gated: Arc<dyn Agenda> = Intercept::new(Gated {
            // Each history has several processes. A process must not know the attempts of another one.
            engine: elsewhere(&self.engine),
            process,
            requests: self.requests.clone(),
            log: Arc::clone(&self.log),
        });
        let config = StoreConfig::new().lease(LEASE).call_timeout(CALL_LIMIT).max_tasks_per_owner(None);
        let tasks: Tasks = TaskStore::with_config(gated, config);
        let mut random = || Random(self.random.below(u64::MAX));
        let mut actors = Vec::new();
        for number in 0..2 {
            let owner = owner(["alice", "bob"][number]);
            actors.push(tokio::spawn(creates(tasks.clone(), owner, Arc::clone(&self.log), random())));
            actors.push(tokio::spawn(claims(tasks.clone(), Arc::clone(&self.log), random())));
        }
        actors.push(tokio::spawn(reads(tasks.clone(), Arc::clone(&self.log), random())));
        self.processes.insert(process, actors.iter().map(tokio::task::JoinHandle::abort_handle).collect());
    }

    fn any_process(&mut self) -> Option<usize> {
        let mut living: Vec<usize> = self.processes.keys().copied().collect();
        living.sort_unstable();
        let count = living.len() as u64;
        (count > 0).then(|| living[self.random.below(count) as usize])
    }

    fn kill(&mut self) {
        self.kills += 1;
        let Some(process) = self.any_process() else { return };
        if self.random.below(2) == 0 {
            // The background task of its store dies too: the gate lets none of its calls through.
            let actors = self.processes.remove(&process).unwrap();
            actors.iter().for_each(AbortHandle::abort);
        } else {
            let actors = &self.processes[&process];
            actors[self.random.below(actors.len() as u64) as usize].abort();
        }
    }

    /// Lets calls through and kills actors, until the history ends.
    async fn run(&mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let end = tokio::time::Instant::now() + LIFE;
        let mut waiting: Vec<Request> = Vec::new();
        let mut held: Vec<(tokio::time::Instant, Request)> = Vec::new();
        let mut of_the_dead: Vec<Request> = Vec::new();
        while tokio::time::Instant::now() < end {
            if self.processes.len() < 2 || (self.processes.len() < 3 && self.random.below(50) == 0) {
                self.begin_process();
            }
            while let Ok(request) = requests.try_recv() {
                waiting.push(request);
            }
            let now = tokio::time::Instant::now();
            while let Some(at) = held.iter().position(|(until, _)| *until <= now) {
                waiting.push(held.swap_remove(at).1);
            }
            if waiting.is_empty() {
                // Waits for the next request, or for the time of the next held request.
                let next = held.iter().map(|(until, _)| *until).min().map_or(end, |until| until.min(end));
                if let Ok(Some(request)) = tokio::time::timeout_at(next, requests.recv()).await {
                    waiting.push(request);
                }
                continue;
            }
            let chosen = self.random.below(waiting.len() as u64) as usize;
            let request = waiting.swap_remove(chosen);
            if !self.processes.contains_key(&request.process) {
                of_the_dead.push(request);
                continue;
            }
            self.steps += 1;
            match self.random.below(200) {
                0..=3 => self.kill(),
                4..=5 => drop(request.decision.send(Decision::Fail)),
                6..=15 => {
                    let until = now + Duration::from_millis(self.random.below(400));
                    held.push((until, request));
                }
                _ => drop(request.decision.send(Decision::Go)),
            }
            // Lets the caller run on to its next call.
            tokio::task::yield_now().await;
        }
        // All processes die.
        for actors in self.processes.values() {
            actors.iter().for_each(AbortHandle::abort);
        }
        // Calls that are under way arrive. There are no further calls.
        tokio::time::sleep(Duration::from_millis(30)).await;
        self.check().await;
    }

    async fn check(&self) {
        for (key, written) in &self.log.lock().unwrap().written {
            for ((version, before), (next, after)) in written.iter().zip(written.iter().skip(1)) {
                // A write that was dropped on its way to the engine is not in the log.
                if version + 1 == *next {
                    check_step(key, before, after);
                }
            }
        }
        let due: HashMap<TaskKey, DateTime<Utc>> = timers(&*self.engine, &Queue::leases())
            .await
            .into_iter()
            .map(|timer| (timer.key, timer.due_at))
            .collect();
        let after = |duration: Duration| TimeDelta::from_std(duration).unwrap();
        // The clocks of the engine and of the test may differ on a busy machine.
        let slack = TimeDelta::milliseconds(200);
        for owner in [owner("alice"), owner("bob")] {
            for record in self.walk(&owner).await {
                let (key, task) = record;
                let Some(lease) = task.lease.filter(|_| !task.status.is_terminal()) else { continue };
                let now = self.engine.now();
                let log = self.log.lock().unwrap();
                let Some(due_at) = due.get(&key) else {
                    assert!(
                        log.slow.contains(&key) && !log.acknowledged.contains(&key),
                        "{key} is open and has no timer: {lease:?}"
                    );
                    continue;
                };
                let latest = match lease.holder {
                    Some(_) => (lease.deadline + after(LIMIT)).max(now + after(HIDDEN)),
                    None => now + after(LEASE * 10),
                };
                assert!(*due_at <= latest + slack, "{key} is found at {due_at}, not by {latest}: {lease:?}");
                OPEN.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn walk(&self, owner: &OwnerId) -> Vec<(TaskKey, Task)> {
        let mut tasks = Vec::new();
        let mut page = PageRequest::new(256);
        loop {
            let listed = self.engine.list(owner, page).await.unwrap();
            for record in listed.records {
                let key = TaskKey { owner: owner.clone(), task: record.task };
                tasks.push((key, serde_json::from_slice(&record.data).unwrap()));
            }
            match listed.next {
                Some(next) => page = PageRequest::new(256).after(next),
                None => return tasks,
            }
        }
    }
}

/// Checks one write against the previous one.
fn check_step(key: &TaskKey, before: &Task, after: &Task) {
    let bound = after.max_attempts.unwrap_or(3);
    let Some(lease) = &before.lease else { return assert_eq!(before.status, after.status, "{key}") };
    let step = || format!("{key}, bound {bound}: {lease:?} to {:?}, {:?}", after.lease, after.status_message);
    let message = after.status_message.as_deref().unwrap_or_default();
    match &after.lease {
        // A renewal, a note or an observation.
        Some(next) if next.holder.is_some() == lease.holder.is_some() => {
            assert_eq!((next.attempt, next.losses), (lease.attempt, lease.losses), "{}", step());
        }
        // A claim.
        Some(next) if next.holder.is_some() => {
            assert_eq!((next.attempt, next.losses), (lease.attempt + 1, lease.losses), "{}", step());
        }
        // A loss or a release.
        Some(next) => {
            assert!(next.attempt == lease.attempt && next.losses < bound, "{}", step());
            assert!((lease.losses..=lease.losses + 1).contains(&next.losses), "{}", step());
            LOSSES.fetch_add((next.losses - lease.losses) as usize, Ordering::Relaxed);
        }
        None if message.starts_with("gave up") => {
            assert!(lease.holder.is_some() && lease.losses + 1 == bound, "{}", step());
            assert_eq!(after.on_worker_lost, OnWorkerLost::Resume, "{}", step());
            GAVE_UP.fetch_add(1, Ordering::Relaxed);
        }
        None if message.contains("lost") => {
            assert_eq!(after.on_worker_lost, OnWorkerLost::Fail, "{}", step());
        }
        None => {}
    }
}

/// The number of checked losses after which a task continued, and of checked tasks that failed for good.
static LOSSES: AtomicUsize = AtomicUsize::new(0);
static GAVE_UP: AtomicUsize = AtomicUsize::new(0);
/// The number of checked open tasks with a lease.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Returns how many actors and processes were killed, and how many steps were let through.
async fn history(engine: Engine, seed: u64) -> [usize; 2] {
    let store = engine.open().await;
    let (requests, received) = mpsc::unbounded_channel();
    let mut history = History {
        engine: Arc::clone(&store.backend),
        random: Random(seed),
        log: Arc::default(),
        requests,
        processes: HashMap::new(),
        begun: 0,
        kills: 0,
        steps: 0,
    };
    history.run(received).await;
    [history.kills, history.steps]
}

fn add(sums: &mut [usize; 2], more: [usize; 2]) {
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// Runs `count` histories on two threads, at most `at_once` of them at a time on each thread.
fn histories(engine: Engine, count: u64, at_once: usize) {
    let first = u64::from(std::process::id()) << 32;
    let threads = (0..2).map(|thread| {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut sums = [0, 0];
                let mut running = JoinSet::new();
                for number in (thread..count).step_by(2) {
                    if running.len() >= at_once {
                        add(&mut sums, running.join_next().await.unwrap().unwrap());
                    }
                    // The delay keeps histories from running in step.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    running.spawn(history(engine, first + number));
                }
                while let Some(ended) = running.join_next().await {
                    add(&mut sums, ended.unwrap());
                }
                sums
            })
        })
    });
    let threads: Vec<_> = threads.collect();
    let mut sums = [0, 0];
    threads.into_iter().for_each(|thread| add(&mut sums, thread.join().unwrap()));
    let [kills, steps] = sums;
    let [open, losses, gave_up] = [&OPEN, &LOSSES, &GAVE_UP].map(|sum| sum.load(Ordering::Relaxed));
    println!(
        "figure | {count} histories on {engine:?} | {steps} steps, {kills} kills, {losses} losses, {gave_up} tasks given up, {open} open tasks in the end so far"
    );
    // Each history has several of both, unless the machine is too busy.
    assert!(open as u64 > count / 10 && kills as u64 > count / 10, "too little was checked");
    assert!(losses + gave_up > 0, "too little was checked");
}

#[rstest]
#[case::memory(Engine::Memory, 600, 150)]
#[cfg_attr(feature = "redis-tests", case::redis(Engine::Redis, 60, 30))]
fn after_any_crashes_each_open_task_has_a_timer_and_no_timer_is_late(
    #[case] engine: Engine,
    #[case] count: u64,
    #[case] at_once: usize,
) {
    histories(engine, count, at_once);
}

#[rstest]
#[case::memory(Engine::Memory, 6_000, 150)]
#[cfg_attr(feature = "redis-tests", case::redis(Engine::Redis, 6_000, 60))]
#[ignore = "long: 6,000 histories"]
fn long_after_any_crashes_each_open_task_has_a_timer_and_no_timer_is_late(
    #[case] engine: Engine,
    #[case] count: u64,
    #[case] at_once: usize,
) {
    histories(engine, count, at_once);
}

#[tokio::test]
async fn the_gate_lets_a_call_through_only_after_the_decision_of_the_scheduler() {
    let store = Engine::Memory.open().await;
    let (requests, mut received) = mpsc::unbounded_channel();
    let hooks = Gated { engine: Arc::clone(&store.backend), process: 0, requests, log: Arc::default() };
    let gated = Intercept::new(hooks);
    let key = crate::support::key("alice", "t1");
    let put = gated.put(&key, "data".into(), PutOptions::default());
    let scheduler = async {
        let before: Request = received.recv().await.unwrap();
        assert!(store.get(&key).await.is_err());
        before.decision.send(Decision::Go).ok().unwrap();
        let after = received.recv().await.unwrap();
        assert!(store.get(&key).await.is_ok());
        after.decision.send(Decision::Fail).ok().unwrap();
    };
    let (put, ()) = tokio::join!(put, scheduler);
    assert!(put.unwrap_err().outcome_unknown());
}
