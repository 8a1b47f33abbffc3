//! `pmcp`'s task store on this crate's engines: it answers as `pmcp`'s own store does, but for what its page says.

use std::sync::Arc;
use std::time::Duration;

use crate::support::recording::Recording;
use crate::support::{Engine, Printed, Store, key, on_every_engine};
use mcp_task_store::{
    Agenda, LocalAgenda, MemoryBackend, NewTask, OnWorkerLost, PMCP_ANONYMOUS, PmcpTaskStore, StoreConfig,
    TaskStatus as Status, TaskStore,
};
use pmcp::server::task_store::{
    InMemoryTaskStore, StoreConfig as PmcpConfig, TaskStore as PmcpStore, TaskStoreError,
};
use pmcp::types::mrtr::{InputRequests, InputResponse, InputResponses};
use pmcp::types::tasks::{Task, TaskStatus};
use pmcp::types::{CallToolResult, Content};
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::{Value, json};

const ALICE: &str = "alice";
const STATUSES: [TaskStatus; 5] = [
    TaskStatus::Working,
    TaskStatus::InputRequired,
    TaskStatus::Completed,
    TaskStatus::Failed,
    TaskStatus::Cancelled,
];

type Pmcp = PmcpTaskStore<Arc<dyn Agenda>>;

async fn open(engine: Engine) -> (Store, Pmcp) {
    open_with(engine, StoreConfig::new()).await
}

async fn open_with(engine: Engine, config: StoreConfig) -> (Store, Pmcp) {
    let store = engine.open().await;
    let tasks = PmcpTaskStore::new(TaskStore::with_config(Arc::clone(&store.backend), config));
    (store, tasks)
}

fn text(text: &str) -> CallToolResult {
    CallToolResult::new(vec![Content::text(text)])
}

fn requests(keys: &[&str]) -> InputRequests {
    let of = |key: &&str| {
        let params = json!({ "message": "which city?", "requestedSchema": { "type": "object" } });
        (key.to_string(), json!({ "method": "elicitation/create", "params": params }))
    };
    serde_json::from_value(keys.iter().map(of).collect()).unwrap()
}

fn roots() -> InputRequests {
    serde_json::from_value(json!({ "roots": { "method": "roots/list" } })).unwrap()
}

fn answers(keys: &[&str]) -> InputResponses {
    let kind = requests(&["a"])["a"].kind();
    let answer = json!({ "action": "accept", "content": { "city": "Berlin" } });
    let answer = |_| InputResponse::decode_for(kind, answer.clone()).unwrap();
    keys.iter().map(|key| (key.to_string(), answer(()))).collect()
}

async fn create(store: &dyn PmcpStore) -> String {
    store.create(ALICE, None).await.unwrap().task_id
}

/// Brings a new task to a status.
async fn create_in(store: &dyn PmcpStore, status: TaskStatus) -> String {
    let id = create(store).await;
    if status != TaskStatus::Working {
        store.update_status(&id, ALICE, status, None).await.unwrap();
    }
    id
}

/// What a call answered, apart from ids and times.
#[derive(Debug, PartialEq)]
enum Answer {
    Done(Value),
    NotFound,
    Expired,
    Invalid(TaskStatus, TaskStatus),
    Internal,
}

fn answer<T>(result: Result<T, TaskStoreError>, done: impl FnOnce(T) -> Value) -> Answer {
    match result {
        Ok(done_) => Answer::Done(done(done_)),
        Err(TaskStoreError::NotFound { .. }) => Answer::NotFound,
        Err(TaskStoreError::Expired { .. }) => Answer::Expired,
        Err(TaskStoreError::InvalidTransition { from, to, .. }) => Answer::Invalid(from, to),
        Err(TaskStoreError::Internal { .. }) => Answer::Internal,
    }
}

fn shown(task: Task) -> Value {
    json!([task.status, task.status_message, task.ttl, task.poll_interval])
}

