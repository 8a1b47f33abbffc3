//! The earliest start of the next attempt at a task that waits for a worker.

use chrono::TimeDelta;
use mcp_task_store::{Due, Next, Priority, Queue, TaskStatus};
use rstest_reuse::apply;

use super::{open, resumable};
use crate::common::{LONG, record, set_earliest_start, start};
use crate::support::{Engine, Store, on_every_engine, timers};

const HOUR: TimeDelta = TimeDelta::hours(1);
const HOUR_MS: u64 = 3_600_000;

/// Takes the only timer of a queue as soon as it is due.
async fn take(store: &Store, queues: &[Queue]) -> Due {
    loop {
        let taken = store.take_due(queues, 5, LONG).await.unwrap();
        match (&taken.due[..], taken.next_in) {
            ([due], _) => return due.clone(),
            ([], Some(next_in)) => tokio::time::sleep(next_in).await,
            other => panic!("there is one timer: {other:?}"),
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_claim_before_the_earliest_start_is_refused_and_keeps_the_timer_of_the_task(
    #[case] engine: Engine,
) {
    let (store, tasks, other) = open(engine, LONG).await;
    let work = [Queue::work("render", Priority::Normal).unwrap()];
    let (key, attempt) = start(&tasks, resumable()).await;
    attempt.release().await.unwrap();
    let due = take(&store, &work).await;
    let earliest = store.now() + HOUR;
    set_earliest_start(&*store, &key, earliest, Some(HOUR_MS)).await;
    let before = store.get(&key).await.unwrap();
    assert!(other.claim(&key).await.unwrap().is_none(), "the earliest start has not come");
    assert_eq!(store.get(&key).await.unwrap(), before);
    // The worker that has taken the timer removes it after the claim, as after any other claim.
    store.resolve(&due, Next::Remove).await.unwrap();
    let [timer] = &timers(&*store, &work[0]).await[..] else { panic!("the timer stays") };
    assert!(timer.due_at <= earliest + TimeDelta::seconds(10), "{timer:?} for {earliest}");

    set_earliest_start(&*store, &key, store.now(), Some(HOUR_MS)).await;
    let (claimed, next) = other.claim(&key).await.unwrap().expect("the earliest start has come");
    assert_eq!((next.number(), claimed.task.lease.as_ref().unwrap().delay_ms), (2, None));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_clock_that_is_set_back_delays_a_claim_no_longer_than_the_lease_states(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, resumable()).await;
    attempt.release().await.unwrap();
    let released = record(&*store, &key).await.lease.unwrap();
    assert_eq!(released.delay_ms, Some(0), "a released task may start at once");
    // A record of an earlier version states no delay. The delay then follows from the number of losses.
    for delay_ms in [Some(0), None] {
        set_earliest_start(&*store, &key, store.now() + HOUR, delay_ms).await;
        let (_, attempt) = other.claim(&key).await.unwrap().expect("the task waits for a worker");
        attempt.release().await.unwrap();
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_is_refused_before_its_earliest_start_can_still_be_cancelled(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let (key, attempt) = start(&tasks, resumable()).await;
    attempt.release().await.unwrap();
    set_earliest_start(&*store, &key, store.now() + HOUR, Some(HOUR_MS)).await;
    assert!(other.claim(&key).await.unwrap().is_none());
    assert_eq!(tasks.request_cancel(&key).await.unwrap().task.status, TaskStatus::Cancelled);
    assert!(other.claim(&key).await.unwrap().is_none());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_timer_of_a_refused_claim_fires_at_the_earliest_start(#[case] engine: Engine) {
    let (store, tasks, other) = open(engine, LONG).await;
    let work = [Queue::work("render", Priority::Normal).unwrap()];
    let (key, attempt) = start(&tasks, resumable()).await;
    attempt.release().await.unwrap();
    let mut due = take(&store, &work).await;
    let earliest = store.now() + TimeDelta::milliseconds(500);
    set_earliest_start(&*store, &key, earliest, Some(500)).await;
    let mut attempts = 0;
    let claimed = loop {
        attempts += 1;
        if let Some((claimed, _attempt)) = other.claim(&key).await.unwrap() {
            break claimed;
        }
        store.resolve(&due, Next::Remove).await.unwrap();
        due = take(&store, &work).await;
    };
    assert!(attempts >= 2, "the first claim is refused");
    let earliest = earliest - TimeDelta::milliseconds(1);
    assert!(claimed.task.last_updated_at >= earliest, "{claimed:?} before {earliest}");
}
