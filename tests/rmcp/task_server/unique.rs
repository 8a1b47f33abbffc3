//! Tools with at most one open task for each key: what clients of several instances receive.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::join_all;
use mcp_task_store::{
    OwnerSource, PageRequest, TaskContext, TaskServer, TaskServerConfig, TaskStatus, TaskTools,
};
use rmcp::model::*;
use rmcp::service::ServiceError;
use rstest_reuse::apply;
use serde_json::json;

use super::booth::{Booth, call, client_of, frames, serve};
use super::flaky::Flaky;
use super::{Render, Router, with_tasks};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_agenda, owner};

/// Returns a tool with one open task for each number of frames.
fn tools(booth: &Booth) -> TaskTools {
    let booth = booth.clone();
    TaskTools::new()
        .tool("render", "Renders", move |task: TaskContext, _: Render| booth.clone().enter(task))
        .unique_by(|render: &Render| render.frames)
}

async fn task_count(tasks: &Manager) -> usize {
    tasks.store().list(&alice(), PageRequest::new(256)).await.unwrap().tasks.len()
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_repeated_call_receives_the_open_task_of_its_key_from_any_instance(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let booth = Booth::new();
    let clients = [client_of(&one, tools(&booth)).await, client_of(&other, tools(&booth)).await];
    for round in 1..=2 {
        let calls = (0..16).map(|number| call(&clients[number % 2], "render", frames(7)));
        let ids = join_all(calls).await;
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        until(|| booth.entered() == round).await;
        assert_eq!((booth.inside(), task_count(&one).await), (1, round));
        booth.exits.add_permits(1);
        for manager in [&one, &other] {
            assert_eq!(said(&ended(manager, &ids[0]).await), "photo of attempt 1");
        }
    }
    let seven = call(&clients[0], "render", frames(7)).await;
    assert_ne!(call(&clients[1], "render", frames(8)).await, seven, "another key has another task");
    let bob = OwnerSource::fixed(owner("bob"));
    let config = TaskServerConfig::new().answer_within(Duration::ZERO);
    let of_bob = TaskServer::with_config(Router, other.clone(), bob, tools(&booth), config).unwrap();
    let bob = connect(of_bob, with_tasks(), newest()).await;
    assert_ne!(call(&bob, "render", frames(7)).await, seven, "another owner has another task");
    until(|| booth.inside() == 3).await;
}

#[tokio::test]
async fn a_client_without_tasks_that_has_left_finds_its_call_again_at_another_instance() {
    let (_store, one, other) = open(Engine::Memory, LONG).await;
    let booth = Booth::new();
    let first = connect(serve(&one, tools(&booth)), ClientCapabilities::default(), newest()).await;
    let request = || CallToolRequestParams::new("render").with_arguments(frames(7));
    {
        let lost = first.call_tool_once(request());
        tokio::select! {
            answer = lost => panic!("{answer:?}"),
            () = until(|| booth.inside() == 1) => {}
        }
    }
    first.cancel().await.unwrap();

    // The client of the SDK asks for notifications of the progress.
    let config = TaskServerConfig::new().hold_for_with_progress(Duration::from_millis(50));
    let owners = OwnerSource::fixed(alice());
    let server = TaskServer::with_config(Router, other.clone(), owners, tools(&booth), config).unwrap();
    let again = connect(server, ClientCapabilities::default(), newest()).await;
    let answer = again.call_tool_once(request()).await.unwrap();
    let CallToolResponse::Complete(state) = answer else { panic!("a plain result: {answer:?}") };
    let state = state.structured_content.unwrap();
    assert_eq!((&state["status"], booth.entered()), (&json!("working"), 1), "the call has joined its task");
    booth.exits.add_permits(1);
    assert_eq!(said(&ended(&other, state["taskId"].as_str().unwrap()).await), "photo of attempt 1");
    assert_eq!(task_count(&other).await, 1);
    let refused = again.call_tool_once(CallToolRequestParams::new("render")).await;
    let Err(ServiceError::McpError(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.code, ErrorCode::INVALID_PARAMS);
    again.cancel().await.unwrap();
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_call_joins_a_task_that_another_instance_resumes(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let (first, second) = (Booth::new(), Booth::new());
    let client = client_of(&one, tools(&first).resumable()).await;
    let id = call(&client, "render", frames(7)).await;
    drop(client);
    one.shutdown().await;
    let client = client_of(&other, tools(&second).resumable()).await;
    assert_eq!(call(&client, "render", frames(7)).await, id);
    until(|| second.inside() == 1).await;
    assert_eq!(call(&client, "render", frames(7)).await, id);
    second.exits.add_permits(1);
    assert_eq!(said(&ended(&other, &id).await), "photo of attempt 2");
    assert_eq!(task_count(&other).await, 1);
    client.cancel().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_is_held_while_the_engine_fails_and_starts_one_task() {
    let engine = Flaky::new();
    let tasks = manager(&engine.agenda(), LONG);
    let booth = Booth::new();
    let client = client_of(&tasks, tools(&booth)).await;
    engine.is_down.store(true, Relaxed);
    let recover = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(booth.entered(), 0, "the task is stored before its operation starts");
        engine.is_down.store(false, Relaxed);
    };
    let calls = join_all((0..3).map(|_| call(&client, "render", frames(7))));
    let (ids, ()) = tokio::join!(calls, recover);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    until(|| booth.inside() == 1).await;
    booth.exits.add_permits(1);
    let done = tasks.store().wait(&key(&ids[0])).await.unwrap();
    assert_eq!((done.task.status, task_count(&tasks).await), (TaskStatus::Completed, 1));
    client.cancel().await.unwrap();
}
