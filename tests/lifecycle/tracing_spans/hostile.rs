//! Ids, names and texts from clients cannot forge lines of the log: it contains none of their control characters.

use std::sync::Arc;

use mcp_task_store::{
    Agenda, DurableTaskManager, NewTask, Next, OnWorkerLost, OwnerId, PageRequest, PartName, Priority,
    PutOptions, Queue, RegisteredOptions, RpcError, StoreConfig, TaskKey, TaskStore, Version,
};
use rmcp::model::CallToolResult;
use rmcp::task_manager::{TaskExit, TaskOptions};
use serde_json::json;
use tracing::Level;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::support::{Engine, Printed, Store, ask_every_subscriber, in_an_hour, keep};

/// A text that begins a new line, erases a line of the terminal, and reverses the direction of the text.
const HOSTILE: &str = "t\nFORGED\r\u{1b}[2K\u{202e}\u{2066}\u{2028}\u{200b}\0\u{7f}\u{85}:%{}";

fn hostile() -> (OwnerId, TaskKey) {
    let owner = OwnerId::try_from(HOSTILE).unwrap();
    (owner.clone(), TaskKey { owner, task: HOSTILE.try_into().unwrap() })
}

/// Logs an error as a server would.
fn log_error<T, E: std::error::Error>(outcome: Result<T, E>) {
    if let Err(error) = outcome {
        tracing::error!("{error}");
    }
}

async fn every_call_of_the_engine(store: &Store) {
    let (owner, key) = hostile();
    let (backend, part, queue) =
        (&store.backend, PartName::from_static("input"), Queue::work(HOSTILE, Priority::Normal).unwrap());
    log_error(backend.get(&key).await);
    log_error(backend.part(&key, &part).await);
    log_error(backend.put(&key, "no JSON".into(), in_an_hour()).await);
    log_error(backend.put(&key, "no JSON".into(), keep().set_part(part.clone(), "part")).await);
    log_error(backend.put_if_version(&key, "no JSON".into(), keep(), 9.into()).await);
    log_error(backend.put_if_version(&key, "no JSON".into(), in_an_hour(), Version::ABSENT).await);
    log_error(backend.get(&key).await);
    log_error(backend.part(&key, &part).await);
    log_error(backend.clock(&key).await);
    log_error(backend.list(&owner, PageRequest::new(9)).await);
    log_error(backend.list(&owner, PageRequest::new(9).after(HOSTILE)).await);
    let other = TaskKey { owner: owner.clone(), task: "other".try_into().unwrap() };
    log_error(backend.put(&other, "data".into(), in_an_hour().quota(1)).await);
    log_error(backend.schedule(&queue, &key, std::time::Duration::ZERO).await);
    let taken = backend.take_due(std::slice::from_ref(&queue), 9, std::time::Duration::ZERO).await.unwrap();
    log_error(backend.resolve(&taken.due[0], Next::Remove).await);
    log_error(backend.timers(&queue, None).await);
    log_error(backend.owners(None).await);
    log_error(HOSTILE.parse::<TaskKey>());
    let damaged = backend.put(&key, "x".repeat(1 << 20).into(), PutOptions::default()).await;
    log_error(damaged);
}

async fn every_call_of_the_store(store: &Store) {
    let (owner, key) = hostile();
    let tasks = TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().max_input_requests(2));
    // The stored record is not a task.
    log_error(tasks.get(&key).await);
    log_error(tasks.cancel(&key).await);
    log_error(tasks.wait(&key).await);
    log_error(tasks.list(&owner, PageRequest::new(9)).await);
    log_error(tasks.delete(&key).await);
    log_error(tasks.get(&key).await);
    log_error(tasks.claim(&key).await);
    let new = || NewTask::new(HOSTILE).operation(HOSTILE).status_message(HOSTILE).arguments(json!(HOSTILE));
    let (task, attempt) = tasks.start(&owner, new().on_worker_lost(OnWorkerLost::Resume)).await.unwrap();
    // A client could choose this id.
    let record = store.backend.get(&task.key).await.unwrap();
    let data = String::from_utf8(record.data.to_vec()).unwrap();
    let renamed = data.replace(task.key.task.as_str(), json!(HOSTILE).as_str().unwrap_or_default());
    let renamed = if serde_json::from_str::<serde_json::Value>(&renamed).is_ok() { renamed } else { data };
    log_error(store.backend.put(&key, renamed.into(), in_an_hour()).await);
    for key in [&task.key, &key] {
        log_error(tasks.get(key).await);
        log_error(tasks.set_status_message(key, HOSTILE).await);
        log_error(tasks.set_status_message(key, HOSTILE.repeat(1000)).await);
        log_error(tasks.set_variables(key, [(HOSTILE, json!(HOSTILE))]).await);
        log_error(tasks.remove_variables(key, [HOSTILE]).await);
        log_error(tasks.request_input(key, [(HOSTILE, json!(HOSTILE))]).await);
        log_error(tasks.deliver_inputs(key, [(HOSTILE, json!(HOSTILE))]).await);
        log_error(tasks.request_input(key, [(HOSTILE, json!(1))]).await);
        log_error(tasks.request_cancel(key).await);
        log_error(tasks.request_input(key, [("another", json!(1))]).await);
        log_error(tasks.fail(key, RpcError::new(1, HOSTILE)).await);
        log_error(tasks.complete(key, json!(1)).await);
        log_error(tasks.wait(key).await);
    }
    log_error(attempt.renew().await);
    log_error(attempt.release().await);
    log_error(tasks.create(&OwnerId::try_from("\0mcp/forged").unwrap(), new()).await);
    log_error(tasks.list(&owner, PageRequest::new(9)).await);
    log_error(tasks.cleanup().await);
}

