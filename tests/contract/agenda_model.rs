//! A model of crashes. Creators, workers, claimers, readers and the background tasks of several stores run against a
//! real engine. A gate lets their calls through one by one in a random order, and actors and whole processes die at any
//! step. At the end, every open task has a timer, and no timer is late. No attempt counts as more than one loss or runs
//! twice, and a task fails for good with its last permitted loss, not earlier.

mod actors;
mod checks;
mod gate;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mcp_task_store::{Agenda, StoreConfig, TaskStore};
use rstest::rstest;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use self::actors::{claims, creates, reads};
use self::checks::{GAVE_UP, LOSSES, OPEN};
use self::gate::{Decision, Gated, Log, Request};
use crate::support::elsewhere::elsewhere;
use crate::support::intercept::Intercept;
use crate::support::{Engine, Random, owner};

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
/// How often `count` histories run at most.
const MAX_ROUNDS: u64 = 10;

/// The requests that wait for a decision.
struct Waiting {
    requests: mpsc::UnboundedReceiver<Request>,
    ready: Vec<Request>,
    /// Requests that get no decision before a time.
    held: Vec<(Instant, Request)>,
}

impl Waiting {
    /// Adds the requests that were sent, and the held requests whose time has come.
    fn receive(&mut self) {
        while let Ok(request) = self.requests.try_recv() {
            self.ready.push(request);
        }
        let now = Instant::now();
        while let Some(at) = self.held.iter().position(|(until, _)| *until <= now) {
            self.ready.push(self.held.swap_remove(at).1);
        }
    }

    /// Waits for the next request, or for the time of the next held request, at most until `end`.
    async fn wait(&mut self, end: Instant) {
        let next = self.held.iter().map(|(until, _)| *until).min().map_or(end, |until| until.min(end));
        if let Ok(Some(request)) = tokio::time::timeout_at(next, self.requests.recv()).await {
            self.ready.push(request);
        }
    }
}

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
    async fn run(&mut self, requests: mpsc::UnboundedReceiver<Request>) {
        let end = Instant::now() + LIFE;
        let mut waiting = Waiting { requests, ready: Vec::new(), held: Vec::new() };
        let mut of_the_dead: Vec<Request> = Vec::new();
        while Instant::now() < end {
            if self.processes.len() < 2 || (self.processes.len() < 3 && self.random.below(50) == 0) {
                self.begin_process();
            }
            waiting.receive();
            if waiting.ready.is_empty() {
                waiting.wait(end).await;
                continue;
            }
            let chosen = self.random.below(waiting.ready.len() as u64) as usize;
            let request = waiting.ready.swap_remove(chosen);
            if !self.processes.contains_key(&request.process) {
                of_the_dead.push(request);
                continue;
            }
            self.steps += 1;
            match self.random.below(200) {
                0..=3 => self.kill(),
                4..=5 => drop(request.decision.send(Decision::Fail)),
                6..=15 => {
                    let delay = Duration::from_millis(self.random.below(400));
                    waiting.held.push((Instant::now() + delay, request));
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
}

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

/// Runs `count` histories from this seed on, on two threads, at most `at_once` of them at a time on each thread. Returns how many actors
/// and processes were killed, and how many steps were let through.
fn round(engine: Engine, seed: u64, count: u64, at_once: usize) -> [usize; 2] {
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
                    running.spawn(history(engine, seed + number));
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
    sums
}

/// Runs `count` histories. On a busy machine, few steps fit into a history, so more rounds follow until enough was checked.
fn histories(engine: Engine, count: u64, at_once: usize) {
    let first = u64::from(std::process::id()) << 32;
    let mut sums = [0, 0];
    for number in 0..MAX_ROUNDS {
        add(&mut sums, round(engine, first + number * count, count, at_once));
        let [kills, steps] = sums;
        let [open, losses, gave_up] = [&OPEN, &LOSSES, &GAVE_UP].map(|sum| sum.load(Ordering::Relaxed));
        println!(
            "figure | {count} histories on {engine:?}, round {number} | {steps} steps, {kills} kills, {losses} losses, {gave_up} tasks given up, {open} open tasks in the end so far"
        );
        if open as u64 > count / 10 && kills as u64 > count / 10 && losses + gave_up > 0 {
            return;
        }
    }
    panic!("too little was checked");
}

#[rstest]
#[case::memory(Engine::Memory, 600, 150)]
#[cfg_attr(feature = "sqlite", case::sqlite(Engine::Sqlite, 60, 30))]
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
#[cfg_attr(feature = "sqlite", case::sqlite(Engine::Sqlite, 6_000, 60))]
#[cfg_attr(feature = "redis-tests", case::redis(Engine::Redis, 6_000, 60))]
#[ignore = "long: 6,000 histories"]
fn long_after_any_crashes_each_open_task_has_a_timer_and_no_timer_is_late(
    #[case] engine: Engine,
    #[case] count: u64,
    #[case] at_once: usize,
) {
    histories(engine, count, at_once);
}
