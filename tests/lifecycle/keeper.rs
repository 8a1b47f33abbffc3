//! The keeper of a store: which lost workers it finds, when, what that costs, and whom it leaves alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::elsewhere::elsewhere;
use crate::support::intercept::Intercept;
use crate::support::spy::Spy;
use crate::support::{Engine, Store, in_a_process_that_dies, on_every_engine, owner, timers};
use futures_util::future::join_all;
use mcp_task_store::{
    Agenda, MemoryBackend, NewTask, Next, OnWorkerLost, PageRequest, Queue, StoreConfig, StoredTask, Task,
    TaskError, TaskKey, TaskStatus, TaskStore, Version,
};
use rstest_reuse::apply;
use serde_json::json;

type Tasks = TaskStore<Arc<dyn Agenda>>;

/// A lease that does not lapse in a test, and one that does.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(2);
/// How long a lease of [`SHORT`] is observed.
const OBSERVED: Duration = Duration::from_millis(1016);

fn config(lease: Duration) -> StoreConfig {
    StoreConfig::new().lease(lease).call_timeout(LIMIT).retention(LONG).max_tasks_per_owner(None)
}

/// How long the write of a short lease may take before its timer is scheduled again.
fn write_limit(lease: Duration) -> Duration {
    lease / 3 + lease
}

fn open(agenda: &Arc<dyn Agenda>, lease: Duration) -> Tasks {
    TaskStore::with_config(Arc::clone(agenda), config(lease))
}

fn closure() -> NewTask {
    NewTask::new("tools/call")
}

fn resumable() -> NewTask {
    closure().operation("render").on_worker_lost(OnWorkerLost::Resume)
}

/// Begins a task in a process that dies at once.
async fn lost(store: &Store, new: NewTask, lease: Duration) -> StoredTask {
    let agenda = elsewhere(&store.backend);
    let begun = async move { open(&agenda, lease).start(&owner("alice"), new).await.unwrap().0 };
    in_a_process_that_dies(begun).await
}

async fn record(agenda: &dyn Agenda, key: &TaskKey) -> Task {
    serde_json::from_slice(&agenda.get(key).await.unwrap().data).unwrap()
}

