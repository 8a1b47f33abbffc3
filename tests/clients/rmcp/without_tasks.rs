//! The scenarios of a client that does not declare the tasks extension.

use std::pin::pin;
use std::time::Duration;

use rmcp::model::CallToolResult;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::Mode;
use crate::connection::{Connection, Server};
use crate::scenario::{
    Failure, OWN_LIMIT, POLL, SEEN_WITHIN, expect, expect_companions, kill, recover, survived, text_of,
    worked,
};

pub async fn play(
    scenario: &str,
    connection: Connection,
    server: &Server,
    mode: Mode,
) -> Result<String, Failure> {
    if scenario == "killed" {
        return killed(connection, server, mode).await;
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
    expect_companions(connection, true).await?;
    Ok(worked(&connection.call("work", json!({ "seconds": 0.0 })).await?, 0.0)?.to_owned())
}

/// The call takes longer than the client's limit, which each notification of progress extends.
async fn slow(connection: &Connection) -> Result<String, Failure> {
    let limit = Duration::from_secs(2);
    let result = connection.call_with_extended_limit("work", json!({ "seconds": 4.0 }), limit).await?;
    expect(connection.was_notified(), &result)?;
    Ok(format!("{}, progress, limit extended", worked(&result, 4.0)?))
}

async fn question(connection: &Connection) -> Result<String, Failure> {
    let mut result = connection.call("greet", json!({})).await?;
    let mut steps = Vec::new();
    if connection.was_asked() {
        steps.push("asked");
    }
    if let Some(task_id) = task_id(&result) {
        expect(text_of(&result).contains("Which name?"), &result)?;
        let requests =
            result.structured_content.as_ref().and_then(|state| state["inputRequests"].as_object());
        let keys = requests.into_iter().flatten().map(|(key, _)| key.clone());
        let answer = json!({ "action": "accept", "content": { "name": "Ada" } });
        let answers = keys.map(|key| (key, answer.clone())).collect::<serde_json::Map<_, _>>();
        connection.call("task_answer", json!({ "taskId": task_id, "answers": answers })).await?;
        steps.extend(["question as text", "task_answer", "task_result"]);
        result = finish(connection, &task_id).await?;
    }
    expect(text_of(&result) == "Hello, Ada!", &result)?;
    steps.push("result");
    Ok(steps.join(", "))
}

async fn longer(connection: &Connection) -> Result<String, Failure> {
    let result = connection.call("work", json!({ "seconds": 7.0 })).await?;
    match task_id(&result) {
        None => Ok(worked(&result, 7.0)?.to_owned()),
        Some(task_id) => Ok(format!("task_result, {}", worked(&finish(connection, &task_id).await?, 7.0)?)),
    }
}

async fn cancel(connection: &Connection) -> Result<String, Failure> {
    let id = {
        // The client cancels a call that is dropped.
        let mut call = pin!(connection.call("wait", json!({})));
        let task = tokio::select! {
            result = &mut call => return Err(format!("unexpected: {result:?}").into()),
            task = listed(connection, |task| is_call_of("wait", task)) => task?,
        };
        id_of(&task)?
    };
    let is_cancelled = |task: &Value| task["taskId"] == *id && task["status"] == "cancelled";
    if let Ok(listed) = timeout(SEEN_WITHIN, listed(connection, is_cancelled)).await {
        listed?;
        return Ok("gives up, cancelled".to_owned());
    }
    connection.call("task_cancel", json!({ "taskId": id })).await?;
    listed(connection, is_cancelled).await?;
    Ok("gives up, task_cancel, cancelled".to_owned())
}

async fn limit(connection: &Connection) -> Result<String, Failure> {
    let call = connection.call("work", json!({ "seconds": 2.5 }));
    if let Ok(result) = timeout(OWN_LIMIT, call).await {
        return Err(format!("unexpected: {result:?}").into());
    }
    let running = listed(connection, |task| is_call_of("work", task)).await?;
    let result = finish(connection, &id_of(&running)?).await?;
    Ok(format!("gives up, task_result, {}", worked(&result, 2.5)?))
}

async fn killed(connection: Connection, server: &Server, mode: Mode) -> Result<String, Failure> {
    let (process, id, call) = {
        let mut call = pin!(connection.call("survive", json!({})));
        let is_running =
            |task: &Value| task["statusMessage"].as_str().is_some_and(|text| text.starts_with("in process"));
        let running = tokio::select! {
            result = &mut call => return Err(format!("unexpected: {result:?}").into()),
            task = listed(&connection, is_running) => task?,
        };
        let process = kill(running["statusMessage"].as_str().unwrap_or_default())?;
        (process, id_of(&running)?, timeout(SEEN_WITHIN, call).await)
    };
    let failed = match call {
        Err(_) => "call hangs",
        Ok(Err(_)) => "call fails",
        Ok(Ok(result)) => return Err(format!("unexpected: {result:?}").into()),
    };
    let (connection, is_new) = recover(connection, server, mode).await?;
    let result = finish(&connection, &id).await?;
    survived(&result, &process)?;
    connection.close().await?;
    let reconnects = if is_new { ", reconnects" } else { "" };
    Ok(format!("{failed}{reconnects}, task_result, result"))
}

fn is_call_of(tool: &str, task: &Value) -> bool {
    task["tool"] == tool && task["status"] == "working"
}

/// Returns the id of the task of a call that runs on.
fn task_id(result: &CallToolResult) -> Option<String> {
    id_of(result.structured_content.as_ref()?).ok()
}

fn id_of(state: &Value) -> Result<String, Failure> {
    Ok(state["taskId"].as_str().ok_or("the task has no id")?.to_owned())
}

/// Waits for the result of a call whose task runs on.
async fn finish(connection: &Connection, task_id: &str) -> Result<CallToolResult, Failure> {
    loop {
        let result = connection.call("task_result", json!({ "taskId": task_id })).await?;
        if self::task_id(&result).is_none() {
            return Ok(result);
        }
    }
}

/// Waits until the list of the tasks has a task that is wanted.
async fn listed(connection: &Connection, wanted: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
    loop {
        let list = connection.call("task_list", json!({})).await?.structured_content.unwrap_or_default();
        let tasks = list["tasks"].as_array().ok_or("there is no list of tasks")?;
        if let Some(task) = tasks.iter().find(|task| wanted(task)) {
            return Ok(task.clone());
        }
        sleep(POLL).await;
    }
}