async fn every_call_of_a_manager(store: &Store) {
    let (owner, key) = hostile();
    let backend: Arc<dyn Agenda> = Arc::clone(&store.backend);
    let manager = DurableTaskManager::new(TaskStore::new(backend));
    log_error(manager.get_task(&owner, HOSTILE).await);
    log_error(manager.cancel_task(&owner, HOSTILE).await);
    log_error(manager.get_task(&owner, key.task.as_str()).await);
    manager.register(HOSTILE, |context, _| {
        Box::pin(async move {
            context.set_status_message(HOSTILE);
            Err(TaskExit::Error(rmcp::ErrorData::internal_error(HOSTILE, None)))
        })
    });
    log_error(manager.spawn_registered(&owner, HOSTILE, json!(HOSTILE), RegisteredOptions::new()).await);
    log_error(manager.spawn_registered(&owner, "not\nFORGED", json!(1), RegisteredOptions::new()).await);
    let panics = |_| -> rmcp::task_manager::TaskFuture { Box::pin(async { panic!("{HOSTILE}") }) };
    log_error(manager.spawn(&owner, HOSTILE, TaskOptions::new(), panics).await);
    let ends =
        |_| -> rmcp::task_manager::TaskFuture { Box::pin(async { Ok(CallToolResult::success(Vec::new())) }) };
    log_error(manager.spawn(&owner, HOSTILE, TaskOptions::new(), ends).await);
    while manager.running_task_count() > 0 {
        tokio::task::yield_now().await;
    }
    manager.shutdown().await;
}

#[cfg(feature = "pmcp")]
async fn every_call_of_pmcp(store: &Store) {
    use mcp_task_store::{PmcpTaskStore, PmcpTasksBackend};
    use pmcp::server::task_store::TaskStore as _;
    use pmcp_tasks::StorageBackend as _;

    let tasks = PmcpTaskStore::new(TaskStore::new(Arc::clone(&store.backend)));
    // The errors and their texts are pmcp's own.
    let (_, key) = hostile();
    log_error(store.backend.put(&key, "no JSON".into(), in_an_hour()).await);
    drop(tasks.get(HOSTILE, HOSTILE).await);
    drop(tasks.cancel(HOSTILE, HOSTILE).await);
    drop(tasks.list(HOSTILE, None).await);
    drop(tasks.create(HOSTILE, None).await);
    drop(tasks.set_status_message(HOSTILE, HOSTILE, Some(HOSTILE.to_owned())).await);
    let backend = PmcpTasksBackend::new(Arc::clone(&store.backend));
    drop(backend.get(HOSTILE).await);
    drop(backend.put(HOSTILE, b"{}").await);
    drop(backend.put_if_version(HOSTILE, b"{}", 7).await);
    drop(backend.list_by_prefix(HOSTILE).await);
    drop(backend.delete(HOSTILE).await);
}

async fn assert_nothing_is_forged(engine: Engine) {
    let log = Printed::default();
    let writer = log.clone();
    ask_every_subscriber();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let store = engine.open().await;
    every_call_of_the_engine(&store).await;
    every_call_of_the_store(&store).await;
    every_call_of_a_manager(&store).await;
    #[cfg(feature = "pmcp")]
    every_call_of_pmcp(&store).await;
    drop((store, guard));
    let text = log.text();
    assert!(text.contains("t\\u{a}FORGED"), "the ids are shown: {text}");
    let time = |line: &str| line.starts_with("20") && line.contains("Z ");
    for line in text.lines() {
        assert!(time(line), "the line does not begin with the time of an event: {line:?}");
        assert!(
            !line.chars().any(|c| c.is_control() || HOSTILE[7..].contains(c) && !c.is_ascii()),
            "{line:?}"
        );
    }
}

#[tokio::test]
async fn ids_from_clients_forge_no_line_of_the_log() {
    // The panic of an operation is printed by the process, not by this crate.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<String>().is_none_or(|said| said != HOSTILE) {
            hook(panic);
        }
    }));
    assert_nothing_is_forged(Engine::Memory).await;
    #[cfg(feature = "redis-tests")]
    assert_nothing_is_forged(Engine::Redis).await;
}
