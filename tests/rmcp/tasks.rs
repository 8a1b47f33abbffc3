//! The manager answers like the SDK's own manager, on every instance of a server.

use std::sync::Arc;

use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine, owner};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use mcp_task_store::{
    DEFAULT_MAX_PART_BYTES, DurableTaskManager, NewTask, PutOptions, StoreConfig, TaskStore,
};
use rmcp::ErrorData;
use rmcp::model::{ErrorCode, TaskPayload, TaskStatus};
use rmcp::task_manager::{TaskExit, TaskOptions};
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::sync::oneshot;

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_is_stored_when_spawn_returns_and_every_instance_serves_it_until_it_ends(
    #[case] engine: Engine,
) {
    let (_store, one, other) = open(engine, LONG).await;
    let (go, wait) = oneshot::channel::<()>();
    let options =
        TaskOptions::new().with_ttl_ms(60_000).with_poll_interval_ms(250).with_status_message("queued");
    let task = one
        .spawn(&alice(), "test", options, |context| {
            Box::pin(async move {
                context.set_status_message("at work");
                wait.await.unwrap();
                Ok(text(format!("attempt {}", context.attempt())))
            })
        })
        .await
        .unwrap();
    assert_eq!((task.status, task.status_message.as_deref()), (TaskStatus::Working, Some("queued")));
    assert_eq!((task.ttl_ms, task.poll_interval_ms), (Some(60_000), Some(250)));
    let working =
        polled(&other, &task.task_id, |task| task.task.status_message.as_deref() == Some("at work")).await;
    assert_eq!((working.payload, &working.task.created_at), (TaskPayload::Working, &task.created_at));
    assert_eq!((one.running_task_count(), other.running_task_count()), (1, 0));
    go.send(()).unwrap();
    assert_eq!(said(&ended(&other, &task.task_id).await), "attempt 1");
    within(async {
        while one.running_task_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_operation_decides_how_a_cancelled_task_ends(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    for (exit, status) in [
        (Err(TaskExit::Cancelled), TaskStatus::Cancelled),
        (Err(TaskExit::Error(ErrorData::internal_error("the disk is full", None))), TaskStatus::Failed),
        (Ok(text("done anyway")), TaskStatus::Completed),
    ] {
        let task_id = spawn(&one, |context| async move {
            assert!(!context.is_cancel_requested());
            context.cancelled().await;
            assert!(context.is_cancel_requested());
            exit
        })
        .await;
        other.cancel_task(&alice(), &task_id).await.unwrap();
        let payload = ended(&other, &task_id).await;
        assert_eq!(payload.status(), status);
        if status == TaskStatus::Failed {
            assert_eq!(said(&payload), "the disk is full");
        }
        // A request to cancel an ended task succeeds and has no effect.
        other.cancel_task(&alice(), &task_id).await.unwrap();
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn answers_reach_the_operation_from_any_instance_one_by_one(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let task_id = spawn(&one, |context| async move {
        let (a, b) = tokio::try_join!(
            context.request_input("a", elicitation("A?")),
            context.request_input("b", elicitation("B?")),
        )?;
        Ok(text(format!("{a} {b}")))
    })
    .await;
    let both = polled(&other, &task_id, |task| match &task.payload {
        TaskPayload::InputRequired { input_requests } => input_requests.len() == 2,
        _ => false,
    })
    .await;
    let TaskPayload::InputRequired { input_requests } = both.payload else { unreachable!() };
    assert_eq!(input_requests["a"], elicitation("A?"));
    other
        .update_task(&alice(), &task_id, [("a".to_owned(), json!(1)), ("c".to_owned(), json!(3))])
        .await
        .unwrap();
    let TaskPayload::InputRequired { input_requests } = asks(&one, &task_id).await else { unreachable!() };
    assert_eq!(input_requests.keys().collect::<Vec<_>>(), ["b"]);
    one.update_task(&alice(), &task_id, [("a".to_owned(), json!(9)), ("b".to_owned(), json!(2))])
        .await
        .unwrap();
    assert_eq!(said(&ended(&other, &task_id).await), "1 2");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_request_to_cancel_ends_the_wait_for_an_answer_and_refuses_further_requests(
    #[case] engine: Engine,
) {
    let (_store, one, other) = open(engine, LONG).await;
    let task_id = spawn(&one, |context| async move {
        let answer = context.request_input("a", elicitation("A?")).await;
        assert!(matches!(answer, Err(TaskExit::Cancelled)), "{answer:?}");
        let answer = context.request_input("b", elicitation("B?")).await;
        assert!(matches!(answer, Err(TaskExit::Cancelled)), "{answer:?}");
        Ok(text("cleaned up"))
    })
    .await;
    asks(&other, &task_id).await;
    other.cancel_task(&alice(), &task_id).await.unwrap();
    assert_eq!(said(&ended(&other, &task_id).await), "cleaned up");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_key_is_used_once_in_an_attempt(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let task_id = spawn(&one, |context| async move {
        context.request_input("a", elicitation("A?")).await?;
        context.request_input("a", elicitation("A?")).await?;
        Ok(text("unreachable"))
    })
    .await;
    asks(&other, &task_id).await;
    other.update_task(&alice(), &task_id, [("a".to_owned(), json!(1))]).await.unwrap();
    let TaskPayload::Failed { error } = ended(&other, &task_id).await else {
        panic!("the task has not failed")
    };
    assert_eq!(error["code"], -32603, "the operation caused the error, not the client");
    assert!(error["message"].as_str().unwrap().contains("\"a\""), "{error:?}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_that_panics_or_returns_too_much_fails_its_task(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let panics = spawn(&one, |_| async { panic!("on purpose") }).await;
    let too_much = spawn(&one, |_| async { Ok(text("x".repeat(DEFAULT_MAX_PART_BYTES))) }).await;
    for (task_id, why) in [(panics, "panicked"), (too_much, "cannot be stored")] {
        let TaskPayload::Failed { error } = ended(&other, &task_id).await else {
            panic!("the task has not failed")
        };
        assert_eq!(error["code"], -32603);
        assert!(error["message"].as_str().unwrap().contains(why), "{error:?}");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_error_of_the_operation_reaches_the_client_unchanged(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let data = json!({ "free": 0 });
    let error = ErrorData::new(ErrorCode(-32001), "the disk is full", Some(data.clone()));
    let task_id = spawn(&one, |_| async { Err(TaskExit::Error(error)) }).await;
    let TaskPayload::Failed { error } = ended(&other, &task_id).await else {
        panic!("the task has not failed")
    };
    assert_eq!(Value::from(error), json!({ "code": -32001, "message": "the disk is full", "data": data }));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_error_of_the_operation_that_cannot_be_stored_still_fails_its_task(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let error = ErrorData::internal_error("x".repeat(2 << 20), None);
    let task_id = spawn(&one, |_| async { Err(TaskExit::Error(error)) }).await;
    assert!(said(&ended(&other, &task_id).await).contains("cannot be stored"));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_served_task_has_the_times_and_limits_of_its_record(#[case] engine: Engine) {
    let store = engine.open().await;
    let config = StoreConfig::new().lease(LONG).max_ttl(None);
    let one = DurableTaskManager::new(TaskStore::with_config(Arc::clone(&store.backend), config));
    let other = manager(&store.backend, LONG);
    let unlimited = TaskOptions::new().with_ttl_ms(None);
    let spawned = one
        .spawn(&alice(), "test", unlimited, |context| {
            Box::pin(async move {
                context.cancelled().await;
                Err(TaskExit::Cancelled)
            })
        })
        .await
        .unwrap();
    let created = one.store().get(&key(&spawned.task_id)).await.unwrap();
    store.until(created.task.created_at + TimeDelta::milliseconds(5)).await;
    let stored = one.store().set_status_message(&created, "later").await.unwrap().task;
    assert!(stored.last_updated_at > stored.created_at);
    let served = other.get_task(&alice(), &spawned.task_id).await.unwrap().task;
    let text = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
    assert_eq!((spawned.ttl_ms, served.ttl_ms, stored.ttl_ms), (None, None, None));
    assert_eq!(
        (served.created_at, served.last_updated_at),
        (text(stored.created_at), text(stored.last_updated_at))
    );
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_client_learns_only_that_a_record_cannot_be_read(#[case] engine: Engine) {
    let (store, one, _) = open(engine, LONG).await;
    store.put(&key("not-json"), "secret".into(), PutOptions::default()).await.unwrap();
    let task = one.store().create(&alice(), NewTask::new("tools/call")).await.unwrap();
    let task = one.store().request_input(&task, [("a", json!("secret"))]).await.unwrap();
    for task_id in ["not-json", task.key.task.as_str()] {
        let error = ErrorData::from(one.get_task(&alice(), task_id).await.unwrap_err());
        let received = (error.code.0, &*error.message, error.data);
        assert_eq!(received, (-32603, "the task cannot be served", None));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_unknown_task_and_a_task_of_another_owner_give_a_client_the_same_error(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let task_id = spawn(&one, |context| async move {
        context.cancelled().await;
        Err(TaskExit::Cancelled)
    })
    .await;
    let foreign = ErrorData::from(other.get_task(&owner("bob"), &task_id).await.unwrap_err());
    let unknown = ErrorData::from(other.get_task(&alice(), "never-was").await.unwrap_err());
    assert_eq!((foreign.code.0, unknown.code.0), (-32602, -32602));
    assert_eq!(foreign.message.replace(&task_id, "never-was"), unknown.message);
    for id in ["never-was", "", &"x".repeat(300)] {
        for refused in [
            other.get_task(&alice(), id).await.map(drop),
            other.update_task(&alice(), id, [("a".to_owned(), json!(1))]).await,
            other.cancel_task(&alice(), id).await,
        ] {
            assert_eq!(ErrorData::from(refused.unwrap_err()).code.0, -32602);
        }
    }
    one.cancel_task(&owner("bob"), &task_id).await.unwrap_err();
    assert_eq!(one.get_task(&alice(), &task_id).await.unwrap().status(), TaskStatus::Working);
}
