//! Input from the client through `pmcp`'s calls.

use std::sync::Arc;

use mcp_task_store::{NewTask, OnWorkerLost, PmcpTaskStore, TaskStore};
use pmcp::server::task_store::TaskStore as PmcpStore;
use pmcp::types::tasks::TaskStatus;
use rstest_reuse::apply;
use serde_json::json;

use super::{ALICE, Answer, answer, answers, create, open, requests, shown, text};
use crate::support::{Engine, key, on_every_engine};

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
async fn a_task_that_continues_without_answers_has_no_open_requests_until_it_requires_input_again(
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
async fn racing_answers_are_all_applied(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let id = create(&tasks).await;
    let keys = ["a", "b", "c", "d"];
    tasks.record_input_requests(&id, ALICE, requests(&keys)).await.unwrap();
    let mut deliveries = tokio::task::JoinSet::new();
    for key in keys {
        // Each delivery has a store of its own, as in several processes.
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
async fn a_task_whose_cancel_was_requested_rejects_requests(#[case] engine: Engine) {
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
async fn a_request_of_an_attempt_that_was_answered_through_the_store_is_in_the_snapshot(
    #[case] engine: Engine,
) {
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
async fn requests_and_results_of_the_store_below_are_served(#[case] engine: Engine) {
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
