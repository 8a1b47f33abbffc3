//! Every call answers like the call of `pmcp`'s own store: in every status, and at the end of a task in either order.

use std::time::Duration;

use mcp_task_store::StoreConfig;
use pmcp::server::task_store::{InMemoryTaskStore, TaskStore as PmcpStore, TaskStoreError};
use pmcp::types::mrtr::InputResponse;
use pmcp::types::tasks::{Task, TaskStatus};
use rstest_reuse::apply;
use serde_json::json;

use super::{ALICE, Answer, answer, answers, create, open_with, requests, roots, shown, text};
use crate::support::{Engine, on_every_engine};

const STATUSES: [TaskStatus; 5] = [
    TaskStatus::Working,
    TaskStatus::InputRequired,
    TaskStatus::Completed,
    TaskStatus::Failed,
    TaskStatus::Cancelled,
];

/// Creates a task and moves it to a status.
async fn create_in(store: &dyn PmcpStore, status: TaskStatus) -> String {
    let id = create(store).await;
    if status != TaskStatus::Working {
        store.update_status(&id, ALICE, status, None).await.unwrap();
    }
    id
}

/// What each call answered, in order.
#[derive(Default)]
struct Seen(Vec<(String, Answer)>);

impl Seen {
    fn add(&mut self, call: impl Into<String>, answer: Answer) {
        self.0.push((call.into(), answer));
    }

    fn task(&mut self, call: impl Into<String>, result: Result<Task, TaskStoreError>) {
        self.add(call, answer(result, shown));
    }

    fn json<T: serde::Serialize>(&mut self, call: impl Into<String>, result: Result<T, TaskStoreError>) {
        self.add(call, answer(result, |value| json!(value)));
    }
}

/// Makes every call, and returns what each answered.
async fn answers_of(store: &dyn PmcpStore) -> Vec<(String, Answer)> {
    let mut seen = Seen::default();
    for from in STATUSES {
        change_status(store, from, &mut seen).await;
        call_in_status(store, from, &mut seen).await;
    }
    for message in [None, Some("done".to_owned())] {
        for outcome_first in [true, false] {
            complete_in_two_calls(store, outcome_first, message.clone(), &mut seen).await;
            fail_in_two_calls(store, outcome_first, message.clone(), &mut seen).await;
        }
    }
    request_input(store, &mut seen).await;
    pause_without_requests(store, &mut seen).await;
    let foreign = create_in(store, TaskStatus::InputRequired).await;
    for (id, owner) in [(&*foreign, "bob"), ("none", ALICE), ("", ALICE)] {
        call_for_unknown_task(store, id, owner, &mut seen).await;
    }
    create_and_list(store, &mut seen).await;
    seen.0
}

async fn change_status(store: &dyn PmcpStore, from: TaskStatus, seen: &mut Seen) {
    for to in STATUSES {
        // In this crate's store, the second call that ends a task succeeds.
        let ends_again = from == to && matches!(to, TaskStatus::Completed | TaskStatus::Failed);
        if !ends_again {
            let id = create_in(store, from).await;
            let changed = store.update_status(&id, ALICE, to, Some("on it".into())).await;
            seen.task(format!("{from} -> {to}"), changed);
            seen.task(format!("{from} -> {to}, then"), store.get(&id, ALICE).await);
        }
    }
}

async fn call_in_status(store: &dyn PmcpStore, from: TaskStatus, seen: &mut Seen) {
    let id = create_in(store, from).await;
    let message = store.set_status_message(&id, ALICE, Some("1/2".into())).await;
    seen.task(format!("message, {from}"), message);
    seen.task(format!("no message, {from}"), store.set_status_message(&id, ALICE, None).await);
    let id = create_in(store, from).await;
    seen.task(format!("cancel, {from}"), store.cancel(&id, ALICE).await);
    for keys in [&["a"][..], &[]] {
        let id = create_in(store, from).await;
        let requested = store.record_input_requests(&id, ALICE, requests(keys)).await;
        seen.task(format!("request input {keys:?}, {from}"), requested);
    }
    let id = create_in(store, from).await;
    seen.json(format!("deliver, {from}"), store.deliver_task_inputs(&id, ALICE, answers(&["a"])).await);
    let id = create_in(store, from).await;
    seen.json(format!("no result, {from}"), store.get_result(&id, ALICE).await);
    seen.json(format!("no error, {from}"), store.get_error(&id, ALICE).await);
    seen.json(format!("no snapshot, {from}"), store.task_input_snapshot(&id, ALICE).await);
}

async fn complete_in_two_calls(
    store: &dyn PmcpStore,
    result_first: bool,
    message: Option<String>,
    seen: &mut Seen,
) {
    let id = create(store).await;
    store.set_status_message(&id, ALICE, Some("3/4".into())).await.unwrap();
    if result_first {
        seen.json("set_result", store.set_result(&id, ALICE, text("42")).await);
    }
    let ended = store.update_status(&id, ALICE, TaskStatus::Completed, message.clone()).await;
    seen.task(format!("completed, {message:?}"), ended);
    if !result_first {
        seen.json("set_result", store.set_result(&id, ALICE, text("42")).await);
    }
    seen.task("completed", store.get(&id, ALICE).await);
    seen.json("result", store.get_result(&id, ALICE).await);
}

