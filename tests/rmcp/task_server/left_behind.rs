//! What calls leave behind in the process once their clients have left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mcp_task_store::{
    Agenda, MemoryBackend, OwnerSource, StorageBackend, StorageError, TaskKey, TaskServer, TaskTools,
};
use rmcp::model::EmptyObject;
use serde_json::json;
use tokio::time::sleep;

use super::raw::{Kind, RawClient};
use super::{Router, until_cancelled};
use crate::support::intercept::{Hooks, Intercept};
use crate::support::rmcp::*;

/// Counts the subscriptions that exist.
#[derive(Default)]
struct Subscriptions {
    engine: MemoryBackend,
    open: Arc<AtomicUsize>,
}

/// Counts as one subscription until it is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[async_trait]
impl Hooks for Subscriptions {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::new(self.engine.clone())
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.open.fetch_add(1, Relaxed);
        let open = Open(Arc::clone(&self.open));
        let changes = self.engine.watch(key);
        changes.inspect(move |_| assert!(open.0.load(Relaxed) > 0)).boxed()
    }
}

async fn cancel(client: &mut RawClient, ids: impl IntoIterator<Item = u64>) {
    for id in ids {
        let params = json!({ "requestId": id });
        client.send(json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params })).await;
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_cancelled_leave_no_subscription_and_no_run() {
    const CALLS: usize = 1_000;
    let engine = Intercept::new(Subscriptions::default());
    let tasks = manager(&engine.agenda(), LONG);
    let tools = TaskTools::new().tool("waits", "Waits", until_cancelled::<EmptyObject>).cancel_with_request();
    let server = TaskServer::new(Router, tasks.clone(), OwnerSource::fixed(alice()), tools).unwrap();
    let mut client = RawClient::connect(server, Kind::Plain).await;
    let only = client.begin("tools/call", json!({ "name": "waits", "arguments": {} })).await;
    sleep(Duration::from_secs(1)).await;
    let task_id = tasks.store().list(&alice(), mcp_task_store::PageRequest::new(1)).await.unwrap().tasks[0]
        .key
        .task
        .clone();
    assert_eq!(engine.open.load(Relaxed), 2, "the run and the held call watch the task");

    let mut ids = Vec::new();
    for _ in 0..CALLS {
        let params = json!({ "name": "task_result", "arguments": { "taskId": task_id.as_str() } });
        ids.push(client.begin("tools/call", params).await);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(engine.open.load(Relaxed), 2 + CALLS);
    cancel(&mut client, ids).await;
    until(|| engine.open.load(Relaxed) == 2).await;

    let mut ids = vec![only];
    for _ in 1..CALLS {
        ids.push(client.begin("tools/call", json!({ "name": "waits", "arguments": {} })).await);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(tasks.running_task_count(), CALLS);
    cancel(&mut client, ids).await;
    until(|| tasks.running_task_count() == 0).await;
    until(|| engine.open.load(Relaxed) == 0).await;
    tokio::time::timeout(LONG, tasks.shutdown()).await.expect("a call is still counted");
}
