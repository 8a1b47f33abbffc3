//! What a server of task tools reports of its tools, and what its clients do not see.

use mcp_task_store::TaskTools;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use rmcp::model::EmptyObject;
use serde_json::json;

use super::raw::{Kind, RawClient};
use super::{Router, in_memory, serve, until_cancelled};
use crate::support::rmcp::within;

#[tokio::test]
async fn each_tool_is_a_label_and_no_client_sees_the_history_of_its_task() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let tools = TaskTools::new()
        .tool("preview-of-the-metrics", "Cannot resume", until_cancelled::<EmptyObject>)
        .tool("render-of-the-metrics", "Can resume", until_cancelled::<EmptyObject>)
        .resumable();
    let manager = in_memory();
    let mut client = RawClient::connect(serve(Router, &manager, tools), Kind::Tasks).await;
    for tool in ["preview-of-the-metrics", "render-of-the-metrics"] {
        let called = client.call(tool, json!({})).await;
        let task_id = called["result"]["taskId"].as_str().unwrap_or_else(|| panic!("{called}"));
        client.request("tasks/cancel", json!({ "taskId": task_id })).await;
        let ended = async {
            loop {
                let polled = client.request("tasks/get", json!({ "taskId": task_id })).await;
                assert!(!polled.to_string().contains("history"), "{polled}");
                if polled.to_string().contains("cancelled") {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        within(ended).await;
    }
    let mut cancelled = Vec::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        if let ("mcp_tasks_cancelled_total", DebugValue::Counter(number)) = (key.key().name(), value) {
            cancelled.extend(key.key().labels().map(|label| (label.value().to_owned(), number)));
        }
    }
    cancelled.sort_unstable();
    let expected = ["preview-of-the-metrics", "render-of-the-metrics"].map(|tool| (tool.to_owned(), 1));
    assert_eq!(cancelled, expected);
}
