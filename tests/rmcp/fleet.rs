//! What holds across all instances that claim tasks: limits, and the turns of the owners.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use mcp_task_store::{
    Agenda, DurableTaskManager, ManagerConfig, MemoryBackend, OnWorkerLost, PageRequest, Priority,
    RegisteredOptions, StorageError, StoreConfig, TaskContext, TaskStore,
};
use rmcp::task_manager::TaskFuture;
use rstest_reuse::apply;
use serde_json::Value;
use tokio::time::sleep;

use crate::support::intercept::{Call, Hooks, Reply, unavailable};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine, owner};

fn instance(engine: &Arc<dyn Agenda>, lease: Duration, config: ManagerConfig<Arc<dyn Agenda>>) -> Manager {
    let store = StoreConfig::new().lease(lease).retention(LONG).max_tasks_per_owner(None);
    DurableTaskManager::with_config(TaskStore::with_config(Arc::clone(engine), store), config)
}

/// What the operations log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Starts>>);

#[derive(Default)]
struct Starts {
    /// How many tasks of each name run at once, and the most that did.
    counts: BTreeMap<String, (usize, usize)>,
    /// The names of the tasks in the order of their starts.
    names: Vec<String>,
}

impl Log {
    fn begin(&self, name: &str) {
        let starts = &mut *self.0.lock().unwrap();
        let (now, most) = starts.counts.entry(name.to_owned()).or_default();
        *now += 1;
        *most = (*now).max(*most);
        starts.names.push(name.to_owned());
    }

    fn end(&self, name: &str) {
        self.0.lock().unwrap().counts.get_mut(name).unwrap().0 -= 1;
    }

    fn most(&self, name: &str) -> usize {
        self.0.lock().unwrap().counts[name].1
    }

    fn starts(&self) -> Vec<String> {
        self.0.lock().unwrap().names.clone()
    }
}

/// Registers an operation that works for a while, and logs by the operation or by the owner of its task.
fn register_work(manager: &Manager, operation: &'static str, log: &Log, by_owner: bool, how_long: Duration) {
    let log = log.clone();
    manager.register(operation, move |context: TaskContext, _: Value| -> TaskFuture {
        let log = log.clone();
        Box::pin(async move {
            let name = if by_owner { context.owner().as_str() } else { operation };
            log.begin(name);
            sleep(how_long).await;
            log.end(name);
            Ok(text("done"))
        })
    });
}

async fn enqueue(manager: &Manager, of: &str, operation: &str) -> String {
    let options = RegisteredOptions::new().on_worker_lost(OnWorkerLost::Resume);
    manager.enqueue(&owner(of), operation, Value::Null, options).await.unwrap().task_id
}

async fn all_end(manager: &Manager, of: &str, ids: &[String]) {
    for id in ids {
        within(manager.store().wait(&crate::support::key(of, id))).await.unwrap();
    }
}

