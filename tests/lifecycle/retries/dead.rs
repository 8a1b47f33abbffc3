//! Dead tasks: they failed because their attempts are used up. Operators list and requeue them.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Cursor, NewTask, OwnerId, PartChange, PayloadKind, Priority, PutOptions, Queue, Retry, RpcError,
    StoreConfig, StoredTask, TaskError, TaskKey, TaskStatus, TaskStore, UniqueKey, UniqueStart,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

use super::{error, open};
use crate::common::{
    LONG, PATIENCE, TaskAttempt, Tasks, claim_now, has_ended, plain, resumable, start, until,
};
use crate::support::{Engine, on_every_agenda, on_every_engine, owner, timers};

/// Makes a task dead in its first attempt.
async fn dead(tasks: &Tasks, by: &str, new: NewTask) -> TaskKey {
    let (stored, attempt) = tasks.start(&owner(by), new.max_attempts(1)).await.unwrap();
    assert_eq!(attempt.retry(error()).await.unwrap().task.gave_up_after, Some(1));
    stored.key
}

async fn listed(tasks: &Tasks) -> Vec<TaskKey> {
    let (mut keys, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let page = tasks.dead_tasks(after.as_ref()).await.unwrap();
        keys.extend(page.tasks.into_iter().map(|stored| stored.key));
        after = page.next;
        if after.is_none() {
            keys.sort();
            return keys;
        }
    }
}

