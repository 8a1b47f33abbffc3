//! The questions of a task tool, in the call of the tool itself.

use mcp_task_store::{PageRequest, TaskContext};
use rmcp::ClientLifecycleMode;
use rmcp::task_manager::TaskExit;
use rstest::rstest;
use serde_json::Value;

use super::super::http::{Http, Protocol, read_until};
use super::super::raw::{Kind, RawClient};
use super::*;

async fn publish(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    let answer = task.request_input("confirm", elicitation("Publish?")).await?;
    Ok(text(format!("the answer is {}", answer["action"].as_str().unwrap())))
}

fn tools() -> TaskTools {
    TaskTools::new().tool("publish", "Publishes", publish).tool("delete", "Deletes", publish)
}

fn serve(tasks: &Manager) -> Server {
    TaskServer::new(Router, tasks.clone(), OwnerSource::fixed(alice()), tools()).unwrap()
}

fn elicits() -> Value {
    json!({ "elicitation": {} })
}

#[rstest]
#[tokio::test]
async fn the_user_of_a_client_with_forms_answers_and_the_call_returns_the_result(
    #[values(newest(), ClientLifecycleMode::Initialize)] lifecycle: ClientLifecycleMode,
) {
    let tasks = super::super::in_memory();
    let (person, mut forms) = Person::with_elicitation();
    let client = connect_client(serve(&tasks), person, lifecycle).await;
    let user = async {
        forms.recv().await.unwrap().answer(ElicitationAction::Accept);
    };
    let call = client.call_tool(CallToolRequestParams::new("publish"));
    let (result, ()) = within(async { tokio::join!(call, user) }).await;
    assert_eq!(said_in(&result.unwrap()), "the answer is accept");
    let page = tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap();
    assert_eq!(page.tasks.len(), 1, "the repeated call has started a second task");
    client.cancel().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn the_model_of_any_other_client_answers_with_a_companion(
    #[values(newest(), ClientLifecycleMode::Initialize)] lifecycle: ClientLifecycleMode,
) {
    let tasks = super::super::in_memory();
    let (person, _forms) = Person::new(ClientCapabilities::default());
    let client = connect_client(serve(&tasks), person, lifecycle).await;
    let call = async |name: &'static str, arguments: Value| {
        let arguments = arguments.as_object().cloned().unwrap();
        let call = CallToolRequestParams::new(name).with_arguments(arguments);
        complete(within(client.call_tool_once(call)).await.unwrap())
    };
    let asked = call("publish", json!({})).await;
    let state = asked.structured_content.unwrap();
    assert_eq!(state["status"], "input_required");
    let answer = json!({ "taskId": state["taskId"], "answer": { "action": "decline" } });
    call("task_answer", answer).await;
    let result = call("task_result", json!({ "taskId": state["taskId"] })).await;
    assert_eq!(said_in(&result), "the answer is decline");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_state_of_one_tool_is_refused_by_the_other_tools() {
    let tasks = super::super::in_memory();
    let mut client = RawClient::connect_with(serve(&tasks), Kind::Plain, elicits()).await;
    let asked = client.call("publish", json!({})).await;
    let state = asked["result"]["requestState"].as_str().unwrap().to_owned();
    assert_eq!(asked["result"]["resultType"], "input_required");
    let answers = json!({ "confirm": { "action": "accept" } });
    let repeat =
        |tool| json!({ "name": tool, "arguments": {}, "requestState": state, "inputResponses": answers });
    for tool in ["delete", "task_result"] {
        let refused = client.request("tools/call", repeat(tool)).await;
        assert_eq!(refused["error"]["code"], -32602, "{tool}: {refused}");
    }
    let result = client.request("tools/call", repeat("publish")).await;
    assert_eq!(result["result"]["content"][0]["text"], "the answer is accept");
    let replayed = client.request("tools/call", repeat("publish")).await;
    assert_eq!(replayed["error"]["code"], -32602, "{replayed}");
    let page = tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap();
    assert_eq!(page.tasks.len(), 1);
}

#[tokio::test]
async fn a_client_with_tasks_receives_the_task_and_no_question() {
    let tasks = super::super::in_memory();
    let mut client = RawClient::connect_with(serve(&tasks), Kind::Tasks, elicits()).await;
    let response = client.call("publish", json!({})).await;
    assert_eq!(response["result"]["resultType"], "task", "{response}");
    assert!(client.messages.is_empty(), "{:?}", client.messages);
}

#[tokio::test]
async fn a_form_reaches_the_user_of_a_session_over_http_in_the_stream_of_the_call() {
    let tasks = super::super::in_memory();
    let http = Http::connect_with(serve(&tasks), Protocol::Session, elicits()).await;
    let mut response = http.begin("publish", json!({})).await;
    let is_form = |message: &Value| message["method"] == "elicitation/create";
    let form = within(read_until(&mut response, is_form)).await;
    let reply = json!({ "jsonrpc": "2.0", "id": form["id"], "result": { "action": "cancel" } });
    assert!(http.post(reply, None).await.status().is_success());
    let result = within(read_until(&mut response, |message| message["id"] == 1)).await;
    assert_eq!(result["result"]["content"][0]["text"], "the answer is cancel", "{result}");
}

#[tokio::test]
async fn a_client_whose_capabilities_do_not_reach_the_server_receives_the_question_as_text() {
    let tasks = super::super::in_memory();
    let http = Http::connect_with(serve(&tasks), Protocol::Sessionless, elicits()).await;
    let messages = http.call("publish", json!({})).await;
    let result = &messages.last().unwrap()["result"];
    assert_eq!(result["structuredContent"]["status"], "input_required", "{messages:?}");
    assert!(result["content"][0]["text"].as_str().unwrap().contains("task_answer"));
}

#[rstest]
#[tokio::test]
async fn a_call_that_is_cancelled_while_it_asks_cancels_its_task_if_the_tool_says_so(
    #[values(false, true)] cancels: bool,
) {
    let tasks = super::super::in_memory();
    let tools = if cancels { tools().cancel_with_request() } else { tools() };
    let server = TaskServer::new(Router, tasks.clone(), OwnerSource::fixed(alice()), tools).unwrap();
    let (person, mut forms) = Person::with_elicitation();
    let client = connect_client(server, person, ClientLifecycleMode::Initialize).await;
    let peer = client.peer().clone();
    let call = tokio::spawn(async move { peer.call_tool_once(CallToolRequestParams::new("delete")).await });
    let form = within(forms.recv()).await.unwrap();
    // The client of the SDK cancels a call whose future is dropped.
    call.abort();
    let page = tasks.store().list(&alice(), PageRequest::new(10)).await.unwrap();
    let task_id = page.tasks[0].key.task.as_str();
    if cancels {
        within(form.withdrawn).await.unwrap();
        assert!(matches!(ended(&tasks, task_id).await, TaskPayload::Cancelled));
    } else {
        // The server has received the cancel before it answers a later request.
        client.list_all_tools().await.unwrap();
        form.answer(ElicitationAction::Accept);
        assert_eq!(said(&ended(&tasks, task_id).await), "the answer is accept");
    }
    client.cancel().await.unwrap();
}
