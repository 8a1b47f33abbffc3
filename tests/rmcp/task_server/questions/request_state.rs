//! Clients of 2026-07-28 repeat their call with the answers.

use rmcp::ClientLifecycleMode;
use rmcp::service::ServiceError;
use rstest_reuse::apply;

use super::*;
use crate::support::{Engine, on_every_engine, owner};

type Client = RunningService<RoleClient, Person>;

async fn connect(server: Server) -> (Client, mpsc::UnboundedReceiver<Form>) {
    let (person, forms) = Person::with_elicitation();
    (connect_client(server, person, newest()).await, forms)
}

fn answers<const N: usize>(answers: [(&str, &str); N]) -> InputResponses {
    answers.map(|(key, action)| (key.to_owned(), json!({ "action": action }))).into()
}

/// Waits for a task, and returns the keys of its questions and the request state.
async fn questions(client: &Client, call: CallToolRequestParams) -> (Vec<String>, String) {
    match within(client.call_tool_once(call)).await.unwrap() {
        CallToolResponse::InputRequired(asked) => {
            (asked.input_requests.unwrap().into_keys().collect(), asked.request_state.unwrap())
        }
        other => panic!("{other:?}"),
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn any_instance_takes_the_answers_of_a_repeated_call_and_asks_again_for_the_missing_ones(
    #[case] engine: Engine,
) {
    let (_store, one, other) = open(engine, LONG).await;
    let (client_of_one, _) = connect(serve(&one)).await;
    let (client_of_other, _) = connect(serve(&other)).await;
    let task_id = two_questions(&one).await;

    let (keys, state) = questions(&client_of_one, result_of(&task_id)).await;
    assert_eq!(keys, ["first", "second"]);
    let none = result_of(&task_id).with_request_state(&state);
    assert_eq!(questions(&client_of_other, none).await.0, ["first", "second"]);

    let partial = answers([("second", "decline"), ("no-such-question", "accept")]);
    let repeated = result_of(&task_id).with_request_state(&state).with_input_responses(partial);
    let (keys, state) = questions(&client_of_other, repeated).await;
    assert_eq!(keys, ["first"]);

    // The state names the task, so the arguments do not matter.
    let rest = answers([("first", "accept"), ("second", "accept")]);
    let repeated =
        CallToolRequestParams::new("task_result").with_request_state(state).with_input_responses(rest);
    let result = complete(within(client_of_one.call_tool_once(repeated)).await.unwrap());
    assert_eq!(said_in(&result), "\"accept\", \"decline\"");
    client_of_one.cancel().await.unwrap();
    client_of_other.cancel().await.unwrap();
}

#[tokio::test]
async fn the_client_of_the_sdk_asks_its_user_and_repeats_the_call_by_itself() {
    let tasks = super::super::in_memory();
    let (client, mut forms) = connect(serve(&tasks)).await;
    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let user = async {
        let form = forms.recv().await.unwrap();
        assert_eq!(form.message, "Publish?");
        form.answer(ElicitationAction::Accept);
    };
    let (result, ()) = within(async { tokio::join!(client.call_tool(result_of(&task_id)), user) }).await;
    assert_eq!(said_in(&result.unwrap()), "{\"action\":\"accept\"}");
    client.cancel().await.unwrap();
}

/// Repeats a call with this state and an answer, and returns the error.
async fn refused(client: &Client, tool: &'static str, state: &str) -> ErrorData {
    let call = CallToolRequestParams::new(tool)
        .with_request_state(state)
        .with_input_responses(answers([("confirm", "accept")]));
    match within(client.call_tool_once(call)).await {
        Err(ServiceError::McpError(error)) => error,
        other => panic!("{state} is accepted: {other:?}"),
    }
}

/// Returns the states that differ from this one in one character, and those that end early.
fn forgeries(state: &str) -> Vec<String> {
    let changed = (0..state.len()).map(|at| {
        let mut bytes = state.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    });
    changed.chain((0..state.len()).map(|end| state[..end].to_owned())).collect()
}

#[tokio::test]
async fn a_state_that_the_server_has_not_given_for_this_call_is_always_the_same_error_and_delivers_nothing() {
    let tasks = super::super::in_memory();
    let (client, _) = connect(serve(&tasks)).await;
    let (of_bob, _) = connect(serve_for(owner("bob"), &tasks, LONG, Companions::new())).await;
    let renamed = Companions::new().result_name("other_result");
    let (of_another_tool, _) = connect(serve_for(alice(), &tasks, LONG, renamed)).await;
    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let (_, state) = questions(&client, result_of(&task_id)).await;
    let unasked = one_question(&tasks, elicitation("Never asked?")).await;
    let another = one_question(&tasks, elicitation("Another?")).await;
    let (_, of_another) = questions(&client, result_of(&another)).await;
    let (id, seal) = state.split_once('.').unwrap();
    assert_eq!(id, task_id);

    let expected = refused(&client, "task_result", "").await;
    assert_eq!(expected.code, ErrorCode::INVALID_PARAMS);
    let mut wrong = forgeries(&state);
    wrong.push(format!("{state}A"));
    wrong.push(format!("{unasked}.{seal}"));
    wrong.push(format!("{another}.{seal}"));
    wrong.push(format!("no-such-task.{seal}"));
    wrong.push(format!("{task_id}.{}", of_another.split_once('.').unwrap().1));
    wrong.push(format!("{}.{seal}", "x".repeat(1000)));
    for state in &wrong {
        assert_eq!(refused(&client, "task_result", state).await, expected, "{state}");
    }
    assert_eq!(refused(&of_bob, "task_result", &state).await, expected);
    assert_eq!(refused(&of_another_tool, "other_result", &state).await, expected);
    let stored = tasks.store().get(&key(&task_id)).await.unwrap().task;
    assert!(stored.input_responses.is_empty(), "an answer was delivered: {stored:?}");

    let right = CallToolRequestParams::new("task_result")
        .with_request_state(&state)
        .with_input_responses(answers([("confirm", "accept")]));
    let result = complete(within(client.call_tool_once(right)).await.unwrap());
    assert_eq!(said_in(&result), "{\"action\":\"accept\"}");
    ended(&tasks, &task_id).await;
    assert_eq!(refused(&client, "task_result", &state).await, expected, "the task has ended");
    for client in [client, of_bob, of_another_tool] {
        client.cancel().await.unwrap();
    }
}

#[tokio::test]
async fn a_task_that_is_cancelled_while_it_asks_answers_its_repeated_call_with_the_same_error() {
    let tasks = super::super::in_memory();
    let (client, _) = connect(serve(&tasks)).await;
    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let (_, state) = questions(&client, result_of(&task_id)).await;
    tasks.cancel_task(&alice(), &task_id).await.unwrap();
    ended(&tasks, &task_id).await;
    assert_eq!(refused(&client, "task_result", &state).await, refused(&client, "task_result", "x").await);
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn only_the_record_has_the_secret_of_a_state_and_only_until_the_task_ends() {
    let tasks = super::super::in_memory();
    let (client, _) = connect(serve(&tasks)).await;
    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let secret = async || {
        let stored = tasks.store().get(&key(&task_id)).await.unwrap();
        let record = serde_json::to_value(&stored.task).unwrap();
        assert!(!format!("{stored:?}").contains(record["adapter"]["secret"].as_str().unwrap_or("none")));
        record["adapter"]["secret"].as_str().map(str::to_owned)
    };
    assert_eq!(secret().await, None, "no client has a state yet");
    let (_, state) = questions(&client, result_of(&task_id)).await;
    let first = secret().await.unwrap();
    let polled = serde_json::to_string(&tasks.get_task(&alice(), &task_id).await.unwrap()).unwrap();
    assert!(!polled.contains(&first) && !state.contains(&first));
    questions(&client, result_of(&task_id)).await;
    assert_eq!(secret().await, Some(first), "a secret never changes");
    tasks.cancel_task(&alice(), &task_id).await.unwrap();
    ended(&tasks, &task_id).await;
    assert_eq!(secret().await, None);
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_client_of_an_older_protocol_receives_no_request_state() {
    let tasks = super::super::in_memory();
    let (person, mut forms) = Person::with_elicitation();
    let client = connect_client(serve(&tasks), person, ClientLifecycleMode::Initialize).await;
    let task_id = one_question(&tasks, elicitation("Publish?")).await;
    let waits = begin(&client, &task_id);
    within(forms.recv()).await.unwrap().answer(ElicitationAction::Accept);
    assert_eq!(said_in(&within(waits).await.unwrap()), "{\"action\":\"accept\"}");
    client.cancel().await.unwrap();
}