/// Makes every call in every status, and says what each answered.
async fn what_a_store_does(store: &dyn PmcpStore) -> Vec<(String, Answer)> {
    let mut seen = Vec::new();
    let mut see = |what: String, answer: Answer| seen.push((what, answer));
    for from in STATUSES {
        for to in STATUSES {
            // The second call of two that end a task finds it so in ours.
            let ends_again = from == to && matches!(to, TaskStatus::Completed | TaskStatus::Failed);
            if !ends_again {
                let id = create_in(store, from).await;
                let changed = store.update_status(&id, ALICE, to, Some("on it".into())).await;
                see(format!("{from} -> {to}"), answer(changed, shown));
                see(format!("{from} -> {to}, then"), answer(store.get(&id, ALICE).await, shown));
            }
        }
        let id = create_in(store, from).await;
        see(
            format!("message, {from}"),
            answer(store.set_status_message(&id, ALICE, Some("1/2".into())).await, shown),
        );
        see(format!("no message, {from}"), answer(store.set_status_message(&id, ALICE, None).await, shown));
        see(
            format!("cancel, {from}"),
            answer(store.cancel(&create_in(store, from).await, ALICE).await, shown),
        );
        let asked = store.record_input_requests(&create_in(store, from).await, ALICE, requests(&["a"])).await;
        see(format!("request input, {from}"), answer(asked, shown));
        let asked = store.record_input_requests(&create_in(store, from).await, ALICE, requests(&[])).await;
        see(format!("require no input, {from}"), answer(asked, shown));
        let delivered =
            store.deliver_task_inputs(&create_in(store, from).await, ALICE, answers(&["a"])).await;
        see(format!("deliver, {from}"), answer(delivered, |delivery| json!(delivery)));
        let id = create_in(store, from).await;
        see(format!("no result, {from}"), answer(store.get_result(&id, ALICE).await, |result| json!(result)));
        see(format!("no error, {from}"), answer(store.get_error(&id, ALICE).await, |error| error));
        see(
            format!("no snapshot, {from}"),
            answer(store.task_input_snapshot(&id, ALICE).await, |all| json!(all)),
        );
    }

    // Two calls end a task, in either order, with a message or without.
    for message in [None, Some("done".to_owned())] {
        for result_first in [true, false] {
            let id = create(store).await;
            store.set_status_message(&id, ALICE, Some("3/4".into())).await.unwrap();
            if result_first {
                see(
                    "set_result".into(),
                    answer(store.set_result(&id, ALICE, text("42")).await, |()| json!(null)),
                );
            }
            let ended = store.update_status(&id, ALICE, TaskStatus::Completed, message.clone()).await;
            see(format!("completed, {message:?}"), answer(ended, shown));
            if !result_first {
                see(
                    "set_result".into(),
                    answer(store.set_result(&id, ALICE, text("42")).await, |()| json!(null)),
                );
            }
            see("completed".into(), answer(store.get(&id, ALICE).await, shown));
            see("result".into(), answer(store.get_result(&id, ALICE).await, |result| json!(result)));

            let id = create(store).await;
            store.set_status_message(&id, ALICE, Some("3/4".into())).await.unwrap();
            let error = json!({ "code": -32603, "message": "upstream timed out", "data": { "after": 3 } });
            if result_first {
                see(
                    "set_error".into(),
                    answer(store.set_error(&id, ALICE, error.clone()).await, |()| json!(null)),
                );
            }
            let ended = store.update_status(&id, ALICE, TaskStatus::Failed, message.clone()).await;
            see(format!("failed, {message:?}"), answer(ended, shown));
            if !result_first {
                see("set_error".into(), answer(store.set_error(&id, ALICE, error).await, |()| json!(null)));
            }
            see("failed".into(), answer(store.get(&id, ALICE).await, shown));
            see("error".into(), answer(store.get_error(&id, ALICE).await, |error| error));
        }
    }

    // A round of input: in parts, with strangers' keys, twice the same, after the end.
    let id = create(store).await;
    let mut asked = requests(&["a", "b"]);
    asked.extend(roots());
    see("ask".into(), answer(store.record_input_requests(&id, ALICE, asked).await, shown));
    see("ask again".into(), answer(store.record_input_requests(&id, ALICE, requests(&["c"])).await, shown));
    for keys in [&["x"][..], &["a", "x"], &["a"], &[]] {
        let delivered = store.deliver_task_inputs(&id, ALICE, answers(keys)).await;
        see(format!("deliver {keys:?}"), answer(delivered, |delivery| json!(delivery)));
        see(format!("after {keys:?}"), answer(store.task_input_snapshot(&id, ALICE).await, |all| json!(all)));
        see(format!("still {keys:?}"), answer(store.get(&id, ALICE).await, shown));
    }
    // The requests that are open survive a while of work.
    for status in [TaskStatus::Working, TaskStatus::InputRequired] {
        see(format!("{status}"), answer(store.update_status(&id, ALICE, status, None).await, shown));
        see(format!("{status}, all"), answer(store.task_input_snapshot(&id, ALICE).await, |all| json!(all)));
    }
    let kind = roots()["roots"].kind();
    let mut rest = answers(&["b", "a"]);
    rest.insert("roots".into(), InputResponse::decode_for(kind, json!({ "roots": [] })).unwrap());
    let delivered = store.deliver_task_inputs(&id, ALICE, rest.clone()).await;
    see("deliver the rest".into(), answer(delivered, |delivery| json!(delivery)));
    see("all".into(), answer(store.get(&id, ALICE).await, shown));
    see("late".into(), answer(store.deliver_task_inputs(&id, ALICE, rest).await, |delivery| json!(delivery)));
    see("a used key".into(), answer(store.record_input_requests(&id, ALICE, requests(&["a"])).await, shown));
    store.set_result(&id, ALICE, text("done")).await.unwrap();
    store.update_status(&id, ALICE, TaskStatus::Completed, None).await.unwrap_or_else(|_| Task::default());
    see("snapshot at the end".into(), answer(store.task_input_snapshot(&id, ALICE).await, |all| json!(all)));

    // A task that waited without a request.
    let id = create_in(store, TaskStatus::InputRequired).await;
    see("goes on".into(), answer(store.update_status(&id, ALICE, TaskStatus::Working, None).await, shown));
    see("no snapshot".into(), answer(store.task_input_snapshot(&id, ALICE).await, |all| json!(all)));
    store.record_input_requests(&id, ALICE, requests(&[])).await.unwrap();
    see("an empty snapshot".into(), answer(store.task_input_snapshot(&id, ALICE).await, |all| json!(all)));

    // Nobody else's and nobody's at all.
    for (id, owner) in
        [(&*create_in(store, TaskStatus::InputRequired).await, "bob"), ("none", ALICE), ("", ALICE)]
    {
        see("get".into(), answer(store.get(id, owner).await, shown));
        for status in STATUSES {
            see("update".into(), answer(store.update_status(id, owner, status, None).await, shown));
        }
        see("cancel".into(), answer(store.cancel(id, owner).await, shown));
        see("message".into(), answer(store.set_status_message(id, owner, None).await, shown));
        see("set_result".into(), answer(store.set_result(id, owner, text("42")).await, |()| json!(null)));
        see("get_result".into(), answer(store.get_result(id, owner).await, |result| json!(result)));
        see("set_error".into(), answer(store.set_error(id, owner, json!({})).await, |()| json!(null)));
        see("get_error".into(), answer(store.get_error(id, owner).await, |error| error));
        see("ask".into(), answer(store.record_input_requests(id, owner, requests(&["a"])).await, shown));
        see(
            "deliver".into(),
            answer(store.deliver_task_inputs(id, owner, answers(&["a"])).await, |all| json!(all)),
        );
        see("snapshot".into(), answer(store.task_input_snapshot(id, owner).await, |all| json!(all)));
    }

    // Creation: TTLs are cut, and the owner's quota holds.
    for ttl in [None, Some(1_000), Some(500_000_000)] {
        see(format!("create {ttl:?}"), answer(store.create("carol", ttl).await, shown));
    }
    for _ in 3..100 {
        store.create("carol", None).await.unwrap();
    }
    see("over the quota".into(), answer(store.create("carol", None).await, shown));
    let (page, next) = store.list("carol", None).await.unwrap();
    see("a page".into(), Answer::Done(json!([page.len(), next.is_some()])));
    see(
        "an empty page".into(),
        answer(store.list("dave", None).await, |(tasks, next)| json!([tasks.len(), next])),
    );
    see("supported".into(), Answer::Done(json!([store.supports_results(), store.supports_inputs()])));
    seen
}

