//! The companion tools: with them the model of a client without the tasks extension reaches its tasks.

mod answer;
mod names;

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{Agenda, Companions, OwnerId, OwnerSource, TaskServer, TaskServerConfig, TaskTools};
use rmcp::model::*;
use rmcp::service::{RunningService, ServiceError};
use rmcp::task_manager::TaskExit;
use rmcp::{ClientLifecycleMode, ErrorData, RoleClient};
use rstest::rstest;
use rstest_reuse::apply;
use serde_json::{Value, json};

use super::{Router, in_memory, nothing};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine, owner};

type Server = TaskServer<Router, Arc<dyn Agenda>>;
type Client = RunningService<RoleClient, ClientConfig>;

fn serve_for(owner: OwnerId, tasks: &Manager, config: TaskServerConfig) -> Server {
    let tools = TaskTools::new().tool("nothing", "Does nothing", nothing);
    TaskServer::with_config(Router, tasks.clone(), OwnerSource::fixed(owner), tools, config).unwrap()
}

/// A server whose calls are held for this long.
fn serve(tasks: &Manager, hold_for: Duration) -> Server {
    let config = TaskServerConfig::new().hold_for(hold_for).hold_for_with_progress(hold_for);
    serve_for(alice(), tasks, config)
}

/// Connects a client without capabilities.
async fn plain(server: Server) -> Client {
    connect(server, ClientCapabilities::default(), newest()).await
}

async fn respond(client: &Client, tool: &'static str, arguments: Value) -> Result<CallToolResult, ErrorData> {
    let Value::Object(arguments) = arguments else { panic!("{arguments}") };
    let call = CallToolRequestParams::new(tool).with_arguments(arguments);
    match within(client.call_tool_once(call)).await {
        Ok(CallToolResponse::Complete(result)) => Ok(result),
        Err(ServiceError::McpError(error)) => Err(error),
        other => panic!("{other:?}"),
    }
}

async fn call(client: &Client, tool: &'static str, arguments: Value) -> CallToolResult {
    respond(client, tool, arguments).await.unwrap()
}

fn said_in(result: &CallToolResult) -> &str {
    &result.content[0].as_text().unwrap().text
}

fn state(result: &CallToolResult) -> &Value {
    result.structured_content.as_ref().unwrap()
}

/// Starts a task that runs until it must stop, after it has reported its progress.
async fn running(tasks: &Manager) -> String {
    let task_id = spawn(tasks, |task| async move {
        task.progress(3, 240, "rendering frame 3");
        task.cancelled().await;
        Err(TaskExit::Cancelled)
    })
    .await;
    polled(tasks, &task_id, |task| task.task.status_message.is_some()).await;
    task_id
}

