//! Writes without an answer: the store resolves their outcome.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mcp_task_store::{
    LocalAgenda, OnWorkerLost, PageRequest, Queue, Retry, RpcError, StorageBackend, StoreConfig, TaskError,
    TaskStatus, TaskStore, Version,
};
use rstest::rstest;
use serde_json::json;
use tokio::task::JoinSet;

use super::call;
use super::faulty::{Fault, Faulty};
use crate::common::LONG;
use crate::support::{owner, timers};

#[rstest]
#[case::the_answer_was_lost(&[Fault::AnswerLost])]
#[case::the_write_was_lost(&[Fault::WriteLost])]
#[case::both_were_lost_in_turn(&[Fault::WriteLost, Fault::AnswerLost])]
#[case::the_write_was_lost_twice(&[Fault::WriteLost, Fault::WriteLost])]
#[case::the_write_arrived_late(&[Fault::Late])]
#[tokio::test]
async fn a_write_without_an_answer_is_resolved_and_applied_exactly_once(#[case] faults: &[Fault]) {
    let backend = Faulty::new();
    let tasks = TaskStore::new(LocalAgenda::new(Arc::clone(&backend)));
    let created = tasks.create(&owner("alice"), call()).await.unwrap();
    faults.iter().for_each(|fault| backend.inject(*fault));
    let done = tasks.complete(&created, json!("done")).await.unwrap();
    assert_eq!((done.task.status, done.version.get()), (TaskStatus::Completed, 2));
    assert_eq!(tasks.get(&created.key).await.unwrap(), done);
    assert!(backend.is_done());

    faults.iter().for_each(|fault| backend.inject(*fault));
    let created = tasks.create(&owner("bob"), call()).await.unwrap();
    assert_eq!(created.version, Version::FIRST);
    assert_eq!(tasks.list(&owner("bob"), PageRequest::new(9)).await.unwrap().tasks, [created]);
}

#[rstest]
#[case::the_answer_was_lost(0, &[Fault::AnswerLost])]
#[case::the_write_was_lost_twice(0, &[Fault::WriteLost, Fault::WriteLost])]
#[case::the_write_arrived_late(0, &[Fault::Late])]
#[case::the_timer_was_lost_twice(2, &[])]
#[case::the_timer_was_lost_then_the_write(1, &[Fault::WriteLost])]
#[tokio::test]
async fn a_start_without_an_answer_is_resolved_and_has_one_record_and_one_timer(
    #[case] lost_timers: usize,
    #[case] faults: &[Fault],
) {
    let backend = Faulty::new();
    let tasks = TaskStore::new(Arc::clone(&backend));
    faults.iter().for_each(|fault| backend.inject(*fault));
    backend.timers_without_answer.store(lost_timers, Ordering::Relaxed);
    let (started, attempt) = tasks.start(&owner("alice"), call()).await.unwrap();
    assert_eq!(started.version, Version::FIRST);
    assert_eq!(
        tasks.list(&owner("alice"), PageRequest::new(9)).await.unwrap().tasks,
        std::slice::from_ref(&started)
    );
    let [timer] = timers(&*backend, &Queue::leases()).await.try_into().unwrap();
    assert_eq!(timer.key, started.key);
    assert!(timer.due_at > started.task.lease.as_ref().unwrap().deadline);
    attempt.complete(json!("done")).await.unwrap();
    assert!(backend.is_done());
    assert_eq!(backend.timers_without_answer.load(Ordering::Relaxed), 0);
}

