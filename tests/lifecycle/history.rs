//! The history of a task: what records an event, what records none, and the room that the events use in the record.

mod limits;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{EventKind, RpcError, StoreConfig, Task, TaskKey, TaskStatus, TaskStore};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::common::{
    LONG, Tasks, claim_now, has_ended, plain, record, resumable, start, until, waits_for_a_worker,
};
use crate::support::{Engine, Store, keep, on_every_engine, owner};

fn open(store: &Store) -> Tasks {
    TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().lease(LONG).retention(LONG))
}

/// Returns the events as text: kind, attempt, detail.
fn events(task: &Task) -> Vec<String> {
    let text = |event: &mcp_task_store::TaskEvent| {
        let attempt = event.attempt.map(|attempt| format!(" {attempt}")).unwrap_or_default();
        let detail = event.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
        format!("{}{attempt}{detail}", event.kind)
    };
    task.history.iter().map(text).collect()
}

/// Asserts the events of a task, that their times do not decrease, and that the history of the record is the same.
async fn assert_events(store: &Store, key: &TaskKey, expected: &[&str]) -> Task {
    let task = record(&**store, key).await;
    assert_eq!(events(&task), expected);
    assert_eq!((&task.history[0].kind, task.history[0].at), (&EventKind::Created, task.created_at));
    assert!(task.history.is_sorted_by_key(|event| event.at), "{:?}", task.history);
    assert!(task.history.last().unwrap().at <= task.last_updated_at);
    for event in &task.history {
        let holder = event.holder.as_ref().map(String::len);
        assert_eq!(holder, event.attempt.map(|_| 8), "{event:?}");
    }
    task
}

/// Sets a field of a record, as another version does. Removes the field if the value is `null`.
async fn set(store: &Store, key: &TaskKey, field: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&store.get(key).await.unwrap().data).unwrap();
    match value {
        Value::Null => drop(json.as_object_mut().unwrap().remove(field)),
        value => json[field] = value,
    }
    store.put(key, json.to_string().into(), keep()).await.unwrap();
}