#[apply(on_every_engine)]
#[tokio::test]
async fn task_result_waits_for_the_result_at_any_instance(
    #[case] engine: Engine,
    #[values(newest(), ClientLifecycleMode::Initialize)] lifecycle: ClientLifecycleMode,
) {
    let (_store, one, other) = open(engine, LONG).await;
    let (finish, task_id) = spawn_until_finished(&one).await;
    let client = connect(serve(&other, LONG), ClientCapabilities::default(), lifecycle).await;
    let peer = client.peer().clone();
    let arguments = json!({ "taskId": task_id }).as_object().cloned().unwrap();
    let waits = tokio::spawn(async move {
        peer.call_tool(CallToolRequestParams::new("task_result").with_arguments(arguments)).await.unwrap()
    });
    client.list_all_tools().await.unwrap();
    assert!(!waits.is_finished(), "the task has not ended");
    finish.send(()).unwrap();
    assert_eq!(within(waits).await.unwrap().content, text("done").content);
    let again = call(&client, "task_result", json!({ "taskId": task_id })).await;
    assert_eq!(again.content, text("done").content);
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn task_result_returns_the_state_of_a_task_that_takes_longer() {
    let tasks = in_memory();
    let client = plain(serve(&tasks, Duration::from_millis(100))).await;
    let task_id = running(&tasks).await;
    let result = call(&client, "task_result", json!({ "taskId": task_id })).await;
    assert_eq!(result.is_error, Some(false));
    for part in ["rendering frame 3", "3 of 240", "call task_result", &task_id] {
        assert!(said_in(&result).contains(part), "{part} is missing: {result:?}");
    }
    let expected = json!({
        "taskId": task_id, "status": "working", "statusMessage": "rendering frame 3",
        "progress": { "done": 3, "total": 240 },
    });
    assert_eq!(state(&result), &expected);
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn task_result_returns_a_failure_and_a_cancel_like_the_call_itself() {
    let tasks = in_memory();
    let client = plain(serve(&tasks, LONG)).await;
    let failed =
        spawn(&tasks, |_| async { Err(ErrorData::new(ErrorCode(-32000), "out of paper", None).into()) })
            .await;
    let error = respond(&client, "task_result", json!({ "taskId": failed })).await.unwrap_err();
    assert_eq!((error.code.0, &*error.message), (-32000, "out of paper"));
    let cancelled = running(&tasks).await;
    tasks.cancel_task(&alice(), &cancelled).await.unwrap();
    let result = call(&client, "task_result", json!({ "taskId": cancelled })).await;
    assert_eq!(result.is_error, Some(true));
    assert!(said_in(&result).contains("cancelled"), "{result:?}");
    client.cancel().await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn task_list_lists_the_tasks_of_the_caller_newest_first_in_pages(#[case] engine: Engine) {
    let (_store, tasks, _) = open(engine, LONG).await;
    let client = plain(serve(&tasks, LONG)).await;
    assert_eq!(said_in(&call(&client, "task_list", json!({})).await), "There are no tasks.");
    let mut ids = Vec::new();
    for _ in 0..45 {
        ids.push(spawn(&tasks, |_| async { Ok(text("done")) }).await);
        ended(&tasks, &ids[ids.len() - 1]).await;
    }
    ids.push(running(&tasks).await);
    tasks
        .spawn(&owner("bob"), "secret", Default::default(), |_| Box::pin(async { Ok(text("done")) }))
        .await
        .unwrap();

    let first = call(&client, "task_list", json!({})).await;
    let newest = &state(&first)["tasks"][0];
    assert_eq!(
        (&newest["taskId"], &newest["tool"], &newest["status"], &newest["progress"]["done"]),
        (&json!(ids[45]), &json!("test"), &json!("working"), &json!(3))
    );
    assert!(newest["createdAt"].as_str().unwrap().ends_with('Z'));
    assert!(said_in(&first).contains(&format!("- {}, test, created ", ids[45])), "{first:?}");
    assert!(said_in(&first).contains("working: rendering frame 3"), "{first:?}");

    let (mut listed, mut page, mut pages) = (Vec::new(), first, 1);
    loop {
        let tasks = state(&page)["tasks"].as_array().unwrap();
        assert!(tasks.len() <= 20);
        listed.extend(tasks.iter().map(|task| task["taskId"].as_str().unwrap().to_owned()));
        let Some(cursor) = state(&page)["nextCursor"].as_str() else { break };
        assert!(said_in(&page).contains(cursor));
        page = call(&client, "task_list", json!({ "cursor": cursor })).await;
        pages += 1;
    }
    ids.reverse();
    assert_eq!((listed, pages), (ids, 3));
    let malformed = respond(&client, "task_list", json!({ "cursor": "no cursor" })).await.unwrap_err();
    assert_eq!(malformed.code, ErrorCode::INVALID_PARAMS);
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn task_cancel_asks_the_task_to_stop_and_changes_no_task_that_has_ended() {
    let tasks = in_memory();
    let client = plain(serve(&tasks, LONG)).await;
    let task_id = running(&tasks).await;
    let asked = call(&client, "task_cancel", json!({ "taskId": task_id })).await;
    assert_eq!((asked.is_error, &state(&asked)["taskId"]), (Some(false), &json!(task_id)));
    assert!(said_in(&asked).contains("was asked to stop"), "{asked:?}");
    assert!(matches!(ended(&tasks, &task_id).await, TaskPayload::Cancelled));
    let again = call(&client, "task_cancel", json!({ "taskId": task_id })).await;
    assert_eq!((again.is_error, &state(&again)["status"]), (Some(false), &json!("cancelled")));
    assert!(said_in(&again).contains("has ended"), "{again:?}");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_foreign_an_expired_and_an_unknown_task_are_the_same_sentence_in_every_companion() {
    let tasks = in_memory();
    let (of_alice, of_bob) = (
        plain(serve(&tasks, LONG)).await,
        plain(serve_for(owner("bob"), &tasks, TaskServerConfig::new())).await,
    );
    let foreign = running(&tasks).await;
    let deleted = running(&tasks).await;
    tasks.store().delete(&key(&deleted)).await.unwrap();
    let too_long = "x".repeat(1000);
    let mut sentences = Vec::new();
    for (client, id) in [
        (&of_bob, &*foreign),
        (&of_alice, &*deleted),
        (&of_alice, "no-such-task"),
        (&of_alice, &*too_long),
        (&of_alice, ""),
    ] {
        for (tool, arguments) in [
            ("task_result", json!({ "taskId": id })),
            ("task_cancel", json!({ "taskId": id })),
            ("task_answer", json!({ "taskId": id, "answer": {} })),
            ("task_answer", json!({ "taskId": id, "answers": { "confirm": {} } })),
        ] {
            let result = call(client, tool, arguments).await;
            assert_eq!((result.is_error, &result.structured_content), (Some(true), &None), "{tool}: {id}");
            sentences.push(said_in(&result).to_owned());
        }
    }
    assert!(sentences.iter().all(|sentence| *sentence == sentences[0]), "{sentences:?}");
    let listed = call(&of_bob, "task_list", json!({})).await;
    assert_eq!(state(&listed), &json!({ "tasks": [] }));
    let untouched = tasks.store().get(&key(&foreign)).await.unwrap().task;
    assert!(!untouched.cancel_requested, "{untouched:?}");
    of_alice.cancel().await.unwrap();
    of_bob.cancel().await.unwrap();
}

#[rstest]
#[case::no_id("task_result", json!({}))]
#[case::no_id("task_cancel", json!({ "id": "t1" }))]
#[case::no_id("task_answer", json!({ "answer": {} }))]
#[case::an_id_of_another_type("task_result", json!({ "taskId": 1 }))]
#[case::a_cursor_of_another_type("task_list", json!({ "cursor": 1 }))]
#[case::answers_of_another_type("task_answer", json!({ "taskId": "t1", "answers": [1] }))]
#[tokio::test]
async fn arguments_of_another_type_are_invalid_params(#[case] tool: &'static str, #[case] arguments: Value) {
    let client = plain(serve(&in_memory(), LONG)).await;
    let error = respond(&client, tool, arguments).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::INVALID_PARAMS);
    assert!(error.message.contains(tool), "{error:?}");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn the_companions_of_a_client_without_an_owner_fail() {
    let tools = TaskTools::new();
    let owners = OwnerSource::extensions(|_| None);
    let server = TaskServer::new(Router, in_memory(), owners, tools).unwrap();
    let client = plain(server).await;
    for tool in ["task_result", "task_list", "task_answer", "task_cancel"] {
        let error = respond(&client, tool, json!({ "taskId": "t1", "answer": 1 })).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::INVALID_REQUEST, "{tool}");
    }
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn arguments_of_any_kind_are_refused_with_the_code_of_invalid_params_or_with_a_sentence() {
    let tasks = in_memory();
    let client = plain(serve(&tasks, LONG)).await;
    let values = [
        json!(null),
        json!(true),
        json!(7),
        json!(-1.5e300),
        json!(""),
        json!(" "),
        json!("\u{0}"),
        json!("..\u{1F4A9}:{}%"),
        json!("x".repeat(256)),
        json!("x".repeat(1024 * 1024)),
        json!([]),
        json!({}),
        json!([["nested"]]),
    ];
    for value in values {
        for arguments in [
            json!({ "taskId": value }),
            json!({ "taskId": "no-such-task", "answers": value }),
            json!({ "taskId": "no-such-task", "answer": value }),
            json!({ "taskId": value, "answers": { "confirm": value } }),
            json!({ "cursor": value }),
            json!({ "taskId": "no-such-task", "surplus": value }),
            value.clone(),
        ] {
            if !arguments.is_object() {
                continue;
            }
            for tool in ["task_result", "task_list", "task_answer", "task_cancel"] {
                match respond(&client, tool, arguments.clone()).await {
                    Err(error) => assert_eq!(error.code, ErrorCode::INVALID_PARAMS, "{tool}: {error:?}"),
                    Ok(result) if tool == "task_list" => assert_eq!(said_in(&result), "There are no tasks."),
                    Ok(result) => assert!(said_in(&result).starts_with("There is no task"), "{result:?}"),
                }
            }
        }
    }
    client.cancel().await.unwrap();
}
