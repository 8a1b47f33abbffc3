//! How many workers of a task may be lost.

use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use mcp_task_store::{Next, Priority, Queue, Task, TaskKey, TaskStatus};
use rstest::rstest;
use rstest_reuse::apply;

use super::{
    LONG, SHORT, Tasks, claim_now, config, has_ended, open, plain, record, resumable, start, until,
    waits_for_a_worker,
};
use crate::support::elsewhere::elsewhere;
use crate::support::{Engine, Printed, Store, in_a_process_that_dies, on_every_engine, timers};

const GAVE_UP: &str = "gave up after 3 attempts: the worker was lost";

fn losses(task: &Task) -> u32 {
    task.lease.as_ref().unwrap().losses
}

/// Starts a task, or the next attempt at one, in a process that dies at once.
async fn start_and_die(store: &Store, key: Option<TaskKey>) -> (TaskKey, u32) {
    let agenda = elsewhere(&store.backend);
    let life = async move {
        let tasks = open(&agenda, config(SHORT));
        let (key, attempt) = match key {
            None => start(&tasks, resumable()).await,
            Some(key) => {
                let attempt = claim_now(&tasks, &key).await;
                (key, attempt)
            }
        };
        let number = attempt.number();
        std::mem::forget(attempt);
        (key, number)
    };
    in_a_process_that_dies(life).await
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_whose_process_dies_three_times_fails_with_a_reason(#[case] engine: Engine) {
    let store = engine.open().await;
    let survivor = open(&store.backend, config(LONG));
    let (key, first) = start_and_die(&store, None).await;
    let mut numbers = vec![first];
    for lost in 1..3 {
        assert_eq!(losses(&until(&*store, &key, waits_for_a_worker).await), lost);
        numbers.push(start_and_die(&store, Some(key.clone())).await.1);
    }
    let failed = until(&*store, &key, has_ended).await;
    assert_eq!(numbers, [1, 2, 3], "no attempt number is used twice");
    assert_gave_up(&failed, GAVE_UP);
    // The task stays readable, and no worker can claim it.
    assert_eq!(survivor.get(&key).await.unwrap().task.status, TaskStatus::Failed);
    assert!(survivor.claim(&key).await.unwrap().is_none());
}

fn assert_gave_up(task: &Task, message: &str) {
    let error = task.error.as_ref().unwrap();
    assert_eq!((task.status, error.code, &*error.message), (TaskStatus::Failed, -32603, message));
    assert_eq!((task.status_message.as_deref(), &task.lease), (Some(message), &None));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_whose_attempt_is_dropped_three_times_fails_with_a_reason(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store.backend, config(LONG));
    let (key, attempt) = start(&tasks, resumable()).await;
    assert_eq!(record(&*store, &key).await.max_attempts, None, "the record does not contain the default");
    drop(attempt);
    for number in [2, 3] {
        until(&*store, &key, waits_for_a_worker).await;
        let attempt = claim_now(&tasks, &key).await;
        assert_eq!(attempt.number(), number);
        // The writes of the holder do not change the number of losses.
        let renewed = attempt.renew().await.unwrap();
        assert_eq!(losses(&renewed.task), number - 1);
    }
    assert_gave_up(&until(&*store, &key, has_ended).await, GAVE_UP);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn ten_releases_in_a_row_do_not_count(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store.backend, config(LONG));
    let (key, mut attempt) = start(&tasks, resumable()).await;
    for _ in 0..10 {
        let released = attempt.release().await.unwrap();
        assert_eq!((released.task.status, losses(&released.task)), (TaskStatus::Working, 0));
        attempt = claim_now(&tasks, &key).await;
    }
    assert_eq!(attempt.number(), 11);
    for _ in 0..2 {
        drop(attempt);
        until(&*store, &key, waits_for_a_worker).await;
        // Releases between two losses do not count either.
        let begun = claim_now(&tasks, &key).await;
        let released = begun.release().await.unwrap();
        assert!(
            released.task.lease.as_ref().unwrap().deadline <= store.now(),
            "the next attempt may begin at once"
        );
        attempt = claim_now(&tasks, &key).await;
    }
    drop(attempt);
    assert_gave_up(&until(&*store, &key, has_ended).await, GAVE_UP);
}

#[rstest]
#[case::of_the_task(Some(1), None, 1, "gave up after 1 attempt: the worker was lost")]
#[case::of_the_store(None, Some(2), 2, "gave up after 2 attempts: the worker was lost")]
#[case::of_the_task_if_both_have_one(Some(5), Some(1), 5, "gave up after 5 attempts: the worker was lost")]
#[case::at_least_one(Some(0), Some(0), 1, "gave up after 1 attempt: the worker was lost")]
#[tokio::test]
async fn the_bound_comes_from_the_task_or_else_from_the_store_that_created_it(
    #[case] of_task: Option<u32>,
    #[case] of_store: Option<u32>,
    #[case] bound: u32,
    #[case] message: &str,
) {
    let store = Engine::Memory.open().await;
    let with = |of_store: Option<u32>| of_store.map_or(config(LONG), |max| config(LONG).max_attempts(max));
    let creator = open(&store.backend, with(of_store));
    let new = of_task.map_or(resumable(), |max| resumable().max_attempts(max));
    let (key, attempt) = start(&creator, new).await;
    assert_eq!(
        record(&*store, &key).await.max_attempts,
        Some(bound),
        "the record states the bound for every keeper"
    );
    drop(attempt);
    // The setting of a store that claims the task later has no effect.
    let other = open(&store.backend, config(LONG).max_attempts(9));
    for _ in 1..bound {
        until(&*store, &key, waits_for_a_worker).await;
        drop(claim_now(&other, &key).await);
    }
    assert_gave_up(&until(&*store, &key, has_ended).await, message);
}

#[tokio::test]
async fn a_task_that_cannot_resume_has_no_bound_and_fails_when_its_first_worker_is_lost() {
    let store = Engine::Memory.open().await;
    let tasks = open(&store.backend, config(LONG).max_attempts(7));
    let (key, attempt) = start(&tasks, plain().max_attempts(5)).await;
    drop(attempt);
    let failed = until(&*store, &key, has_ended).await;
    assert_eq!(
        (failed.max_attempts, failed.error.unwrap().message),
        (None, "the worker of the task was lost".into())
    );
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_cancel_was_requested_is_cancelled_although_its_bound_is_reached(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = open(&store.backend, config(LONG));
    let (key, attempt) = start(&tasks, resumable().max_attempts(1)).await;
    tasks.request_cancel(&key).await.unwrap();
    drop(attempt);
    let ended = until(&*store, &key, has_ended).await;
    assert_eq!((ended.status, ended.error), (TaskStatus::Cancelled, None));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn each_task_of_a_process_that_dies_counts_one_loss(#[case] engine: Engine) {
    let store = engine.open().await;
    let agenda = elsewhere(&store.backend);
    let life = async move {
        let tasks = open(&agenda, config(SHORT));
        let begun = join_all((0..5).map(|_| start(&tasks, resumable()))).await;
        let keys: Vec<TaskKey> = begun.iter().map(|(key, _)| key.clone()).collect();
        std::mem::forget(begun);
        keys
    };
    let keys = in_a_process_that_dies(life).await;
    // The number of keepers makes no difference.
    let _survivors: Vec<Tasks> = (0..3).map(|_| open(&store.backend, config(LONG))).collect();
    for key in &keys {
        assert_eq!(losses(&until(&*store, key, waits_for_a_worker).await), 1);
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_next_attempt_begins_at_once_after_the_first_loss_and_10_s_after_the_second(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = open(&store.backend, config(LONG));
    let work = Queue::work("render", Priority::Normal).unwrap();
    let (key, attempt) = start(&tasks, resumable()).await;
    drop(attempt);
    until(&*store, &key, waits_for_a_worker).await;
    let due = async {
        loop {
            let taken = store.take_due(std::slice::from_ref(&work), 5, LONG).await.unwrap();
            if let [due] = &taken.due[..] {
                return due.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let due = tokio::time::timeout(Duration::from_secs(5), due).await.expect("the timer is due at once");
    let attempt = claim_now(&tasks, &key).await;
    store.resolve(&due, Next::Remove).await.unwrap();

    let before = store.now();
    drop(attempt);
    let lease = until(&*store, &key, waits_for_a_worker).await.lease.unwrap();
    let scheduled = async {
        loop {
            if let [timer] = &timers(&*store, &work).await[..] {
                return timer.due_at;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let due_at =
        tokio::time::timeout(Duration::from_secs(60), scheduled).await.expect("the timer is scheduled");
    let delay = TimeDelta::seconds(10);
    // Records hold whole milliseconds.
    let earliest = before + delay - TimeDelta::milliseconds(1);
    assert!(lease.deadline >= earliest && lease.deadline <= store.now() + delay, "{lease:?}");
    assert!((due_at - lease.deadline).abs() < TimeDelta::seconds(2), "{due_at} for {lease:?}");
    assert!(tasks.claim(&key).await.unwrap().is_none(), "the earliest start has not come");
    assert_eq!(claim_now(&tasks, &key).await.number(), 3);
}

#[tokio::test]
async fn the_log_names_each_lost_worker_once_and_reports_that_the_task_gave_up() {
    let log = Printed::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    // With a single subscriber, a thread of another test that has no subscriber would switch events off for all threads.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _guard = tracing::subscriber::set_default(subscriber);
    let store = Engine::Memory.open().await;
    let tasks = open(&store.backend, config(LONG).max_attempts(2));
    let (key, attempt) = start(&tasks, resumable()).await;
    let holder = record(&*store, &key).await.lease.unwrap().holder.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(attempt);
    until(&*store, &key, waits_for_a_worker).await;
    drop(claim_now(&tasks, &key).await);
    until(&*store, &key, has_ended).await;
    let lines = async {
        while !log.text().contains("gave up") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let logged = tokio::time::timeout(Duration::from_secs(5), lines).await;
    assert!(logged.is_ok(), "{}", log.text());
    let text = log.text();
    let lost: Vec<&str> = text.lines().filter(|line| line.contains("worker lost")).collect();
    assert_eq!(lost.len(), 2, "{text}");
    for (line, attempt) in lost.iter().zip(["attempt=1", "attempt=2"]) {
        for part in [attempt, &format!("holder=\"{holder}\""), "silent=", &format!("task={}", key.task)] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
    assert!(lost[0].contains("ms"), "the line says for how long the worker was silent: {}", lost[0]);
    assert_eq!(text.lines().filter(|line| line.contains("gave up")).count(), 1, "{text}");
}

#[tokio::test]
async fn a_claim_that_is_dropped_before_its_work_begins_does_not_count() {
    let store = Engine::Memory.open().await;
    let spy = crate::support::spy::Spy::new(&store.backend);
    let tasks = open(&spy.agenda(), config(LONG).max_attempts(1));
    let (key, attempt) = start(&tasks, resumable()).await;
    attempt.release().await.unwrap();
    // The caller drops the claim after the engine has applied its write.
    spy.answers_take_ms.store(3_600_000, std::sync::atomic::Ordering::SeqCst);
    tokio::time::timeout(Duration::from_millis(100), tasks.claim(&key)).await.unwrap_err();
    spy.answers_take_ms.store(0, std::sync::atomic::Ordering::SeqCst);
    let waiting =
        until(&*store, &key, |task| waits_for_a_worker(task) && task.lease.as_ref().unwrap().attempt == 2)
            .await;
    assert_eq!(losses(&waiting), 0);
}
