//! Each operation is a span at debug level. At info level, the log has one line when a task is created and one when
//! it ends. No level shows the data of a task.

mod hostile;
use std::sync::Arc;

use crate::support::{Engine, Printed, in_an_hour, key, owner};
use mcp_task_store::{NewTask, PageRequest, RpcError, StorageBackend, TaskStore};
use serde_json::json;
use tracing::Level;
use tracing::instrument::WithSubscriber;
use tracing_subscriber::fmt::format::FmtSpan;

/// Returns what a subscriber of this level logs while every operation runs once.
async fn logged(engine: Engine, level: Level) -> String {
    let log = Printed::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_span_events(FmtSpan::NEW)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let operations = async {
        let opened = engine.open().await;
        let backend = &opened.backend;
        let raw = key("the-owner", "raw-task");
        backend.put(&raw, "the-data".into(), in_an_hour()).await.unwrap();
        backend.get(&raw).await.unwrap();
        backend.put_if_version(&raw, "the-data".into(), in_an_hour(), 1.into()).await.unwrap();
        backend.delete(&raw).await.unwrap();
        let store = TaskStore::new(Arc::clone(backend));
        let new = || NewTask::new("tools/call").arguments(json!("the-data")).status_message("the-data");
        let task = store.create(&owner("the-owner"), new()).await.unwrap();
        store.set_status_message(&task, "the-data").await.unwrap();
        store.set_variables(&task, [("name", json!("the-data"))]).await.unwrap();
        store.request_input(&task, [("key", json!("the-data"))]).await.unwrap();
        store.deliver_inputs(&task, [("key", json!("the-data"))]).await.unwrap();
        store.request_cancel(&task).await.unwrap();
        store.complete(&task, json!("the-data")).await.unwrap();
        store.cancel(&task).await.unwrap_err();
        store.fail(&task, RpcError::new(1, "the-data")).await.unwrap_err();
        store.get(&task.key).await.unwrap();
        store.list(&task.key.owner, PageRequest::new(1)).await.unwrap();
        store.cleanup().await.unwrap();
        store.delete(&task.key).await.unwrap();
    };
    operations.with_subscriber(subscriber).await;
    log.text()
}

async fn assert_spans(engine: Engine) {
    let debug = logged(engine, Level::TRACE).await;
    assert!(!debug.contains("the-data"), "{debug}");
    let named = [
        "set_status_message",
        "set_variables",
        "request_input",
        "deliver_inputs",
        "request_cancel",
        "complete",
        "cancel",
        "fail",
    ];
    for operation in named {
        assert!(debug.contains(&format!("operation=\"{operation}\"")), "{operation}: {debug}");
    }
    for span in ["create{", "get{", "list{", "delete{", "cleanup"] {
        assert!(debug.contains(span), "{span}: {debug}");
    }
    assert!(debug.contains("owner=the-owner"), "{debug}");
    let info = logged(engine, Level::INFO).await;
    let mut lines = info.lines().filter(|line| line.contains("the-owner"));
    assert!(lines.next().unwrap().contains(": created "), "{info}");
    assert!(lines.next().unwrap().contains(": completed "), "{info}");
    assert_eq!(lines.next(), None, "{info}");
}

#[tokio::test]
async fn operations_are_spans_at_debug_level_and_never_show_the_data() {
    assert_spans(Engine::Memory).await;
    #[cfg(feature = "redis-tests")]
    assert_spans(Engine::Redis).await;
}
