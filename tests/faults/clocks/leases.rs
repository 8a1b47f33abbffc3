//! Leases while the clock of the server steps: no live worker is declared lost, and lost workers are detected.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use mcp_task_store::{Agenda, NewTask, StoreConfig, Task, TaskKey, TaskStatus, TaskStore};
use rstest::rstest;

use super::stepped::Stepped;
use super::time_of;
use crate::support::elsewhere::elsewhere;
use crate::support::{in_a_process_that_dies, key, owner};

const PATIENCE: Duration = Duration::from_secs(60);

fn config(lease: Duration) -> StoreConfig {
    StoreConfig::new().lease(lease).retention(Duration::from_secs(4 * 3600))
}

fn open(agenda: &Arc<dyn Agenda>, lease: Duration) -> TaskStore<Arc<dyn Agenda>> {
    TaskStore::with_config(Arc::clone(agenda), config(lease))
}

fn task() -> NewTask {
    NewTask::new("tools/call")
}

async fn record(agenda: &dyn Agenda, key: &TaskKey) -> Task {
    serde_json::from_slice(&agenda.get(key).await.unwrap().data).unwrap()
}

/// Starts a task in another process, which dies at once. Returns its key and when it started.
async fn lost(agenda: &Arc<dyn Agenda>, lease: Duration) -> (TaskKey, Instant) {
    let agenda = elsewhere(agenda);
    let life = async move {
        let (stored, attempt) = open(&agenda, lease).start(&owner("alice"), task()).await.unwrap();
        attempt.renew().await.unwrap();
        std::mem::forget(attempt);
        (stored.key, Instant::now())
    };
    in_a_process_that_dies(life).await
}

/// Reads a task until it has failed. Returns how long that took.
async fn found(reader: &TaskStore<Arc<dyn Agenda>>, key: &TaskKey, since: Instant) -> Duration {
    let reading = async {
        while reader.get(key).await.unwrap().task.status != TaskStatus::Failed {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the lost worker is detected");
    since.elapsed()
}

fn figure(what: &str, found: Duration, lease: Duration) {
    let promised = lease * 4 / 3 + Duration::from_secs(5);
    println!("figure | {what} | found after {found:.1?} of {promised:.1?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_clock_steps_forward_by_two_minutes_a_live_worker_of_another_instance_is_not_lost() {
    let lease = Duration::from_secs(6);
    let stepped = Stepped::start("+0");
    let (there, here) = (stepped.agenda().await, stepped.agenda().await);
    let worker = open(&elsewhere(&there), lease);
    let observer = open(&here, lease);
    let (stored, attempt) = worker.start(&owner("alice"), task()).await.unwrap();
    let renewing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(lease / 3).await;
            attempt.renew().await.unwrap();
        }
    });
    observer.get(&stored.key).await.unwrap();
    assert!(stepped.step("+2m") > TimeDelta::seconds(110));
    // Three observations of a lapsed lease.
    let until = Instant::now() + (lease / 3 + Duration::from_secs(1)) * 3;
    while Instant::now() < until {
        assert_eq!(observer.get(&stored.key).await.unwrap().task.status, TaskStatus::Working);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!renewing.is_finished());
    renewing.abort();
    let (key, since) = lost(&there, lease).await;
    figure("row 6: the clock has stepped forward by 120 s", found(&observer, &key, since).await, lease);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_clock_steps_forward_by_two_minutes_a_single_instance_does_not_declare_its_own_worker_lost()
{
    let lease = Duration::from_secs(3);
    let stepped = Stepped::start("+0");
    let agenda = stepped.agenda().await;
    let tasks = open(&agenda, lease);
    let (stored, attempt) = tasks.start(&owner("alice"), task()).await.unwrap();
    assert!(stepped.step("+2m") > TimeDelta::seconds(110));
    // The worker does not renew its lease during this time.
    let until = Instant::now() + lease + (lease / 3 + Duration::from_secs(1)) * 2;
    while Instant::now() < until {
        assert_eq!(tasks.get(&stored.key).await.unwrap().task.status, TaskStatus::Working);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let begun = Instant::now();
    drop(attempt);
    figure("row 6: an attempt is dropped after that", found(&tasks, &stored.key, begun).await, lease);
}

#[rstest]
#[case::by_a_minute("+59m", TimeDelta::seconds(60))]
#[case::by_50_minutes("+10m", TimeDelta::minutes(50))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_clock_was_set_back_a_store_that_only_reads_fails_no_task(
    #[case] offset: &str,
    #[case] by: TimeDelta,
) {
    let lease = Duration::from_secs(30);
    let stepped = Stepped::start("+1h");
    let agenda = stepped.agenda().await;
    let reader = open(&agenda, lease);
    // The reader's estimate leads until the reader next reads the clock, which may happen together with the step.
    let mut steps = 0;
    loop {
        assert!((stepped.step(offset) + by).abs() < TimeDelta::seconds(10));
        let lead = agenda.now() - time_of(&stepped.server);
        if lead > by - TimeDelta::seconds(10) {
            break;
        }
        steps += 1;
        assert!(steps < 20, "the reader's estimate leads by {lead}");
        stepped.step("+1h");
        agenda.clock(&key("alice", "none")).await.unwrap();
    }
    // These stores have read the clock after the step.
    let others = open(&elsewhere(&stepped.agenda().await), lease);
    let young = others.create(&owner("alice"), task().ttl(Duration::from_secs(1800))).await.unwrap();
    assert_eq!(reader.get(&young.key).await.unwrap().task.status, TaskStatus::Working);
    let (at_work, _attempt) = others.start(&owner("alice"), task()).await.unwrap();
    // Longer than an observation.
    let until = Instant::now() + lease / 3 + Duration::from_secs(4);
    while Instant::now() < until {
        for stored in [&at_work, &young] {
            assert_eq!(reader.get(&stored.key).await.unwrap().task.status, TaskStatus::Working);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for stored in [at_work, young] {
        assert_eq!(record(&*agenda, &stored.key).await.status, TaskStatus::Working);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_before_the_clock_is_set_back_by_a_day_is_detected() {
    let lease = Duration::from_secs(3);
    let stepped = Stepped::start("+1d");
    let agenda = stepped.agenda().await;
    let (key, since) = lost(&agenda, lease).await;
    assert!(stepped.step("+0") < TimeDelta::hours(-23));
    // The timer fires only in a day. So a reader must detect the lost worker, with a right estimate of the clock or a leading one.
    let reader = open(&stepped.agenda().await, lease);
    figure("row 8: the clock was set back by a day", found(&reader, &key, since).await, lease);
    assert!(record(&*agenda, &key).await.error.is_some());
}
