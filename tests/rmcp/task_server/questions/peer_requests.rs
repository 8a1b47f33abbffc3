//! Clients of older protocols answer requests of the server.

use std::sync::atomic::Ordering::Relaxed;

use mcp_task_store::TaskStatus;
use rmcp::ClientLifecycleMode;
use serde_json::Value;

use super::super::flaky::Flaky;
use super::super::raw::{Kind, RawClient};
use super::*;

type Client = RunningService<RoleClient, Person>;

async fn connect(server: Server) -> (Client, mpsc::UnboundedReceiver<Form>) {
    let (person, forms) = Person::with_elicitation();
    (connect_client(server, person, ClientLifecycleMode::Initialize).await, forms)
}

#[tokio::test]
async fn the_user_answers_one_form_after_another_and_the_call_goes_on() {
    let tasks = super::super::in_memory();
    let (client, mut forms) = connect(serve(&tasks)).await;
    let task_id = two_questions(&tasks).await;
    let waits = begin(&client, &task_id);
    let first = within(forms.recv()).await.unwrap();
    assert_eq!(first.message, "First?");
    // The client answers requests in between, and shows no second form meanwhile.
    client.list_all_tools().await.unwrap();
    assert!(forms.try_recv().is_err(), "two forms are open");
    first.answer(ElicitationAction::Decline);
    let second = within(forms.recv()).await.unwrap();
    assert_eq!(second.message, "Second?");
    second.answer(ElicitationAction::Cancel);
    assert_eq!(said_in(&within(waits).await.unwrap()), "\"decline\", \"cancel\"");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_model_and_a_list_of_roots_are_requests_too_if_the_client_declares_them() {
    let tasks = super::super::in_memory();
    let questions = [
        (
            json!({
                "method": "sampling/createMessage",
                "params": {
                    "messages": [{ "role": "user", "content": { "type": "text", "text": "Capital?" } }],
                    "maxTokens": 10,
                },
            }),
            json!({
                "role": "assistant", "content": { "type": "text", "text": "Paris" }, "model": "m",
            }),
        ),
        (json!({ "method": "roots/list" }), json!({ "roots": [{ "uri": "file:///films" }] })),
    ];
    for (question, answer) in questions {
        let request = serde_json::from_value(question.clone()).unwrap();
        let task_id = one_question(&tasks, request).await;
        let capabilities = json!({ "sampling": {}, "roots": {} });
        let mut client = RawClient::connect_with(serve(&tasks), Kind::Old, capabilities).await;
        let call = json!({ "name": "task_result", "arguments": { "taskId": task_id } });
        let call = client.begin("tools/call", call).await;
        let asked = within(client.read()).await;
        assert_eq!(
            (&asked["method"], &asked["params"]["messages"]),
            (&question["method"], &question["params"]["messages"])
        );
        client.send(json!({ "jsonrpc": "2.0", "id": asked["id"], "result": answer })).await;
        let response = within(client.response(call)).await;
        let said: Value =
            serde_json::from_str(response["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
        assert_eq!(said, answer);
    }
}

#[tokio::test]
async fn a_client_that_refuses_a_request_receives_the_question_as_text() {
    let tasks = super::super::in_memory();
    let (client, mut forms) = connect(serve(&tasks)).await;
    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let waits = begin(&client, &task_id);
    let form = within(forms.recv()).await.unwrap();
    form.reply.send(Err(ErrorData::internal_error("no window", None))).unwrap();
    let result = within(waits).await.unwrap();
    assert!(said_in(&result).contains("Publish?") && said_in(&result).contains("task_answer"), "{result:?}");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn an_answer_after_the_end_of_the_call_is_delivered_and_nobody_is_asked_twice() {
    let tasks = super::super::in_memory();
    let hold_for = Duration::from_millis(200);
    let (client, mut forms) = connect(serve_for(alice(), &tasks, hold_for, Companions::new())).await;
    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let waits = begin(&client, &task_id);
    let form = within(forms.recv()).await.unwrap();
    let result = within(waits).await.unwrap();
    assert_eq!(result.is_error, Some(false));
    assert!(said_in(&result).contains("has asked the user"), "{result:?}");
    let state = result.structured_content.unwrap();
    assert_eq!((&state["taskId"], &state["status"]), (&json!(task_id), &json!("input_required")));

    // A second call waits for the same form.
    let again = within(begin(&client, &task_id)).await.unwrap();
    assert!(said_in(&again).contains("has asked the user"), "{again:?}");
    assert!(forms.try_recv().is_err(), "the user sees the form twice");
    let waits = begin(&client, &task_id);
    form.answer(ElicitationAction::Accept);
    assert_eq!(said_in(&within(waits).await.unwrap()), "{\"action\":\"accept\"}");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_question_that_is_answered_otherwise_is_withdrawn_from_the_user() {
    let tasks = super::super::in_memory();
    let (client, mut forms) = connect(serve(&tasks)).await;
    let task_id = two_questions(&tasks).await;
    let waits = begin(&client, &task_id);
    let form = within(forms.recv()).await.unwrap();
    let answer = [("first".to_owned(), json!({ "action": "accept" }))];
    tasks.update_task(&alice(), &task_id, answer).await.unwrap();
    within(form.withdrawn).await.unwrap();
    within(forms.recv()).await.unwrap().answer(ElicitationAction::Decline);
    assert_eq!(said_in(&within(waits).await.unwrap()), "\"accept\", \"decline\"");

    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let waits = begin(&client, &task_id);
    let form = within(forms.recv()).await.unwrap();
    tasks.cancel_task(&alice(), &task_id).await.unwrap();
    within(form.withdrawn).await.unwrap();
    assert_eq!(within(waits).await.unwrap().is_error, Some(true));
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_task_whose_client_has_left_still_waits_and_another_client_answers() {
    let tasks = super::super::in_memory();
    let (client, mut forms) = connect(serve(&tasks)).await;
    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let waits = begin(&client, &task_id);
    let form = within(forms.recv()).await.unwrap();
    waits.abort();
    client.cancel().await.unwrap();
    drop(form);
    let stored = tasks.store().get(&key(&task_id)).await.unwrap();
    assert_eq!(stored.task.status, TaskStatus::InputRequired);

    let (other, mut forms) = connect(serve(&tasks)).await;
    let waits = begin(&other, &task_id);
    within(forms.recv()).await.unwrap().answer(ElicitationAction::Accept);
    assert_eq!(said_in(&within(waits).await.unwrap()), "{\"action\":\"accept\"}");
    other.cancel().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_arrives_while_the_engine_is_down_is_delivered_later() {
    let engine = Flaky::new();
    let tasks = manager(&engine.agenda(), LONG);
    let (client, mut forms) = connect(serve(&tasks)).await;
    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let waits = begin(&client, &task_id);
    let form = within(forms.recv()).await.unwrap();
    engine.is_down.store(true, Relaxed);
    let before = engine.calls.load(Relaxed);
    form.answer(ElicitationAction::Accept);
    until(|| engine.calls.load(Relaxed) > before + 3).await;
    assert!(!waits.is_finished());
    engine.is_down.store(false, Relaxed);
    assert_eq!(said_in(&within(waits).await.unwrap()), "{\"action\":\"accept\"}");
    client.cancel().await.unwrap();
}