fn question() -> Value {
    json!({ "method": "elicitation/create" })
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_keeps_who_worked_on_it_what_it_asked_and_how_it_ended(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    let (key, attempt) = start(&tasks, plain()).await;
    attempt.request_input("name", question()).await.unwrap();
    other.deliver_inputs(&key, [("name", json!({ "action": "accept" }))]).await.unwrap();
    let several = [("a", question()), ("b", question())];
    tasks.request_input(&key, several).await.unwrap();
    tasks.deliver_inputs(&key, [("a", json!(1)), ("b", json!(2)), ("c", json!(3))]).await.unwrap();
    other.request_cancel(&key).await.unwrap();
    let ended = attempt.cancel().await.unwrap();
    let expected = [
        "created",
        "started 1",
        "input_requested 1: name",
        "input_answered 1: name",
        "input_requested 1: 2 requests",
        "input_answered 1: 2 answers",
        "cancel_requested 1",
        "cancelled 1",
    ];
    let task = assert_events(&store, &key, &expected).await;
    assert_eq!((task.history.len() as u64, &task.history), (ended.version.get() + 1, &ended.task.history));
    let holders: BTreeSet<_> = task.history.iter().filter_map(|event| event.holder.as_deref()).collect();
    assert_eq!(holders.len(), 1, "{holders:?}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_keeps_its_attempts_and_how_each_was_left(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    let key = tasks.enqueue(&owner("alice"), resumable().max_attempts(3)).await.unwrap().key;
    let first = tasks.claim(&key).await.unwrap().unwrap().0;
    let holder = first.task.lease.as_ref().unwrap().holder.clone().unwrap();
    assert_eq!(first.task.history[2].holder.as_deref(), holder.get(..8));
    // The attempt of `first` is dropped, so its worker is lost.
    until(&*store, &key, waits_for_a_worker).await;
    claim_now(&other, &key).await.release().await.unwrap();
    claim_now(&tasks, &key).await.retry(RpcError::new(-32000, "secret")).await.unwrap();
    claim_now(&other, &key).await.retry(RpcError::new(-32000, "secret")).await.unwrap();
    let expected = [
        "created",
        "enqueued",
        "started 1",
        "lease_lost 1",
        "resumed 2",
        "released 2",
        "resumed 3",
        "attempt_failed 3: error -32000",
        "resumed 4",
        "failed 4: gave up after 3 attempts",
    ];
    let task = assert_events(&store, &key, &expected).await;
    assert_ne!(task.history[4].holder, task.history[6].holder, "two stores");

    let requeued = tasks.requeue(&key).await.unwrap().key;
    claim_now(&tasks, &requeued).await.complete(json!("secret")).await.unwrap();
    assert_events(&store, &requeued, &["created", "requeued", "started 1", "completed 1"]).await;
    assert_events(&store, &key, &expected).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_last_event_says_why_a_task_ended(#[case] engine: Engine) {
    let store = engine.open().await;
    let (tasks, other) = (open(&store), open(&store));
    let key = tasks.create(&owner("alice"), plain()).await.unwrap().key;
    tasks.fail(&key, RpcError::new(7, "secret")).await.unwrap();
    assert_events(&store, &key, &["created", "failed: error 7"]).await;

    let key = tasks.create(&owner("alice"), plain()).await.unwrap().key;
    tasks.complete(&key, json!("secret")).await.unwrap();
    assert_events(&store, &key, &["created", "completed"]).await;

    let expired = tasks.create(&owner("alice"), plain().ttl(Duration::from_millis(1))).await.unwrap();
    store.until(expired.task.deadline().unwrap()).await;
    assert_eq!(other.get(&expired.key).await.unwrap().task.status, TaskStatus::Failed);
    assert_events(&store, &expired.key, &["created", "failed: TTL elapsed"]).await;

    // A task that waits for a worker is cancelled at once.
    let key = tasks.enqueue(&owner("alice"), resumable()).await.unwrap().key;
    other.request_cancel(&key).await.unwrap();
    assert_events(&store, &key, &["created", "enqueued", "cancelled"]).await;

    let (key, attempt) = start(&tasks, plain()).await;
    drop(attempt);
    until(&*store, &key, has_ended).await;
    let lost = ["created", "started 1", "lease_lost 1", "failed 1: the worker of the task was lost"];
    assert_events(&store, &key, &lost).await;

    let (key, attempt) = start(&tasks, resumable().max_attempts(1)).await;
    drop(attempt);
    until(&*store, &key, has_ended).await;
    let gave_up = ["created", "started 1", "lease_lost 1", "failed 1: gave up after 1 attempt"];
    assert_events(&store, &key, &gave_up).await;

    let (key, attempt) = start(&tasks, resumable()).await;
    tasks.request_cancel(&key).await.unwrap();
    drop(attempt);
    until(&*store, &key, has_ended).await;
    let cancelled = ["created", "started 1", "cancel_requested 1", "lease_lost 1", "cancelled 1"];
    assert_events(&store, &key, &cancelled).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn renewals_messages_variables_and_checkpoints_record_no_event(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let (key, attempt) = start(&tasks, resumable()).await;
    attempt.renew().await.unwrap();
    attempt.set_status_message("secret").await.unwrap();
    attempt.set_variables([("a", json!("secret"))]).await.unwrap();
    attempt.remove_variables(["a"]).await.unwrap();
    attempt.set_checkpoint(json!("secret")).await.unwrap();
    tasks.set_ttl(&key, LONG).await.unwrap();
    tasks.set_poll_interval(&key, Duration::from_secs(9)).await.unwrap();
    // Answers to requests that nobody has made.
    tasks.deliver_inputs(&key, [("a", json!(1))]).await.unwrap();
    assert_events(&store, &key, &["created", "started 1"]).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_history_holds_no_content_of_the_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let secret = || json!({ "secret": "secret" });
    let new = resumable().arguments(secret()).status_message("secret");
    let (key, attempt) = start(&tasks, new).await;
    attempt.request_input("name", secret()).await.unwrap();
    tasks.deliver_inputs(&key, [("name", secret())]).await.unwrap();
    attempt.retry(RpcError::new(1, "secret").with_data(secret())).await.unwrap();
    claim_now(&tasks, &key).await.fail(RpcError::new(1, "secret").with_data(secret())).await.unwrap();
    let json: Value = serde_json::from_slice(&store.get(&key).await.unwrap().data).unwrap();
    assert_eq!(json["history"].as_array().unwrap().len(), 7);
    assert!(!json["history"].to_string().contains("secret"), "{json}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn racing_writers_record_each_event_once(#[case] engine: Engine) {
    let store = engine.open().await;
    let stores = [open(&store), open(&store), open(&store)];
    let (key, _attempt) = start(&stores[0], plain()).await;
    let request = async |number: usize| {
        stores[number % 3].request_input(&key, [(number.to_string(), question())]).await.unwrap();
    };
    futures_util::future::join_all((0..12).map(request)).await;
    let task = record(&*store, &key).await;
    let mut details: Vec<u32> =
        task.history[2..].iter().map(|event| event.detail.as_ref().unwrap().parse().unwrap()).collect();
    details.sort_unstable();
    assert_eq!(details, (0..12).collect::<Vec<_>>());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_events_of_a_later_version_survive_every_change(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let (key, attempt) = start(&tasks, resumable()).await;
    let later = json!([
        ["2026-01-31T12:00:00.000Z", "created", null, null, null, { "zone": "b" }],
        [20, "paused", 1, "0f1b2c3d", "at night", 7],
    ]);
    set(&store, &key, "history", later.clone()).await;
    let read = tasks.get(&key).await.unwrap().task;
    assert_eq!(read.history[1].kind, EventKind::Unknown("paused".to_owned()));
    assert_eq!((read.history[1].attempt, &*read.history[1].extra), (Some(1), &[json!(7)][..]));
    attempt.set_status_message("so far").await.unwrap();
    attempt.release().await.unwrap();
    let json: Value = serde_json::from_slice(&store.get(&key).await.unwrap().data).unwrap();
    let history = json["history"].as_array().unwrap();
    assert_eq!(history[..2], later.as_array().unwrap()[..]);
    assert_eq!((history.len(), &history[2][1]), (3, &json!("released")));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_of_an_earlier_version_has_the_events_since_then(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = open(&store);
    let (key, attempt) = start(&tasks, resumable()).await;
    set(&store, &key, "history", Value::Null).await;
    assert_eq!(events(&tasks.get(&key).await.unwrap().task), [""; 0]);
    attempt.renew().await.unwrap();
    attempt.release().await.unwrap();
    claim_now(&tasks, &key).await.complete(json!(1)).await.unwrap();
    assert_eq!(events(&record(&*store, &key).await), ["released 1", "resumed 2", "completed 2"]);

    // An earlier version has ended the task, and has kept the history as it was.
    let (key, _attempt) = start(&tasks, resumable()).await;
    let stale = record(&*store, &key).await.history;
    set(&store, &key, "status", json!("completed")).await;
    set(&store, &key, "lease", Value::Null).await;
    let read = tasks.get(&key).await.unwrap();
    assert_eq!((read.task.status, &read.task.history), (TaskStatus::Completed, &stale));
    assert_refused!(tasks.cancel(&key).await, mcp_task_store::TaskError::InvalidTransition { .. });
    assert_eq!(events(&tasks.requeue(&key).await.unwrap().task), ["created", "requeued"]);
}
