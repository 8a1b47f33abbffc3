//! Checkpoints of an operation: what the next attempt starts from.

use std::sync::Arc;
use std::time::Duration;

use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};
use mcp_task_store::{MemoryBackend, TaskContext};
use rmcp::model::CallToolResult;
use rmcp::task_manager::TaskExit;
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

/// Registers an operation that adds one to its checkpoint, which carries `padding` bytes. The first attempt stops after three
/// steps. Returns what each attempt starts from.
fn register_counting(manager: &Manager, padding: usize) -> mpsc::UnboundedReceiver<Option<u64>> {
    let (send, starts) = mpsc::unbounded_channel();
    manager.register("count", move |task, _| {
        let send = send.clone();
        Box::pin(async move {
            let mut done = start(&task).await?;
            if task.attempt() == 1 {
                for _ in 0..3 {
                    done = Some(done.unwrap_or_default() + 1);
                    task.checkpoint(&(done, "x".repeat(padding))).await?;
                }
                assert_eq!(start(&task).await?, Some(3), "the attempt reads its own checkpoint");
            }
            // A test may have dropped the receiver.
            let _ = send.send(done);
            if task.attempt() == 1 {
                std::future::pending::<()>().await;
            }
            Ok(text(format!("{done:?}")))
        })
    });
    starts
}

async fn start(task: &TaskContext) -> Result<Option<u64>, TaskExit> {
    let checkpoint: Option<(Option<u64>, String)> = task.last_checkpoint().await?;
    Ok(checkpoint.and_then(|(done, _)| done))
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_next_attempt_on_another_instance_starts_from_the_last_checkpoint(
    #[case] engine: Engine,
    #[values(0, 10_000)] padding: usize,
) {
    let store = engine.open().await;
    let first = Mortal::start(&store, SHORT);
    let mut started = register_counting(&first.manager, padding);
    let begun = first.manager.clone();
    let task =
        first.spawn(async move { begun.spawn_registered(&alice(), "count", Value::Null, resume()).await });
    let task_id = task.await.unwrap().task_id;
    assert_eq!(within(started.recv()).await.unwrap(), Some(3));
    first.kill();
    let other = manager(&store.backend, SHORT);
    let mut resumed = register_counting(&other, padding);
    assert_eq!(within(resumed.recv()).await.unwrap(), Some(3));
    assert_eq!(said(&ended(&other, &task_id).await), "Some(3)");
    let done = other.store().get(&key(&task_id)).await.unwrap();
    assert_eq!(done.task.checkpoint, None, "the end of a task removes its checkpoint");
}

/// Runs an operation on an engine that the operation closes, and opens again after eight seconds.
async fn runs_through_an_outage<F>(operation: impl FnOnce(TaskContext, Arc<Intercept<Gate>>) -> F) -> String
where
    F: Future<Output = Result<CallToolResult, TaskExit>> + Send + 'static,
{
    let gate = Intercept::new(Gate { error: backend_error, ..Gate::of(Arc::new(MemoryBackend::new())) });
    let one = manager(&gate.agenda(), Duration::from_secs(30));
    let away = Arc::clone(&gate);
    let task_id = spawn(&one, |task| operation(task, away)).await;
    gate.refuses().await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    gate.set_closed(false);
    said(&ended(&one, &task_id).await)
}

#[tokio::test(start_paused = true)]
async fn checkpoints_are_stored_and_loaded_when_the_engine_answers_again() {
    let stored = runs_through_an_outage(|task, gate| async move {
        gate.set_closed(true);
        task.checkpoint("halfway").await?;
        let last: Option<String> = task.last_checkpoint().await?;
        Ok(text(format!("{last:?}")))
    });
    assert_eq!(stored.await, "Some(\"halfway\")");
    let loaded = runs_through_an_outage(|task, gate| async move {
        task.checkpoint(&json!({ "at": "x".repeat(10_000) })).await?;
        gate.set_closed(true);
        let last: Option<Value> = task.last_checkpoint().await?;
        Ok(text(last.unwrap()["at"].as_str().unwrap().len().to_string()))
    });
    assert_eq!(loaded.await, "10000");
}

#[tokio::test]
async fn a_checkpoint_over_a_limit_or_of_another_type_is_an_error_that_the_operation_can_return() {
    let one = manager(&Engine::Memory.open().await.backend, LONG);
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let task_id = spawn(&one, |task| async move {
        task.checkpoint("a step").await?;
        task.checkpoint(&deep).await?;
        Ok(text("not reached"))
    })
    .await;
    let said_by_the_store = said(&ended(&one, &task_id).await);
    assert!(said_by_the_store.contains("depth of a checkpoint: more than 100"), "{said_by_the_store}");
    let task_id = spawn(&one, |task| async move {
        assert_eq!(task.last_checkpoint::<Value>().await?, None);
        task.checkpoint("a step").await?;
        task.last_checkpoint::<u64>().await?;
        Ok(text("not reached"))
    })
    .await;
    let message = said(&ended(&one, &task_id).await);
    assert!(
        message.starts_with("the checkpoint of the task is not a u64: invalid type: string"),
        "{message}"
    );
}

#[tokio::test]
async fn a_void_attempt_stores_and_loads_no_checkpoint() {
    let store = Engine::Memory.open().await;
    let one = manager(&store.backend, LONG);
    let (go, wait) = oneshot::channel::<()>();
    let (send, results) = oneshot::channel();
    let task_id = spawn(&one, |task| async move {
        wait.await.unwrap();
        let stored = task.checkpoint("a step").await;
        send.send((stored, task.last_checkpoint::<String>().await)).unwrap();
        Err(TaskExit::Cancelled)
    })
    .await;
    store.delete(&key(&task_id)).await.unwrap();
    go.send(()).unwrap();
    let results = within(results).await.unwrap();
    assert!(matches!(results, (Err(TaskExit::Cancelled), Err(TaskExit::Cancelled))), "{results:?}");
}