/// Looks at a record, which no store notices, until it is as wanted.
async fn until(agenda: &dyn Agenda, key: &TaskKey, wanted: impl Fn(&Task) -> bool) -> Task {
    let looking = async {
        loop {
            let task = record(agenda, key).await;
            if wanted(&task) {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looking).await.expect("it comes to that")
}

async fn until_version(agenda: &dyn Agenda, key: &TaskKey, version: u64) {
    let looking = async {
        while agenda.get(key).await.unwrap().version < Version::from(version) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looking).await.expect("it comes to that");
}

fn has_ended(task: &Task) -> bool {
    task.status.is_terminal()
}

fn waits(task: &Task) -> bool {
    task.lease.as_ref().is_some_and(|lease| lease.holder.is_none())
}

// Who finds what, and what it costs

#[apply(on_every_engine)]
#[tokio::test]
async fn a_store_that_serves_nobody_finds_every_orphan(#[case] engine: Engine) {
    const LEASE: Duration = Duration::from_millis(300);
    let store = engine.open().await;
    let agenda = elsewhere(&store.backend);
    let (keys, renewed) = in_a_process_that_dies(async move {
        let tasks = open(&agenda, LEASE);
        let mut begun = Vec::new();
        for number in 0..40 {
            let new = if number % 2 == 0 { closure() } else { resumable() };
            begun.push(tasks.start(&owner(&format!("owner {}", number % 8)), new).await.unwrap());
        }
        join_all(begun.iter().map(|(_, attempt)| attempt.renew())).await;
        let keys: Vec<TaskKey> = begun.iter().map(|(stored, _)| stored.key.clone()).collect();
        // Dropped with the runtime, after the store's own keeper.
        std::mem::forget(begun);
        (keys, Instant::now())
    })
    .await;
    let _other = open(&store.backend, LONG);
    for key in &keys {
        until(&*store, key, |task| has_ended(task) || waits(task)).await;
    }
    let found = renewed.elapsed();
    println!(
        "figure | the last of 40 orphans, leases of {LEASE:?}, is found after its renewal | {found:.2?}"
    );
    // Ten times what is needed: the promise is 1⅓ leases and 5 s.
    assert!(found < Duration::from_secs(15), "{found:?}");
    for key in &keys {
        let task = record(&*store, key).await;
        assert_eq!(has_ended(&task), task.operation.is_none());
    }
    // What waits for a worker is scheduled where workers look.
    assert_eq!(timers(&*store, &Queue::work("render").unwrap()).await.len(), 20);
}

/// Ten stores that serve nobody beside one that works on so many tasks.
async fn reads_of_idle_stores(count: usize, lease: Duration, leases: u32) {
    const WORKERS: usize = 20;
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let spies: Vec<Arc<Intercept<Spy>>> = (0..10).map(|_| Spy::new(&engine)).collect();
    let own = Spy::new(&engine);
    let worker = open(&elsewhere(&own.agenda()), lease);
    let idle: Vec<Tasks> = spies.iter().map(|spy| open(&spy.agenda(), lease)).collect();
    let renewals = Arc::new(AtomicUsize::new(0));
    let working = (0..WORKERS).map(|number| {
        let (worker, renewals) = (worker.clone(), Arc::clone(&renewals));
        tokio::spawn(async move {
            // They do not all begin at once.
            let owner = owner(&format!("owner {number}"));
            tokio::time::sleep(lease / 3 * number as u32 / WORKERS as u32).await;
            let mut attempts = Vec::new();
            for _ in 0..count / WORKERS {
                attempts.push(worker.start(&owner, closure()).await.unwrap().1);
            }
            let mut next = tokio::time::Instant::now();
            loop {
                next += lease / 3;
                tokio::time::sleep_until(next).await;
                for attempt in &attempts {
                    attempt.renew().await.unwrap();
                    renewals.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
    });
    let working: Vec<_> = working.collect();
    // Until the first timers have fired.
    tokio::time::sleep(lease + write_limit(lease) + lease / 3).await;
    let of_idle = || spies.iter().map(|spy| spy.reads.load(Ordering::SeqCst)).sum::<usize>();
    // Each renewal reads, too.
    let of_worker = || own.reads.load(Ordering::SeqCst) - renewals.load(Ordering::SeqCst);
    let (before, own_before, begun) = (of_idle(), of_worker(), Instant::now());
    tokio::time::sleep(lease * leases).await;
    let passed = begun.elapsed().as_secs_f64() / lease.as_secs_f64();
    let (of_idle, of_worker) = (of_idle() - before, of_worker() - own_before);
    for worker in working {
        assert!(!worker.is_finished(), "no task was taken from its worker");
        worker.abort();
    }
    let each = (of_idle + of_worker) as f64 / count as f64 / passed;
    println!("figure | reads a task and lease, ten idle stores over {count} running tasks | {each:.2}");
    assert!(of_idle > 0 && each <= 1.6, "{of_idle} and {of_worker} reads in {passed:.1} leases: {each:.2}");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_idle_stores_read_a_running_task_at_most_1_6_times_a_lease() {
    reads_of_idle_stores(1_000, Duration::from_secs(3), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the long form"]
async fn long_ten_idle_stores_read_a_running_task_at_most_1_6_times_a_lease() {
    reads_of_idle_stores(10_000, Duration::from_secs(30), 4).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_reader_brings_back_the_timers_that_were_lost(#[case] engine: Engine) {
    let store = engine.open().await;
    let [read, listed] =
        [lost(&store, resumable(), SHORT).await.key, lost(&store, closure(), SHORT).await.key];
    let leases = Queue::leases();
    let mut removed = 0;
    while removed < 2 {
        for due in store.take_due(std::slice::from_ref(&leases), 10, LONG).await.unwrap().due {
            assert!(store.resolve(&due, Next::Remove).await.unwrap());
            removed += 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(timers(&*store, &leases).await.is_empty());
    let other = open(&store.backend, LONG);
    tokio::time::sleep(OBSERVED * 2).await;
    for key in [&read, &listed] {
        assert_eq!(store.get(key).await.unwrap().version, Version::FIRST, "nobody has found it");
    }
    assert_eq!(other.get(&read).await.unwrap().task.status, TaskStatus::Working);
    until(&*store, &read, waits).await;
    let page = other.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    assert_eq!(page.tasks.len(), 2);
    until(&*store, &listed, has_ended).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn whoever_waits_for_a_task_brings_back_a_timer_that_was_lost(#[case] engine: Engine) {
    let store = engine.open().await;
    let spy = Spy::new(&store.backend);
    spy.loses_timers.store(true, Ordering::SeqCst);
    let agenda = elsewhere(&spy.agenda());
    let begin = async move {
        let tasks = open(&agenda, Duration::from_millis(600));
        tasks.start(&owner("alice"), closure()).await.unwrap().0.key
    };
    let key = in_a_process_that_dies(begin).await;
    assert!(timers(&*store, &Queue::leases()).await.is_empty());
    // When the wait begins, the lease has not lapsed.
    let tasks = open(&store.backend, LONG);
    let wait = tasks.wait(&key);
    let ended = tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the wait ends").unwrap();
    assert_eq!(ended.task.status, TaskStatus::Failed);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_reader_schedules_a_lapsed_lease_once_a_lease(#[case] engine: Engine) {
    let store = engine.open().await;
    let spy = Spy::new(&store.backend);
    let waiting = {
        let (stored, attempt) = open(&store.backend, LONG).start(&owner("alice"), resumable()).await.unwrap();
        attempt.release().await.unwrap();
        stored.key
    };
    let reader = open(&spy.agenda(), SHORT);
    for _ in 0..20 {
        reader.get(&waiting).await.unwrap();
        reader.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
        reader.set_status_message(&waiting, "still waiting").await.unwrap();
    }
    assert_eq!(spy.scheduled.load(Ordering::SeqCst), 1);
    let other = open(&spy.agenda(), SHORT);
    other.get(&waiting).await.unwrap();
    assert_eq!(spy.scheduled.load(Ordering::SeqCst), 2, "another process knows nothing of that");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_is_scheduled_before_it_is_created_or_claimed_and_again_if_that_was_slow(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let spy = Spy::new(&store.backend);
    let lease = Duration::from_millis(300);
    let tasks = open(&spy.agenda(), lease);
    let leases = Queue::leases();
    let scheduled = || spy.scheduled.swap(0, Ordering::SeqCst);
    for (takes, times) in [(Duration::ZERO, 1), (write_limit(lease) + Duration::from_millis(100), 2)] {
        spy.writes_take_ms.store(takes.as_millis() as u64, Ordering::SeqCst);
        let (stored, attempt) = tasks.start(&owner("alice"), resumable()).await.unwrap();
        assert_eq!(scheduled(), times, "a create that takes {takes:?}");
        // One time limit of a call after the lease, or with it.
        let due_at =
            timers(&*store, &leases).await.iter().find(|timer| timer.key == stored.key).unwrap().due_at;
        let earliest = stored.task.lease.as_ref().unwrap().deadline;
        assert!(
            due_at >= earliest && due_at <= earliest + write_limit(lease) + takes + Duration::from_secs(2),
            "{due_at}"
        );
        attempt.release().await.unwrap();
        assert_eq!(scheduled(), 0);
        tasks.claim(&stored.key).await.unwrap().unwrap().1.complete(json!(1)).await.unwrap();
        assert_eq!(scheduled(), times, "a claim that takes {takes:?}");
    }
    spy.is_full.store(true, Ordering::SeqCst);
    assert_refused!(tasks.start(&owner("alice"), resumable()).await, TaskError::Storage(_));
    assert_eq!(scheduled(), 1, "before the write");
    assert_refused!(
        tasks.start(&owner("alice"), closure().operation("x".repeat(600))).await,
        TaskError::InvalidArgument { .. }
    );
    assert_eq!(scheduled(), 0, "what is refused is not scheduled");
}

#[tokio::test]
async fn the_first_timer_of_a_short_lease_fires_a_third_of_the_lease_and_3_s_after_it_lapses_at_the_latest() {
    let store = Engine::Memory.open().await;
    for (lease, limit) in [(3, 4), (30, 10), (300, 10)] {
        let config = StoreConfig::new().lease(Duration::from_secs(lease));
        let tasks = TaskStore::with_config(Arc::clone(&store.backend), config);
        let (stored, _attempt) = tasks.start(&owner("alice"), closure()).await.unwrap();
        let due = timers(&*store, &Queue::leases()).await;
        let due_at = due.iter().find(|timer| timer.key == stored.key).unwrap().due_at;
        let after = (due_at - stored.task.lease.as_ref().unwrap().deadline).as_seconds_f64();
        assert!((after - f64::from(limit)).abs() < 0.5, "{after} s after a lease of {lease} s");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_renewal_and_an_end_touch_no_timer_and_the_taker_removes_that_of_an_ended_task(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let leases = Queue::leases();
    let tasks = open(&store.backend, Duration::from_millis(300));
    let (stored, attempt) = tasks.start(&owner("alice"), closure()).await.unwrap();
    let before = timers(&*store, &leases).await;
    attempt.renew().await.unwrap();
    attempt.complete(json!(1)).await.unwrap();
    assert_eq!(timers(&*store, &leases).await, before);
    let key = tasks.start(&owner("alice"), closure()).await.map(|(stored, attempt)| {
        std::mem::forget(attempt);
        stored.key
    });
    store.delete(&key.unwrap()).await.unwrap();
    let removed = async {
        while !timers(&*store, &leases).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), removed).await.expect("nothing is left");
    assert_eq!(tasks.get(&stored.key).await.unwrap().task.status, TaskStatus::Completed);
}

// What ends nobody

#[apply(on_every_engine)]
#[tokio::test]
async fn a_store_whose_estimate_of_the_clock_leads_by_an_hour_ends_nothing(#[case] engine: Engine) {
    let store = engine.open().await;
    // No other keeper gets its timer.
    let new = closure().ttl(Duration::from_secs(3 * 3600));
    let at_work = lost(&store, new, Duration::from_secs(9)).await;
    let creator = open(&store.backend, LONG);
    let young = creator.create(&owner("bob"), closure().ttl(Duration::from_secs(1800))).await.unwrap();
    drop(creator);
    let spy = Spy::new(&store.backend);
    spy.leads_by_ms.store(3_600_000, Ordering::SeqCst);
    let misled = open(&spy.agenda(), LONG);
    assert_eq!(misled.get(&young.key).await.unwrap(), young);
    assert_eq!(
        misled.list(&owner("bob"), PageRequest::new(1)).await.unwrap().tasks,
        std::slice::from_ref(&young)
    );
    let changed = misled.set_status_message(&young.key, "still at work").await.unwrap();
    assert_eq!(changed.task.status, TaskStatus::Working);
    let asked = spy.clocks.swap(0, Ordering::SeqCst);
    assert_eq!(asked, 3, "before each of them");

    // It seems to have lapsed, so it is observed for 4 s. Then the clock is asked.
    let read = misled.get(&at_work.key).await.unwrap();
    assert_eq!(read.task.lease, record(&*store, &at_work.key).await.lease);
    let observed = async {
        while spy.clocks.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), observed).await.expect("it is observed");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(record(&*store, &at_work.key).await.status, TaskStatus::Working);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_ttl_has_elapsed_stays_as_it_is_while_the_clock_cannot_be_asked(#[case] engine: Engine) {
    let store = engine.open().await;
    let spy = Spy::new(&store.backend);
    let tasks = open(&spy.agenda(), LONG);
    let created = tasks.create(&owner("alice"), closure().ttl(Duration::from_millis(20))).await.unwrap();
    store.until(created.task.deadline().unwrap()).await;
    spy.has_no_clock.store(true, Ordering::SeqCst);
    assert_eq!(tasks.get(&created.key).await.unwrap(), created);
    spy.has_no_clock.store(false, Ordering::SeqCst);
    assert_eq!(tasks.get(&created.key).await.unwrap().task.status, TaskStatus::Failed);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_ttl_has_elapsed_keeps_its_timer_until_its_end_is_stored(#[case] engine: Engine) {
    let store = engine.open().await;
    let stored = lost(&store, closure().ttl(Duration::from_millis(20)), SHORT).await;
    let spy = Spy::new(&store.backend);
    spy.is_full.store(true, Ordering::SeqCst);
    let _other = open(&spy.agenda(), LONG);
    while spy.refused.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    spy.is_full.store(false, Ordering::SeqCst);
    let ended = until(&*store, &stored.key, has_ended).await;
    assert_eq!(ended.status_message.as_deref(), Some("TTL elapsed"));
}

#[tokio::test]
async fn a_wait_for_a_task_whose_ttl_has_elapsed_does_not_spin_while_the_clock_cannot_be_asked() {
    let store = Engine::Memory.open().await;
    let spy = Spy::new(&store.backend);
    let tasks = open(&spy.agenda(), LONG);
    let created = tasks.create(&owner("alice"), closure().ttl(Duration::from_millis(20))).await.unwrap();
    store.until(created.task.deadline().unwrap()).await;
    spy.has_no_clock.store(true, Ordering::SeqCst);
    tokio::time::timeout(Duration::from_secs(1), tasks.wait(&created.key)).await.unwrap_err();
    let asked = spy.clocks.load(Ordering::SeqCst);
    assert!(asked <= 15, "{asked} times in a second");
    spy.has_no_clock.store(false, Ordering::SeqCst);
    assert_eq!(tasks.wait(&created.key).await.unwrap().task.status, TaskStatus::Failed);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_live_attempt_is_never_ended_by_its_own_store_although_its_lease_has_lapsed(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = open(&store.backend, SHORT);
    let (stored, attempt) = tasks.start(&owner("alice"), closure()).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < OBSERVED * 4 {
        assert_eq!(tasks.get(&stored.key).await.unwrap().task.status, TaskStatus::Working);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(attempt.complete(json!("late")).await.unwrap().task.status, TaskStatus::Completed);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_attempt_that_is_dropped_is_lost_at_once(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store.backend, LONG);
    let (failed, attempt) = tasks.start(&owner("alice"), closure()).await.unwrap();
    let clone = attempt.clone();
    drop(attempt);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(record(&*store, &failed.key).await.status, TaskStatus::Working, "a clone is the same attempt");
    drop(clone);
    let task = until(&*store, &failed.key, has_ended).await;
    assert!(task.error.unwrap().message.contains("worker"));

    let (waiting, attempt) = tasks.start(&owner("alice"), resumable()).await.unwrap();
    drop(attempt);
    until(&*store, &waiting.key, waits).await;
    let (_, next) = tasks.claim(&waiting.key).await.unwrap().unwrap();
    tasks.request_cancel(&waiting.key).await.unwrap();
    drop(next);
    assert_eq!(until(&*store, &waiting.key, has_ended).await.status, TaskStatus::Cancelled);

    // Whoever ends a task, or releases it, may drop the attempt.
    let (done, attempt) = tasks.start(&owner("alice"), closure()).await.unwrap();
    let version = attempt.complete(json!(1)).await.unwrap().version;
    drop(attempt);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(store.get(&done.key).await.unwrap().version, version);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_end_of_a_dropped_attempt_outlasts_an_outage(#[case] engine: Engine) {
    let store = engine.open().await;
    let spy = Spy::new(&store.backend);
    let tasks = open(&spy.agenda(), LONG);
    let (stored, attempt) = tasks.start(&owner("alice"), closure()).await.unwrap();
    spy.is_full.store(true, Ordering::SeqCst);
    drop(attempt);
    while spy.refused.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    spy.is_full.store(false, Ordering::SeqCst);
    until(&*store, &stored.key, has_ended).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_answer_that_fails_begins_the_observation_again(#[case] engine: Engine) {
    let store = engine.open().await;
    let stored = lost(&store, closure(), SHORT).await;
    let spy = Spy::new(&store.backend);
    let other = open(&spy.agenda(), LONG);
    // The write of the observer.
    until_version(&*store, &stored.key, 2).await;
    tokio::time::sleep(OBSERVED / 2).await;
    spy.failing_reads.store(1, Ordering::SeqCst);
    assert_refused!(other.get(&stored.key).await, TaskError::Storage(_));
    let failed_at = Instant::now();
    until(&*store, &stored.key, has_ended).await;
    assert!(failed_at.elapsed() >= OBSERVED, "{:?}", failed_at.elapsed());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_store_that_takes_no_writes_declares_nobody_lost(#[case] engine: Engine) {
    let store = engine.open().await;
    let stored = lost(&store, closure(), SHORT).await;
    let spy = Spy::new(&store.backend);
    spy.is_full.store(true, Ordering::SeqCst);
    let _other = open(&spy.agenda(), LONG);
    while spy.refused.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(OBSERVED * 2).await;
    spy.is_full.store(false, Ordering::SeqCst);
    let writable_since = Instant::now();
    until(&*store, &stored.key, has_ended).await;
    assert!(writable_since.elapsed() >= OBSERVED, "the observation begins with an accepted write");
}

/// The time of the runtime is the test's; that of the engine is not.
#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_begins_its_observation_again() {
    let store = Engine::Memory.open().await;
    let key = lost(&store, closure(), SHORT).await.key;
    std::thread::sleep(SHORT + write_limit(SHORT) + Duration::from_millis(20));
    let _other = open(&store.backend, LONG);
    let version = async || store.get(&key).await.unwrap().version.get();
    let pass = async |millis| {
        tokio::time::advance(Duration::from_millis(millis)).await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    };
    while version().await < 2 {
        pass(5).await;
    }
    // Its timer fires two seconds late.
    pass(3_050).await;
    for _ in 0..20 {
        pass(5).await;
    }
    assert_eq!(record(&*store, &key).await.status, TaskStatus::Working);
    assert_eq!(version().await, 3, "a second observation has begun");
    for _ in 0..OBSERVED.as_millis() / 5 + 20 {
        pass(5).await;
    }
    assert_eq!(record(&*store, &key).await.status, TaskStatus::Failed);
}

// How long a keeper lives

#[tokio::test]
async fn a_keeper_ends_with_the_last_clone_of_its_store() {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = open(&engine, LONG);
    let (stored, attempt) = tasks.start(&owner("alice"), closure()).await.unwrap();
    drop(tasks);
    tokio::time::sleep(Duration::from_millis(100)).await;
    attempt.renew().await.unwrap();
    assert!(Arc::strong_count(&engine) > 1);
    drop(attempt);
    let ended = async {
        while Arc::strong_count(&engine) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the keeper ends");
    assert_eq!(record(&*engine, &stored.key).await.status, TaskStatus::Working, "others find it");
}

#[test]
fn a_keeper_starts_again_with_the_next_call_when_its_runtime_has_ended() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = first.block_on(async { open(&engine, LONG) });
    let (stored, attempt) = first.block_on(tasks.start(&owner("alice"), closure())).unwrap();
    // With its runtime, a run ends without a word.
    drop(first);
    drop(attempt);
    runtime().block_on(async {
        let absent = TaskKey::new("alice", "absent").unwrap();
        assert_refused!(tasks.get(&absent).await, TaskError::NotFound { .. });
        until(&*engine, &stored.key, has_ended).await;
    });
}

#[test]
fn a_keeper_starts_with_a_create_too_when_its_store_was_made_outside_of_a_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let begin = async { open(&engine, SHORT).start(&owner("alice"), closure()).await.unwrap().0 };
    let orphan = runtime().block_on(begin);
    let tasks = open(&engine, LONG);
    runtime().block_on(async {
        tasks.create(&owner("alice"), closure()).await.unwrap();
        until(&*engine, &orphan.key, has_ended).await;
    });
}

#[test]
fn a_keeper_whose_runtime_nobody_drives_is_replaced_with_the_next_call_on_another_runtime() {
    let runtime = |is_paused| {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(is_paused).build().unwrap()
    };
    let parked = runtime(false);
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let tasks = parked.block_on(async { open(&engine, LONG) });
    let (stored, attempt) = parked.block_on(tasks.start(&owner("alice"), closure())).unwrap();
    drop(attempt);
    let absent = TaskKey::new("alice", "absent").unwrap();
    // The time of this runtime is the test's.
    runtime(true).block_on(async {
        assert_refused!(tasks.get(&absent).await, TaskError::NotFound { .. });
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(record(&*engine, &stored.key).await.status, TaskStatus::Working, "it may be about to act");
        tokio::time::advance(Duration::from_secs(120)).await;
        assert_refused!(tasks.get(&absent).await, TaskError::NotFound { .. });
        until(&*engine, &stored.key, has_ended).await;
    });
    // With that runtime its keeper has ended, and the first runtime is driven again.
    parked.block_on(async {
        let (stored, attempt) = tasks.start(&owner("alice"), closure()).await.unwrap();
        drop(attempt);
        until(&*engine, &stored.key, has_ended).await;
    });
}
