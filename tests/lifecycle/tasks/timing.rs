//! Changes of how long a task may run, and of how often a client polls it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use mcp_task_store::{
    Agenda, Expiry, OnWorkerLost, RpcError, StoreConfig, StoredTask, TaskError, TaskStatus, TaskStore, Ttl,
};
use rstest_reuse::apply;
use serde_json::json;

use super::{STATUSES, Tasks, call, create, in_status, open, open_with, seconds};
use crate::support::intercept::{Hooks, Intercept};
use crate::support::{Engine, on_every_engine, owner};

/// Asserts how long a record lives, counted from the creation of its task. The clock goes on between the calls of a test.
fn assert_lives(stored: &StoredTask, expected: i64) {
    let lives = stored.expires_at.unwrap() - stored.task.created_at;
    assert!(lives >= TimeDelta::seconds(expected), "{lives}");
    assert!(lives < TimeDelta::seconds(expected + 30), "{lives}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_lives_for_the_new_ttl_and_the_retention_and_both_count_from_the_creation(
    #[case] engine: Engine,
) {
    let retentions =
        [(None, [7200, 400]), (Some(seconds(5)), [3605, 205]), (Some(Duration::ZERO), [3600, 200])];
    for (retention, lives) in retentions {
        let (store, tasks) = open_with(engine, StoreConfig::new().retention(retention)).await;
        let created = tasks.create(&owner("alice"), call().ttl(seconds(60))).await.unwrap();
        store.until(created.task.created_at + TimeDelta::milliseconds(50)).await;
        let mut task = created.clone();
        for (ttl, lives) in [3600, 200].into_iter().zip(lives) {
            task = tasks.set_ttl(&task, seconds(ttl)).await.unwrap();
            assert_eq!(task.task.ttl_ms, Some(ttl * 1000));
            assert_lives(&task, lives);
            assert_eq!(tasks.get(&task.key).await.unwrap(), task, "a change returns what is stored");
            assert!(task.task.last_updated_at > created.task.last_updated_at);
            let later = tasks.set_status_message(&task, "later").await.unwrap();
            assert_eq!(later.expires_at, task.expires_at, "no other update changes the expiry");
            task = later;
        }
        let version = task.version;
        let same = tasks.set_ttl(&task, seconds(200)).await.unwrap();
        assert_eq!(same.version, version, "an equal TTL is not written");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_ttl_becomes_unlimited_and_limited_again_only_without_a_maximum(#[case] engine: Engine) {
    let (store, tasks) = open_with(engine, StoreConfig::new().max_ttl(None).retention(seconds(9))).await;
    let task = tasks.create(&owner("alice"), call().ttl(seconds(60))).await.unwrap();
    let unlimited = tasks.set_ttl(&task.key, Ttl::Unlimited).await.unwrap();
    assert_eq!((unlimited.task.ttl_ms, unlimited.expires_at), (None, None));
    assert_eq!(tasks.get(&task.key).await.unwrap(), unlimited);
    let limited = tasks.set_ttl(&task.key, seconds(100)).await.unwrap();
    assert_eq!(tasks.get(&task.key).await.unwrap(), limited);
    assert_lives(&limited, 109);
    let default = tasks.set_ttl(&task.key, Ttl::Default).await.unwrap();
    assert_eq!(default.task.ttl_ms, Some(3_600_000));

    let with_maximum = TaskStore::new(Arc::clone(&store.backend));
    for over in [Ttl::Unlimited, seconds(24 * 3600 + 1).into()] {
        let refused = with_maximum.set_ttl(&task.key, over).await;
        assert_refused!(refused, TaskError::LimitExceeded { .. });
    }
    assert_eq!(tasks.get(&task.key).await.unwrap(), default);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_ttl_that_is_too_short_or_too_long_for_the_engine_changes_nothing(#[case] engine: Engine) {
    let (store, tasks) = open_with(engine, StoreConfig::new().max_ttl(None)).await;
    let task = create(&tasks).await;
    store.until(task.task.created_at + TimeDelta::milliseconds(30)).await;
    let elapsed = Duration::from_millis(20);
    for ttl in [Duration::ZERO, Duration::from_micros(999), elapsed, Expiry::MAX, Duration::MAX] {
        let refused = tasks.set_ttl(&task, ttl).await;
        assert_refused!(refused, TaskError::InvalidArgument { .. });
        assert_eq!(tasks.get(&task.key).await.unwrap(), task);
    }
    let error = tasks.set_ttl(&task, elapsed).await.unwrap_err();
    assert!(error.to_string().contains("a TTL of 20ms has already elapsed"), "{error}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_ends_when_its_shorter_ttl_elapses_and_a_subscriber_and_a_wait_detect_it(
    #[case] engine: Engine,
) {
    let (store, tasks) = open(engine).await;
    let task = create(&tasks).await;
    let waits = tokio::spawn({
        let (tasks, key) = (tasks.clone(), task.key.clone());
        async move { tasks.wait(&key).await.unwrap() }
    });
    let mut watch = store.watch(&task.key);
    watch.next().await.unwrap().unwrap();
    // The TTL is long enough for the call on a busy machine.
    let soon = (store.now() - task.task.created_at).to_std().unwrap() + seconds(1);
    let shorter = tasks.set_ttl(&task, soon).await.unwrap();
    watch.next().await.unwrap().unwrap();
    let failed = waits.await.unwrap();
    assert!(store.now() >= shorter.task.deadline().unwrap());
    let expected = (TaskStatus::Failed, Some(RpcError::new(-32603, "TTL elapsed")));
    assert_eq!((failed.task.status, failed.task.error.clone()), expected);
    assert_eq!(failed.expires_at, shorter.expires_at, "it stays readable for its retention");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_outlives_its_first_ttl_after_a_longer_one_was_set(#[case] engine: Engine) {
    let (store, tasks) = open_with(engine, StoreConfig::new().retention(Duration::ZERO)).await;
    let created = tasks.create(&owner("alice"), call().ttl(seconds(2))).await.unwrap();
    tasks.set_ttl(&created, seconds(600)).await.unwrap();
    store.until(created.expires_at.unwrap() + TimeDelta::milliseconds(50)).await;
    assert_eq!(tasks.get(&created.key).await.unwrap().task.status, TaskStatus::Working);
    assert_eq!(tasks.complete(&created.key, json!(1)).await.unwrap().task.status, TaskStatus::Completed);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn only_a_task_that_has_not_ended_gets_another_ttl_or_poll_interval(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    for status in STATUSES {
        let task = in_status(&tasks, status).await;
        let set = [
            tasks.set_ttl(&task, seconds(60)).await,
            tasks.set_poll_interval(&task.key, Duration::from_micros(1500)).await,
        ];
        for set in set {
            match status.is_terminal() {
                true => assert_refused!(set, TaskError::InvalidTransition { from, .. } if from == status),
                false => assert_eq!(set.unwrap().task.status, status),
            }
        }
        let stored = tasks.get(&task.key).await.unwrap();
        match status.is_terminal() {
            true => assert_eq!(stored, task),
            false => assert_eq!((stored.task.ttl_ms, stored.task.poll_interval_ms), (Some(60_000), Some(2))),
        }
    }
    let task = create(&tasks).await;
    for interval in [Duration::ZERO, Duration::from_micros(999), seconds(24 * 3600) + Duration::from_nanos(1)]
    {
        assert_refused!(tasks.set_poll_interval(&task, interval).await, TaskError::InvalidArgument { .. });
    }
    assert_eq!(tasks.get(&task.key).await.unwrap(), task);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn racing_changes_of_the_ttl_and_other_updates_are_all_applied(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let another = TaskStore::new(Arc::clone(&store.backend));
    let task = create(&tasks).await;
    let ttls = async |tasks: &Tasks, first: u64| {
        for ttl in first..first + 20 {
            // The copy is outdated after the first round.
            tasks.set_ttl(&task, seconds(ttl)).await.unwrap();
        }
    };
    let variables = async {
        for number in 0..40 {
            tasks.set_variables(&task, [(number.to_string(), json!(number))]).await.unwrap();
        }
    };
    tokio::join!(ttls(&tasks, 100), ttls(&another, 200), variables);
    let stored = tasks.get(&task.key).await.unwrap();
    assert_eq!((stored.version.get(), stored.task.variables.len()), (81, 40));
    let ttl = stored.task.ttl_ms.unwrap() / 1000;
    assert!([119, 219].contains(&ttl), "{ttl}");
    assert_lives(&stored, ttl as i64 * 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_changes_the_ttl_and_the_poll_interval_only_while_it_holds_the_lease(
    #[case] engine: Engine,
) {
    let (_store, tasks) = open(engine).await;
    let new = call().operation("render").on_worker_lost(OnWorkerLost::Resume);
    let (task, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
    let renewals = |stored: &StoredTask| stored.task.lease.as_ref().unwrap().renewals;
    let longer = attempt.set_ttl(seconds(7200)).await.unwrap();
    assert_eq!((longer.task.ttl_ms, renewals(&longer)), (Some(7_200_000), 1), "the write renews the lease");
    assert_lives(&longer, 14_400);
    let slower = attempt.set_poll_interval(seconds(5)).await.unwrap();
    assert_eq!((slower.task.poll_interval_ms, renewals(&slower)), (Some(5000), 2));
    attempt.release().await.unwrap();
    for late in [attempt.set_ttl(seconds(60)).await, attempt.set_poll_interval(seconds(1)).await] {
        assert_refused!(late, TaskError::LeaseLost { .. });
    }
    let released = tasks.get(&task.key).await.unwrap().task;
    assert_eq!((released.ttl_ms, released.poll_interval_ms), (Some(7_200_000), Some(5000)));
}

/// An engine whose estimate of the clock is an hour ahead, as after the clock was set back.
struct Ahead(Arc<dyn Agenda>);

#[async_trait]
impl Hooks for Ahead {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.0)
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.now() + TimeDelta::hours(1)
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_expiry_of_a_record_follows_the_clock_of_the_engine_not_an_estimate_that_is_ahead(
    #[case] engine: Engine,
) {
    let (store, tasks) = open(engine).await;
    let ahead = TaskStore::new(Intercept::new(Ahead(Arc::clone(&store.backend))).agenda());
    let task = create(&tasks).await;
    for ttl in [60, 7200] {
        assert_lives(&ahead.set_ttl(&task.key, seconds(ttl)).await.unwrap(), 2 * ttl as i64);
    }
}
