//! When a keeper must not end a task: wrong clocks, failures, and attempts that are held.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mcp_task_store::{Agenda, PageRequest, TaskError, TaskKey, TaskStatus, Version};
use rstest_reuse::apply;
use serde_json::json;

use super::{OBSERVED, lost, open, write_limit};
use crate::common::{LONG, SHORT, has_ended, plain, record, until};
use crate::support::spy::Spy;
use crate::support::{Engine, on_every_engine, owner};

#[apply(on_every_engine)]
#[tokio::test]
async fn a_store_whose_estimate_of_the_clock_leads_by_an_hour_ends_nothing(#[case] engine: Engine) {
    let store = engine.open().await;
    // No other keeper takes the timer of the task.
    let new = plain().ttl(Duration::from_secs(3 * 3600));
    let at_work = lost(&store, new, Duration::from_secs(9)).await;
    let creator = open(&store.backend, LONG);
    let young = creator.create(&owner("bob"), plain().ttl(Duration::from_secs(1800))).await.unwrap();
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
    assert_eq!(asked, 3, "the store asks for the clock before each of the three calls");

    // The lease seems to have lapsed, so the keeper observes it for 4 s. Then it asks for the clock.
    let read = misled.get(&at_work.key).await.unwrap();
    assert_eq!(read.task.lease, record(&*store, &at_work.key).await.lease);
    let observed = async {
        while spy.clocks.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), observed).await.expect("a keeper observes the lease");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(record(&*store, &at_work.key).await.status, TaskStatus::Working);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_ttl_has_elapsed_stays_open_while_the_clock_cannot_be_read(#[case] engine: Engine) {
    let store = engine.open().await;
    let spy = Spy::new(&store.backend);
    let tasks = open(&spy.agenda(), LONG);
    let created = tasks.create(&owner("alice"), plain().ttl(Duration::from_millis(20))).await.unwrap();
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
    let stored = lost(&store, plain().ttl(Duration::from_millis(20)), SHORT).await;
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
async fn a_wait_for_a_task_whose_ttl_has_elapsed_does_not_spin_while_the_clock_cannot_be_read() {
    let store = Engine::Memory.open().await;
    let spy = Spy::new(&store.backend);
    let tasks = open(&spy.agenda(), LONG);
    let created = tasks.create(&owner("alice"), plain().ttl(Duration::from_millis(20))).await.unwrap();
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
async fn a_store_never_ends_an_attempt_that_it_holds_even_if_the_lease_has_lapsed(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store.backend, SHORT);
    let (stored, attempt) = tasks.start(&owner("alice"), plain()).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < OBSERVED * 4 {
        assert_eq!(tasks.get(&stored.key).await.unwrap().task.status, TaskStatus::Working);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(attempt.complete(json!("late")).await.unwrap().task.status, TaskStatus::Completed);
}

async fn until_version(agenda: &dyn Agenda, key: &TaskKey, version: u64) {
    let looking = async {
        while agenda.get(key).await.unwrap().version < Version::from(version) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looking).await.expect("the tasks change as expected");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_failed_answer_restarts_the_observation(#[case] engine: Engine) {
    let store = engine.open().await;
    let stored = lost(&store, plain(), SHORT).await;
    let spy = Spy::new(&store.backend);
    let other = open(&spy.agenda(), LONG);
    // The observation has begun: the observer has written the task.
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
async fn no_worker_is_declared_lost_while_the_engine_rejects_writes(#[case] engine: Engine) {
    let store = engine.open().await;
    let stored = lost(&store, plain(), SHORT).await;
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
    assert!(writable_since.elapsed() >= OBSERVED, "the observation starts with an accepted write");
}

/// The test controls the time of the runtime, but not the time of the engine.
#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_restarts_its_observation() {
    let store = Engine::Memory.open().await;
    let key = lost(&store, plain(), SHORT).await.key;
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
    // The sleep ends two seconds late.
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
