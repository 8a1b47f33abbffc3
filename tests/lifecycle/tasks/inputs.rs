//! Input from the client, and a requested cancel.

use mcp_task_store::{TaskError, TaskStatus};
use rstest_reuse::apply;
use serde_json::{Value, json};

use super::{create, in_status, open};
use crate::support::{Engine, on_every_engine};

#[apply(on_every_engine)]
#[tokio::test]
async fn inputs_are_requested_and_delivered_in_several_calls(#[case] engine: Engine) {
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
async fn a_requested_cancel_withdraws_open_requests_and_lets_the_operation_decide_how_the_task_ends(
    #[case] engine: Engine,
) {
    let (_store, tasks) = open(engine).await;
    let asking = in_status(&tasks, TaskStatus::InputRequired).await;
    let requested = tasks.request_cancel(&asking).await.unwrap();
    assert!(requested.task.cancel_requested && requested.task.input_requests.is_empty());
    assert_eq!(requested.task.status, TaskStatus::Working);
    assert_eq!(tasks.request_cancel(&asking.key).await.unwrap(), requested, "twice is one write");
    assert_eq!(tasks.deliver_inputs(&requested, [("open", json!(1))]).await.unwrap(), requested);
    let asked = tasks.request_input(&requested, [("more", json!(1))]).await;
    assert_refused!(asked, TaskError::CancelRequested { .. });
    let done = tasks.complete(&requested, json!("finished anyway")).await.unwrap();
    assert_eq!(done.task.status, TaskStatus::Completed);
    assert_eq!(tasks.request_cancel(&done).await.unwrap(), done);
}
