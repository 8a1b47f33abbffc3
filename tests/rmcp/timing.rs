//! Changes of the TTL and the poll interval of a running operation's task.

use std::time::Duration;

use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};
use rmcp::model::TaskStatus;
use rmcp::task_manager::{TaskExit, TaskOptions};
use rstest_reuse::apply;
use tokio::sync::oneshot;

/// Long enough for the calls of a test on a busy machine.
const SOON: Duration = Duration::from_secs(2);

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_outlives_its_first_ttl_and_stops_when_the_ttl_that_it_has_set_elapses(
    #[case] engine: Engine,
) {
    let (store, one, other) = open(engine, LONG).await;
    let options = || TaskOptions::new().with_ttl_ms(SOON.as_millis() as u64);
    let (sender, stopped) = oneshot::channel();
    let stops = one
        .spawn(&alice(), "stops", options(), |task| {
            Box::pin(async move {
                task.set_ttl(SOON * 2).await?;
                task.cancelled().await;
                sender.send(()).unwrap();
                Err(TaskExit::Cancelled)
            })
        })
        .await
        .unwrap();
    let goes_on = one
        .spawn(&alice(), "goes_on", options(), |task| {
            Box::pin(async move {
                task.set_ttl(LONG).await?;
                task.set_poll_interval(Duration::from_millis(250)).await?;
                tokio::select! {
                    () = task.cancelled() => Ok(text("stopped")),
                    () = tokio::time::sleep(SOON * 2) => Ok(text("done")),
                }
            })
        })
        .await
        .unwrap();
    // Nobody reads the task until its operation stops.
    within(stopped).await.unwrap();
    let ended = other.store().get(&key(&stops.task_id)).await.unwrap().task;
    assert_eq!((ended.status_message.as_deref(), ended.ttl_ms), (Some("TTL elapsed"), Some(4000)));
    assert!(store.now() >= ended.deadline().unwrap(), "not earlier");

    let done = polled(&other, &goes_on.task_id, |task| task.status().is_terminal()).await;
    assert_eq!(said(&done.payload), "done");
    assert_eq!((done.task.ttl_ms, done.task.poll_interval_ms), (Some(3_600_000), Some(250)));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_stops_when_a_shorter_ttl_that_another_instance_has_set_elapses(#[case] engine: Engine) {
    let (store, one, other) = open(engine, LONG).await;
    let (sender, stopped) = oneshot::channel();
    let task_id = spawn(&one, |task| async move {
        task.cancelled().await;
        sender.send(()).unwrap();
        Err(TaskExit::Cancelled)
    })
    .await;
    let task = other.store().get(&key(&task_id)).await.unwrap();
    let age = (store.now() - task.task.created_at).to_std().unwrap();
    other.store().set_ttl(&task, age + SOON).await.unwrap();
    // Nobody reads the task until its operation stops.
    within(stopped).await.unwrap();
    let ended = other.store().get(&key(&task_id)).await.unwrap().task;
    let ended = (ended.status, ended.status_message.clone());
    assert_eq!(ended, (mcp_task_store::TaskStatus::Failed, Some("TTL elapsed".to_owned())));
}

#[tokio::test]
async fn a_ttl_over_a_limit_is_an_error_that_the_operation_can_return() {
    let one = manager(&Engine::Memory.open().await.backend, LONG);
    let task_id = spawn(&one, |task| async move {
        task.set_poll_interval(Duration::ZERO).await.unwrap_err();
        task.set_ttl(Duration::from_secs(25 * 3600)).await?;
        Ok(text("not reached"))
    })
    .await;
    let ended = polled(&one, &task_id, |task| task.status().is_terminal()).await;
    assert_eq!(ended.status(), TaskStatus::Failed);
    let message = said(&ended.payload);
    assert_eq!(message, "TTL in milliseconds: 90000000 is over the limit of 86400000; reduce it");
}
