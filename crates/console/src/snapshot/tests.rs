use chrono::TimeDelta;
use mcp_task_store::{MemoryBackend, NewTask, OwnerId, StorageBackend, TaskStore};
use serde_json::json;

use super::query::Wanted;
use super::*;

async fn store() -> (TaskStore<MemoryBackend>, Snapshot) {
    let store = TaskStore::new(MemoryBackend::new());
    let snapshot = Snapshot::new(store.backend().now(), 3);
    (store, snapshot)
}

async fn create(store: &TaskStore<MemoryBackend>) -> StoredTask {
    let alice = OwnerId::try_from("alice").unwrap();
    store.create(&alice, NewTask::new("tools/call").operation("print")).await.unwrap()
}

#[tokio::test]
async fn a_complete_pass_removes_what_it_has_not_found() {
    let (store, snapshot) = store().await;
    let (stays, goes) = (create(&store).await, create(&store).await);
    let (mut tasks, now) = (snapshot.write(), store.backend().now());
    tasks.begin_pass(now);
    tasks.record(&stays, now);
    tasks.record(&goes, now);
    tasks.end_pass();
    tasks.begin_pass(now);
    tasks.record(&stays, now);
    assert_eq!(tasks.entries.len(), 2, "the pass is not over");
    tasks.end_pass();
    assert_eq!(tasks.entries.keys().collect::<Vec<_>>(), [&stays.key]);
}

#[tokio::test]
async fn a_full_snapshot_counts_what_it_leaves_out_and_follows_what_it_holds() {
    let (store, snapshot) = store().await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(create(&store).await);
    }
    let ended = store.complete(&all[0], json!({})).await.unwrap();
    let (mut tasks, now) = (snapshot.write(), store.backend().now());
    tasks.begin_pass(now);
    all.iter().for_each(|stored| tasks.record(stored, now));
    tasks.end_pass();
    assert_eq!((tasks.entries.len(), tasks.left_out.last_pass), (3, 2));
    tasks.record(&ended, now);
    assert_eq!(tasks.totals(None, now).all.completed, 1);
    let listed = tasks.list(None, &Wanted::default(), 0, 2, now);
    assert_eq!((listed.items.len(), listed.total), (2, 3));
}

#[tokio::test]
async fn the_last_hour_counts_each_task_once_and_outlives_its_record() {
    let (store, snapshot) = store().await;
    let alice = OwnerId::try_from("alice").unwrap();
    let waits = store.enqueue(&alice, NewTask::new("tools/call").operation("print")).await.unwrap();
    let (open, attempt) = store.claim(&waits.key).await.unwrap().unwrap();
    let ended = attempt.complete(json!({})).await.unwrap();
    let (mut tasks, now) = (snapshot.write(), store.backend().now());
    for read in [&waits, &open, &ended, &ended, &open, &ended] {
        tasks.record(read, now);
    }
    tasks.forget(&ended.key);
    let sum = |minutes: Vec<activity::Minute>| {
        minutes.iter().fold((0, 0, 0, 0), |(created, started, completed, failed), minute| {
            let (created, started) = (created + minute.created, started + minute.started);
            (created, started, completed + minute.completed, failed + minute.failed)
        })
    };
    assert_eq!(sum(tasks.activity.until(now)), (1, 1, 1, 0));
    assert_eq!(tasks.activity.until(now).len(), activity::MINUTES);
    assert_eq!(sum(tasks.activity.until(now + TimeDelta::minutes(58))), (1, 1, 1, 0));
    assert_eq!(sum(tasks.activity.until(now + TimeDelta::minutes(61))), (0, 0, 0, 0));
}

#[tokio::test]
async fn a_requeued_task_is_not_dead_although_its_record_stays_as_it_is() {
    let (store, snapshot) = store().await;
    let enqueued = create(&store).await;
    let gave_up = json!({ "status": "failed", "gaveUpAfter": 3 });
    let mut record = serde_json::to_value(&enqueued.task).unwrap();
    record.as_object_mut().unwrap().extend(gave_up.as_object().unwrap().clone());
    store.backend().put(&enqueued.key, record.to_string().into(), Default::default()).await.unwrap();
    let dead = store.get(&enqueued.key).await.unwrap();
    let (mut tasks, now) = (snapshot.write(), store.backend().now());
    let mut count = |listed: &[&TaskKey]| {
        tasks.record(&dead, now);
        tasks.set_dead(&listed.iter().copied().cloned().collect(), Instant::now());
        tasks.record(&dead, now);
        tasks.totals(None, now).all.dead
    };
    assert_eq!(count(&[&dead.key]), 1);
    assert_eq!(count(&[]), 0, "it was requeued");
    assert_eq!(count(&[&dead.key]), 1, "the new task is gone");
}

#[tokio::test]
async fn the_last_hour_goes_on_after_the_clock_of_the_engine_was_set_back() {
    let (store, snapshot) = store().await;
    let (mut tasks, now) = (snapshot.write(), store.backend().now());
    let created = |minutes: Vec<activity::Minute>| {
        (
            minutes.len(),
            minutes.iter().map(|minute| minute.created).sum::<u64>(),
            minutes.last().unwrap().created,
        )
    };
    tasks.record(&create(&store).await, now);
    assert_eq!(created(tasks.activity.until(now + TimeDelta::minutes(30))), (activity::MINUTES, 1, 0));
    tasks.record(&create(&store).await, now);
    assert_eq!(created(tasks.activity.until(now)), (activity::MINUTES, 2, 2));
    assert_eq!(created(tasks.activity.until(now + TimeDelta::days(1))), (activity::MINUTES, 0, 0));
    tasks.record(&create(&store).await, now);
    assert_eq!(created(tasks.activity.until(now)), (activity::MINUTES, 1, 1));
}
