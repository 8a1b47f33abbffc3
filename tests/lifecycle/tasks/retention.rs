//! How long the record of a task lives whose retention counts from its end.

use std::time::Duration;

use chrono::TimeDelta;
use mcp_task_store::{Expiry, OnWorkerLost, RpcError, StoreConfig, StoredTask, TaskError, TaskStatus, Ttl};
use rstest_reuse::apply;
use serde_json::json;

use super::{Tasks, call, open_with, seconds};
use crate::common::{LONG, SHORT, until};
use crate::support::{Engine, on_every_engine, owner};

const RETENTION: Duration = Duration::from_secs(20);

/// Asserts how long a record lives from the last change of its task on. The clock goes on between the calls of a test.
#[track_caller]
fn assert_lives(stored: &StoredTask, expected: Duration) {
    let lives = stored.expires_at.unwrap() - stored.task.last_updated_at;
    assert!(lives > TimeDelta::from_std(expected).unwrap() - TimeDelta::seconds(1), "{lives}");
    assert!(lives < TimeDelta::from_std(expected).unwrap() + TimeDelta::seconds(30), "{lives}");
}

async fn create(tasks: &Tasks, ttl: impl Into<Ttl>) -> StoredTask {
    tasks.create(&owner("alice"), call().ttl(ttl).retention(RETENTION)).await.unwrap()
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_lives_for_the_ttl_and_the_retention_of_its_task_until_the_task_ends(
    #[case] engine: Engine,
) {
    let (_store, tasks) = open_with(engine, StoreConfig::new().retention(LONG).max_ttl(None)).await;
    for end in [TaskStatus::Completed, TaskStatus::Failed, TaskStatus::Cancelled] {
        for ttl in [Ttl::After(LONG), Ttl::Unlimited] {
            let task = create(&tasks, ttl).await;
            assert_eq!(task.task.retention_ms, Some(20_000));
            match ttl {
                Ttl::Unlimited => assert_eq!(task.expires_at, None),
                _ => assert_lives(&task, LONG + RETENTION),
            }
            let longer = tasks.set_ttl(&task, LONG * 2).await.unwrap();
            assert_lives(&longer, LONG * 2 + RETENTION);
            let ended = match end {
                TaskStatus::Completed => tasks.complete(&longer, json!(1)).await.unwrap(),
                TaskStatus::Failed => tasks.fail(&longer, RpcError::new(1, "no")).await.unwrap(),
                _ => tasks.cancel(&longer).await.unwrap(),
            };
            assert_lives(&ended, RETENTION);
            assert_eq!(tasks.get(&ended.key).await.unwrap(), ended, "a change returns what is stored");
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_retention_counts_from_the_end_of_a_task_that_the_store_ends(#[case] engine: Engine) {
    let (store, tasks) = open_with(engine, StoreConfig::new().lease(SHORT).retention(LONG)).await;
    // The worker of the task leaves it.
    let new = call().ttl(LONG).retention(RETENTION).on_worker_lost(OnWorkerLost::Fail);
    let (lost, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
    drop(attempt);
    until(&*store.backend, &lost.key, |task| task.status == TaskStatus::Failed).await;
    assert_lives(&tasks.get(&lost.key).await.unwrap(), RETENTION);

    // The TTL of the task elapses.
    let brief = create(&tasks, Duration::from_millis(50)).await;
    store.until(brief.task.deadline().unwrap()).await;
    let overdue = tasks.get(&brief.key).await.unwrap();
    assert_eq!(overdue.task.status, TaskStatus::Failed);
    assert_eq!(overdue.expires_at, brief.expires_at, "the TTL was the end");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_retention_that_no_record_can_have_is_refused(#[case] engine: Engine) {
    let (_store, tasks) = open_with(engine, StoreConfig::new()).await;
    for retention in [Duration::ZERO, Duration::from_micros(999), Expiry::MAX + Duration::from_millis(1)] {
        let refused = tasks.create(&owner("alice"), call().retention(retention)).await;
        assert_refused!(refused, TaskError::InvalidArgument { .. });
    }
    tasks.create(&owner("alice"), call().retention(seconds(1))).await.unwrap();
}
