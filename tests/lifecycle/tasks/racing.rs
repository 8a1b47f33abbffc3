//! Racing updates: each is applied, or fails with an error of the lifecycle.

use mcp_task_store::{TaskError, TaskStatus, TaskStore};
use rstest_reuse::apply;
use serde_json::json;
use tokio::task::JoinSet;

use super::{Tasks, create, open};
use crate::support::{Engine, Store, on_every_engine};

async fn instances(store: &Store, count: usize) -> Vec<Tasks> {
    let mut instances = Vec::new();
    for _ in 0..count {
        instances.push(TaskStore::new(store.of_another_process().await));
    }
    instances
}

#[apply(on_every_engine)]
#[tokio::test]
async fn none_of_64_concurrent_set_variables_is_lost(
    #[case] engine: Engine,
    #[values(1, 4)] separate_backends: usize,
) {
    let (store, tasks) = open(engine).await;
    let instances = instances(&store, separate_backends).await;
    let created = create(&tasks).await;
    let mut racing = JoinSet::new();
    for racer in 0..64 {
        let (tasks, created) = (instances[racer % instances.len()].clone(), created.clone());
        racing.spawn(async move {
            let variable = [(format!("v{racer}"), json!(racer))];
            match racer % 2 {
                0 => tasks.set_variables(&created, variable).await.unwrap(),
                _ => tasks.set_variables(&created.key, variable).await.unwrap(),
            }
        });
    }
    racing.join_all().await;
    let task = tasks.get(&created.key).await.unwrap();
    assert_eq!((task.task.variables.len(), task.version.get()), (64, 65));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn two_racing_progress_updates_are_both_applied(#[case] engine: Engine) {
    let (store, tasks) = open(engine).await;
    let instances = instances(&store, 2).await;
    for _ in 0..20 {
        let created = create(&tasks).await;
        let (one, two) = tokio::join!(
            instances[0].set_status_message(&created, "halfway"),
            instances[1].set_variables(&created, [("done", json!(0.5))]),
        );
        one.unwrap();
        two.unwrap();
        let task = tasks.get(&created.key).await.unwrap();
        assert_eq!(task.task.status_message.as_deref(), Some("halfway"));
        assert_eq!((json!(task.task.variables), task.version.get()), (json!({ "done": 0.5 }), 3));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_progress_update_that_races_a_cancel_is_applied_before_it_or_is_an_invalid_transition(
    #[case] engine: Engine,
) {
    let (store, tasks) = open(engine).await;
    let instances = instances(&store, 2).await;
    for _ in 0..30 {
        let created = create(&tasks).await;
        let (update, cancel) = tokio::join!(
            instances[0].set_status_message(&created, "halfway"),
            instances[1].cancel(&created),
        );
        cancel.unwrap();
        let task = tasks.get(&created.key).await.unwrap();
        assert_eq!(task.task.status, TaskStatus::Cancelled);
        match update {
            Ok(_) => assert_eq!(task.task.status_message.as_deref(), Some("halfway")),
            Err(TaskError::InvalidTransition { from: TaskStatus::Cancelled, .. }) => {
                assert_eq!(task.task.status_message, None);
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_call_with_an_outdated_copy_uses_the_current_task(#[case] engine: Engine) {
    let (_store, tasks) = open(engine).await;
    // The change is applied to the current task.
    let old = create(&tasks).await;
    tasks.set_variables(&old.key, [("a", json!(1))]).await.unwrap();
    let merged = tasks.set_variables(&old, [("b", json!(2))]).await.unwrap();
    assert_eq!(json!(merged.task.variables), json!({ "a": 1, "b": 2 }));
    // The copy is `working`, but the task is cancelled.
    tasks.cancel(&old.key).await.unwrap();
    let late = tasks.complete(&old, json!({})).await;
    assert_refused!(late, TaskError::InvalidTransition { from: TaskStatus::Cancelled, .. });
    // The copy has no open request, but the task has one.
    let old = create(&tasks).await;
    tasks.request_input(&old.key, [("a", json!({}))]).await.unwrap();
    let delivered = tasks.deliver_inputs(&old, [("a", json!("yes"))]).await.unwrap();
    assert_eq!(json!(delivered.task.input_responses), json!({ "a": "yes" }));
    // The task was deleted.
    tasks.delete(&old.key).await.unwrap();
    assert_refused!(tasks.set_status_message(&delivered, "x").await, TaskError::NotFound { .. });
    assert_refused!(tasks.deliver_inputs(&delivered, [("a", json!(1))]).await, TaskError::NotFound { .. });
}
