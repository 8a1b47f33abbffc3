//! The scenarios of a client that declares the tasks extension.

use std::collections::BTreeMap;

use rmcp::model::{
    CallToolResponse, CallToolResult, CancelTaskParams, DetailedTask, GetTaskParams, TaskPayload, TaskStatus,
    UpdateTaskParams,
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::Mode;
use crate::connection::{Connection, Server};
use crate::scenario::{
    Failure, OWN_LIMIT, POLL, expect, expect_companions, kill, recover, survived, text_of, worked,
};

pub async fn play(scenario: &str, connection: Connection, server: &Server) -> Result<String, Failure> {
    if scenario == "killed" {
        return killed(connection, server).await;
    }
    let got = match scenario {
        "quick" => quick(&connection).await,
        "slow" => slow(&connection).await,
        "question" => question(&connection).await,
        "longer" => longer(&connection).await,
        "cancel" => cancel(&connection).await,
        "limit" => limit(&connection).await,
        other => Err(format!("there is no scenario {other}").into()),
    };
    connection.close().await?;
    got
}

async fn quick(connection: &Connection) -> Result<String, Failure> {
    expect_companions(connection, false).await?;
    match connection.call_once("work", json!({ "seconds": 0.0 })).await? {
        CallToolResponse::Complete(result) => Ok(worked(&result, 0.0)?.to_owned()),
        other => Err(format!("unexpected: {other:?}").into()),
    }
}

async fn slow(connection: &Connection) -> Result<String, Failure> {
    let task_id = start(connection, "work", json!({ "seconds": 4.0 })).await?;
    let result = finish(connection, &task_id).await?;
    let progress = if connection.was_notified() { ", progress" } else { "" };
    Ok(format!("task, {}{progress}", worked(&result, 4.0)?))
}

async fn question(connection: &Connection) -> Result<String, Failure> {
    let task_id = start(connection, "greet", json!({})).await?;
    let asks = poll(connection, &task_id, |task| task.status() == TaskStatus::InputRequired).await?;
    let TaskPayload::InputRequired { input_requests } = asks.payload else {
        return Err(format!("unexpected: {asks:?}").into());
    };
    let answer = json!({ "action": "accept", "content": { "name": "Ada" } });
    let answers: BTreeMap<String, Value> =
        input_requests.into_keys().map(|key| (key, answer.clone())).collect();
    connection.client.update_task(UpdateTaskParams::new(task_id.clone(), answers)).await?;
    let result = finish(connection, &task_id).await?;
    expect(text_of(&result) == "Hello, Ada!", &result)?;
    Ok("task, asked, result".to_owned())
}

async fn longer(connection: &Connection) -> Result<String, Failure> {
    let task_id = start(connection, "work", json!({ "seconds": 7.0 })).await?;
    Ok(format!("task, {}", worked(&finish(connection, &task_id).await?, 7.0)?))
}

async fn cancel(connection: &Connection) -> Result<String, Failure> {
    let task_id = start(connection, "wait", json!({})).await?;
    connection.client.cancel_task(CancelTaskParams::new(task_id.clone())).await?;
    poll(connection, &task_id, |task| task.status() == TaskStatus::Cancelled).await?;
    Ok("task, tasks/cancel, cancelled".to_owned())
}

async fn limit(connection: &Connection) -> Result<String, Failure> {
    let task_id = start(connection, "work", json!({ "seconds": 2.5 })).await?;
    if let Ok(result) = timeout(OWN_LIMIT, finish(connection, &task_id)).await {
        return Err(format!("unexpected: {result:?}").into());
    }
    let result = finish(connection, &task_id).await?;
    Ok(format!("task, gives up, tasks/get, {}", worked(&result, 2.5)?))
}

async fn killed(connection: Connection, server: &Server) -> Result<String, Failure> {
    let task_id = start(&connection, "survive", json!({})).await?;
    let is_running = |task: &DetailedTask| {
        task.task.status_message.as_ref().is_some_and(|text| text.starts_with("in process"))
    };
    let running = poll(&connection, &task_id, is_running).await?;
    let process = kill(running.task.status_message.as_deref().unwrap_or_default())?;
    let (connection, is_new) = recover(connection, server, Mode::Tasks).await?;
    let result = finish(&connection, &task_id).await?;
    survived(&result, &process)?;
    connection.close().await?;
    let reconnects = if is_new { ", reconnects" } else { "" };
    Ok(format!("task{reconnects}, tasks/get, result"))
}

/// Calls a tool, and returns the id of its task.
async fn start(connection: &Connection, tool: &'static str, arguments: Value) -> Result<String, Failure> {
    match connection.call_once(tool, arguments).await? {
        CallToolResponse::Task(created) => Ok(created.task.task_id),
        other => Err(format!("unexpected: {other:?}").into()),
    }
}

/// Polls a task until it meets a condition.
async fn poll(
    connection: &Connection,
    task_id: &str,
    wanted: impl Fn(&DetailedTask) -> bool,
) -> Result<DetailedTask, Failure> {
    loop {
        let task = connection.client.get_task(GetTaskParams::new(task_id)).await?.task;
        if wanted(&task) {
            return Ok(task);
        }
        sleep(POLL).await;
    }
}

/// Polls a task until it has a result.
async fn finish(connection: &Connection, task_id: &str) -> Result<CallToolResult, Failure> {
    let ended = poll(connection, task_id, |task| task.status().is_terminal()).await?;
    match ended.payload {
        TaskPayload::Completed { result } => Ok(serde_json::from_value(Value::Object(result))?),
        other => Err(format!("unexpected: {other:?}").into()),
    }
}