#[rstest]
#[case::the_answer_was_lost(&[Fault::AnswerLost])]
#[case::the_write_was_lost(&[Fault::WriteLost])]
#[case::the_write_was_lost_then_the_answer(&[Fault::WriteLost, Fault::AnswerLost])]
#[case::the_write_arrived_late(&[Fault::Late])]
#[case::another_process_wrote_first(&[Fault::Raced])]
#[tokio::test]
async fn a_retry_without_an_answer_is_resolved_and_counts_once(#[case] faults: &[Fault]) {
    let backend = Faulty::new();
    let tasks = TaskStore::new(Arc::clone(&backend));
    let new = call().operation("render").on_worker_lost(OnWorkerLost::Resume);
    let retry = Retry::exponential(2, Duration::from_millis(1), Duration::from_millis(1));
    let (started, attempt) = tasks.start(&owner("alice"), new.retry(retry)).await.unwrap();
    faults.iter().for_each(|fault| backend.inject(*fault));
    let retried = attempt.retry(RpcError::new(1, "out of paper")).await.unwrap();
    assert_eq!(retried.task.lease.as_ref().unwrap().losses, 1);
    assert_eq!(tasks.get(&started.key).await.unwrap(), retried);
    let (_, attempt) = loop {
        match tasks.claim(&started.key).await.unwrap() {
            Some(claimed) => break claimed,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    faults.iter().for_each(|fault| backend.inject(*fault));
    let failed = attempt.retry(RpcError::new(1, "out of paper")).await.unwrap();
    assert_eq!((failed.task.status, failed.task.gave_up_after), (TaskStatus::Failed, Some(2)));
    assert_eq!(tasks.get(&started.key).await.unwrap(), failed);
    assert!(backend.is_done());
    let [dead] = timers(&*backend, &Queue::dead()).await.try_into().unwrap();
    assert_eq!(dead.key, started.key);
}

#[rstest]
#[case::applied(Fault::AnswerLostAndOverwritten(4), Some("halfway"))]
#[case::not_applied(Fault::WriteLostAndOverwritten, None)]
#[tokio::test]
async fn an_outcome_that_cannot_be_resolved_is_reported_as_unknown(
    #[case] fault: Fault,
    #[case] message: Option<&str>,
) {
    let backend = Faulty::new();
    let tasks = TaskStore::new(LocalAgenda::new(Arc::clone(&backend)));
    let created = tasks.create(&owner("alice"), call()).await.unwrap();
    backend.inject(fault);
    let error = tasks.set_status_message(&created, "halfway").await.unwrap_err();
    assert!(error.outcome_unknown() && error.is_retryable(), "{error:?}");
    assert_eq!(error.code(), -32603);
    assert_eq!(tasks.get(&created.key).await.unwrap().task.status_message.as_deref(), message);
}

#[rstest]
#[case::the_answer_was_lost(Fault::AnswerLost, 6)]
#[case::the_write_was_lost(Fault::WriteLost, 5)]
#[tokio::test]
async fn a_write_without_an_answer_is_resolved_when_the_engine_answers_again(
    #[case] fault: Fault,
    #[case] reads_without_answer: usize,
) {
    let backend = Faulty::new();
    let tasks = TaskStore::new(LocalAgenda::new(Arc::clone(&backend)));
    let created = tasks.create(&owner("alice"), call()).await.unwrap();
    backend.inject(fault);
    backend.reads_without_answer.store(reads_without_answer, Ordering::Relaxed);
    let done = tasks.complete(&created, json!("done")).await.unwrap();
    assert_eq!(tasks.get(&created.key).await.unwrap(), done);
    assert_eq!(done.version.get(), 2);
}

#[tokio::test]
async fn an_overdue_task_is_returned_as_failed_while_the_engine_rejects_writes() {
    let backend = Faulty::new();
    let config = StoreConfig::new().retention(LONG);
    let tasks = TaskStore::with_config(LocalAgenda::new(Arc::clone(&backend)), config);
    let short = call().ttl(Duration::from_millis(20));
    let overdue = tasks.create(&owner("alice"), short).await.unwrap();
    let other = tasks.create(&owner("alice"), call()).await.unwrap();
    while backend.now() < overdue.task.deadline().unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (0..2).for_each(|_| backend.inject(Fault::Refused));
    let shown = tasks.get(&overdue.key).await.unwrap();
    assert_eq!((shown.task.status, shown.version), (TaskStatus::Failed, Version::FIRST));
    let page = tasks.list(&owner("alice"), PageRequest::new(9)).await.unwrap();
    assert_eq!((&page.tasks[0], &page.tasks[1].task), (&other, &shown.task));
    let ended = tasks.get(&overdue.key).await.unwrap();
    assert_eq!((ended.task.status, ended.version.get()), (TaskStatus::Failed, 2));
}

#[tokio::test]
async fn a_write_without_an_answer_is_resolved_after_three_later_writes() {
    let backend = Faulty::new();
    let tasks = TaskStore::new(LocalAgenda::new(Arc::clone(&backend)));
    let created = tasks.create(&owner("alice"), call()).await.unwrap();
    backend.inject(Fault::AnswerLostAndOverwritten(3));
    let found = tasks.set_status_message(&created, "halfway").await.unwrap();
    assert_eq!((found.version.get(), found.task.status_message.as_deref()), (5, Some("halfway")));
}

#[tokio::test]
async fn a_call_that_loses_every_compare_and_swap_is_contended_and_has_written_nothing() {
    let backend = Faulty::new();
    let config = StoreConfig::new().max_conflicts(3);
    let tasks = TaskStore::with_config(LocalAgenda::new(Arc::clone(&backend)), config);
    let created = tasks.create(&owner("alice"), call()).await.unwrap();
    (0..2).for_each(|_| backend.inject(Fault::Raced));
    tasks.set_status_message(&created.key, "in time").await.unwrap();
    (0..3).for_each(|_| backend.inject(Fault::Raced));
    let error = tasks.set_status_message(&created.key, "never").await.unwrap_err();
    assert!(matches!(error, TaskError::Contended { conflicts: 3, .. }), "{error:?}");
    assert!(error.is_retryable() && !error.outcome_unknown());
    assert_eq!(error.code(), -32603);
    let task = tasks.get(&created.key).await.unwrap();
    assert_eq!(task.task.status_message.as_deref(), Some("in time"));
}

#[tokio::test]
async fn writers_of_one_task_in_one_process_wait_in_a_queue() {
    let backend = Faulty::new();
    let tasks = TaskStore::new(LocalAgenda::new(Arc::clone(&backend)));
    let created = tasks.create(&owner("alice"), call()).await.unwrap();
    let mut queueing = JoinSet::new();
    for writer in 0..64 {
        let (tasks, key) = (tasks.clone(), created.key.clone());
        queueing
            .spawn(async move { tasks.set_variables(&key, [(writer.to_string(), json!(1))]).await.unwrap() });
    }
    queueing.join_all().await;
    assert_eq!(tasks.get(&created.key).await.unwrap().version.get(), 65);
    assert_eq!(backend.writes.load(Ordering::Relaxed), 65, "no write conflicted");
}
