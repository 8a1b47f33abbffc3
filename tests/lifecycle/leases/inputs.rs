//! The input requests of an attempt and of the attempts after it.

use mcp_task_store::{TaskError, TaskStatus};
use rstest_reuse::apply;
use serde_json::json;

use super::{open, resumable};
use crate::common::{LONG, plain, start};
use crate::support::{Engine, on_every_engine};

#[apply(on_every_engine)]
#[tokio::test]
async fn an_attempt_uses_a_key_once_and_the_next_attempt_finds_the_earlier_requests(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    let (key, first) = start(&tasks, resumable()).await;
    let (name, age) = (json!({ "ask": "name" }), json!({ "ask": "age" }));
    first.request_input("name", name.clone()).await.unwrap();
    assert_refused!(first.request_input("name", name.clone()).await, TaskError::InputKeyUsed { .. });
    first.request_input("age", age.clone()).await.unwrap();
    other.deliver_inputs(&key, [("name", json!("Ada"))]).await.unwrap();
    let released = first.release().await.unwrap();
    assert_eq!(released.task.status, TaskStatus::InputRequired);

    let (_, second) = other.claim(&key).await.unwrap().unwrap();
    let answered = second.request_input("name", name.clone()).await.unwrap();
    assert_eq!(answered.task.input_responses["name"], "Ada");
    assert_refused!(second.request_input("name", name).await, TaskError::InputKeyUsed { .. });
    assert_refused!(
        second.request_input("age", json!({ "ask": "years" })).await,
        TaskError::InputKeyUsed { .. }
    );
    let open = second.request_input("age", age.clone()).await.unwrap();
    assert_eq!((open.version, &open.task.input_requests["age"]), (answered.version, &age));
    second.release().await.unwrap();
    let (_, third) = other.claim(&key).await.unwrap().unwrap();
    assert_refused!(
        third.request_input("name", json!({ "ask": "title" })).await,
        TaskError::InputKeyUsed { .. }
    );
    third.request_input("more", json!({})).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_earlier_answer_is_not_returned_after_a_requested_cancel_or_the_end(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    for ends in [false, true] {
        let (key, first) = start(&tasks, resumable()).await;
        first.request_input("name", json!({})).await.unwrap();
        other.deliver_inputs(&key, [("name", json!("Ada"))]).await.unwrap();
        first.release().await.unwrap();
        let (_, second) = other.claim(&key).await.unwrap().unwrap();
        if ends {
            tasks.cancel(&key).await.unwrap();
            assert_refused!(
                second.request_input("name", json!({})).await,
                TaskError::InvalidTransition { .. }
            );
        } else {
            tasks.request_cancel(&key).await.unwrap();
            assert_refused!(second.request_input("name", json!({})).await, TaskError::CancelRequested { .. });
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn answered_requests_are_kept_only_for_a_task_that_can_resume(#[case] engine: Engine) {
    let (_store, tasks, other) = open(engine, LONG).await;
    for (new, kept) in [(plain(), 0), (resumable(), 1)] {
        let (key, attempt) = start(&tasks, new).await;
        attempt.request_input("name", json!({})).await.unwrap();
        let answered = other.deliver_inputs(&key, [("name", json!("Ada"))]).await.unwrap().task;
        assert_eq!((answered.input_responses.len(), answered.answered_requests.len()), (1, kept));
    }
}
