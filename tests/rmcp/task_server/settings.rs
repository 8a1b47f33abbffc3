//! The settings of a tool, as a client of the SDK sees their effect.

use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use mcp_task_store::{TaskContext, TaskStatus, TaskTools};
use rmcp::model::*;
use rmcp::service::ServiceError;
use rmcp::task_manager::TaskExit;
use rstest_reuse::apply;

use super::booth::{Booth, call, client_of, frames, serve};
use super::{Render, in_memory, until_cancelled};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};

#[apply(on_every_engine)]
#[tokio::test]
async fn the_record_of_a_call_stays_readable_for_the_retention_of_its_tool(#[case] engine: Engine) {
    const MINUTES: i64 = 20;
    let (_store, tasks, _) = open(engine, LONG).await;
    let tools = TaskTools::new()
        .tool("wait", "Waits", until_cancelled::<EmptyObject>)
        .retention(Duration::from_secs(20 * 60))
        .tool("other", "Waits", until_cancelled::<EmptyObject>);
    let client = client_of(&tasks, tools).await;
    for (tool, is_limited) in [("wait", true), ("other", false)] {
        let task_id = call(&client, tool, JsonObject::new()).await;
        client.cancel_task(CancelTaskParams::new(&task_id)).await.unwrap();
        ended(&tasks, &task_id).await;
        let stored = tasks.store().get(&key(&task_id)).await.unwrap();
        let lives = stored.expires_at.unwrap() - stored.task.last_updated_at;
        let expected = TimeDelta::minutes(MINUTES);
        let is_as_long = lives > expected - TimeDelta::seconds(5) && lives < expected + TimeDelta::seconds(5);
        assert_eq!(is_as_long, is_limited, "{tool}: {lives}");
    }
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_call_over_the_concurrency_of_its_tool_is_a_task_that_waits_for_a_place() {
    let (booth, tasks) = (Booth::new(), in_memory());
    let client = client_of(&tasks, booth.tools().concurrency(2)).await;
    let mut ids = Vec::new();
    for number in 1..=4 {
        ids.push(call(&client, "photo", JsonObject::new()).await);
        until(|| booth.inside() == number.min(2)).await;
    }
    assert_eq!(tasks.running_task_count(), 4);
    for id in &ids {
        assert_eq!(tasks.get_task(&alice(), id).await.unwrap().status(), rmcp::model::TaskStatus::Working);
    }
    // A call that waits needs no place to be cancelled.
    client.cancel_task(CancelTaskParams::new(&ids[2])).await.unwrap();
    assert!(matches!(ended(&tasks, &ids[2]).await, TaskPayload::Cancelled));
    assert_eq!((booth.entered(), booth.inside()), (2, 2), "the call has not run");

    booth.exits.add_permits(1);
    until(|| booth.entered() == 3).await;
    booth.exits.add_permits(2);
    for id in [&ids[0], &ids[1], &ids[3]] {
        assert_eq!(said(&ended(&tasks, id).await), "photo of attempt 1");
    }
    assert_eq!(booth.entered(), 3);
    until(|| tasks.running_task_count() == 0).await;
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_held_call_waits_for_a_place_and_receives_its_result() {
    let (booth, tasks) = (Booth::new(), in_memory());
    let server = serve(&tasks, booth.tools().concurrency(1));
    let client = connect(server, ClientCapabilities::default(), newest()).await;
    let calls = (0..3).map(|_| client.call_tool_once(CallToolRequestParams::new("photo")));
    let release = async {
        for number in 1..=3 {
            until(|| booth.entered() == number).await;
            assert_eq!(booth.inside(), 1);
            booth.exits.add_permits(1);
        }
    };
    let (answers, ()) = within(futures_util::future::join(join_all(calls), release)).await;
    for answer in answers {
        let CallToolResponse::Complete(result) = answer.unwrap() else { panic!("a plain result") };
        assert_eq!(result.content, text("photo of attempt 1").content);
    }
    client.cancel().await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_without_a_place_stays_in_its_queue_for_other_instances(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let (first, booth) = (Booth::new(), Booth::new());
    let client = client_of(&one, first.tools().resumable()).await;
    let calls = (0..4).map(|_| call(&client, "photo", JsonObject::new()));
    let ids = join_all(calls).await;
    until(|| first.inside() == 4).await;
    let quick = |task: TaskContext, _: EmptyObject| async move { Ok(text(task.task_id())) };
    let tools = booth.tools().resumable().concurrency(1).tool("quick", "Is quick", quick).resumable();
    let _server = serve(&other, tools);
    drop(client);
    one.shutdown().await;
    for number in 1..=4 {
        until(|| booth.entered() == number).await;
        assert_eq!((booth.inside(), other.running_task_count()), (1, 1));
        let mut held = 0;
        for id in &ids {
            let task = other.store().get(&key(id)).await.unwrap().task;
            held += usize::from(task.lease.as_ref().is_some_and(|lease| lease.holder.is_some()));
        }
        assert_eq!(held, 1, "the other tasks wait for any worker");
        booth.exits.add_permits(1);
    }
    for id in &ids {
        let done = within(other.store().wait(&key(id))).await.unwrap();
        assert_eq!(done.task.status, TaskStatus::Completed);
    }
}

/// Code of a tool that receives only the context.
fn frames_of(task: &TaskContext) -> Result<u64, TaskExit> {
    task.args::<Render>().map(|render| render.frames)
}

#[apply(on_every_engine)]
#[tokio::test]
async fn every_attempt_reads_the_arguments_of_the_first_call_from_its_context(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let tools = || {
        let render = async |task: TaskContext, _: Render| {
            if task.attempt() == 1 {
                task.cancelled().await;
            }
            Ok(text(format!("{} frames", frames_of(&task)?)))
        };
        let quick = async |task: TaskContext, _: Render| Ok(text(format!("{} frames", frames_of(&task)?)));
        let other_type = async |task: TaskContext, _: Render| {
            let names: Vec<String> = task.args()?;
            Ok(text(names.join(", ")))
        };
        TaskTools::new()
            .tool("render", "Renders", render)
            .resumable()
            .tool("quick", "Renders", quick)
            .tool("wrong", "Renders", other_type)
    };
    let client = client_of(&one, tools()).await;
    let _server = serve(&other, tools());
    let direct = async |tool: &'static str| {
        client.call_tool_once(CallToolRequestParams::new(tool).with_arguments(frames(7))).await
    };
    let CallToolResponse::Complete(quick) = direct("quick").await.unwrap() else { panic!("no task") };
    assert_eq!(quick.content, text("7 frames").content);
    let Err(ServiceError::McpError(wrong)) = direct("wrong").await else { panic!("the tool has failed") };
    assert!(wrong.message.contains("do not have the type alloc::vec::Vec"), "{wrong:?}");
    let resumed = call(&client, "render", frames(240)).await;
    drop(client);
    one.shutdown().await;
    assert_eq!(said(&ended(&other, &resumed).await), "240 frames");
}

#[tokio::test]
async fn a_registered_operation_reads_its_arguments_and_a_closure_has_none() {
    let tasks = in_memory();
    tasks.register("render", |task: TaskContext, _| {
        Box::pin(async move { Ok(text(format!("{} frames", frames_of(&task)?))) })
    });
    let arguments = serde_json::json!({ "frames": 3 });
    let task = tasks.spawn_registered(&alice(), "render", arguments, resume()).await.unwrap();
    assert_eq!(said(&ended(&tasks, &task.task_id).await), "3 frames");
    let closure = spawn(&tasks, async |task: TaskContext| {
        frames_of(&task).map(|frames| text(format!("{frames} frames")))
    })
    .await;
    assert_eq!(
        said(&ended(&tasks, &closure).await),
        "the task runs a closure, so its record has no arguments"
    );
}
