//! Queries change nothing, and delay no other call.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    NewTask, PageRequest, PayloadKind, PutOptions, RpcError, StorageBackend, TaskStatus, TaskStore,
};
use serde_json::json;

use super::double::Double;
use crate::support::owner;

#[tokio::test]
async fn a_query_writes_no_record_and_returns_the_same_when_it_is_repeated() {
    let double = Double::new();
    let tasks = TaskStore::new(Arc::clone(&double));
    let other = TaskStore::new(Arc::clone(&double));
    let alice = owner("alice");
    let new = || NewTask::new("tools/call").arguments(json!("x".repeat(5000)));
    let (working, attempt) = tasks.start(&alice, new()).await.unwrap();
    let plain = tasks.create(&alice, new()).await.unwrap();
    let asked = tasks.request_input(&plain, [("key", json!({}))]).await.unwrap();
    let ended = [
        tasks.complete(&tasks.create(&alice, new()).await.unwrap(), json!("y".repeat(5000))).await.unwrap(),
        tasks.fail(&tasks.create(&alice, new()).await.unwrap(), RpcError::new(1, "x")).await.unwrap(),
        tasks.cancel(&tasks.create(&alice, new()).await.unwrap()).await.unwrap(),
    ];
    let writes = double.counts().1;
    for store in [&tasks, &other] {
        let mut answers = Vec::new();
        for _ in 0..3 {
            let mut answer = Vec::new();
            for task in [&working, &asked].into_iter().chain(&ended) {
                let read = store.get(&task.key).await.unwrap();
                assert_eq!(read, *task);
                assert_eq!(attempt.holds(&read.task), task.key == working.key);
                for kind in [PayloadKind::Input, PayloadKind::Output, PayloadKind::Checkpoint] {
                    answer.push(json!(store.payload(&read, kind).await.unwrap()));
                }
                if task.key != working.key {
                    assert_eq!(store.wait(&task.key).await.unwrap(), *task);
                }
            }
            let page = store.list(&alice, PageRequest::new(9)).await.unwrap();
            answer.push(json!(page.tasks.iter().map(|listed| &listed.task).collect::<Vec<_>>()));
            answer.push(json!(attempt.read().await.unwrap().task));
            answer.push(json!(double.clock(&working.key).await.is_ok()));
            answers.push(answer);
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]));
    }
    assert_eq!(double.counts().1, writes);
}

#[tokio::test(start_paused = true)]
async fn a_lost_worker_is_found_while_every_page_takes_longer_than_a_second() {
    let double = super::double::Double::new();
    let tasks = TaskStore::new(Arc::clone(&double));
    let created = tasks.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
    let mut json = serde_json::to_value(&created.task).unwrap();
    json["lease"] = json!({
        "holder": "gone", "attempt": 1, "durationMs": 3_000, "deadline": created.task.created_at - Duration::from_secs(60),
    });
    let data = serde_json::to_vec(&json).unwrap();
    double.put(&created.key, data.into(), PutOptions::default()).await.unwrap();
    tasks.get(&created.key).await.unwrap();
    double.page_takes_ms.store(1500, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..6 {
        tasks.list(&created.key.owner, PageRequest::new(9)).await.unwrap();
    }
    assert_eq!(tasks.get(&created.key).await.unwrap().task.status, TaskStatus::Failed);
}
