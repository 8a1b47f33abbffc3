//! The durable task manager for rmcp: what begins at one instance, is served by another, and outlives both.

#![cfg(feature = "rmcp")]

#[macro_use]
mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use mcp_task_store::rmcp::{DurableTaskManager, RegisteredOptions, TaskContext};
use mcp_task_store::{
    MAX_PAGE_LIMIT, MemoryBackend, NewTask, OnWorkerLost, OwnerId, Page, PageRequest, PutOptions, Record,
    StorageBackend, StorageError, StoreConfig, StoredTask, TaskError, TaskKey, TaskStore, Version, Written,
};
use rmcp::ErrorData;
use rmcp::model::{
    CallToolResult, ContentBlock, DetailedTask, ElicitRequest, ElicitRequestParams, ElicitationSchema,
    ErrorCode, InputRequest, TaskPayload, TaskStatus,
};
use rmcp::task_manager::{TaskExit, TaskFuture, TaskOptions};
use rstest_reuse::apply;
use serde_json::{Value, json};
use support::{Engine, Store, on_every_engine, owner};
use tokio::sync::{mpsc, oneshot};

type Manager = DurableTaskManager<Arc<dyn StorageBackend>>;

/// A lease that does not lapse in a test, and one that does.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(300);

fn manager(backend: &Arc<dyn StorageBackend>, lease: Duration) -> Manager {
    // A task whose TTL has elapsed can be looked at for as long as a test takes.
    let config = StoreConfig::new().lease(lease).retention(LONG);
    DurableTaskManager::new(TaskStore::with_config(Arc::clone(backend), config))
}

/// Two instances of a server on one engine.
async fn open(engine: Engine, lease: Duration) -> (Store, Manager, Manager) {
    let store = engine.open().await;
    let (one, other) = (manager(&store.backend, lease), manager(&store.backend, lease));
    (store, one, other)
}

fn alice() -> OwnerId {
    owner("alice")
}

fn text(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

fn elicitation(message: &str) -> InputRequest {
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: message.to_owned(),
        requested_schema: ElicitationSchema::new([].into()),
    }))
}

async fn spawn<F>(manager: &Manager, operation: impl FnOnce(TaskContext) -> F) -> String
where
    F: Future<Output = Result<CallToolResult, TaskExit>> + Send + 'static,
{
    let options = TaskOptions::new();
    manager.spawn(&alice(), options, |context| Box::pin(operation(context))).await.unwrap().task_id
}

fn key(task_id: &str) -> TaskKey {
    support::key("alice", task_id)
}

fn resume() -> RegisteredOptions {
    RegisteredOptions::new().on_worker_lost(OnWorkerLost::Resume)
}

