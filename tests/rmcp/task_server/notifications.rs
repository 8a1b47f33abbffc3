//! The notifications about the progress of a held call.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mcp_task_store::{OwnerSource, TaskContext, TaskServer, TaskTools};
use rmcp::model::{CallToolResult, EmptyObject};
use rmcp::task_manager::TaskExit;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::flaky::Flaky;
use super::raw::{Kind, RawClient};
use super::{Router, in_memory};
use crate::support::rmcp::*;

/// Reports nothing for a minute, then often, then nothing new for a minute, then less than before.
async fn uneven(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    sleep(Duration::from_secs(60)).await;
    for frame in 1..=100 {
        task.progress(frame, 100, format!("frame {frame} {}", "é".repeat(300)));
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(60)).await;
    task.progress(3, 100, "again");
    sleep(Duration::from_secs(60)).await;
    Ok(text("done"))
}

/// Calls the tool with a progress token. Returns the notifications before the response, each with its time, and the response.
async fn call_with_progress(client: &mut RawClient) -> (Vec<(Instant, Value)>, Value) {
    let params = json!({ "name": "uneven", "arguments": {}, "_meta": { "progressToken": "p1" } });
    let id = client.begin("tools/call", params).await;
    let mut notifications = Vec::new();
    loop {
        let message = client.read().await;
        if message["id"] == id {
            return (notifications, message);
        }
        assert_eq!(message["method"], "notifications/progress");
        notifications.push((Instant::now(), message["params"].clone()));
    }
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_held_call_is_notified_of_its_progress_until_its_answer(
    #[values(Kind::Plain, Kind::Old)] kind: Kind,
) {
    let tasks = in_memory();
    let tools = TaskTools::new().tool("uneven", "Works", uneven);
    let server = TaskServer::new(Router, tasks.clone(), OwnerSource::fixed(alice()), tools).unwrap();
    let mut client = RawClient::connect(server, kind).await;
    let begun = Instant::now();
    let (notifications, response) = call_with_progress(&mut client).await;
    assert_eq!(response["result"]["content"][0]["text"], "done", "{response}");
    assert!(begun.elapsed() > Duration::from_secs(180), "the call was held for longer than hold_for");

    let mut before = begun;
    for (at, notification) in &notifications {
        let gap = *at - before;
        assert!(gap <= Duration::from_secs(5), "{gap:?} before {notification}");
        assert_eq!(notification["progressToken"], "p1");
        before = *at;
    }
    assert!(before.elapsed() <= Duration::from_secs(5));
    let values: Vec<_> = notifications.iter().map(|(_, sent)| sent["progress"].as_f64().unwrap()).collect();
    assert!(values.windows(2).all(|pair| pair[0] < pair[1]), "{values:?}");
    assert!(notifications.len() < 160, "{} notifications in 190 s", notifications.len());

    let messages: Vec<_> = notifications.iter().filter_map(|(_, sent)| sent["message"].as_str()).collect();
    assert!(messages.iter().all(|message| message.chars().count() <= 200));
    assert!(messages.contains(&"again"), "the newest message arrives");
    let at_full = notifications.iter().filter(|(_, sent)| sent["total"] == 100.0);
    assert!(
        at_full.clone().count() > 10
            && at_full.clone().all(|(_, sent)| sent["progress"].as_f64() <= Some(100.0))
    );

    // The next call has the only messages that arrive.
    let (of_next, _) = call_with_progress(&mut client).await;
    assert_eq!(of_next[0].1["progress"], 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_task_cannot_be_stored_yet_is_notified_too() {
    let engine = Flaky::new();
    engine.is_down.store(true, Relaxed);
    let tasks = manager(&engine.agenda(), LONG);
    let tools = TaskTools::new().tool("uneven", "Works", uneven);
    let server = TaskServer::new(Router, tasks, OwnerSource::fixed(alice()), tools).unwrap();
    let mut client = RawClient::connect(server, Kind::Plain).await;
    let (notifications, response) = call_with_progress(&mut client).await;
    assert_eq!(response["error"]["code"], -32603, "{response}");
    assert!(notifications.len() >= 10, "one at least every 5 s for 50 s: {notifications:?}");
}