fn sorted(mut keys: Vec<TaskKey>) -> Vec<TaskKey> {
    keys.sort();
    keys
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn dead_tasks_of_all_owners_are_listed_and_no_other_task_is(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let mut keys = Vec::new();
    for number in 0..5 {
        keys.push(dead(&tasks, ["alice", "bob"][number % 2], resumable()).await);
    }
    // A worker is lost in its last attempt.
    let (lost, attempt) = start(&tasks, resumable().max_attempts(1)).await;
    drop(attempt);
    until(&*store, &lost, has_ended).await;
    keys.push(lost);
    // None of these has used up its attempts.
    let (_, failed) = start(&tasks, resumable().max_attempts(1)).await;
    failed.fail(error()).await.unwrap();
    let (_, once) = start(&tasks, plain()).await;
    once.retry(error()).await.unwrap();
    let (_, waits) = start(&tasks, resumable().retry(Retry::exponential(2, LONG, LONG))).await;
    waits.retry(error()).await.unwrap();
    let (cancelled, attempt) = start(&tasks, resumable().max_attempts(1)).await;
    tasks.request_cancel(&cancelled).await.unwrap();
    attempt.retry(error()).await.unwrap();
    assert_eq!(listed(&tasks).await, sorted(keys.clone()));
    let page = tasks.dead_tasks(None).await.unwrap();
    assert!(page.tasks.iter().all(|stored| stored.task.status == TaskStatus::Failed));
    // A task that was removed is no longer listed, although its timer stays.
    tasks.delete(&keys.remove(0)).await.unwrap();
    assert_eq!(listed(&tasks).await, sorted(keys));
    assert_refused!(tasks.dead_tasks(Some(&Cursor::from("forged"))).await, TaskError::InvalidPage { .. });
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_dead_task_leaves_the_list_and_the_queue_with_its_record(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let kept = dead(&tasks, "alice", resumable()).await;
    let short = resumable().retention(Duration::from_millis(300));
    let (stored, attempt) = tasks.start(&owner("bob"), short.max_attempts(1)).await.unwrap();
    let gave_up = attempt.retry(error()).await.unwrap();
    assert!(listed(&tasks).await.contains(&kept));
    store.until(gave_up.expires_at.unwrap()).await;
    assert_eq!(listed(&tasks).await, std::slice::from_ref(&kept));
    let removed = async {
        while timers(&*store, &Queue::dead()).await.iter().any(|timer| timer.key == stored.key) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, removed).await.expect("a keeper removes the timer");
    // A timer that fires early stays while the record does.
    store.schedule(&Queue::dead(), &kept, Duration::ZERO).await.unwrap();
    let moved = async {
        while timers(&*store, &Queue::dead()).await[0].due_at <= store.now() + Duration::from_secs(600) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, moved)
        .await
        .expect("a keeper moves the timer to the time at which the record may be gone");
    assert_eq!(listed(&tasks).await, [kept]);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_timer_of_a_dead_task_is_at_most_a_day_ahead(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    dead(&tasks, "alice", resumable().retention(Duration::from_secs(30 * 24 * 3600))).await;
    let [timer] = timers(&*store, &Queue::dead()).await.try_into().unwrap();
    let day = Duration::from_secs(24 * 3600);
    assert!(
        timer.due_at > store.now() + day / 2 && timer.due_at <= store.now() + day + Duration::from_secs(1)
    );
}

#[apply(on_every_engine)]
#[tokio::test]
async fn many_dead_tasks_are_listed_page_by_page(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let mut keys = Vec::new();
    for _ in 0..300 {
        keys.push(dead(&tasks, "alice", resumable()).await);
    }
    let first = tasks.dead_tasks(None).await.unwrap();
    assert!(first.tasks.len() < 300 && first.next.is_some(), "{}", first.tasks.len());
    assert_eq!(listed(&tasks).await, sorted(keys));
}

async fn run(tasks: &Tasks, requeued: &StoredTask) -> TaskAttempt {
    let (claimed, attempt) =
        tasks.claim(&requeued.key).await.unwrap().expect("the requeued task waits for a worker");
    assert_eq!((attempt.number(), claimed.task.lease.as_ref().unwrap().losses), (1, 0));
    attempt
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_requeued_task_has_the_options_of_the_ended_one_and_waits_for_a_worker(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    let retry = Retry::exponential(2, Duration::from_millis(1), Duration::from_secs(2)).jittered();
    let new = resumable()
        .arguments(json!({ "frames": 3 }))
        .ttl(Duration::from_secs(600))
        .retention(Duration::from_secs(900))
        .poll_interval(Duration::from_secs(7))
        .priority(Priority::High)
        .retry(retry)
        .extensions(json!({ "tenant": "acme" }).as_object().unwrap().clone())
        .traceparent("00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01")
        .status_message("queued");
    let (key, attempt) = start(&tasks, new).await;
    attempt.set_variables([("a", json!(1))]).await.unwrap();
    attempt.set_checkpoint(json!(1)).await.unwrap();
    attempt.retry(error()).await.unwrap();
    claim_now(&tasks, &key).await.retry(error()).await.unwrap();
    let ended = tasks.get(&key).await.unwrap();
    let requeued = other.requeue(&key).await.unwrap();
    assert_eq!(tasks.get(&key).await.unwrap(), ended, "the ended task stays as it is");
    let (new, old) = (&requeued.task, &ended.task);
    assert_eq!((&requeued.key.owner, new.requeued_from.as_ref()), (&key.owner, Some(&key.task)));
    assert_eq!(
        (new.ttl_ms, new.retention_ms, new.poll_interval_ms),
        (Some(600_000), Some(900_000), Some(7_000))
    );
    assert_eq!((&new.method, &new.operation, new.priority), (&old.method, &old.operation, Priority::High));
    assert_eq!(
        (&new.arguments, &new.extensions, &new.traceparent),
        (&old.arguments, &old.extensions, &old.traceparent)
    );
    assert_eq!((&new.retry, new.max_attempts, new.on_worker_lost), (&old.retry, Some(2), old.on_worker_lost));
    assert!(new.variables.is_empty() && new.checkpoint.is_none() && new.status_message.is_none());
    assert_eq!((new.status, new.gave_up_after, &new.error), (TaskStatus::Working, None, &None));
    assert!(new.created_at >= old.last_updated_at);
    let queue = Queue::work("render", Priority::High).unwrap();
    for queue in [queue, Queue::leases()] {
        assert!(timers(&*store, &queue).await.iter().any(|timer| timer.key == requeued.key), "{queue}");
    }
    run(&tasks, &requeued).await.complete(json!("done")).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_is_requeued_once_whoever_asks_and_then_leaves_the_list(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    let (key, another) = (dead(&tasks, "alice", resumable()).await, dead(&tasks, "bob", resumable()).await);
    let calls =
        (0..6).map(|number| if number % 2 == 0 { &tasks } else { &other }).map(|tasks| tasks.requeue(&key));
    let requeued: Vec<StoredTask> = futures_util::future::try_join_all(calls).await.unwrap();
    assert!(requeued.iter().all(|task| task.key == requeued[0].key && task.key != key));
    assert_eq!(store.ids("alice").await.len(), 2);
    assert_eq!(listed(&tasks).await, std::slice::from_ref(&another));
    run(&other, &requeued[0]).await.retry(error()).await.unwrap();
    let again = tasks.requeue(&key).await.unwrap();
    assert_eq!(
        (&again.key, again.task.status),
        (&requeued[0].key, TaskStatus::Failed),
        "the requeued task has ended"
    );
    // The requeued task is dead in turn, and can be requeued itself.
    assert_eq!(listed(&tasks).await, sorted(vec![again.key.clone(), another.clone()]));
    let third = tasks.requeue(&again.key).await.unwrap();
    assert_eq!(third.task.requeued_from.as_ref(), Some(&again.key.task));
    assert_eq!(listed(&tasks).await, std::slice::from_ref(&another));
    // Without the record of the requeued task, the dead one is listed again and can be requeued again.
    tasks.delete(&again.key).await.unwrap();
    assert_eq!(listed(&tasks).await, sorted(vec![key.clone(), another]));
    assert_eq!(tasks.requeue(&key).await.unwrap().key, again.key);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_with_large_arguments_is_requeued_with_them(#[case] engine: Engine) {
    let store = engine.open_roomy().await;
    let tasks = open(&store);
    let arguments = json!({ "scene": "x".repeat(1024 * 1024) });
    let key = dead(&tasks, "alice", resumable().arguments(arguments.clone())).await;
    let requeued = tasks.requeue(&key).await.unwrap();
    assert!(requeued.task.arguments.is_stored());
    let loaded = tasks.payload(&requeued, PayloadKind::Input).await.unwrap();
    assert!(loaded == Some(arguments), "the arguments are the same");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_cannot_be_requeued_is_refused_with_a_reason(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let refused = async |key: &TaskKey, reason: &str| {
        let error = tasks.requeue(key).await.unwrap_err();
        assert!(matches!(error, TaskError::InvalidArgument { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{reason} in {error}");
    };
    let (key, attempt) = start(&tasks, resumable().arguments(json!({ "a": 1 }))).await;
    refused(&key, "has not ended").await;
    attempt.complete(json!("done")).await.unwrap();
    assert!(tasks.requeue(&key).await.is_ok(), "a completed task can be requeued too");
    let (key, attempt) = start(&tasks, plain()).await;
    attempt.cancel().await.unwrap();
    refused(&key, "has no operation").await;
    let (key, attempt) = start(&tasks, plain().operation("render")).await;
    attempt.fail(error()).await.unwrap();
    refused(&key, "has no arguments").await;
    let later = dead(&tasks, "alice", resumable()).await;
    let mut json: Value = serde_json::from_slice(&store.get(&later).await.unwrap().data).unwrap();
    json["priority"] = json!("urgent");
    store.put(&later, json.to_string().into(), PutOptions::default()).await.unwrap();
    assert_refused!(tasks.requeue(&later).await, TaskError::LaterVersion { .. });
    let foreign = TaskKey { owner: owner("bob"), task: key.task.clone() };
    assert_refused!(tasks.requeue(&foreign).await, TaskError::NotFound { .. });
    let reserved = TaskKey { owner: OwnerId::try_from("\0mcp/workers").unwrap(), task: key.task };
    assert_refused!(tasks.requeue(&reserved).await, TaskError::NotFound { .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_whose_arguments_cannot_be_read_is_not_requeued(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let key = dead(&tasks, "alice", resumable().arguments(json!("x".repeat(5_000)))).await;
    let record = store.get(&key).await.unwrap();
    let mut options = PutOptions::default();
    options.parts.insert(PayloadKind::Input.part(), PartChange::Set("not JSON".into()));
    store.put(&key, record.data, options).await.unwrap();
    assert_refused!(tasks.requeue(&key).await, TaskError::Unreadable { .. });
    assert_eq!(store.ids("alice").await.len(), 1);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_unique_task_is_requeued_only_while_no_other_task_has_its_key(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    let unique = UniqueKey::new("render", "scene 7");
    let begin = async || match tasks
        .start_unique(&owner("alice"), resumable().max_attempts(1), &unique)
        .await
        .unwrap()
    {
        UniqueStart::Started { task, attempt } => (task.key, attempt),
        UniqueStart::Joined(task) => panic!("{task:?} is open"),
    };
    let (key, attempt) = begin().await;
    attempt.retry(error()).await.unwrap();
    let (open_key, blocker) = begin().await;
    let refused = tasks.requeue(&key).await.unwrap_err();
    assert!(refused.to_string().contains(open_key.task.as_str()), "{refused}");
    assert_eq!(store.ids("alice").await.len(), 2);
    blocker.complete(json!("done")).await.unwrap();

    let calls = [&tasks, &other, &tasks, &other].map(|tasks| tasks.requeue(&key));
    let requeued: Vec<StoredTask> = futures_util::future::try_join_all(calls).await.unwrap();
    assert!(requeued.iter().all(|task| task.key == requeued[0].key));
    let requeued = &requeued[0];
    match tasks.start_unique(&owner("alice"), resumable(), &unique).await.unwrap() {
        UniqueStart::Joined(task) => assert_eq!(task.key, requeued.key, "the requeued task has the key"),
        UniqueStart::Started { task, .. } => panic!("{task:?} is a second open task of the key"),
    }
    run(&other, requeued).await.complete(json!("done")).await.unwrap();
    assert_eq!(tasks.requeue(&key).await.unwrap().key, requeued.key, "it was requeued once");
    let (_, _attempt) = begin().await;
    assert_eq!(tasks.requeue(&key).await.unwrap().key, requeued.key, "also while another task has the key");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_attempts_of_a_requeued_task_are_those_of_the_ended_one(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, key) = (open(&store), {
        let config = StoreConfig::new().lease(LONG).retention(LONG).max_attempts(1);
        let creator: Tasks = TaskStore::with_config(Arc::clone(&store.backend), config);
        let (key, attempt) = start(&creator, resumable()).await;
        attempt.retry(RpcError::new(1, "broken")).await.unwrap();
        key
    });
    assert_eq!(tasks.requeue(&key).await.unwrap().task.max_attempts, Some(1));
    let json: Value = serde_json::from_slice(&store.get(&key).await.unwrap().data).unwrap();
    assert_eq!((&json["gaveUpAfter"], json.get("requeuedFrom")), (&json!(1), None));
}
