//! Which writers overtake other writers in the queue of one task.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use mcp_task_store::{NewTask, StoreConfig, TaskStatus, TaskStore};
use serde_json::json;
use tokio::task::JoinSet;

use super::double::Double;
use crate::support::owner;

/// The replies that a call may wait for: two for the current write of progress, two for the next one, two for the call itself,
/// and some for other calls at the same time.
const MAX_REPLIES: usize = 16;

#[tokio::test]
async fn a_thousand_status_messages_delay_no_renewal_no_cancel_and_no_outcome() {
    let double = Double::new();
    let config = StoreConfig::new().lease(Duration::from_secs(3)).call_timeout(Duration::from_secs(120));
    let tasks = TaskStore::with_config(Arc::clone(&double), config.clone());
    // If a renewal came too late, the keeper of this other instance would declare the worker lost.
    let observer = TaskStore::with_config(Arc::clone(&double), config);
    let (task, attempt) = tasks.start(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
    let key = &task.key;
    double.takes_ms.store(5, SeqCst);
    let mut progress = JoinSet::new();
    for number in 0..1000 {
        let (tasks, key) = (tasks.clone(), key.clone());
        progress.spawn(async move { tasks.set_status_message(&key, format!("step {number}")).await });
    }
    let replies = || {
        let (reads, writes) = double.counts();
        reads + writes
    };
    let mut is_cancel_requested = false;
    // The messages take ten seconds, three times the lease.
    while progress.len() > 200 {
        let before = replies();
        attempt.renew().await.unwrap();
        assert!(replies() - before <= MAX_REPLIES, "a renewal waited for {} replies", replies() - before);
        if !std::mem::replace(&mut is_cancel_requested, true) {
            let before = replies();
            tasks.request_cancel(key).await.unwrap();
            assert!(replies() - before <= MAX_REPLIES, "a cancel waited for {} replies", replies() - before);
        }
        let read = observer.get(key).await.unwrap();
        assert!(attempt.holds(&read.task), "{read:?}");
        let _ = tokio::time::timeout(Duration::from_millis(500), async {
            while let Some(written) = progress.join_next().await {
                written.unwrap().unwrap();
            }
        })
        .await;
    }
    let before = replies();
    let done = attempt.complete(json!("done")).await.unwrap();
    assert!(replies() - before <= MAX_REPLIES, "an outcome waited for {} replies", replies() - before);
    assert_eq!(done.task.status, TaskStatus::Completed);
}
