//! A worker renews its lease with each of its writes, for the duration that the lease states.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use futures_util::future::join_all;
use mcp_task_store::{Queue, TaskStatus};
use rstest::rstest;
use serde_json::json;

use super::{config, open, plain, record};
use crate::support::elsewhere::elsewhere;
use crate::support::spy::Spy;
use crate::support::{Engine, in_a_process_that_dies, owner, timers};

#[rstest]
#[case::thousand_at_5_ms(1_000, 5)]
#[case::fifteen_hundred_at_3_ms(1_500, 3)]
#[tokio::test]
async fn a_worker_that_writes_status_messages_for_longer_than_its_lease_is_not_lost(
    #[case] messages: usize,
    #[case] reply_ms: u64,
) {
    let lease = Duration::from_secs(3);
    let store = Engine::Memory.open().await;
    let spy = Spy::new(&store.backend);
    // The last of a thousand messages may wait longer than the default time limit.
    let patient = config(lease).call_timeout(Duration::from_secs(60));
    let worker = open(&elsewhere(&spy.agenda()), patient);
    let observer = open(&store.backend, config(lease));
    let (stored, attempt) = worker.start(&owner("alice"), plain()).await.unwrap();
    spy.writes_take_ms.store(reply_ms, Ordering::SeqCst);
    let begun = Instant::now();
    let mut rounds = 0;
    // The worker always has messages in the queue, and renews its lease only by writing them.
    while begun.elapsed() < (lease + lease / 3 + Duration::from_secs(1)) * 2 {
        let written = (0..messages).map(|number| attempt.set_status_message(format!("message {number}")));
        for written in join_all(written).await {
            assert_eq!(written.unwrap().task.status, TaskStatus::Working);
        }
        rounds += 1;
        assert_eq!(observer.get(&stored.key).await.unwrap().task.status, TaskStatus::Working);
    }
    spy.writes_take_ms.store(0, Ordering::SeqCst);
    let done = attempt.complete(json!("done")).await.unwrap();
    println!(
        "figure | row 9: {messages} messages at once, {rounds} times, at {reply_ms} ms a reply, lease {lease:?} | not lost in {:.1?}",
        begun.elapsed()
    );
    assert_eq!(done.task.status, TaskStatus::Completed);
}

#[rstest]
#[case::a_longer_lease_than_the_observers(60, 30)]
#[case::a_shorter_one(30, 60)]
#[tokio::test]
async fn a_lease_lasts_as_long_as_it_states_whatever_the_observer_is_configured_to(
    #[case] of_worker: u64,
    #[case] of_observer: u64,
) {
    let store = Engine::Memory.open().await;
    let agenda = elsewhere(&store.backend);
    // The process dies, so that its keeper does not take the timer.
    let life = async move {
        let worker = open(&agenda, config(Duration::from_secs(of_worker)));
        worker.start(&owner("alice"), plain()).await.unwrap()
    };
    let (stored, attempt) = in_a_process_that_dies(life).await;
    let spy = Spy::new(&store.backend);
    let observer = open(&spy.agenda(), config(Duration::from_secs(of_observer)));
    for _ in 0..20 {
        let read = observer.get(&stored.key).await.unwrap();
        assert_eq!(read.task.lease, record(&*store, &stored.key).await.lease);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // No reader schedules the timer of the task.
    assert_eq!(spy.scheduled.load(Ordering::SeqCst), 0);
    // A keeper that takes its timer moves the timer to the deadline, and does not observe the lease.
    store.schedule(&Queue::leases(), &stored.key, Duration::ZERO).await.unwrap();
    let deadline = stored.task.lease.as_ref().unwrap().deadline;
    let is_moved =
        async || (timers(&*store, &Queue::leases()).await[0].due_at - deadline).abs() < TimeDelta::seconds(2);
    let moved = async {
        while !is_moved().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(super::PATIENCE, moved).await.expect("a keeper takes the timer");
    assert_eq!(store.get(&stored.key).await.unwrap().version, stored.version);
    attempt.renew().await.unwrap();
}
