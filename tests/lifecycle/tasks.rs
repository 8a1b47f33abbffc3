//! The lifecycle of tasks: who may do what with a task, when, and what becomes of racing and lost writes.

mod faulty;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{Engine, Store, in_an_hour, keep, key, on_every_engine, owner};
use chrono::TimeDelta;
use faulty::{Fault, Faulty};
use mcp_task_store::{
    Agenda, LocalAgenda, NewTask, PageRequest, RpcError, StorageBackend, StoreConfig, StoredTask, TaskError,
    TaskKey, TaskRef, TaskStatus, TaskStore, Ttl, Version,
};
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::task::JoinSet;

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

// Creating and reading

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
            "ttlMs": null, "pollIntervalMs": 1000, "method": "tools/call", "writeIds": stored["writeIds"],
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
    json["progress"] = json!({ "of": [1, 2, null] });
    store.put(&created.key, serde_json::to_vec(&json).unwrap().into(), keep()).await.unwrap();
    tasks.set_status_message(&created.key, "on it").await.unwrap();
    let json: Value = serde_json::from_slice(&store.get(&created.key).await.unwrap().data).unwrap();
    assert_eq!(
        (&json["progress"], &json["statusMessage"]),
        (&json!({ "of": [1, 2, null] }), &json!("on it"))
    );
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_foreign_task_reads_word_for_word_like_one_that_never_was(#[case] engine: Engine) {
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
        ];
        let mut errors: Vec<TaskError> = outcomes.into_iter().map(Result::unwrap_err).collect();
        errors.push(tasks.delete(&foreign).await.unwrap_err());
        for error in &errors {
            assert!(matches!(error, TaskError::NotFound { .. }), "{error:?}");
            assert_eq!((error.code(), error.is_retryable(), error.outcome_unknown()), (-32602, false, false));
        }
        texts.push(errors.iter().map(ToString::to_string).collect::<Vec<_>>());
        if round == 0 {
            // From now on the same id is nobody's.
            assert_eq!(tasks.get(&hers.key).await.unwrap(), hers);
            tasks.delete(&hers.key).await.unwrap();
        }
    }
    assert_eq!(texts[0], texts[1]);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn tasks_are_listed_newest_first_and_unreadable_ones_apart(#[case] engine: Engine) {
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

// The status machine

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
async fn each_status_allows_what_the_design_says_and_a_refused_call_changes_nothing(#[case] engine: Engine) {
    use TaskStatus::{Cancelled, Completed, Failed, InputRequired, Working};
    let (store, tasks) = open(engine).await;
    for from in STATUSES {
        for operation in 0..8 {
            for by_copy in [false, true] {
                let before = in_status(&tasks, from).await;
                let raw = store.get(&before.key).await.unwrap();
                let task: TaskRef<'_> = if by_copy { (&before).into() } else { (&before.key).into() };
                let (to, outcome) = match operation {
                    0 => (from, tasks.set_status_message(task, "x").await),
                    1 => (InputRequired, tasks.request_input(task, [("more", json!({}))]).await),
                    2 => (from, tasks.deliver_inputs(task, [("unknown", json!({}))]).await),
                    3 => (Completed, tasks.complete(task, Value::Null).await),
                    4 => (Failed, tasks.fail(task, RpcError::new(7, "x")).await),
                    5 => (Cancelled, tasks.cancel(task).await),
                    6 => (Working, tasks.request_cancel(task).await),
                    _ => (from, tasks.set_variables(task, [("name", json!(1))]).await),
                };
                let after = store.get(&before.key).await.unwrap();
                let ignored = operation == 2 || operation == 6 && from.is_terminal();
                if ignored {
                    assert_eq!(outcome.unwrap(), before);
                    assert_eq!(after, raw);
                } else if from.is_terminal() {
                    assert_refused!(outcome, TaskError::InvalidTransition { from: told, .. } if told == from);
                    assert_eq!(after, raw);
                } else {
                    let changed = outcome.unwrap();
                    assert_eq!(changed.task.status, to, "{from} {operation}");
                    assert_eq!(Some(changed.version), before.version.next(), "one write");
                    assert!(changed.task.last_updated_at >= before.task.last_updated_at);
                    assert!(to == InputRequired || changed.task.input_requests.is_empty());
                    assert_eq!(tasks.get(&before.key).await.unwrap(), changed);
                }
                tasks.delete(&before.key).await.unwrap();
            }
        }
    }
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

// Input from the client

#[apply(on_every_engine)]
#[tokio::test]
async fn inputs_are_asked_for_and_delivered_bit_by_bit(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let created = create(&tasks).await;
    let asked =
        tasks.request_input(&created, [("a", json!({ "q": 1 })), ("b", json!({ "q": 2 }))]).await.unwrap();
    assert_eq!((asked.version.get(), asked.task.status), (2, TaskStatus::InputRequired));
    let more = tasks.request_input(&asked.key, [("c", json!({ "q": 3 }))]).await.unwrap();
    assert_eq!(more.task.input_requests.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let answers = [("a", json!("one")), ("unknown", json!("lost"))];
    let partly = tasks.deliver_inputs(&more, answers).await.unwrap();
    assert_eq!((partly.task.status, partly.task.input_requests.len()), (TaskStatus::InputRequired, 2));
    let ignored = tasks.deliver_inputs(&partly.key, [("a", json!("again"))]).await.unwrap();
    assert_eq!(ignored, partly, "an answered key is ignored, and nothing is written");
    let done = tasks.deliver_inputs(&partly, [("b", json!(null)), ("c", json!("three"))]).await.unwrap();
    assert_eq!((done.task.status, done.version.get()), (TaskStatus::Working, 5));
    assert!(done.task.input_requests.is_empty());
    let answers = json!(tasks.get(&done.key).await.unwrap().task.input_responses);
    assert_eq!(answers, json!({ "a": "one", "b": null, "c": "three" }));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_input_key_is_used_once_in_the_life_of_a_task(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let task =
        tasks.request_input(&create(&tasks).await, [("open", json!(1)), ("done", json!(2))]).await.unwrap();
    let task = tasks.deliver_inputs(&task, [("done", json!(3))]).await.unwrap();
    for used in [vec!["open"], vec!["done"], vec!["new", "open"], vec!["twice", "twice"]] {
        let requests = used.iter().map(|key| (*key, json!({})));
        let error = tasks.request_input(&task, requests).await.unwrap_err();
        assert!(
            matches!(&error, TaskError::InputKeyUsed { key, .. } if *key == used[used.len() - 1]),
            "{error:?}"
        );
        assert_eq!(error.code(), -32602);
    }
    let none: [(&str, Value); 0] = [];
    assert_refused!(tasks.request_input(&task, none).await, TaskError::InvalidArgument { .. });
    assert_eq!(tasks.get(&task.key).await.unwrap(), task);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_requested_cancel_withdraws_open_requests_and_lets_the_operation_decide(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let asking = in_status(&tasks, TaskStatus::InputRequired).await;
    let requested = tasks.request_cancel(&asking).await.unwrap();
    assert!(requested.task.cancel_requested && requested.task.input_requests.is_empty());
    assert_eq!(requested.task.status, TaskStatus::Working);
    assert_eq!(tasks.request_cancel(&asking.key).await.unwrap(), requested, "twice is one write");
    assert_eq!(tasks.deliver_inputs(&requested, [("open", json!(1))]).await.unwrap(), requested);
    let asked = tasks.request_input(&requested, [("more", json!(1))]).await;
    assert_refused!(asked, TaskError::CancelRequested { .. });
    let done = tasks.complete(&requested, json!("finished all the same")).await.unwrap();
    assert_eq!(done.task.status, TaskStatus::Completed);
    assert_eq!(tasks.request_cancel(&done).await.unwrap(), done);
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
async fn numbers_come_back_as_they_were_stored(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let numbers = json!([92.366_480_268_501_73, 0.1, 1e-300, 1e300, u64::MAX, i64::MIN, -0.5]);
    let task = tasks.set_variables(&create(&tasks).await, [("numbers", numbers)]).await.unwrap();
    assert_eq!(tasks.get(&task.key).await.unwrap(), task);
}

// Copies that the caller holds

#[apply(on_every_engine)]
#[tokio::test]
async fn an_outdated_copy_never_leads_to_a_wrong_answer(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    // The change lands on the task as it is now.
    let old = create(&tasks).await;
    tasks.set_variables(&old.key, [("a", json!(1))]).await.unwrap();
    let merged = tasks.set_variables(&old, [("b", json!(2))]).await.unwrap();
    assert_eq!(json!(merged.task.variables), json!({ "a": 1, "b": 2 }));
    // The copy says working, the task is cancelled.
    tasks.cancel(&old.key).await.unwrap();
    let late = tasks.complete(&old, json!({})).await;
    assert_refused!(late, TaskError::InvalidTransition { from: TaskStatus::Cancelled, .. });
    // The copy knows no open request, the task has one.
    let old = create(&tasks).await;
    tasks.request_input(&old.key, [("a", json!({}))]).await.unwrap();
    let delivered = tasks.deliver_inputs(&old, [("a", json!("yes"))]).await.unwrap();
    assert_eq!(json!(delivered.task.input_responses), json!({ "a": "yes" }));
    // The task is gone.
    tasks.delete(&old.key).await.unwrap();
    assert_refused!(tasks.set_status_message(&delivered, "x").await, TaskError::NotFound { .. });
    assert_refused!(tasks.deliver_inputs(&delivered, [("a", json!(1))]).await, TaskError::NotFound { .. });
}

// The TTL

#[apply(on_every_engine)]
#[tokio::test]
async fn after_the_ttl_the_next_reader_settles_a_task_that_has_not_ended_as_failed(#[case] engine: Engine) {
    let (store, tasks) = open_with(engine, StoreConfig::new().retention(seconds(600))).await;
    let short = || call().ttl(Duration::from_millis(40));
    let mut created = Vec::new();
    for _ in 0..5 {
        created.push(tasks.create(&owner("alice"), short()).await.unwrap());
    }
    let done = tasks.complete(&created[0], json!("done")).await.unwrap();
    let asking = tasks.request_input(&created[1], [("a", json!({}))]).await.unwrap();
    store.until(created[4].task.deadline().unwrap()).await;

    assert_eq!(tasks.get(&done.key).await.unwrap(), done, "what has ended stays as it is");
    let failed = tasks.get(&asking.key).await.unwrap();
    assert_eq!((failed.task.status, failed.version.get()), (TaskStatus::Failed, 3));
    assert_eq!(failed.task.error, Some(RpcError::new(-32603, "TTL elapsed")));
    assert!(failed.task.input_requests.is_empty());
    assert_eq!(tasks.get(&asking.key).await.unwrap(), failed, "settled once");
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
    assert_eq!(tasks.get(&created[4].key).await.unwrap(), page.tasks[0], "the page settled it too");
}

// Racing

async fn instances(store: &Store, count: usize) -> Vec<Tasks> {
    let mut instances = Vec::new();
    for _ in 0..count {
        #[cfg(feature = "redis-tests")]
        if let Some(namespace) = &store.redis {
            let backend: Arc<dyn Agenda> = Arc::new(namespace.backend().await);
            instances.push(TaskStore::new(backend));
            continue;
        }
        instances.push(TaskStore::new(Arc::clone(&store.backend)));
    }
    instances
}

#[apply(on_every_engine)]
#[tokio::test]
async fn of_64_concurrent_set_variables_none_is_lost(
    #[case] engine: Engine,
    #[values(1, 4)] separate_backends: usize,
) {
    let (store, tasks) = open(engine).await;
    let instances = instances(&store, separate_backends).await;
    let created = create(&tasks).await;
    let mut racing = JoinSet::new();
    for racer in 0..64 {
        let (tasks, created) = (instances[racer % instances.len()].clone(), created.clone());
        racing.spawn(async move {
            let variable = [(format!("v{racer}"), json!(racer))];
            match racer % 2 {
                0 => tasks.set_variables(&created, variable).await.unwrap(),
                _ => tasks.set_variables(&created.key, variable).await.unwrap(),
            }
        });
    }
    racing.join_all().await;
    let task = tasks.get(&created.key).await.unwrap();
    assert_eq!((task.task.variables.len(), task.version.get()), (64, 65));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn two_racing_progress_updates_both_land(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let instances = instances(&store, 2).await;
    for _ in 0..20 {
        let created = create(&tasks).await;
        let (one, two) = tokio::join!(
            instances[0].set_status_message(&created, "halfway"),
            instances[1].set_variables(&created, [("done", json!(0.5))]),
        );
        one.unwrap();
        two.unwrap();
        let task = tasks.get(&created.key).await.unwrap();
        assert_eq!(task.task.status_message.as_deref(), Some("halfway"));
        assert_eq!((json!(task.task.variables), task.version.get()), (json!({ "done": 0.5 }), 3));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_progress_update_that_races_a_cancel_lands_before_it_or_is_an_invalid_transition(
    #[case] engine: Engine,
) {
    let (store, tasks) = open(engine).await;
    let instances = instances(&store, 2).await;
    for _ in 0..30 {
        let created = create(&tasks).await;
        let (update, cancel) = tokio::join!(
            instances[0].set_status_message(&created, "halfway"),
            instances[1].cancel(&created),
        );
        cancel.unwrap();
        let task = tasks.get(&created.key).await.unwrap();
        assert_eq!(task.task.status, TaskStatus::Cancelled);
        match update {
            Ok(_) => assert_eq!(task.task.status_message.as_deref(), Some("halfway")),
            Err(TaskError::InvalidTransition { from: TaskStatus::Cancelled, .. }) => {
                assert_eq!(task.task.status_message, None);
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

// Writes that get no answer

#[rstest]
#[case::the_answer_was_lost(&[Fault::AnswerLost])]
#[case::the_write_was_lost(&[Fault::WriteLost])]
#[case::both_were_lost_in_turn(&[Fault::WriteLost, Fault::AnswerLost])]
#[case::the_write_was_lost_twice(&[Fault::WriteLost, Fault::WriteLost])]
#[case::the_write_arrived_late(&[Fault::Late])]
#[tokio::test]
async fn a_write_without_an_answer_is_settled_and_applied_exactly_once(#[case] faults: &[Fault]) {
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
#[case::applied(Fault::AnswerLostAndOverwritten(4), Some("halfway"))]
#[case::not_applied(Fault::WriteLostAndOverwritten, None)]
#[tokio::test]
async fn where_nobody_can_tell_the_caller_is_told_so(#[case] fault: Fault, #[case] message: Option<&str>) {
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
async fn a_write_without_an_answer_is_settled_when_the_engine_answers_again(
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
async fn an_engine_that_takes_no_writes_still_shows_an_overdue_task_as_failed() {
    let backend = Faulty::new();
    let tasks = TaskStore::new(LocalAgenda::new(Arc::clone(&backend)));
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
    let settled = tasks.get(&overdue.key).await.unwrap();
    assert_eq!((settled.task.status, settled.version.get()), (TaskStatus::Failed, 2));
}

#[tokio::test]
async fn a_write_without_an_answer_is_found_behind_a_few_later_ones() {
    let backend = Faulty::new();
    let tasks = TaskStore::new(LocalAgenda::new(Arc::clone(&backend)));
    let created = tasks.create(&owner("alice"), call()).await.unwrap();
    backend.inject(Fault::AnswerLostAndOverwritten(3));
    let found = tasks.set_status_message(&created, "halfway").await.unwrap();
    assert_eq!((found.version.get(), found.task.status_message.as_deref()), (5, Some("halfway")));
}

#[tokio::test]
async fn a_call_that_always_loses_is_contended_and_has_written_nothing() {
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
async fn writers_of_one_task_within_one_process_queue_up_instead_of_racing() {
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
    assert_eq!(backend.writes.load(Ordering::Relaxed), 65, "no write was in vain");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn cleanup_says_how_many_records_the_engine_dropped(#[case] engine: Engine) {
    let (store, tasks) = open_with(engine, StoreConfig::new().retention(Duration::from_millis(1))).await;
    let created = tasks.create(&owner("alice"), call().ttl(Duration::from_millis(1))).await.unwrap();
    store.until(created.expires_at.unwrap()).await;
    let dropped = if matches!(engine, Engine::Memory) { 1 } else { 0 };
    assert_eq!(tasks.cleanup().await.unwrap(), dropped);
    assert_refused!(tasks.get(&created.key).await, TaskError::NotFound { .. });
}
