//! The lifecycle of tasks: create, read, change, expire.

mod faulty;
mod inputs;
mod racing;
mod retention;
mod status_machine;
mod timing;
mod unanswered;

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use mcp_task_store::{
    Agenda, NewTask, PageRequest, RpcError, StoreConfig, StoredTask, TaskError, TaskKey, TaskRef, TaskStatus,
    TaskStore, Ttl,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Store, in_an_hour, keep, key, on_every_engine, owner};

type Tasks = TaskStore<Arc<dyn Agenda>>;

async fn open(engine: Engine) -> (Store, Tasks) {
    open_with(engine, StoreConfig::new()).await
}

async fn open_with(engine: Engine, config: StoreConfig) -> (Store, Tasks) {
    let store = engine.open().await;
    let tasks = TaskStore::with_config(Arc::clone(&store.backend), config);
    (store, tasks)
}

fn call() -> NewTask {
    NewTask::new("tools/call")
}

async fn create(tasks: &Tasks) -> StoredTask {
    tasks.create(&owner("alice"), call()).await.unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const STATUSES: [TaskStatus; 5] = [
    TaskStatus::Working,
    TaskStatus::InputRequired,
    TaskStatus::Completed,
    TaskStatus::Failed,
    TaskStatus::Cancelled,
];

async fn in_status(tasks: &Tasks, status: TaskStatus) -> StoredTask {
    let task = create(tasks).await;
    let task =
        tasks.request_input(&task, [("open", json!({ "method": "elicitation/create" }))]).await.unwrap();
    let task = match status {
        TaskStatus::Working => tasks.deliver_inputs(&task, [("open", json!({}))]).await.unwrap(),
        TaskStatus::InputRequired => task,
        TaskStatus::Completed => tasks.complete(&task, json!({ "content": [] })).await.unwrap(),
        TaskStatus::Failed => tasks.fail(&task, RpcError::new(-1, "broken")).await.unwrap(),
        TaskStatus::Cancelled => tasks.cancel(&task).await.unwrap(),
    };
    assert_eq!(task.task.status, status);
    task
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_created_task_is_stored_as_given_under_a_random_uuid_of_version_4(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let new = call()
        .arguments(json!({ "name": "render" }))
        .ttl(seconds(60))
        .poll_interval(Duration::from_millis(250))
        .status_message("queued");
    let earliest = store.now() - TimeDelta::milliseconds(1);
    let created = tasks.create(&owner("alice"), new).await.unwrap();
    let id = uuid::Uuid::parse_str(created.task.task_id.as_str()).unwrap();
    assert_eq!((id.get_version_num(), &created.key.task), (4, &created.task.task_id));
    let task = &created.task;
    assert_eq!((task.status, task.status_message.as_deref()), (TaskStatus::Working, Some("queued")));
    assert_eq!((task.ttl_ms, task.poll_interval_ms), (Some(60_000), Some(250)));
    assert_eq!((&*task.method, &task.arguments), ("tools/call", &json!({ "name": "render" }).into()));
    assert_eq!(task.created_at, task.last_updated_at);
    assert!(earliest <= task.created_at && task.created_at <= store.now());
    assert_eq!(tasks.get(&created.key).await.unwrap(), created);
    assert_ne!(create(&tasks).await.key, created.key);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_stored_record_is_the_documented_json(#[case] engine: Engine) {
    let (store, tasks) = open_with(engine, StoreConfig::new().max_ttl(None)).await;
    let created = tasks.create(&owner("alice"), call().ttl(Ttl::Unlimited)).await.unwrap();
    let stored: Value = serde_json::from_slice(&store.get(&created.key).await.unwrap().data).unwrap();
    let time = created.task.created_at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
    assert_eq!(stored["writeIds"].as_array().unwrap().len(), 1);
    assert_eq!(
        stored,
        json!({
            "taskId": created.key.task, "status": "working", "createdAt": time, "lastUpdatedAt": time,
            "ttlMs": null, "pollIntervalMs": 1000, "method": "tools/call", "history": [[time, "created"]],
            "writeIds": stored["writeIds"],
        })
    );
    assert_eq!(created.expires_at, None);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_record_lives_for_the_ttl_and_the_retention_and_no_update_changes_that(#[case] engine: Engine) {
    let retentions = [(None, 120), (Some(seconds(5)), 65), (Some(Duration::ZERO), 60)];
    for (retention, lives) in retentions {
        let (_store, tasks) = open_with(engine, StoreConfig::new().retention(retention)).await;
        let created = tasks.create(&owner("alice"), call().ttl(seconds(60))).await.unwrap();
        let expires_at = created.expires_at.unwrap();
        let lived = expires_at - created.task.created_at;
        assert!(lived >= TimeDelta::seconds(lives), "{lived}");
        assert!(lived < TimeDelta::seconds(lives + 30), "{lived}");
        let mut task = tasks.set_status_message(&created, "on it").await.unwrap();
        for step in 0..4 {
            assert_eq!(task.expires_at, Some(expires_at));
            assert_eq!(tasks.get(&task.key).await.unwrap(), task, "a change returns what is stored");
            task = match step {
                0 => tasks.request_input(&task, [("a", json!({}))]).await.unwrap(),
                1 => tasks.deliver_inputs(&task, [("a", json!({}))]).await.unwrap(),
                2 => tasks.set_variables(&task, [("a", json!(1))]).await.unwrap(),
                _ => tasks.complete(&task, json!({})).await.unwrap(),
            };
        }
        assert_eq!(tasks.get(&task.key).await.unwrap().expires_at, Some(expires_at));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn fields_of_later_versions_survive_an_update(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let created = create(&tasks).await;
    let mut json: Value = serde_json::from_slice(&store.get(&created.key).await.unwrap().data).unwrap();
    json["stages"] = json!({ "of": [1, 2, null] });
    store.put(&created.key, serde_json::to_vec(&json).unwrap().into(), keep()).await.unwrap();
    tasks.set_status_message(&created.key, "on it").await.unwrap();
    let json: Value = serde_json::from_slice(&store.get(&created.key).await.unwrap().data).unwrap();
    assert_eq!((&json["stages"], &json["statusMessage"]), (&json!({ "of": [1, 2, null] }), &json!("on it")));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_foreign_task_gives_the_same_errors_as_a_task_that_does_not_exist(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let hers = create(&tasks).await;
    let mut texts = Vec::new();
    for round in 0..2 {
        let foreign = TaskKey::from((owner("bob"), hers.key.task.clone()));
        let none: [(&str, Value); 0] = [];
        let outcomes = [
            tasks.get(&foreign).await,
            tasks.set_status_message(&foreign, "x").await,
            tasks.request_input(&foreign, [("a", json!(1))]).await,
            tasks.deliver_inputs(&foreign, none).await,
            tasks.complete(&foreign, json!(1)).await,
            tasks.fail(&foreign, RpcError::new(1, "x")).await,
            tasks.cancel(&foreign).await,
            tasks.request_cancel(&foreign).await,
            tasks.set_variables(&foreign, [("a", json!(1))]).await,
            tasks.set_ttl(&foreign, seconds(60)).await,
            tasks.set_poll_interval(&foreign, seconds(1)).await,
        ];
        let mut errors: Vec<TaskError> = outcomes.into_iter().map(Result::unwrap_err).collect();
        errors.push(tasks.delete(&foreign).await.unwrap_err());
        for error in &errors {
            assert!(matches!(error, TaskError::NotFound { .. }), "{error:?}");
            assert_eq!((error.code(), error.is_retryable(), error.outcome_unknown()), (-32602, false, false));
        }
        texts.push(errors.iter().map(ToString::to_string).collect::<Vec<_>>());
        if round == 0 {
            // From now on no task has this id.
            assert_eq!(tasks.get(&hers.key).await.unwrap(), hers);
            tasks.delete(&hers.key).await.unwrap();
        }
    }
    assert_eq!(texts[0], texts[1]);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn tasks_are_listed_newest_first_and_unreadable_records_separately(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let first = create(&tasks).await;
    store.put(&key("alice", "not json"), "{".into(), in_an_hour()).await.unwrap();
    let third = create(&tasks).await;
    let page = tasks.list(&owner("alice"), PageRequest::new(2)).await.unwrap();
    assert_eq!(page.tasks, [third]);
    assert_eq!(page.unreadable, ["not json".try_into().unwrap()]);
    let cursor = page.next.unwrap();
    let rest = tasks.list(&owner("alice"), PageRequest::new(2).after(cursor.clone())).await.unwrap();
    assert_eq!((rest.tasks, rest.next), (vec![first], None));
    for page in [PageRequest::new(0), PageRequest::new(257), PageRequest::new(1).after("x")] {
        let error = tasks.list(&owner("alice"), page).await.unwrap_err();
        assert!(matches!(error, TaskError::InvalidPage { .. }) && error.code() == -32602, "{error:?}");
    }
    let foreign = tasks.list(&owner("bob"), PageRequest::new(1).after(cursor)).await;
    assert_refused!(foreign, TaskError::InvalidPage { .. });
    let error = tasks.get(&key("alice", "not json")).await.unwrap_err();
    assert!(matches!(error, TaskError::Unreadable { .. }) && error.code() == -32603, "{error:?}");
    tasks.delete(&key("alice", "not json")).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn variables_are_merged_and_removed_by_name(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let task = create(&tasks).await;
    let task = tasks.set_variables(&task, [("a", json!(1)), ("b", json!({ "x": null }))]).await.unwrap();
    let task = tasks.set_variables(&task, [("a", json!(2)), ("c", json!([]))]).await.unwrap();
    let task = tasks.remove_variables(&task, ["a", "d"]).await.unwrap();
    assert_eq!(json!(task.task.variables), json!({ "b": { "x": null }, "c": [] }));
    assert_eq!(tasks.get(&task.key).await.unwrap(), task);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn numbers_are_read_as_they_were_stored(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let numbers = json!([92.366_480_268_501_73, 0.1, 1e-300, 1e300, u64::MAX, i64::MIN, -0.5]);
    let task = tasks.set_variables(&create(&tasks).await, [("numbers", numbers)]).await.unwrap();
    assert_eq!(tasks.get(&task.key).await.unwrap(), task);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn after_the_ttl_the_next_reader_fails_a_task_that_has_not_ended(#[case] engine: Engine) {
    let (store, tasks) = open_with(engine, StoreConfig::new().retention(seconds(600))).await;
    // The TTL is long enough for the calls before it on a busy machine.
    let short = || call().ttl(seconds(2));
    let mut created = Vec::new();
    for _ in 0..5 {
        created.push(tasks.create(&owner("alice"), short()).await.unwrap());
    }
    let done = tasks.complete(&created[0], json!("done")).await.unwrap();
    let asking = tasks.request_input(&created[1], [("a", json!({}))]).await.unwrap();
    store.until(created[4].task.deadline().unwrap()).await;

    assert_eq!(tasks.get(&done.key).await.unwrap(), done, "an ended task stays as it is");
    let failed = tasks.get(&asking.key).await.unwrap();
    assert_eq!((failed.task.status, failed.version.get()), (TaskStatus::Failed, 3));
    assert_eq!(failed.task.error, Some(RpcError::new(-32603, "TTL elapsed")));
    assert!(failed.task.input_requests.is_empty());
    assert_eq!(tasks.get(&asking.key).await.unwrap(), failed, "expired once");
    for (task, by_copy) in [(&created[2], true), (&created[3], false)] {
        let task_ref: TaskRef<'_> = if by_copy { task.into() } else { (&task.key).into() };
        let late = tasks.complete(task_ref, json!("late")).await;
        assert_refused!(late, TaskError::InvalidTransition { from: TaskStatus::Failed, .. });
        assert_eq!(tasks.get(&task.key).await.unwrap().version.get(), 2);
    }
    let page = tasks.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    let statuses: Vec<_> = page.tasks.iter().map(|listed| listed.task.status).collect();
    let failed = TaskStatus::Failed;
    assert_eq!(statuses, [failed, failed, failed, failed, TaskStatus::Completed]);
    assert_eq!(tasks.get(&created[4].key).await.unwrap(), page.tasks[0], "the page expired it, too");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn cleanup_returns_how_many_records_the_engine_removed(#[case] engine: Engine) {
    // A keeper writes, and each write may remove expired records.
    let config = StoreConfig::new().retention(Duration::from_millis(1)).observer(true);
    let (store, tasks) = open_with(engine, config).await;
    let created = tasks.create(&owner("alice"), call().ttl(Duration::from_millis(1))).await.unwrap();
    store.until(created.expires_at.unwrap()).await;
    let dropped = if engine.holds_expired_records() { 1 } else { 0 };
    assert_eq!(tasks.cleanup().await.unwrap(), dropped);
    assert_refused!(tasks.get(&created.key).await, TaskError::NotFound { .. });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_end_of_a_task_is_stored_with_its_result_in_one_write(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    for result in [Value::Null, json!({ "content": [{ "type": "text", "text": "42" }] })] {
        let created = create(&tasks).await;
        let done = tasks.complete(&created.key, result.clone()).await.unwrap();
        assert_eq!((done.version.get(), &done.task.result), (2, &Some(result.clone().into())));
        assert_eq!(tasks.get(&created.key).await.unwrap().task.result, Some(result.into()));
    }
    let created = create(&tasks).await;
    let error = RpcError::new(-32000, "broken").with_data(json!([1, null]));
    let failed = tasks.fail(&created, error.clone()).await.unwrap();
    assert_eq!(failed.version.get(), 2);
    assert_eq!(tasks.get(&created.key).await.unwrap().task.error, Some(error));
}
