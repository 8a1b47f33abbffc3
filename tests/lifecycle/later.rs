//! Records of later versions of the crate: this version reads them, and changes only those that lose nothing by it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mcp_task_store::{
    OnWorkerLost, PageRequest, PayloadKind, Queue, RpcError, StoreConfig, StoredTask, TaskError, TaskKey,
    TaskStatus, TaskStore,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::common::{LONG, SHORT, Tasks, plain, resumable, within};
use crate::support::{
    Engine, Printed, Store, keep, on_every_agenda, on_every_engine, owner, subscribe, timers,
};

fn tasks_on(store: &Store, lease: Duration) -> Tasks {
    TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().lease(lease).retention(LONG))
}

/// Sets a field of a record, as a later version does.
async fn set(store: &Store, key: &TaskKey, field: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&data(store, key).await).unwrap();
    json[field] = value;
    store.put(key, json.to_string().into(), keep()).await.unwrap();
}

async fn data(store: &Store, key: &TaskKey) -> Bytes {
    store.get(key).await.unwrap().data
}

async fn field(store: &Store, key: &TaskKey, field: &str) -> Value {
    serde_json::from_slice::<Value>(&data(store, key).await).unwrap()[field].take()
}

/// Waits until a keeper has taken the timer of the lease, and has moved it into the future.
async fn until_kept(store: &Store, key: &TaskKey) {
    store.schedule(&Queue::leases(), key, Duration::ZERO).await.unwrap();
    let moved = async {
        let half = store.now() + LONG / 2;
        while timers(&**store, &Queue::leases())
            .await
            .iter()
            .any(|timer| timer.key == *key && timer.due_at < half)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(moved).await;
    let is_left = timers(&**store, &Queue::leases()).await.iter().any(|timer| timer.key == *key);
    assert!(is_left, "the timer of an open task stays");
}

fn assert_later(result: Result<StoredTask, TaskError>, found: &str) {
    let error = result.expect_err("the change would lose something");
    assert!(matches!(&error, TaskError::LaterVersion { found: what, .. } if what == found), "{error}");
    assert!(!error.is_retryable() && !error.outcome_unknown());
    assert!(error.to_string().ends_with("upgrade this instance"), "{error}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_that_only_a_later_version_may_change_is_read_and_listed_and_no_change_reaches_it(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    for (name, value, found) in
        [("format", json!(2), "format `2`"), ("status", json!("paused"), "status `paused`")]
    {
        let tasks = tasks_on(&store, LONG);
        let owner = owner(name);
        let arguments = json!({ "text": "x".repeat(5000) });
        let new = plain().ttl(Duration::from_millis(1)).arguments(arguments.clone());
        let key = tasks.create(&owner, new).await.unwrap().key;
        set(&store, &key, name, value).await;
        // The TTL has elapsed too: a later version ends the task.
        store.until(store.now() + Duration::from_millis(5)).await;
        let before = data(&store, &key).await;

        let read = tasks.get(&key).await.unwrap();
        assert_eq!(read.task.status, TaskStatus::Working);
        assert_eq!(
            tasks.list(&owner, PageRequest::new(10)).await.unwrap().tasks,
            std::slice::from_ref(&read)
        );
        assert_eq!(tasks.payload(&read, PayloadKind::Input).await.unwrap(), Some(arguments));
        assert!(tokio::time::timeout(SHORT, tasks.wait(&key)).await.is_err(), "the task has not ended");

        assert_later(tasks.set_status_message(&key, "x").await, found);
        assert_later(tasks.set_status_message(&read, "x").await, found);
        assert_later(tasks.request_input(&key, [("a", json!({}))]).await, found);
        assert_later(tasks.set_variables(&key, [("a".to_owned(), json!(1))]).await, found);
        assert_later(tasks.request_cancel(&key).await, found);
        assert_later(tasks.cancel(&key).await, found);
        assert_later(tasks.complete(&read, json!(1)).await, found);
        assert_later(tasks.fail(&key, RpcError::new(1, "x")).await, found);
        assert_eq!(data(&store, &key).await, before);
        tasks.delete(&key).await.unwrap();
        assert_refused!(tasks.get(&key).await, TaskError::NotFound { .. });
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_unknown_priority_or_reaction_to_lost_workers_survives_every_change_of_the_task(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = tasks_on(&store, LONG);
    for (name, value) in [("priority", json!("urgent")), ("onWorkerLost", json!("requeue"))] {
        let key = tasks.create(&owner(name), plain().operation("render")).await.unwrap().key;
        set(&store, &key, name, value.clone()).await;
        tasks.set_status_message(&key, "so far").await.unwrap();
        tasks.request_input(&key, [("a", json!({ "method": "roots/list" }))]).await.unwrap();
        let answered = tasks.deliver_inputs(&key, [("a", json!({ "roots": [] }))]).await.unwrap();
        // A later attempt may make the request again.
        assert_eq!(answered.task.answered_requests.len(), usize::from(name == "onWorkerLost"));
        tasks.request_cancel(&key).await.unwrap();
        assert_eq!(tasks.cancel(&key).await.unwrap().task.status, TaskStatus::Cancelled);
        assert_eq!(field(&store, &key, name).await, value);
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_task_that_only_a_later_version_may_run_is_neither_claimed_nor_taken_from_its_worker_and_the_log_says_so_once(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let tasks = tasks_on(&store, LONG);
    let printed = Printed::default();
    let _guard = subscribe(&printed, tracing::Level::WARN);
    let cases = [
        ("format", json!(2)),
        ("status", json!("paused")),
        ("priority", json!("urgent")),
        ("onWorkerLost", json!("requeue")),
    ];
    for (name, value) in &cases {
        // One task waits for a worker, and the worker of the other one is lost.
        let new = resumable().operation(*name).on_worker_lost(OnWorkerLost::Resume);
        let waiting = tasks.enqueue(&owner("alice"), new.clone()).await.unwrap();
        let lost = tasks.enqueue(&owner("bob"), new).await.unwrap();
        let start = lost.task.created_at;
        let lease = json!({ "holder": "gone", "attempt": 1, "durationMs": 50, "deadline": start });
        set(&store, &lost.key, "lease", lease).await;
        for key in [&waiting.key, &lost.key] {
            set(&store, key, name, value.clone()).await;
            let before = data(&store, key).await;
            until_kept(&store, key).await;
            assert_eq!(data(&store, key).await, before, "{name}");
        }
        assert_refused!(tasks.claim(&waiting.key).await, TaskError::LaterVersion { .. });
        assert!(tasks.claim(&lost.key).await.unwrap().is_none(), "{name}");
    }
    for (name, _) in cases {
        let of_operation = format!("operation={name} ");
        let lines = printed.text();
        let lines: Vec<_> = lines.lines().filter(|line| line.contains(&of_operation)).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("WARN") && lines[0].contains("upgrade this instance"), "{lines:?}");
    }
}