/// Polls as a client does, until the task is as wanted.
async fn polled(manager: &Manager, task_id: &str, wanted: impl Fn(&DetailedTask) -> bool) -> DetailedTask {
    let polling = async {
        loop {
            let task = manager.get_task(&alice(), task_id).await.unwrap();
            if wanted(&task) {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), polling).await.expect("it comes to that")
}

async fn ended(manager: &Manager, task_id: &str) -> TaskPayload {
    polled(manager, task_id, |task| task.status().is_terminal()).await.payload
}

async fn asks(manager: &Manager, task_id: &str) -> TaskPayload {
    polled(manager, task_id, |task| task.status() == TaskStatus::InputRequired).await.payload
}

/// The text of a completed task, or the message of a failed one.
fn said(payload: &TaskPayload) -> String {
    match payload {
        TaskPayload::Completed { result } => result["content"][0]["text"].as_str().unwrap().to_owned(),
        TaskPayload::Failed { error } => error["message"].as_str().unwrap().to_owned(),
        other => format!("{other:?}"),
    }
}

async fn until(reached: impl Fn() -> bool) {
    within(async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it comes to an end")
}

// What the SDK's manager does

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_is_stored_when_spawn_returns_and_each_instance_serves_it_to_its_end(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let (go, wait) = oneshot::channel::<()>();
    let options =
        TaskOptions::new().with_ttl_ms(60_000).with_poll_interval_ms(250).with_status_message("queued");
    let task = one
        .spawn(&alice(), options, |context| {
            Box::pin(async move {
                context.set_status_message("at work").await?;
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
        (Ok(text("all the same")), TaskStatus::Completed),
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
        // Cancelling what has ended is no error.
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
async fn a_request_to_cancel_ends_the_wait_for_an_answer_and_no_more_is_asked(#[case] engine: Engine) {
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
    let TaskPayload::Failed { error } = ended(&other, &task_id).await else { panic!("it failed") };
    assert_eq!(error["code"], -32603, "it is the operation's fault and not the client's");
    assert!(error["message"].as_str().unwrap().contains("\"a\""), "{error:?}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_that_panics_or_returns_too_much_fails_its_task(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let panics = spawn(&one, |_| async { panic!("a test wants this panic") }).await;
    let too_much = spawn(&one, |_| async { Ok(text("x".repeat(2 << 20))) }).await;
    for (task_id, why) in [(panics, "panicked"), (too_much, "cannot be stored")] {
        let TaskPayload::Failed { error } = ended(&other, &task_id).await else { panic!("it failed") };
        assert_eq!(error["code"], -32603);
        assert!(error["message"].as_str().unwrap().contains(why), "{error:?}");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_error_of_the_operation_reaches_the_client_as_it_is(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let data = json!({ "free": 0 });
    let error = ErrorData::new(ErrorCode(-32001), "the disk is full", Some(data.clone()));
    let task_id = spawn(&one, |_| async { Err(TaskExit::Error(error)) }).await;
    let TaskPayload::Failed { error } = ended(&other, &task_id).await else { panic!("it failed") };
    assert_eq!(Value::from(error), json!({ "code": -32001, "message": "the disk is full", "data": data }));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_error_that_cannot_be_stored_ends_its_task_all_the_same(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let error = ErrorData::internal_error("x".repeat(2 << 20), None);
    let task_id = spawn(&one, |_| async { Err(TaskExit::Error(error)) }).await;
    assert!(said(&ended(&other, &task_id).await).contains("cannot be stored"));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn times_and_limits_are_those_of_the_record(#[case] engine: Engine) {
    let store = engine.open().await;
    let config = StoreConfig::new().lease(LONG).max_ttl(None);
    let one = DurableTaskManager::new(TaskStore::with_config(Arc::clone(&store.backend), config));
    let other = manager(&store.backend, LONG);
    let unlimited = TaskOptions::new().with_ttl_ms(None);
    let spawned = one
        .spawn(&alice(), unlimited, |context| {
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
async fn of_a_record_that_cannot_be_read_the_client_learns_nothing_but_that(#[case] engine: Engine) {
    let (store, one, _) = open(engine, LONG).await;
    store.put(&key("not-json"), "secret".into(), PutOptions::default()).await.unwrap();
    let task = one.store().create(&alice(), NewTask::new("tools/call")).await.unwrap();
    let task = one.store().require_input(&task, [("a", json!("secret"))]).await.unwrap();
    for task_id in ["not-json", task.key.task.as_str()] {
        let error = ErrorData::from(one.get_task(&alice(), task_id).await.unwrap_err());
        let told = (error.code.0, &*error.message, error.data);
        assert_eq!(told, (-32603, "the task cannot be served", None));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn unknown_and_foreign_tasks_cannot_be_told_apart(#[case] engine: Engine) {
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

// Workers that are lost

/// An instance in a runtime of its own, which takes all that runs in it along when it is lost.
struct Mortal {
    runtime: tokio::runtime::Runtime,
    manager: Manager,
}

impl Mortal {
    fn start(store: &Store, lease: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let guard = runtime.enter();
        let manager = manager(&store.backend, lease);
        drop(guard);
        Self { runtime, manager }
    }

    /// Begins a task in its runtime.
    async fn spawn<T: Send + 'static>(&self, begin: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.spawn(begin).await.unwrap()
    }

    /// Like a `SIGKILL`: nothing is handed back.
    fn kill(self) {
        self.runtime.shutdown_background();
    }
}

/// Registers an operation that tells of its attempts and waits; from the second attempt on it completes.
fn register(manager: &Manager) -> mpsc::UnboundedReceiver<(u32, Value)> {
    let (tell, told) = mpsc::unbounded_channel();
    manager.register("wait", move |context: TaskContext, arguments: Value| -> TaskFuture {
        let tell = tell.clone();
        Box::pin(async move {
            // Nobody listens in a test that does not care.
            let _ = tell.send((context.attempt(), arguments));
            if context.attempt() > 1 {
                return Ok(text(format!("attempt {}", context.attempt())));
            }
            context.cancelled().await;
            Err(TaskExit::Cancelled)
        })
    });
    told
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_registered_operation_whose_worker_is_lost_is_resumed_by_an_instance_that_only_sweeps(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let first = Mortal::start(&store, SHORT);
    register(&first.manager);
    let begun = first.manager.clone();
    let arguments = json!({ "frames": 3 });
    let spawned = arguments.clone();
    let task = first.spawn(async move { begun.spawn_registered(&alice(), "wait", spawned, resume()).await });
    let task_id = task.await.unwrap().task_id;
    let other = manager(&store.backend, SHORT);
    let mut told = register(&other);
    other.sweep([alice()]);
    first.kill();
    assert_eq!(within(told.recv()).await.unwrap(), (2, arguments));
    assert_eq!(said(&ended(&other, &task_id).await), "attempt 2");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn owners_that_are_named_late_are_looked_at_at_once(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    register(&one);
    let mut told = register(&other);
    one.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap();
    within(one.shutdown()).await;
    // Its first sweep is over, and the next one is an hour away.
    other.sweep([owner("bob")]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    other.sweep([alice()]);
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn whoever_reads_an_orphan_resumes_it_if_it_knows_the_operation(#[case] engine: Engine) {
    let store = engine.open().await;
    let first = Mortal::start(&store, SHORT);
    register(&first.manager);
    let begun = first.manager.clone();
    let task =
        first.spawn(async move { begun.spawn_registered(&alice(), "wait", Value::Null, resume()).await });
    let task_id = task.await.unwrap().task_id;
    let ignorant = manager(&store.backend, SHORT);
    let knowing = manager(&store.backend, SHORT);
    let mut told = register(&knowing);
    first.kill();
    let orphaned = async {
        loop {
            let stored = ignorant.store().get(&key(&task_id)).await.unwrap();
            if ignorant.store().is_orphaned(&stored) {
                return stored;
            }
            ignorant.get_task(&alice(), &task_id).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(within(orphaned).await.task.lease.unwrap().attempt, 1, "who does not know it leaves it alone");
    assert_eq!(ignorant.running_task_count(), 0);
    assert_eq!(said(&ended(&knowing, &task_id).await), "attempt 2");
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_closure_whose_worker_is_lost_fails_and_so_does_a_registered_one_unless_it_is_to_resume(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let first = Mortal::start(&store, SHORT);
    register(&first.manager);
    let begun = first.manager.clone();
    let tasks = first.spawn(async move {
        let closure = spawn(&begun, |context| async move {
            context.cancelled().await;
            Err(TaskExit::Cancelled)
        });
        let closure = closure.await;
        let registered =
            begun.spawn_registered(&alice(), "wait", Value::Null, TaskOptions::new()).await.unwrap();
        [closure, registered.task_id]
    });
    let tasks = tasks.await;
    first.kill();
    let other = manager(&store.backend, SHORT);
    let mut told = register(&other);
    for task_id in tasks {
        let TaskPayload::Failed { error } = ended(&other, &task_id).await else { panic!("it failed") };
        assert_eq!(error["code"], -32603);
        assert!(error["message"].as_str().unwrap().contains("worker"), "{error:?}");
    }
    assert!(told.try_recv().is_err(), "nothing was run again");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_lease_is_renewed_for_as_long_as_the_operation_runs(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, SHORT).await;
    let task_id = spawn(&one, |context| async move {
        // Many times a lease, and longer than two looks a second apart.
        tokio::time::sleep(SHORT * 8).await;
        Ok(text(format!("attempt {}", context.attempt())))
    })
    .await;
    let created = other.get_task(&alice(), &task_id).await.unwrap().task;
    let done = polled(&other, &task_id, |task| {
        assert!(task.status() == TaskStatus::Completed || task.task == created, "a renewal is not seen");
        task.status().is_terminal()
    });
    assert_eq!(said(&done.await.payload), "attempt 1");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_resumed_operation_finds_its_questions_asked_and_its_answers_given(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    for manager in [&one, &other] {
        manager.register("ask", |context, _| {
            Box::pin(async move {
                let a = context.request_input("a", elicitation("A?")).await?;
                let b = context.request_input("b", elicitation("B?")).await?;
                Ok(text(format!("{a} {b} in attempt {}", context.attempt())))
            })
        });
    }
    let task_id = one.spawn_registered(&alice(), "ask", Value::Null, resume()).await.unwrap().task_id;
    asks(&other, &task_id).await;
    other.update_task(&alice(), &task_id, [("a".to_owned(), json!(1))]).await.unwrap();
    polled(&other, &task_id, |task| match &task.payload {
        TaskPayload::InputRequired { input_requests } => input_requests.contains_key("b"),
        _ => false,
    })
    .await;
    within(one.shutdown()).await;
    // The question is still there for the client, and its answer is for whoever asks it again.
    asks(&other, &task_id).await;
    other.update_task(&alice(), &task_id, [("b".to_owned(), json!(2))]).await.unwrap();
    assert_eq!(said(&ended(&other, &task_id).await), "1 2 in attempt 2");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn another_question_under_a_used_key_fails_a_resumed_operation(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    for manager in [&one, &other] {
        manager.register("ask", |context, _| {
            Box::pin(async move {
                let question = elicitation(&format!("in attempt {}?", context.attempt()));
                Ok(text(context.request_input("a", question).await?.to_string()))
            })
        });
    }
    let task_id = one.spawn_registered(&alice(), "ask", Value::Null, resume()).await.unwrap().task_id;
    asks(&other, &task_id).await;
    within(one.shutdown()).await;
    assert!(said(&ended(&other, &task_id).await).contains("input key"));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn shutdown_stops_what_runs_here_hands_it_over_and_deletes_nothing(#[case] engine: Engine) {
    let (store, one, other) = open(engine, LONG).await;
    register(&one);
    let mut told = register(&other);
    let resumable = one.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap().task_id;
    let closure = spawn(&one, |context| async move {
        context.cancelled().await;
        Ok(text("not stopped but cancelled"))
    })
    .await;
    let done = spawn(&one, |_| async { Ok(text("done")) }).await;
    ended(&one, &done).await;
    within(one.shutdown()).await;
    assert_eq!(one.running_task_count(), 0);
    assert_eq!(store.ids("alice").await.len(), 3);
    let handed_back = one.store().get(&key(&resumable)).await.unwrap().task.lease.unwrap();
    assert_eq!((handed_back.holder, handed_back.attempt), (None, 1));
    let again = one.spawn(&alice(), TaskOptions::new(), |_| Box::pin(async { Ok(text("late")) })).await;
    assert_refused!(again, TaskError::ShuttingDown);
    one.get_task(&alice(), &resumable).await.unwrap();
    assert_eq!(one.running_task_count(), 0, "it does not take up again what it has handed back");

    // No lease has to lapse first.
    assert_eq!(said(&ended(&other, &resumable).await), "attempt 2");
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
    assert!(said(&ended(&other, &closure).await).contains("worker"));
    assert_eq!(said(&ended(&other, &done).await), "done");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_nobody_works_on_is_cancelled_at_once(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    register(&one);
    let task_id = one.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap().task_id;
    within(one.shutdown()).await;
    other.cancel_task(&alice(), &task_id).await.unwrap();
    assert_eq!(other.get_task(&alice(), &task_id).await.unwrap().status(), TaskStatus::Cancelled);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_is_told_to_stop_when_its_ttl_has_passed_or_its_record_is_gone(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let operation = |context: TaskContext| -> TaskFuture {
        let tell = tell.clone();
        Box::pin(async move {
            context.cancelled().await;
            tell.send(context.task_id().to_owned()).unwrap();
            Ok(text("too late"))
        })
    };
    let options = TaskOptions::new().with_ttl_ms(200);
    let task_id = one.spawn(&alice(), options, operation).await.unwrap().task_id;
    assert_eq!(within(told.recv()).await.unwrap(), task_id);
    assert!(said(&ended(&other, &task_id).await).contains("TTL"));

    let task_id = one.spawn(&alice(), TaskOptions::new(), operation).await.unwrap().task_id;
    other.store().delete(&key(&task_id)).await.unwrap();
    assert_eq!(within(told.recv()).await.unwrap(), task_id);
    assert_refused!(other.get_task(&alice(), &task_id).await, TaskError::NotFound { .. });
}

// Looking for lost workers

/// Begins a task under a short lease that is not renewed, as if its worker were lost at once.
async fn abandoned(store: &Store) -> StoredTask {
    let worker = TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().lease(SHORT));
    let new = NewTask::new("tools/call").operation("wait").on_worker_lost(OnWorkerLost::Resume);
    let (stored, _attempt) = worker.start(&alice(), new).await.unwrap();
    stored
}

/// How an instance comes to serve an owner.
#[derive(Clone, Copy, Debug)]
enum Serves {
    Spawn,
    Get,
}

#[apply(on_every_engine)]
fn an_instance_made_outside_of_a_runtime_looks_after_the_owners_that_it_serves(
    #[case] engine: Engine,
    #[values(Serves::Spawn, Serves::Get)] serves: Serves,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(engine.open());
    let other = manager(&store.backend, SHORT);
    let mut told = register(&other);
    runtime.block_on(async {
        let orphan = abandoned(&store).await;
        match serves {
            Serves::Spawn => drop(spawn(&other, |_| std::future::pending()).await),
            // Its lease is live, so that this is not what resumes it.
            Serves::Get => drop(other.get_task(&alice(), orphan.key.task.as_str()).await.unwrap()),
        }
        assert_eq!(within(told.recv()).await.unwrap().0, 2);
    });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_owner_is_looked_after_until_none_of_its_tasks_is_open(#[case] engine: Engine) {
    let store = engine.open().await;
    let gate = Gate::new(&store);
    let one = manager(&(Arc::clone(&gate) as Arc<dyn StorageBackend>), SHORT);
    let (bob, named) = (owner("bob"), owner("named"));
    one.sweep([named.clone()]);
    let (finish, finished) = oneshot::channel::<()>();
    let done = spawn(&one, |_| async move {
        finished.await.unwrap();
        Ok(text("done"))
    })
    .await;
    one.spawn(&bob, TaskOptions::new(), |_| Box::pin(std::future::pending())).await.unwrap();
    until(|| gate.listed(&alice()) > 2 && gate.listed(&bob) > 2 && gate.listed(&named) > 2).await;
    finish.send(()).unwrap();
    until(|| one.running_task_count() == 1).await;
    assert!(store.get(&key(&done)).await.is_ok());
    // The round that is on its way may not know yet, and the next one finds out.
    let (of_alice, of_bob, of_named) = (gate.listed(&alice()), gate.listed(&bob), gate.listed(&named));
    until(|| gate.listed(&bob) > of_bob + 4 && gate.listed(&named) > of_named + 4).await;
    assert!(gate.listed(&alice()) <= of_alice + 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_lapsed_lease_is_looked_at_again_soon_however_long_the_own_leases_are(#[case] engine: Engine) {
    let store = engine.open().await;
    let orphan = abandoned(&store).await;
    store.until(orphan.task.lease.unwrap().deadline).await;
    let other = manager(&store.backend, LONG);
    let mut told = register(&other);
    other.sweep([alice()]);
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_orphan_behind_a_full_page_is_found(#[case] engine: Engine) {
    let store = engine.open().await;
    let orphan = abandoned(&store).await;
    let many =
        TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().max_tasks_per_owner(None));
    for _ in 0..MAX_PAGE_LIMIT {
        many.create(&alice(), NewTask::new("tools/call")).await.unwrap();
    }
    let other = manager(&store.backend, SHORT);
    let mut told = register(&other);
    other.sweep([alice()]);
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
    assert_eq!(said(&ended(&other, orphan.key.task.as_str()).await), "attempt 2");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_answer_that_finds_nobody_at_work_resumes_the_operation(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    for manager in [&one, &other] {
        manager.register("ask", |context, _| {
            Box::pin(
                async move { Ok(text(context.request_input("a", elicitation("A?")).await?.to_string())) },
            )
        });
    }
    let task_id = one.spawn_registered(&alice(), "ask", Value::Null, resume()).await.unwrap().task_id;
    asks(&one, &task_id).await;
    within(one.shutdown()).await;
    other.update_task(&alice(), &task_id, [("a".to_owned(), json!(1))]).await.unwrap();
    // Nobody polls.
    let done = within(other.store().wait(&key(&task_id))).await.unwrap();
    assert_eq!(done.task.result.unwrap()["content"][0]["text"], "1");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn only_what_is_registered_can_be_spawned_by_name(#[case] engine: Engine) {
    let (store, one, _) = open(engine, LONG).await;
    let refused = one.spawn_registered(&alice(), "nothing", Value::Null, resume()).await;
    assert_refused!(refused, TaskError::InvalidArgument { .. });
    assert!(store.ids("alice").await.is_empty());
}

// Engines that are out of reach

/// An engine that one instance can be cut off from.
struct Gate {
    backend: Arc<dyn StorageBackend>,
    /// What it says while it is closed.
    error: fn() -> StorageError,
    is_closed: AtomicBool,
    /// After how long a call fails that finds it closed.
    fails_after: Duration,
    /// Larger records are an error that is none of the caller's making.
    most_bytes: usize,
    /// It does not even say that it is closed.
    is_silent: AtomicBool,
    /// How many calls it has refused.
    refused: AtomicUsize,
    /// Whose tasks were listed, in this order.
    listed: Mutex<Vec<OwnerId>>,
    /// How many watches were begun.
    watches: AtomicUsize,
}

fn is_away() -> StorageError {
    StorageError::Unavailable {
        address: "the gate".to_owned(),
        reason: "it is closed".to_owned(),
        outcome_unknown: false,
        source: None,
    }
}

/// Nothing says that the same call may succeed later, and it may have succeeded now.
fn is_broken() -> StorageError {
    StorageError::Backend {
        address: "the gate".to_owned(),
        reason: "it is broken".to_owned(),
        outcome_unknown: true,
        source: None,
    }
}

impl Gate {
    fn new(store: &Store) -> Arc<Self> {
        Self::with(store, is_away)
    }

    fn with(store: &Store, error: fn() -> StorageError) -> Arc<Self> {
        Arc::new(Self { error, ..Self::of(Arc::clone(&store.backend)) })
    }

    fn of(backend: Arc<dyn StorageBackend>) -> Self {
        Self {
            backend,
            error: is_away,
            fails_after: Duration::ZERO,
            most_bytes: usize::MAX,
            is_closed: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            listed: Mutex::default(),
            watches: AtomicUsize::new(0),
        }
    }

    fn set_closed(&self, is_closed: bool) {
        self.is_closed.store(is_closed, Ordering::SeqCst);
    }

    /// Waits until it has refused one more call.
    async fn refuses(&self) {
        let before = self.refused.load(Ordering::SeqCst);
        until(|| self.refused.load(Ordering::SeqCst) > before).await;
    }

    /// How often the tasks of this owner were listed.
    fn listed(&self, owner: &OwnerId) -> usize {
        self.listed.lock().unwrap().iter().filter(|listed| *listed == owner).count()
    }

    async fn pass(&self) -> Result<&dyn StorageBackend, StorageError> {
        if self.is_silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.is_closed.load(Ordering::SeqCst) {
            tokio::time::sleep(self.fails_after).await;
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err((self.error)());
        }
        Ok(&*self.backend)
    }
}

#[async_trait]
impl StorageBackend for Gate {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.pass().await?.get(key).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.pass().await?.put(key, data, options).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        if data.len() > self.most_bytes {
            return Err(StorageError::Backend {
                address: "the gate".to_owned(),
                reason: "it is narrow".to_owned(),
                outcome_unknown: false,
                source: None,
            });
        }
        self.pass().await?.put_if_version(key, data, options, expected).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.pass().await?.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        self.listed.lock().unwrap().push(owner.clone());
        self.pass().await?.list(owner, page).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.pass().await?.cleanup_expired().await
    }

    fn now(&self) -> DateTime<Utc> {
        self.backend.now()
    }

    fn watch(self: Arc<Self>, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.watches.fetch_add(1, Ordering::SeqCst);
        let watch = Arc::clone(&self.backend).watch(key);
        if !self.is_closed.load(Ordering::SeqCst) {
            return watch;
        }
        let error = (self.error)();
        let goes_on = error.is_retryable();
        let refusal = stream::unfold(Some(error), async |error| Some((Err(error?), None)));
        if goes_on { Box::pin(refusal.chain(watch)) } else { Box::pin(refusal) }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_holder_that_comes_too_late_is_told_to_stop_and_changes_nothing(#[case] engine: Engine) {
    let store = engine.open().await;
    let gate = Gate::new(&store);
    let cut_off = manager(&(Arc::clone(&gate) as Arc<dyn StorageBackend>), SHORT);
    let other = manager(&store.backend, SHORT);
    let (tell, mut told) = mpsc::unbounded_channel();
    for (name, manager) in [("first", &cut_off), ("second", &other)] {
        let tell = tell.clone();
        manager.register("work", move |context, _| {
            let tell = tell.clone();
            Box::pin(async move {
                if context.attempt() == 1 {
                    context.cancelled().await;
                    let late = context.set_status_message("late").await;
                    assert!(matches!(late, Err(TaskExit::Cancelled)), "{late:?}");
                }
                tell.send(name).unwrap();
                Ok(text(name))
            })
        });
    }
    let task_id = cut_off.spawn_registered(&alice(), "work", Value::Null, resume()).await.unwrap().task_id;
    gate.set_closed(true);
    assert_eq!(said(&ended(&other, &task_id).await), "second");
    assert_eq!(within(told.recv()).await.unwrap(), "second");
    gate.set_closed(false);
    assert_eq!(within(told.recv()).await.unwrap(), "first", "it was told to stop");
    within(async {
        while cut_off.running_task_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(said(&ended(&other, &task_id).await), "second");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_outage_shorter_than_the_lease_costs_neither_the_task_nor_its_result(
    #[case] engine: Engine,
    #[values(is_away, is_broken)] error: fn() -> StorageError,
) {
    let store = engine.open().await;
    let gate = Gate::with(&store, error);
    let backend: Arc<dyn StorageBackend> = Arc::<Gate>::clone(&gate);
    let one = manager(&backend, Duration::from_secs(30));
    let (finish, finished) = oneshot::channel::<()>();
    let task_id = spawn(&one, |_| async move {
        finished.await.unwrap();
        Ok(text("done"))
    })
    .await;
    gate.set_closed(true);
    finish.send(()).unwrap();
    gate.refuses().await;
    let unavailable = ErrorData::from(one.get_task(&alice(), &task_id).await.unwrap_err());
    assert_eq!(unavailable.code.0, -32603);
    assert_eq!(unavailable.message.contains("try again"), error().is_retryable());
    assert!(
        !unavailable.message.contains("gate"),
        "a client is not told where the store is: {unavailable:?}"
    );
    assert_eq!(one.running_task_count(), 1);
    gate.set_closed(false);
    assert_eq!(said(&ended(&one, &task_id).await), "done");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_outage_longer_than_the_lease_fails_no_task_whose_worker_lives(#[case] engine: Engine) {
    let store = engine.open().await;
    let gate = Gate::new(&store);
    let backend: Arc<dyn StorageBackend> = Arc::<Gate>::clone(&gate);
    // The engine is out of reach for both.
    let (one, other) = (manager(&backend, SHORT), manager(&backend, SHORT));
    let (finish, finished) = oneshot::channel::<()>();
    let task_id = spawn(&one, |context| async move {
        finished.await.unwrap();
        Ok(text(format!("attempt {}", context.attempt())))
    })
    .await;
    gate.set_closed(true);
    let lapsed = store.get(&key(&task_id)).await.unwrap();
    tokio::time::sleep(SHORT * 3).await;
    assert_eq!(store.get(&key(&task_id)).await.unwrap(), lapsed);
    gate.set_closed(false);
    assert_eq!(other.get_task(&alice(), &task_id).await.unwrap().status(), TaskStatus::Working);
    polled(&other, &task_id, |_| one.running_task_count() == 1).await;
    within(async {
        while store.get(&key(&task_id)).await.unwrap().version == lapsed.version {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    finish.send(()).unwrap();
    assert_eq!(said(&ended(&other, &task_id).await), "attempt 1");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn what_is_done_as_the_process_is_told_to_end_is_stored(#[case] engine: Engine) {
    let store = engine.open().await;
    // Whether the end is felt first or the order to stop is left to chance.
    for _ in 0..20 {
        let one = manager(&store.backend, LONG);
        let (finish, finished) = oneshot::channel::<()>();
        let task_id = spawn(&one, |context| async move {
            context.set_status_message("at work").await?;
            finished.await.unwrap();
            Ok(text("done"))
        });
        let task_id = task_id.await;
        let at_work = |task: &DetailedTask| task.task.status_message.as_deref() == Some("at work");
        polled(&one, &task_id, at_work).await;
        finish.send(()).unwrap();
        within(one.shutdown()).await;
        assert_eq!(said(&ended(&one, &task_id).await), "done");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn shutdown_does_not_wait_for_an_engine_that_refuses_an_outcome(#[case] engine: Engine) {
    let store = engine.open().await;
    let gate = Gate::new(&store);
    let one = manager(&(Arc::clone(&gate) as Arc<dyn StorageBackend>), LONG);
    let (finish, finished) = oneshot::channel::<()>();
    spawn(&one, |_| async move {
        finished.await.unwrap();
        Ok(text("done"))
    })
    .await;
    gate.set_closed(true);
    finish.send(()).unwrap();
    gate.refuses().await;
    within(one.shutdown()).await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_an_engine_that_hangs() {
    let store = Engine::Memory.open().await;
    let gate = Gate::new(&store);
    let one = manager(&(Arc::clone(&gate) as Arc<dyn StorageBackend>), LONG);
    spawn(&one, |_| std::future::pending()).await;
    gate.is_silent.store(true, Ordering::SeqCst);
    within(one.shutdown()).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_watch_that_was_refused_is_begun_again_with_a_renewal(#[case] engine: Engine) {
    let store = engine.open().await;
    let gate = Gate::with(&store, is_broken);
    let one = manager(&(Arc::clone(&gate) as Arc<dyn StorageBackend>), SHORT * 10);
    let begun = Arc::clone(&gate);
    let task_id = spawn(&one, |context| {
        // The task is stored, and is not watched yet.
        begun.set_closed(true);
        async move {
            context.cancelled().await;
            Ok(text("cleaned up"))
        }
    })
    .await;
    until(|| gate.watches.load(Ordering::SeqCst) > 0).await;
    gate.set_closed(false);
    let refused = gate.watches.load(Ordering::SeqCst);
    until(|| gate.watches.load(Ordering::SeqCst) > refused).await;
    assert_eq!(one.running_task_count(), 1);
    one.cancel_task(&alice(), &task_id).await.unwrap();
    assert_eq!(said(&ended(&one, &task_id).await), "cleaned up");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn what_an_operation_writes_for_nobody_is_refused_as_if_it_were_cancelled(#[case] engine: Engine) {
    let (store, one, other) = open(engine, LONG).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let tell = move |context: TaskContext| -> TaskFuture {
        let tell = tell.clone();
        Box::pin(async move {
            context.cancelled().await;
            tell.send(context.set_status_message("late").await).unwrap();
            Err(TaskExit::Cancelled)
        })
    };
    let gone = one.spawn(&alice(), TaskOptions::new(), &tell).await.unwrap().task_id;
    other.store().delete(&key(&gone)).await.unwrap();
    let late = within(told.recv()).await.unwrap();
    assert!(matches!(late, Err(TaskExit::Cancelled)), "{late:?}");

    // Another has the lease: the attempt was handed back in the name of the first, and taken up.
    one.register("work", move |context, _| tell(context));
    let task_id = one.spawn_registered(&alice(), "work", Value::Null, resume()).await.unwrap().task_id;
    let mut record: Value = serde_json::from_slice(&store.get(&key(&task_id)).await.unwrap().data).unwrap();
    record["lease"]["attempt"] = json!(2);
    store.put(&key(&task_id), record.to_string().into(), PutOptions::default()).await.unwrap();
    let late = within(told.recv()).await.unwrap();
    assert!(matches!(late, Err(TaskExit::Cancelled)), "{late:?}");
}

#[tokio::test]
async fn an_operation_that_does_not_stop_when_it_is_told_is_aborted() {
    let backend: Arc<dyn StorageBackend> = Arc::new(MemoryBackend::new());
    let one = manager(&backend, LONG);
    let (_alive, aborted) = oneshot::channel::<()>();
    let task_id = spawn(&one, |_| async move {
        let _alive = _alive;
        std::future::pending().await
    })
    .await;
    one.store().delete(&key(&task_id)).await.unwrap();
    within(aborted).await.unwrap_err();
    within(one.shutdown()).await;
}

/// A call that finds no server takes as long as it may before it fails, and a renewal may be in the middle of one when
/// the server is back.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_that_holds_up_every_call_fails_no_task_whose_worker_lives() {
    let rounds = (0..12).map(|round| async move {
        let lease = Duration::from_secs(3);
        let backend: Arc<dyn StorageBackend> = Arc::new(MemoryBackend::new());
        let gate = Arc::new(Gate { fails_after: Duration::from_secs(2), ..Gate::of(backend) });
        let backend: Arc<dyn StorageBackend> = Arc::<Gate>::clone(&gate);
        let (one, other) = (manager(&backend, lease), manager(&backend, lease));
        let (finish, finished) = oneshot::channel::<()>();
        let works_on = spawn(&one, |context| async move {
            finished.await.unwrap();
            Ok(text(format!("attempt {}", context.attempt())))
        })
        .await;
        // Another one ends during the outage.
        let (end, ends) = oneshot::channel::<()>();
        let has_ended = spawn(&one, |_| async move {
            ends.await.unwrap();
            Ok(text("ended"))
        })
        .await;
        gate.set_closed(true);
        end.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(4_500 + 170 * round)).await;
        gate.set_closed(false);
        // Longer than it takes to see a lease lapsed twice.
        for _ in 0..25 {
            for task_id in [&works_on, &has_ended] {
                let status = other.get_task(&alice(), task_id).await.unwrap().status();
                assert_ne!(status, TaskStatus::Failed, "round {round}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        finish.send(()).unwrap();
        assert_eq!(said(&ended(&other, &works_on).await), "attempt 1");
        assert_eq!(said(&ended(&other, &has_ended).await), "ended");
    });
    futures_util::future::join_all(rounds).await;
}

#[tokio::test]
async fn what_cannot_be_stored_is_told_without_a_word_about_the_store() {
    let backend: Arc<dyn StorageBackend> = Arc::new(MemoryBackend::new());
    let narrow: Arc<dyn StorageBackend> = Arc::new(Gate { most_bytes: 2_000, ..Gate::of(backend) });
    let one = manager(&narrow, LONG);
    let task_id = spawn(&one, |_| async { Ok(text("x".repeat(4_000))) }).await;
    let told = said(&ended(&one, &task_id).await);
    assert!(told.contains("cannot be stored") && !told.contains("gate"), "{told}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_that_panics_before_it_returns_its_future_fails_its_task_too(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    one.register("count", |_, _| Box::pin(std::future::pending()));
    other.register("count", |_, arguments| {
        let count = arguments["count"].as_u64().expect("a test wants this panic");
        Box::pin(async move { Ok(text(count.to_string())) })
    });
    let resumed = one.spawn_registered(&alice(), "count", json!({}), resume()).await.unwrap().task_id;
    within(one.shutdown()).await;
    let begun = other.spawn_registered(&alice(), "count", json!({}), resume()).await.unwrap().task_id;
    for task_id in [resumed, begun] {
        assert!(said(&ended(&other, &task_id).await).contains("panicked"));
    }
}

#[tokio::test]
async fn an_orphan_that_cannot_resume_here_does_not_hurry_the_sweeps() {
    let backend: Arc<dyn StorageBackend> = Arc::new(MemoryBackend::new());
    let one = manager(&backend, LONG);
    register(&one);
    one.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap();
    within(one.shutdown()).await;
    let gate = Arc::new(Gate::of(backend));
    let ignorant = manager(&(Arc::clone(&gate) as Arc<dyn StorageBackend>), Duration::from_secs(30));
    ignorant.sweep([alice()]);
    until(|| gate.listed(&alice()) > 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = gate.listed(&alice());
    // Three times as long as it takes until a sweep that is in a hurry.
    tokio::time::sleep(Duration::from_millis(3_200)).await;
    assert_eq!(gate.listed(&alice()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_does_not_wait_for_an_operation_that_does_not_yield() {
    let backend: Arc<dyn StorageBackend> = Arc::new(MemoryBackend::new());
    let one = manager(&backend, LONG);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (tell, told) = oneshot::channel();
    let released = std::sync::Mutex::new(released);
    let task_id = spawn(&one, |_| async move {
        tell.send(()).unwrap();
        tokio::task::block_in_place(|| released.lock().unwrap().recv()).unwrap();
        Ok(text("late"))
    })
    .await;
    told.await.unwrap();
    within(one.shutdown()).await;
    let lost = one.get_task(&alice(), &task_id).await.unwrap();
    assert!(said(&lost.payload).contains("worker"), "its lease was handed back: {lost:?}");
    release.send(()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_made_again_well_before_others_take_the_worker_for_lost() {
    let gate = Arc::new(Gate::of(Arc::new(MemoryBackend::new())));
    let one = manager(&(Arc::clone(&gate) as Arc<dyn StorageBackend>), Duration::from_secs(30));
    spawn(&one, |_| std::future::pending()).await;
    gate.set_closed(true);
    // Nothing is written before a third of the lease has passed.
    tokio::time::sleep(Duration::from_millis(9_900)).await;
    let before = gate.refused.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = gate.refused.load(Ordering::SeqCst) - before;
    assert!((5..=15).contains(&refused), "{refused} in two seconds");
}