/// Waits until so many slots of all limits have a record.
async fn until_slots(engine: &Arc<dyn Agenda>, wanted: usize) {
    loop {
        let (mut number, mut after) = (0, None);
        loop {
            let page = engine.owners(after.as_ref()).await.unwrap();
            for owner in page.owners.iter().filter(|owner| owner.as_str().starts_with("\0mcp/slots/")) {
                number += engine.list(owner, PageRequest::new(256)).await.unwrap().records.len();
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        if number == wanted {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_an_operation_holds_across_instances_and_only_for_that_operation(#[case] engine: Engine) {
    let store = engine.open().await;
    let log = Log::default();
    let workers = [(); 3].map(|()| {
        let config = ManagerConfig::new().max_concurrent(8).limit("render", 3);
        let worker = instance(&store.backend, LONG, config);
        register_work(&worker, "render", &log, false, Duration::from_millis(20));
        register_work(&worker, "preview", &log, false, Duration::from_millis(20));
        worker
    });
    let limited = join_all((0..24).map(|_| enqueue(&workers[0], "alice", "render"))).await;
    let others = join_all((0..24).map(|_| enqueue(&workers[0], "alice", "preview"))).await;
    all_end(&workers[0], "alice", &limited).await;
    all_end(&workers[0], "alice", &others).await;
    assert!(log.most("render") <= 3, "{}", log.most("render"));
    assert!(log.most("preview") > 3, "{}", log.most("preview"));
    assert_eq!(log.starts().len(), 48);
    join_all(workers.iter().map(|worker| worker.shutdown())).await;
    // A shutdown frees the slots.
    within(until_slots(&store.backend, 0)).await;
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_of_an_instance_that_dies_is_free_again(#[case] engine: Engine) {
    let store = engine.open().await;
    let config = || ManagerConfig::new().limit("wait", 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let of_first = std::thread::scope(|scope| {
        scope.spawn(|| runtime.block_on(store.of_another_process())).join().unwrap()
    });
    let first = {
        let _in_runtime = runtime.enter();
        instance(&crate::support::elsewhere::elsewhere(&of_first), Duration::from_secs(1), config())
    };
    let mut started = register(&first);
    let other = instance(&store.backend, Duration::from_secs(1), config());
    let held = enqueue(&other, "alice", "wait").await;
    assert_eq!(within(started.recv()).await.unwrap().0, 1);
    let mut at_other = register(&other);
    let second = enqueue(&other, "alice", "wait").await;
    sleep(Duration::from_millis(600)).await;
    assert!(at_other.try_recv().is_err(), "the first instance holds the only slot");
    drop(first);
    runtime.shutdown_background();
    // One of the two tasks runs until it is cancelled.
    within(at_other.recv()).await.unwrap();
    for id in [&held, &second] {
        other.cancel_task(&alice(), id).await.unwrap();
    }
    all_end(&other, "alice", &[held, second]).await;
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_owners_holds_across_instances_and_other_owners_go_on(#[case] engine: Engine) {
    let store = engine.open().await;
    let log = Log::default();
    let workers = [(); 2].map(|()| {
        let config = ManagerConfig::new().max_concurrent(8).limit_per_owner(2);
        let worker = instance(&store.backend, LONG, config);
        register_work(&worker, "render", &log, true, Duration::from_millis(100));
        worker
    });
    let of_alice = join_all((0..8).map(|_| enqueue(&workers[0], "alice", "render"))).await;
    let of_bob = join_all((0..2).map(|_| enqueue(&workers[0], "bob", "render"))).await;
    all_end(&workers[0], "bob", &of_bob).await;
    let before = log.starts().iter().filter(|name| *name == "alice").count();
    all_end(&workers[0], "alice", &of_alice).await;
    assert!(log.most("alice") <= 2 && log.most("bob") <= 2);
    assert!(before < 8, "bob does not wait for the end of all tasks of alice");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_with_many_tasks_does_not_hold_up_one_with_a_single_task(#[case] engine: Engine) {
    const MANY: usize = 1_000;
    let store = engine.open().await;
    let log = Log::default();
    let server = instance(&store.backend, LONG, ManagerConfig::new());
    join_all((0..MANY).map(|_| enqueue(&server, "alice", "render"))).await;
    let single = enqueue(&server, "bob", "render").await;
    let worker = instance(&store.backend, LONG, ManagerConfig::new().max_concurrent(2));
    let begun = std::time::Instant::now();
    register_work(&worker, "render", &log, true, Duration::from_millis(20));
    all_end(&server, "bob", &[single]).await;
    let before = log.starts().iter().position(|name| name == "bob").unwrap();
    println!(
        "figure | {engine:?}: a task behind {MANY} tasks of another owner starts after {before} of them, {:.1?} after the worker",
        begun.elapsed()
    );
    assert!(before < MANY / 2, "{before} tasks of alice started first");
    within(worker.shutdown()).await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_has_its_turn_also_while_each_task_takes_longer_than_the_claimer_remembers_a_search() {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let (log, server) = (Log::default(), instance(&engine, LONG, ManagerConfig::new()));
    for (name, number) in [("alice", 100), ("bob", 1), ("carol", 1), ("dave", 1)] {
        join_all((0..number).map(|_| enqueue(&server, name, "render"))).await;
    }
    let worker = instance(&engine, LONG, ManagerConfig::new().max_concurrent(1));
    register_work(&worker, "render", &log, true, Duration::from_secs(30));
    let starts = log_of_first(&log, 8).await;
    for name in ["bob", "carol", "dave"] {
        assert!(starts.contains(&name.to_owned()), "{name} waits for alice: {starts:?}");
    }
}

/// Waits until this many tasks have started, in a test whose clock is paused. Returns the first starts.
async fn log_of_first(log: &Log, number: usize) -> Vec<String> {
    while log.starts().len() < number {
        sleep(Duration::from_secs(1)).await;
    }
    log.starts()[..number].to_vec()
}

#[tokio::test(start_paused = true)]
async fn a_task_of_a_higher_priority_is_next_also_while_the_owners_have_their_turns() {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let (log, server) = (Log::default(), instance(&engine, LONG, ManagerConfig::new()));
    let low = RegisteredOptions::new().priority(Priority::Low);
    for name in ["alice", "bob"] {
        for _ in 0..20 {
            server.enqueue(&owner(name), "render", Value::Null, low.clone()).await.unwrap();
        }
    }
    let worker = instance(&engine, LONG, ManagerConfig::new().max_concurrent(1));
    register_work(&worker, "render", &log, true, Duration::from_millis(100));
    while log.starts().len() < 4 {
        sleep(Duration::from_millis(10)).await;
    }
    let high = RegisteredOptions::new().priority(Priority::High);
    server.enqueue(&owner("carol"), "render", Value::Null, high).await.unwrap();
    let before = log.starts().len();
    let starts = log_of_first(&log, before + 2).await;
    assert!(starts[before..].contains(&"carol".to_owned()), "{:?}", &starts[before..]);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn short_tasks_under_a_limit_of_one_follow_each_other_at_once(#[case] engine: Engine) {
    const NUMBER: usize = 60;
    let store = engine.open().await;
    let log = Log::default();
    let worker = instance(&store.backend, LONG, ManagerConfig::new().limit("render", 1));
    let ids = join_all((0..NUMBER).map(|_| enqueue(&worker, "alice", "render"))).await;
    let begun = std::time::Instant::now();
    register_work(&worker, "render", &log, false, Duration::from_millis(1));
    all_end(&worker, "alice", &ids).await;
    let each = begun.elapsed() / NUMBER as u32;
    println!("figure | {engine:?}: a task of 1 ms under a fleet-wide limit of one takes {each:.1?}");
    assert_eq!(log.most("render"), 1);
    assert!(each < Duration::from_millis(150), "{each:?}");
    within(worker.shutdown()).await;
}

/// Counts the calls of an engine, and loses the reply of the first renewal of a slot.
struct Calls {
    engine: Arc<dyn Agenda>,
    number: AtomicUsize,
    loses_a_renewal: AtomicBool,
    slots_hang: AtomicBool,
    /// Each write of a slot takes a second.
    slots_stay: AtomicBool,
    slots_fail: AtomicBool,
    reads_fail: AtomicBool,
}

impl Calls {
    fn of(engine: Arc<dyn Agenda>) -> Arc<Intercept<Self>> {
        Intercept::new(Self {
            engine,
            number: AtomicUsize::default(),
            loses_a_renewal: AtomicBool::default(),
            slots_hang: AtomicBool::default(),
            slots_stay: AtomicBool::default(),
            slots_fail: AtomicBool::default(),
            reads_fail: AtomicBool::default(),
        })
    }
}

#[async_trait::async_trait]
impl Hooks for Calls {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        self.number.fetch_add(1, Relaxed);
        let of_slot = |owner: &str| owner.starts_with("\0mcp/slots/");
        match &call {
            Call::List { owner, .. } if of_slot(owner.as_str()) && self.slots_hang.load(Relaxed) => {
                std::future::pending().await
            }
            Call::PutIfVersion { key, expected, .. }
                if of_slot(key.owner.as_str())
                    && expected.get() > 0
                    && self.loses_a_renewal.swap(false, Relaxed) =>
            {
                call.send(&*self.engine).await?;
                return Err(unavailable("the reply was lost", true));
            }
            Call::PutIfVersion { key, .. }
                if of_slot(key.owner.as_str()) && self.slots_fail.load(Relaxed) =>
            {
                return Err(unavailable("slots fail", false));
            }
            Call::PutIfVersion { key, .. }
                if of_slot(key.owner.as_str()) && self.slots_stay.load(Relaxed) =>
            {
                sleep(Duration::from_secs(1)).await;
            }
            Call::Get { .. } if self.reads_fail.load(Relaxed) => {
                return Err(unavailable("reads fail", false));
            }
            _ => {}
        }
        call.send(&*self.engine).await
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_stays_held_after_the_reply_to_a_renewal_was_lost(#[case] engine: Engine) {
    let store = engine.open().await;
    let (calls, lease) = (Calls::of(Arc::clone(&store.backend)), Duration::from_secs(1));
    let config = || ManagerConfig::new().limit("render", 1);
    let log = Log::default();
    let first = instance(&calls.agenda(), lease, config());
    let of_first = enqueue(&first, "alice", "render").await;
    register_work(&first, "render", &log, false, Duration::from_secs(4));
    until(|| log.starts().len() == 1).await;
    calls.loses_a_renewal.store(true, Relaxed);
    until(|| !calls.loses_a_renewal.load(Relaxed)).await;
    let other = instance(&store.backend, lease, config());
    register_work(&other, "render", &log, false, Duration::from_millis(1));
    let of_other = enqueue(&other, "bob", "render").await;
    all_end(&other, "alice", &[of_first]).await;
    all_end(&other, "bob", &[of_other]).await;
    assert_eq!((log.most("render"), log.starts().len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_whose_slot_has_expired_in_an_outage_takes_a_slot_again() {
    let (calls, lease) = (Calls::of(Arc::new(MemoryBackend::new())), Duration::from_secs(2));
    let worker = instance(&calls.agenda(), lease, ManagerConfig::new().limit("render", 1));
    let (log, finish) = (Log::default(), Arc::new(tokio::sync::Notify::new()));
    let (of_operation, finished) = (log.clone(), Arc::clone(&finish));
    worker.register("render", move |_, _| -> TaskFuture {
        let (log, finished) = (of_operation.clone(), Arc::clone(&finished));
        Box::pin(async move {
            log.begin("render");
            finished.notified().await;
            log.end("render");
            Ok(text("done"))
        })
    });
    let mut ids = vec![enqueue(&worker, "alice", "render").await];
    until(|| log.starts().len() == 1).await;
    within(until_slots(&calls.engine, 1)).await;
    calls.slots_fail.store(true, Relaxed);
    within(until_slots(&calls.engine, 0)).await;
    calls.slots_fail.store(false, Relaxed);
    within(until_slots(&calls.engine, 1)).await;
    ids.push(enqueue(&worker, "alice", "render").await);
    sleep(lease * 3 / 2).await;
    assert_eq!(log.starts().len(), 1);
    finish.notify_one();
    until(|| log.starts().len() == 2).await;
    finish.notify_one();
    all_end(&worker, "alice", &ids).await;
    assert_eq!(log.most("render"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_five_seconds_at_most_for_a_slot() {
    let calls = Calls::of(Arc::new(MemoryBackend::new()));
    let config = StoreConfig::new().lease(Duration::from_secs(30)).call_timeout(Duration::from_secs(600));
    let tasks = TaskStore::with_config(calls.agenda(), config);
    let worker = DurableTaskManager::with_config(tasks, ManagerConfig::new().limit_per_owner(1));
    register_work(&worker, "render", &Log::default(), false, LONG);
    calls.slots_hang.store(true, Relaxed);
    enqueue(&worker, "alice", "render").await;
    sleep(Duration::from_secs(1)).await;
    let begun = tokio::time::Instant::now();
    within(worker.shutdown()).await;
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_returns_once_the_slots_of_its_attempts_are_free() {
    let calls = Calls::of(Arc::new(MemoryBackend::new()));
    let worker = instance(&calls.agenda(), LONG, ManagerConfig::new().limit("render", 1));
    let log = Log::default();
    register_work(&worker, "render", &log, false, Duration::from_secs(1));
    enqueue(&worker, "alice", "render").await;
    until(|| log.starts().len() == 1).await;
    within(until_slots(&calls.engine, 1)).await;
    calls.slots_stay.store(true, Relaxed);
    within(worker.shutdown()).await;
    // A free slot expires within a millisecond of the engine's clock. The clock of Tokio stands still, so no task frees one meanwhile.
    let returned = std::time::Instant::now();
    while until_slots(&calls.engine, 0).now_or_never().is_none() {
        assert!(returned.elapsed() < Duration::from_secs(10), "a slot is still held");
        std::thread::yield_now();
    }
}

/// Returns how many calls of the engine a second there are in the next seconds.
async fn calls_a_second(calls: &Calls) -> usize {
    const SECONDS: u64 = 3;
    let before = calls.number.load(Relaxed);
    sleep(Duration::from_secs(SECONDS)).await;
    (calls.number.load(Relaxed) - before) / SECONDS as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimer_whose_claims_are_refused_calls_the_engine_some_hundred_times_a_second_at_most() {
    let calls = Calls::of(Arc::new(MemoryBackend::new()));
    let server = instance(&calls.engine, LONG, ManagerConfig::new());
    for number in 0..4_000 {
        let name = if number < 3_000 { "alice".to_owned() } else { format!("owner {}", number % 300) };
        enqueue(&server, &name, "render").await;
    }
    let config = ManagerConfig::new().max_concurrent(700).limit_per_owner(1);
    let worker = instance(&calls.agenda(), LONG, config);
    let log = Log::default();
    register_work(&worker, "render", &log, true, LONG);
    until(|| log.starts().len() == 301).await;
    let full = calls_a_second(&calls).await;
    calls.reads_fail.store(true, Relaxed);
    let failing = calls_a_second(&calls).await;
    println!("figure | calls of the engine a second | every owner is full: {full}, reads fail: {failing}");
    assert!(full < 3_000 && failing < 3_000, "{full}, {failing}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_tasks_of_others_go_on_behind_many_tasks_of_an_owner_at_its_limit(#[case] engine: Engine) {
    const BEHIND: usize = 2_500;
    let store = engine.open().await;
    let log = Log::default();
    let server = instance(&store.backend, LONG, ManagerConfig::new());
    let config = ManagerConfig::new().max_concurrent(8).limit_per_owner(4);
    let worker = instance(&store.backend, LONG, config);
    register_work(&worker, "render", &log, true, LONG);
    for _ in 0..BEHIND / 100 {
        join_all((0..100).map(|_| enqueue(&server, "alice", "render"))).await;
    }
    until(|| log.starts().len() == 4).await;
    let short = Log::default();
    register_work(&worker, "render", &short, true, Duration::from_millis(1));
    let begun = std::time::Instant::now();
    let of_bob = join_all((0..100).map(|_| enqueue(&server, "bob", "render"))).await;
    all_end(&server, "bob", &of_bob).await;
    let rate = 100.0 / begun.elapsed().as_secs_f64();
    println!(
        "figure | {engine:?}: tasks a second behind {BEHIND} tasks of an owner at its limit | {rate:.0}"
    );
    assert_eq!(log.most("alice"), 4);
    assert!(rate > 2.0, "{rate}");
}