#[apply(on_every_engine)]
#[tokio::test]
async fn every_call_answers_as_that_of_pmcps_own_store(#[case] engine: Engine) {
    let config = StoreConfig::new().max_tasks_per_owner(100).default_poll_interval(Duration::from_secs(5));
    let (_store, ours) = open_with(engine, config).await;
    let (theirs, ours) = (what_a_store_does(&InMemoryTaskStore::new()).await, what_a_store_does(&ours).await);
    assert_eq!(theirs.len(), ours.len());
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(ours, theirs);
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn set_result_completes_and_the_second_call_finds_it_so(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let id = create(&tasks).await;
    let key = key(ALICE, &id);
    tasks.set_result(&id, ALICE, text("42")).await.unwrap();
    let completed = tasks.tasks().get(&key).await.unwrap();
    assert_eq!(completed.task.status, Status::Completed);
    assert_eq!(completed.task.result, Some(json!(text("42")).into()));

    let found = tasks.update_status(&id, ALICE, TaskStatus::Completed, None).await.unwrap();
    assert_eq!(found.status, TaskStatus::Completed);
    tasks.set_result(&id, ALICE, text("42")).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().version, completed.version, "nothing was written");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_large_result_is_served_compared_and_kept_like_a_small_one(#[case] engine: Engine) {
    let store = engine.open_roomy().await;
    let (recording, backend) = Recording::of(&store.backend);
    let tasks = PmcpTaskStore::new(TaskStore::new(backend));
    let large = |letter: &str| text(&letter.repeat(100_000));
    let id = create(&tasks).await;
    tasks.set_result(&id, ALICE, large("x")).await.unwrap();
    tasks.get(&id, ALICE).await.unwrap();
    tasks.list(ALICE, None).await.unwrap();
    tasks.update_status(&id, ALICE, TaskStatus::Completed, Some("done".into())).await.unwrap();
    assert_eq!(recording.loaded().len(), 0, "only the result itself loads it");
    assert_eq!(json!(tasks.get_result(&id, ALICE).await.unwrap()), json!(large("x")));
    assert_eq!(recording.loaded(), ["output"]);

    recording.sent();
    tasks.set_result(&id, ALICE, large("x")).await.unwrap();
    let completed = TaskStatus::Completed;
    for other in [large("y"), text("42")] {
        let refused = answer(tasks.set_result(&id, ALICE, other).await, |()| json!(null));
        assert_eq!(refused, Answer::Invalid(completed, completed));
    }
    assert_eq!(recording.sent().len(), 0, "nothing was written");
    assert_eq!(json!(tasks.get_result(&id, ALICE).await.unwrap()), json!(large("x")));

    // In the other order of the two calls, the result is the part that was missing.
    let id = create(&tasks).await;
    tasks.update_status(&id, ALICE, completed, None).await.unwrap();
    tasks.set_result(&id, ALICE, large("z")).await.unwrap();
    assert_eq!(json!(tasks.get_result(&id, ALICE).await.unwrap()), json!(large("z")));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn another_result_after_the_ttl_is_expired_and_the_same_one_is_not(#[case] engine: Engine) {
    let config = StoreConfig::new().retention(Duration::from_secs(60));
    let store = engine.open_roomy().await;
    let tasks = PmcpTaskStore::new(TaskStore::with_config(Arc::clone(&store.backend), config));
    for result in [text("42"), text(&"x".repeat(100_000))] {
        let id = tasks.create(ALICE, Some(1_000)).await.unwrap().task_id;
        tasks.set_result(&id, ALICE, result.clone()).await.unwrap();
        let deadline = tasks.tasks().get(&key(ALICE, &id)).await.unwrap().task.deadline().unwrap();
        store.until(deadline + Duration::from_millis(1)).await;
        let other = answer(tasks.set_result(&id, ALICE, text("43")).await, |()| json!(null));
        assert_eq!(other, Answer::Expired);
        tasks.set_result(&id, ALICE, result).await.unwrap();
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn set_error_fails_and_the_second_call_finds_it_so(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let id = create(&tasks).await;
    let key = key(ALICE, &id);
    let error = json!({ "code": -32000, "message": "out of paper" });
    tasks.set_error(&id, ALICE, error.clone()).await.unwrap();
    let failed = tasks.tasks().get(&key).await.unwrap();
    assert_eq!((failed.task.status, json!(failed.task.error)), (Status::Failed, error.clone()));

    let found = tasks.update_status(&id, ALICE, TaskStatus::Failed, None).await.unwrap();
    assert_eq!(found.status, TaskStatus::Failed);
    tasks.set_error(&id, ALICE, error).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().version, failed.version, "nothing was written");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn what_an_ended_task_was_given_is_never_replaced(#[case] engine: Engine) {
    use TaskStatus::{Cancelled, Completed, Failed};
    let (_store, tasks) = open(engine).await;
    let id = create(&tasks).await;
    tasks.set_result(&id, ALICE, text("42")).await.unwrap();
    tasks.update_status(&id, ALICE, Completed, Some("done".into())).await.unwrap();
    let done = json!(tasks.get(&id, ALICE).await.unwrap());
    assert_eq!(done["statusMessage"], "done");
    let refused = answer(tasks.set_result(&id, ALICE, text("43")).await, |()| json!(null));
    assert_eq!(refused, Answer::Invalid(Completed, Completed));
    let refused = answer(tasks.set_error(&id, ALICE, json!({})).await, |()| json!(null));
    assert_eq!(refused, Answer::Invalid(Completed, Failed));
    tasks.update_status(&id, ALICE, Completed, Some("again".into())).await.unwrap();
    assert_eq!(json!(tasks.get(&id, ALICE).await.unwrap()), done);
    assert_eq!(json!(tasks.get_result(&id, ALICE).await.unwrap()), json!(text("42")));

    let id = create(&tasks).await;
    tasks.set_error(&id, ALICE, json!({ "code": 1, "message": "no" })).await.unwrap();
    let refused =
        answer(tasks.set_error(&id, ALICE, json!({ "code": 2, "message": "no" })).await, |()| json!(null));
    assert_eq!(refused, Answer::Invalid(Failed, Failed));
    let refused = answer(tasks.set_result(&id, ALICE, text("43")).await, |()| json!(null));
    assert_eq!(refused, Answer::Invalid(Failed, Completed));

    let id = create(&tasks).await;
    tasks.cancel(&id, ALICE).await.unwrap();
    let refused = answer(tasks.set_result(&id, ALICE, text("late")).await, |()| json!(null));
    assert_eq!(refused, Answer::Invalid(Cancelled, Completed));
    assert_eq!(answer(tasks.get_result(&id, ALICE).await, |result| json!(result)), Answer::NotFound);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_result_comes_back_whole(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let result = json!({
        "content": [{ "type": "text", "text": "two files" }, { "type": "image", "data": "AAAA", "mimeType": "image/png" }],
        "isError": true,
        "structuredContent": { "files": ["a", "b"], "ratio": 0.1, "none": null },
        "_meta": { "trace": "t1" },
    });
    let result: CallToolResult = serde_json::from_value(result).unwrap();
    let id = create(&tasks).await;
    tasks.set_result(&id, ALICE, result.clone()).await.unwrap();
    assert_eq!(json!(tasks.get_result(&id, ALICE).await.unwrap()), json!(result));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_error_comes_back_as_it_was_given(#[case] engine: Engine) {
    let errors = [
        json!({ "code": -32603, "message": "m", "data": null }),
        json!({ "code": -32603, "message": "m", "retryAfter": 3 }),
        json!({ "code": "E1", "message": "m" }),
        json!("plain"),
        json!(null),
    ];
    let (_store, tasks) = open(engine).await;
    for error in errors {
        let id = create(&tasks).await;
        tasks.set_error(&id, ALICE, error.clone()).await.unwrap();
        assert_eq!(tasks.get_error(&id, ALICE).await.unwrap(), error);
        tasks.set_error(&id, ALICE, error).await.unwrap();
        let stored = tasks.tasks().get(&key(ALICE, &id)).await.unwrap();
        assert!(stored.task.error.is_some(), "others see an error too");
    }
    let deep = (0..120).fold(json!({}), |deep, _| json!([deep]));
    let id = create(&tasks).await;
    assert_eq!(answer(tasks.set_error(&id, ALICE, deep).await, |()| json!(null)), Answer::Internal);
    assert_eq!(tasks.get(&id, ALICE).await.unwrap().status, TaskStatus::Working);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_second_round_of_input_follows_under_new_keys(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let id = create(&tasks).await;
    tasks.record_input_requests(&id, ALICE, requests(&["a"])).await.unwrap();
    tasks.deliver_task_inputs(&id, ALICE, answers(&["a"])).await.unwrap();
    let paused = tasks.record_input_requests(&id, ALICE, requests(&["b"])).await.unwrap();
    assert_eq!(paused.status, TaskStatus::InputRequired);
    let snapshot = tasks.task_input_snapshot(&id, ALICE).await.unwrap();
    assert_eq!(snapshot.outstanding(), ["b"].into());
    assert_eq!(
        json!(snapshot.input_responses),
        json!(answers(&["a"])),
        "the first round's answer is still there"
    );
    let delivery = tasks.deliver_task_inputs(&id, ALICE, answers(&["a", "b"])).await.unwrap();
    assert_eq!((delivery.accepted, delivery.ignored), (["b".to_owned()].into(), ["a".to_owned()].into()));
    assert!(delivery.complete);
    assert!(tasks.task_input_snapshot(&id, ALICE).await.unwrap().is_complete());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_goes_on_without_its_answers_has_no_open_requests_until_it_waits_again(
    #[case] engine: Engine,
) {
    let (_store, tasks) = open(engine).await;
    let id = create(&tasks).await;
    let key = key(ALICE, &id);
    let open = async || {
        let task = tasks.tasks().get(&key).await.unwrap().task;
        task.input_requests.keys().cloned().collect::<Vec<_>>()
    };
    tasks.tasks().request_input(&key, [("a", json!(requests(&["a"])["a"]))]).await.unwrap();
    assert_eq!(open().await, ["a"]);
    tasks.update_status(&id, ALICE, TaskStatus::Working, None).await.unwrap();
    assert!(open().await.is_empty());
    tasks.record_input_requests(&id, ALICE, requests(&["b"])).await.unwrap();
    assert_eq!(open().await, ["a", "b"]);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn answers_that_race_all_land(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let id = create(&tasks).await;
    let keys = ["a", "b", "c", "d"];
    tasks.record_input_requests(&id, ALICE, requests(&keys)).await.unwrap();
    let mut deliveries = tokio::task::JoinSet::new();
    for key in keys {
        // One store each, as of several processes.
        let tasks = PmcpTaskStore::new(TaskStore::new(Arc::clone(&store.backend)));
        let id = id.clone();
        deliveries
            .spawn(async move { tasks.deliver_task_inputs(&id, ALICE, answers(&[key])).await.unwrap() });
    }
    let deliveries = deliveries.join_all().await;
    assert!(deliveries.iter().all(|delivery| delivery.accepted.len() == 1));
    assert_eq!(deliveries.iter().filter(|delivery| delivery.complete).count(), 1);
    assert_eq!(tasks.get(&id, ALICE).await.unwrap().status, TaskStatus::Working);
    assert!(tasks.task_input_snapshot(&id, ALICE).await.unwrap().is_complete());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_was_asked_to_cancel_is_seen_and_takes_no_requests(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let id = create(&tasks).await;
    tasks.record_input_requests(&id, ALICE, requests(&["a"])).await.unwrap();
    tasks.tasks().request_cancel(&key(ALICE, &id)).await.unwrap();
    let refused = Answer::Invalid(TaskStatus::Working, TaskStatus::InputRequired);
    assert_eq!(answer(tasks.record_input_requests(&id, ALICE, requests(&["b"])).await, shown), refused);
    assert_eq!(
        answer(tasks.update_status(&id, ALICE, TaskStatus::InputRequired, None).await, shown),
        refused
    );
    assert_eq!(tasks.cancel(&id, ALICE).await.unwrap().status, TaskStatus::Cancelled);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_request_of_an_attempt_that_was_answered_elsewhere_is_in_the_snapshot(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let resumable = NewTask::new("tools/call").operation("render").on_worker_lost(OnWorkerLost::Resume);
    let (stored, attempt) = tasks.tasks().start(&ALICE.try_into().unwrap(), resumable).await.unwrap();
    attempt.request_input("a", json!(requests(&["a"])["a"])).await.unwrap();
    tasks.tasks().deliver_inputs(&stored.key, [("a", json!(answers(&["a"])["a"]))]).await.unwrap();
    let snapshot = tasks.task_input_snapshot(stored.key.task.as_str(), ALICE).await.unwrap();
    assert_eq!(json!(snapshot.input_requests), json!(requests(&["a"])));
    assert_eq!(json!(snapshot.input_responses), json!(answers(&["a"])));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn requests_and_results_of_the_lifecycle_below_are_served(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let id = create(&tasks).await;
    let key = key(ALICE, &id);
    let request = json!(requests(&["a"])["a"]);
    tasks.tasks().request_input(&key, [("a", request)]).await.unwrap();
    let snapshot = tasks.task_input_snapshot(&id, ALICE).await.unwrap();
    assert_eq!(json!(snapshot.input_requests), json!(requests(&["a"])));
    assert!(tasks.deliver_task_inputs(&id, ALICE, answers(&["a"])).await.unwrap().complete);
    let snapshot = tasks.task_input_snapshot(&id, ALICE).await.unwrap();
    assert_eq!(json!(snapshot.input_responses), json!(answers(&["a"])));
    tasks.tasks().complete(&key, json!(text("42"))).await.unwrap();
    assert_eq!(json!(tasks.get_result(&id, ALICE).await.unwrap()), json!(text("42")));

    let id = create(&tasks).await;
    tasks.tasks().complete(&crate::support::key(ALICE, &id), json!("no result of a tool")).await.unwrap();
    assert_eq!(answer(tasks.get_result(&id, ALICE).await, |result| json!(result)), Answer::Internal);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn after_the_ttl_an_open_task_is_failed_and_a_finished_one_is_kept(#[case] engine: Engine) {
    let config = StoreConfig::new().retention(Duration::from_secs(60));
    let (store, tasks) = open_with(engine, config).await;
    let open = tasks.create(ALICE, Some(400)).await.unwrap().task_id;
    let finished = tasks.create(ALICE, Some(400)).await.unwrap().task_id;
    tasks.set_result(&finished, ALICE, text("42")).await.unwrap();
    let deadline = tasks.tasks().get(&key(ALICE, &finished)).await.unwrap().task.deadline().unwrap();
    store.until(deadline + Duration::from_millis(1)).await;

    let shown = tasks.get(&open, ALICE).await.unwrap();
    assert_eq!((shown.status, shown.status_message.as_deref()), (TaskStatus::Failed, Some("TTL elapsed")));
    assert_eq!(tasks.get_error(&open, ALICE).await.unwrap()["message"], "TTL elapsed");
    for id in [&open, &finished] {
        assert_eq!(answer(tasks.cancel(id, ALICE).await, self::shown), Answer::Expired);
    }
    assert_eq!(answer(tasks.set_result(&open, ALICE, text("late")).await, |()| json!(null)), Answer::Expired);
    let delivered = tasks.deliver_task_inputs(&open, ALICE, answers(&["a"])).await;
    assert_eq!(answer(delivered, |delivery| json!(delivery)), Answer::Expired);
    assert_eq!(json!(tasks.get_result(&finished, ALICE).await.unwrap()), json!(text("42")));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn what_is_gone_is_not_found_and_makes_room(#[case] engine: Engine) {
    let config = StoreConfig::new().retention(Duration::ZERO).max_tasks_per_owner(1);
    let (store, tasks) = open_with(engine, config).await;
    let id = tasks.create(ALICE, Some(300)).await.unwrap().task_id;
    let expires_at = store.get(&key(ALICE, &id)).await.unwrap().expires_at.unwrap();
    assert_eq!(answer(tasks.create(ALICE, None).await, shown), Answer::Internal);
    store.until(expires_at).await;
    assert_eq!(answer(tasks.get(&id, ALICE).await, shown), Answer::NotFound);
    assert_eq!(tasks.list(ALICE, None).await.unwrap().0.len(), 0);
    tasks.create(ALICE, None).await.unwrap();
    let removed = if matches!(engine, Engine::Memory) { 0..=1 } else { 0..=0 };
    assert!(removed.contains(&tasks.cleanup_expired().await.unwrap()));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn pages_of_20_hold_every_task_once_newest_first(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let mut created = Vec::new();
    for _ in 0..45 {
        created.insert(0, create(&tasks).await);
    }
    tasks.create("bob", None).await.unwrap();
    let (mut listed, mut pages, mut cursor) = (Vec::new(), Vec::new(), None::<String>);
    loop {
        let (page, next) = tasks.list(ALICE, cursor.as_deref()).await.unwrap();
        pages.push(page.len());
        listed.extend(page.into_iter().map(|task| task.task_id));
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(listed, created);
    assert_eq!(pages, [20, 20, 5]);
    let (_, next) = tasks.list(ALICE, None).await.unwrap();
    for (owner, cursor) in [("bob", &*next.unwrap()), (ALICE, "nonsense"), (ALICE, &*created[3])] {
        let refused = tasks.list(owner, Some(cursor)).await;
        assert_refused!(refused, TaskStoreError::Internal { message } if message.starts_with("invalid page"));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn clients_without_a_subject_share_one_owner_that_no_subject_is(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    let id = tasks.create("", None).await.unwrap().task_id;
    assert_eq!(tasks.get(&id, "").await.unwrap().task_id, id);
    assert_eq!(tasks.list("", None).await.unwrap().0.len(), 1);
    tasks.tasks().get(&key(PMCP_ANONYMOUS, &id)).await.unwrap();
    for owner in [PMCP_ANONYMOUS, "local"] {
        assert_eq!(answer(tasks.get(&id, owner).await, shown), Answer::NotFound);
        assert_eq!(tasks.list(owner, None).await.unwrap().0.len(), 0);
    }
    assert_eq!(answer(tasks.create(PMCP_ANONYMOUS, None).await, shown), Answer::Internal);
    let too_long = "x".repeat(257);
    assert_eq!(answer(tasks.create(&too_long, None).await, shown), Answer::Internal);
    assert_eq!(answer(tasks.get(&id, &too_long).await, shown), Answer::NotFound);
    assert_eq!(answer(tasks.get(&too_long, ALICE).await, shown), Answer::NotFound);
}

#[rstest]
#[case::defaults(StoreConfig::new(), Some(3_600_000), Some(86_400_000), 1000, 10_000)]
#[case::a_short_maximum_is_the_default(
    StoreConfig::new().max_ttl(Duration::from_secs(60)).default_ttl(None), Some(60_000), Some(60_000), 1000, 10_000)]
#[case::no_limits(
    StoreConfig::new().max_ttl(None).default_ttl(None).max_tasks_per_owner(None).default_poll_interval(None),
    None, None, 5000, usize::MAX)]
#[tokio::test]
async fn pmcp_reads_the_configuration_of_the_store(
    #[case] config: StoreConfig,
    #[case] ttl: Option<u64>,
    #[case] max_ttl: Option<u64>,
    #[case] poll_interval: u64,
    #[case] max_tasks: usize,
) {
    let tasks = PmcpTaskStore::from(TaskStore::with_config(MemoryBackend::new(), config));
    let PmcpConfig { default_ttl_ms, max_ttl_ms, default_poll_interval_ms, max_tasks_per_owner } =
        tasks.config();
    assert_eq!((*default_ttl_ms, *max_ttl_ms), (ttl, max_ttl));
    assert_eq!((*default_poll_interval_ms, *max_tasks_per_owner), (poll_interval, max_tasks));
    assert_eq!(tasks.create(ALICE, None).await.unwrap().ttl, ttl);
}

#[tokio::test]
async fn what_the_limits_do_not_allow_is_refused_with_a_reason() {
    let config = StoreConfig::new().max_status_message_bytes(3).max_input_requests(1).max_tasks_per_owner(1);
    let tasks = PmcpTaskStore::new(TaskStore::with_config(MemoryBackend::new(), config));
    let id = create(&tasks).await;
    let message = |text: &str| Some(text.to_owned());
    let refusals = [
        tasks.create(ALICE, None).await.map(drop),
        tasks.create("bob", Some(0)).await.map(drop),
        tasks.set_status_message(&id, ALICE, message("long")).await.map(drop),
        tasks.update_status(&id, ALICE, TaskStatus::Completed, message("long")).await.map(drop),
        tasks.record_input_requests(&id, ALICE, requests(&["a", "b"])).await.map(drop),
    ];
    let reasons = ["has 1 tasks", "under 1 ms", "limit of 3", "limit of 3", "limit of 1"];
    for (refused, reason) in refusals.into_iter().zip(reasons) {
        assert_refused!(refused, TaskStoreError::Internal { message } if message.contains(reason));
    }
    assert_eq!(tasks.get(&id, ALICE).await.unwrap().status, TaskStatus::Working);
}

#[tokio::test]
async fn a_client_hears_of_a_storage_that_fails_and_of_no_host() {
    let printed = Printed::default();
    let logged = printed.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || logged.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let tasks = PmcpTaskStore::new(TaskStore::new(LocalAgenda::new(crate::support::failing::failing())));
    let answers = [
        tasks.create(ALICE, None).await.err(),
        tasks.get("t1", ALICE).await.err(),
        tasks.list(ALICE, None).await.err(),
        tasks.set_result("t1", ALICE, text("42")).await.err(),
        tasks.cleanup_expired().await.err(),
    ];
    for error in answers {
        let shown = format!("{0} {0:?}", error.unwrap());
        assert!(shown.contains("the task storage is unavailable"), "{shown}");
        assert!(!shown.contains("10.0.0.7") && !shown.contains("refused"), "{shown}");
    }
    assert!(
        printed.text().contains("10.0.0.7:6379") && printed.text().contains("refused"),
        "{}",
        printed.text()
    );
}
