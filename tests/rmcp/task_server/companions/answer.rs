//! `task_answer` answers the open questions of a task.

use super::*;

/// Starts a task that asks these questions at once, and returns their answers.
async fn asking<const N: usize>(tasks: &Manager, keys: [&'static str; N]) -> String {
    let task_id = spawn(tasks, |task| async move {
        let questions = keys.map(|key| task.request_input(key, elicitation(&format!("{key}?"))));
        let answers = futures_util::future::try_join_all(questions).await?;
        Ok(text(Value::Array(answers).to_string()))
    })
    .await;
    polled(tasks, &task_id, |task| match &task.payload {
        TaskPayload::InputRequired { input_requests } => input_requests.len() == N,
        _ => false,
    })
    .await;
    task_id
}

async fn answers(tasks: &Manager, task_id: &str) -> Value {
    serde_json::from_str(&said(&ended(tasks, task_id).await)).unwrap()
}

#[apply(on_every_engine)]
#[tokio::test]
async fn answers_are_delivered_by_key_at_any_instance(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let client = plain(serve(&other, LONG)).await;
    let task_id = asking(&one, ["first", "second", "third"]).await;
    let some = json!({ "second": { "action": "decline" }, "first": { "action": "accept" } });
    let result = call(&client, "task_answer", json!({ "taskId": task_id, "answers": some })).await;
    assert_eq!((result.is_error, &state(&result)["status"]), (Some(false), &json!("input_required")));
    assert!(said_in(&result).contains("- \"third\": third?"), "{result:?}");
    assert!(!said_in(&result).contains("first?"), "{result:?}");

    // Only one question is open, so its key is not needed.
    let last = json!({ "taskId": task_id, "answer": { "action": "cancel" } });
    let result = call(&client, "task_answer", last).await;
    assert!(said_in(&result).contains("call task_result") || said_in(&result).contains("Call task_result"));
    assert_eq!(state(&result)["status"], "working");
    let given = [("accept"), ("decline"), ("cancel")].map(|action| json!({ "action": action }));
    assert_eq!(answers(&one, &task_id).await, json!(given));
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn the_content_of_a_form_is_an_answer() {
    let tasks = in_memory();
    let client = plain(serve(&tasks, LONG)).await;
    let task_id = asking(&tasks, ["confirm"]).await;
    call(&client, "task_answer", json!({ "taskId": task_id, "answer": { "sure": true } })).await;
    let expected = json!([{ "action": "accept", "content": { "sure": true } }]);
    assert_eq!(answers(&tasks, &task_id).await, expected);
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn answers_that_fit_no_open_question_are_not_delivered() {
    let tasks = in_memory();
    let client = plain(serve(&tasks, LONG)).await;
    let task_id = asking(&tasks, ["first", "second"]).await;
    let accept = json!({ "action": "accept" });

    let without_key = call(&client, "task_answer", json!({ "taskId": task_id, "answer": accept })).await;
    assert_eq!(without_key.is_error, Some(true));
    assert!(said_in(&without_key).contains("by their keys. Its open questions are \"first\", \"second\"."));
    let unknown = json!({ "taskId": task_id, "answers": { "first": accept, "third": accept } });
    let unknown = call(&client, "task_answer", unknown).await;
    assert_eq!(unknown.is_error, Some(true));
    assert!(said_in(&unknown).contains("no open question \"third\""), "{unknown:?}");

    for (arguments, expected) in [
        (json!({}), "either answers or answer"),
        (json!({ "answers": {} }), "either answers or answer"),
        (json!({ "answers": { "first": accept }, "answer": accept }), "either answers or answer"),
        (json!({ "answers": { "first": "yes" } }), "the answer to \"first\" is no answer"),
    ] {
        let mut arguments = arguments;
        arguments["taskId"] = json!(task_id);
        let error = respond(&client, "task_answer", arguments).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::INVALID_PARAMS);
        assert!(error.message.contains(expected), "{error:?}");
    }
    let stored = tasks.store().get(&key(&task_id)).await.unwrap().task;
    assert!(stored.input_responses.is_empty(), "{stored:?}");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_task_without_an_open_question_says_so() {
    let tasks = in_memory();
    let client = plain(serve(&tasks, LONG)).await;
    let task_id = running(&tasks).await;
    for status in ["working", "cancelled"] {
        for answer in [json!({ "answer": {} }), json!({ "answers": { "confirm": {} } })] {
            let mut arguments = answer;
            arguments["taskId"] = json!(task_id);
            let result = call(&client, "task_answer", arguments).await;
            assert_eq!((result.is_error, &state(&result)["status"]), (Some(true), &json!(status)));
            assert!(said_in(&result).contains("has no open question"), "{result:?}");
        }
        tasks.cancel_task(&alice(), &task_id).await.unwrap();
        ended(&tasks, &task_id).await;
    }
    client.cancel().await.unwrap();
}