async fn fail_in_two_calls(
    store: &dyn PmcpStore,
    error_first: bool,
    message: Option<String>,
    seen: &mut Seen,
) {
    let id = create(store).await;
    store.set_status_message(&id, ALICE, Some("3/4".into())).await.unwrap();
    let error = json!({ "code": -32603, "message": "upstream timed out", "data": { "after": 3 } });
    if error_first {
        seen.json("set_error", store.set_error(&id, ALICE, error.clone()).await);
    }
    let ended = store.update_status(&id, ALICE, TaskStatus::Failed, message.clone()).await;
    seen.task(format!("failed, {message:?}"), ended);
    if !error_first {
        seen.json("set_error", store.set_error(&id, ALICE, error).await);
    }
    seen.task("failed", store.get(&id, ALICE).await);
    seen.json("error", store.get_error(&id, ALICE).await);
}

/// A round of input: answered in parts, with unknown keys, twice with the same key, and after the end.
async fn request_input(store: &dyn PmcpStore, seen: &mut Seen) {
    let id = create(store).await;
    let mut all = requests(&["a", "b"]);
    all.extend(roots());
    seen.task("request", store.record_input_requests(&id, ALICE, all).await);
    seen.task("request again", store.record_input_requests(&id, ALICE, requests(&["c"])).await);
    for keys in [&["x"][..], &["a", "x"], &["a"], &[]] {
        seen.json(format!("deliver {keys:?}"), store.deliver_task_inputs(&id, ALICE, answers(keys)).await);
        seen.json(format!("after {keys:?}"), store.task_input_snapshot(&id, ALICE).await);
        seen.task(format!("still {keys:?}"), store.get(&id, ALICE).await);
    }
    // The open requests survive while the task is `working`.
    for status in [TaskStatus::Working, TaskStatus::InputRequired] {
        seen.task(format!("{status}"), store.update_status(&id, ALICE, status, None).await);
        seen.json(format!("{status}, all"), store.task_input_snapshot(&id, ALICE).await);
    }
    let kind = roots()["roots"].kind();
    let mut rest = answers(&["b", "a"]);
    rest.insert("roots".into(), InputResponse::decode_for(kind, json!({ "roots": [] })).unwrap());
    seen.json("deliver the rest", store.deliver_task_inputs(&id, ALICE, rest.clone()).await);
    seen.task("all", store.get(&id, ALICE).await);
    seen.json("late", store.deliver_task_inputs(&id, ALICE, rest).await);
    seen.task("a used key", store.record_input_requests(&id, ALICE, requests(&["a"])).await);
    store.set_result(&id, ALICE, text("done")).await.unwrap();
    store.update_status(&id, ALICE, TaskStatus::Completed, None).await.unwrap_or_else(|_| Task::default());
    seen.json("snapshot at the end", store.task_input_snapshot(&id, ALICE).await);
}

async fn pause_without_requests(store: &dyn PmcpStore, seen: &mut Seen) {
    let id = create_in(store, TaskStatus::InputRequired).await;
    seen.task("goes on", store.update_status(&id, ALICE, TaskStatus::Working, None).await);
    seen.json("no snapshot", store.task_input_snapshot(&id, ALICE).await);
    store.record_input_requests(&id, ALICE, requests(&[])).await.unwrap();
    seen.json("an empty snapshot", store.task_input_snapshot(&id, ALICE).await);
}

async fn call_for_unknown_task(store: &dyn PmcpStore, id: &str, owner: &str, seen: &mut Seen) {
    seen.task("get", store.get(id, owner).await);
    for status in STATUSES {
        seen.task("update", store.update_status(id, owner, status, None).await);
    }
    seen.task("cancel", store.cancel(id, owner).await);
    seen.task("message", store.set_status_message(id, owner, None).await);
    seen.json("set_result", store.set_result(id, owner, text("42")).await);
    seen.json("get_result", store.get_result(id, owner).await);
    seen.json("set_error", store.set_error(id, owner, json!({})).await);
    seen.json("get_error", store.get_error(id, owner).await);
    seen.task("request", store.record_input_requests(id, owner, requests(&["a"])).await);
    seen.json("deliver", store.deliver_task_inputs(id, owner, answers(&["a"])).await);
    seen.json("snapshot", store.task_input_snapshot(id, owner).await);
}

/// TTLs are cut, the owner's quota is enforced, and pages have the same size.
async fn create_and_list(store: &dyn PmcpStore, seen: &mut Seen) {
    for ttl in [None, Some(1_000), Some(500_000_000)] {
        seen.task(format!("create {ttl:?}"), store.create("carol", ttl).await);
    }
    for _ in 3..100 {
        store.create("carol", None).await.unwrap();
    }
    seen.task("over the quota", store.create("carol", None).await);
    let (page, next) = store.list("carol", None).await.unwrap();
    seen.add("a page", Answer::Done(json!([page.len(), next.is_some()])));
    let empty = store.list("dave", None).await;
    seen.add("an empty page", answer(empty, |(tasks, next)| json!([tasks.len(), next])));
    seen.add("supported", Answer::Done(json!([store.supports_results(), store.supports_inputs()])));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn every_call_answers_like_the_call_of_pmcps_own_store(#[case] engine: Engine) {
    let config = StoreConfig::new().max_tasks_per_owner(100).default_poll_interval(Duration::from_secs(5));
    let (_store, ours) = open_with(engine, config).await;
    let (theirs, ours) = (answers_of(&InMemoryTaskStore::new()).await, answers_of(&ours).await);
    assert_eq!(theirs.len(), ours.len());
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(ours, theirs);
    }
}
