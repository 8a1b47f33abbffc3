//! `pmcp` ends a task in two calls. In this crate the first of the two ends it.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{PmcpTaskStore, StoreConfig, TaskStatus as Status, TaskStore};
use pmcp::server::task_store::TaskStore as PmcpStore;
use pmcp::types::CallToolResult;
use pmcp::types::tasks::TaskStatus;
use rstest_reuse::apply;
use serde_json::json;

use super::{ALICE, Answer, answer, create, open, text};
use crate::support::recording::Recording;
use crate::support::{Engine, key, on_every_engine};

#[apply(on_every_engine)]
#[tokio::test]
async fn set_result_completes_a_task_and_the_second_call_changes_nothing(#[case] engine: Engine) {
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
async fn a_large_result_is_served_and_compared_like_a_small_one(#[case] engine: Engine) {
    let store = engine.open_roomy().await;
    let (recording, backend) = Recording::of(&store.backend);
    let tasks = PmcpTaskStore::new(TaskStore::new(backend));
    let large = |letter: &str| text(&letter.repeat(100_000));
    let id = create(&tasks).await;
    tasks.set_result(&id, ALICE, large("x")).await.unwrap();
    tasks.get(&id, ALICE).await.unwrap();
    tasks.list(ALICE, None).await.unwrap();
    tasks.update_status(&id, ALICE, TaskStatus::Completed, Some("done".into())).await.unwrap();
    assert_eq!(recording.loaded().len(), 0, "no other call loads the result");
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

    // In the other order of the two calls, the second call adds the result.
    let id = create(&tasks).await;
    tasks.update_status(&id, ALICE, completed, None).await.unwrap();
    tasks.set_result(&id, ALICE, large("z")).await.unwrap();
    assert_eq!(json!(tasks.get_result(&id, ALICE).await.unwrap()), json!(large("z")));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn another_result_after_the_ttl_is_expired_and_the_same_result_is_accepted(#[case] engine: Engine) {
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
async fn set_error_fails_a_task_and_the_second_call_changes_nothing(#[case] engine: Engine) {
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
async fn the_outcome_of_an_ended_task_is_never_replaced(#[case] engine: Engine) {
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
async fn a_result_is_returned_with_all_its_fields(#[case] engine: Engine) {
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
async fn an_error_is_returned_unchanged(#[case] engine: Engine) {
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
        assert!(stored.task.error.is_some(), "the store has an error, too");
    }
    let deep = (0..120).fold(json!({}), |deep, _| json!([deep]));
    let id = create(&tasks).await;
    assert_eq!(answer(tasks.set_error(&id, ALICE, deep).await, |()| json!(null)), Answer::Internal);
    assert_eq!(tasks.get(&id, ALICE).await.unwrap().status, TaskStatus::Working);
}
