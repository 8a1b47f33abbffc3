//! The model of a client that cannot ask its user receives the question as text.

use rmcp::ClientLifecycleMode;
use rstest::rstest;

use super::*;

#[rstest]
#[case::that_declares_nothing(json!({}), elicitation("Publish?"))]
#[case::that_has_no_pages(json!({ "elicitation": { "form": {} } }), page())]
#[case::that_has_only_pages(json!({ "elicitation": { "url": {} } }), elicitation("Publish?"))]
#[case::whose_model_has_no_tools(json!({ "sampling": {} }), sampling_with_tools())]
#[case::that_declares_something_else(json!({ "roots": {}, "sampling": {} }), elicitation("Publish?"))]
#[tokio::test]
async fn a_client_receives_the_question_as_text(
    #[case] capabilities: serde_json::Value,
    #[case] question: InputRequest,
    #[values(newest(), ClientLifecycleMode::Initialize)] lifecycle: ClientLifecycleMode,
) {
    let tasks = super::super::in_memory();
    let (person, mut forms) = Person::new(serde_json::from_value(capabilities).unwrap());
    let client = connect_client(serve(&tasks), person, lifecycle).await;
    let task_id = one_question(&tasks, question.clone()).await;
    let result = within(begin(&client, &task_id)).await.unwrap();
    assert_eq!(result.is_error, Some(false));
    let said = said_in(&result);
    for part in [&*task_id, "\"confirm\": ", "task_answer", "Publish?"] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    let expected = json!({
        "taskId": task_id, "status": "input_required", "inputRequests": { "confirm": question },
    });
    assert_eq!(result.structured_content, Some(expected));
    assert!(forms.try_recv().is_err());
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn questions_of_which_a_client_can_answer_only_some_are_text() {
    let tasks = super::super::in_memory();
    let (person, mut forms) = Person::with_elicitation();
    let client = connect_client(serve(&tasks), person, ClientLifecycleMode::Initialize).await;
    let task_id = spawn(&tasks, |task| async move {
        let roots = serde_json::from_value(json!({ "method": "roots/list" })).unwrap();
        let (form, roots) = tokio::join!(
            task.request_input("form", elicitation("Publish?")),
            task.request_input("roots", roots)
        );
        Ok(text(format!("{} {}", form?["action"], roots?["roots"])))
    })
    .await;
    polled(&tasks, &task_id, |task| match &task.payload {
        TaskPayload::InputRequired { input_requests } => input_requests.len() == 2,
        _ => false,
    })
    .await;
    let result = within(begin(&client, &task_id)).await.unwrap();
    assert!(said_in(&result).contains("- \"form\": Publish?"), "{result:?}");
    assert!(said_in(&result).contains("- \"roots\": Which folders"), "{result:?}");
    assert!(forms.try_recv().is_err(), "the user was asked too");
    client.cancel().await.unwrap();
}

fn page() -> InputRequest {
    let page = json!({
        "mode": "url", "message": "Publish?", "url": "https://example.com/pay", "elicitationId": "1",
    });
    serde_json::from_value(json!({ "method": "elicitation/create", "params": page })).unwrap()
}

fn sampling_with_tools() -> InputRequest {
    let asked = json!({
        "messages": [{ "role": "user", "content": { "type": "text", "text": "Publish?" } }],
        "maxTokens": 10,
        "tools": [],
    });
    serde_json::from_value(json!({ "method": "sampling/createMessage", "params": asked })).unwrap()
}
