//! Requests to the client, and the arguments of a resumed operation, on an engine that fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mcp_task_store::{MemoryBackend, NewTask, OnWorkerLost, StoreConfig, TaskStore};
use rmcp::model::TaskPayload;
use rmcp::task_manager::TaskExit;
use serde_json::json;
use tokio::sync::oneshot;

use super::{agenda, memory};
use crate::support::rmcp::*;

#[tokio::test(start_paused = true)]
async fn a_request_to_the_client_is_repeated_while_the_engine_fails() {
    for error in [unreachable_error, backend_error, denied_error] {
        let gate = Intercept::new(Gate { error, ..Gate::of(Arc::new(MemoryBackend::new())) });
        let one = manager(&agenda(&gate), Duration::from_secs(30));
        let away = Arc::clone(&gate);
        let task_id = spawn(&one, |context| async move {
            away.set_closed(true);
            Ok(text(context.request_input("a", elicitation("A?")).await?.to_string()))
        })
        .await;
        tokio::time::sleep(Duration::from_secs(8)).await;
        gate.set_closed(false);
        asks(&one, &task_id).await;
        one.update_task(&alice(), &task_id, [("a".to_owned(), json!(1))]).await.unwrap();
        assert_eq!(said(&ended(&one, &task_id).await), "1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_reply_is_lost_is_made_once_even_if_the_client_answers_before_the_repeat() {
    let gate = Intercept::new(Gate { error: backend_error, ..Gate::of(Arc::new(MemoryBackend::new())) });
    let one = manager(&agenda(&gate), LONG);
    let answers = manager(&gate.backend, LONG);
    let loses = Arc::clone(&gate);
    let task_id = spawn(&one, |context| async move {
        loses.loses_replies.store(true, Ordering::SeqCst);
        Ok(text(context.request_input("a", elicitation("A?")).await?.to_string()))
    })
    .await;
    asks(&answers, &task_id).await;
    answers.update_task(&alice(), &task_id, [("a".to_owned(), json!(1))]).await.unwrap();
    gate.set_closed(false);
    assert_eq!(said(&ended(&answers, &task_id).await), "1");
}

#[tokio::test(start_paused = true)]
async fn a_request_of_an_attempt_that_becomes_void_ends_like_a_request_of_a_cancelled_task() {
    let gate = memory();
    let one = manager(&agenda(&gate), Duration::from_secs(3));
    let (sender, received) = oneshot::channel();
    let away = Arc::clone(&gate);
    let task_id = spawn(&one, |context| async move {
        away.set_closed(true);
        sender.send(context.request_input("a", elicitation("A?")).await).unwrap();
        Err(TaskExit::Cancelled)
    })
    .await;
    gate.refuses().await;
    gate.backend.delete(&key(&task_id)).await.unwrap();
    gate.set_closed(false);
    let asked = within(received).await.unwrap();
    assert!(matches!(asked, Err(TaskExit::Cancelled)), "{asked:?}");
}

/// Creates a task that waits for a worker. Its arguments are a part of its record.
async fn waiting(gate: &Arc<Intercept<Gate>>) -> String {
    let config = StoreConfig::new().lease(LONG);
    let store = TaskStore::with_config(on(gate), config);
    let new = NewTask::new("tools/call").operation("measure").arguments(json!("x".repeat(10_000)));
    let (started, attempt) = store.start(&alice(), new.on_worker_lost(OnWorkerLost::Resume)).await.unwrap();
    attempt.release().await.unwrap();
    started.key.task.as_str().to_owned()
}

fn register_measure(manager: &Manager) {
    manager.register("measure", |_, arguments| {
        Box::pin(async move { Ok(text(arguments.as_str().unwrap().len().to_string())) })
    });
}

#[tokio::test(start_paused = true)]
async fn arguments_are_loaded_again_while_the_engine_fails_and_unreadable_arguments_fail_the_task() {
    for error in [unreachable_error, backend_error, denied_error] {
        let gate = memory();
        let task_id = waiting(&gate).await;
        gate.part_error.lock().unwrap().replace(error);
        let one = manager(&agenda(&gate), LONG);
        register_measure(&one);
        gate.refuses().await;
        tokio::time::sleep(Duration::from_secs(8)).await;
        gate.part_error.lock().unwrap().take();
        assert_eq!(said(&ended(&one, &task_id).await), "10000");
    }
    let gate = memory();
    let task_id = waiting(&gate).await;
    gate.part_error.lock().unwrap().replace(corrupt_error);
    let one = manager(&agenda(&gate), LONG);
    register_measure(&one);
    let TaskPayload::Failed { .. } = ended(&one, &task_id).await else { panic!("the task has not failed") };
}
