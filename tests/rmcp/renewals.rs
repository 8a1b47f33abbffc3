//! Operations that block their runtime, with leases that are renewed in that runtime or on a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::elsewhere::elsewhere;
use crate::support::rmcp::*;
use crate::support::{Engine, Printed, on_every_engine};
use mcp_task_store::{
    Agenda, DurableTaskManager, ManagerConfig, MemoryBackend, StorageError, StoreConfig, TaskStore,
};
use rmcp::model::TaskPayload;
use rmcp::task_manager::{TaskFuture, TaskOptions};
use rstest_reuse::apply;
use tokio::sync::oneshot;

const LEASE: Duration = Duration::from_secs(2);

/// An instance whose runtime has one thread, and what that thread logs.
struct Instance {
    runtime: Option<tokio::runtime::Runtime>,
    log: Printed,
}

impl Instance {
    fn new() -> Self {
        let log = Printed::default();
        let printed = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(move || printed.clone())
            .finish();
        crate::support::ask_every_subscriber();
        let dispatch = tracing::Dispatch::new(subscriber);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            // The default subscriber stays until the thread ends.
            .on_thread_start(move || std::mem::forget(tracing::dispatcher::set_default(&dispatch)))
            .build()
            .unwrap();
        Self { runtime: Some(runtime), log }
    }

    async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.as_ref().unwrap().spawn(future).await.unwrap()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    }
}

/// Makes another connection to the engine, as another process does.
type Connect = Arc<dyn Fn() -> futures_util::future::BoxFuture<'static, Arc<dyn Agenda>> + Send + Sync>;

/// Opens a store, and returns a function that makes further connections to it.
async fn connect(engine: Engine) -> (crate::support::Store, Connect) {
    let store = engine.open().await;
    #[cfg(feature = "redis-tests")]
    if let Some(namespace) = &store.redis {
        let builder = namespace.builder();
        let connect: Connect = Arc::new(move || {
            let builder = builder.clone();
            Box::pin(async move {
                let backend = builder.connect(&crate::support::redis::url()).await.unwrap();
                Arc::new(backend) as Arc<dyn Agenda>
            })
        });
        return (store, connect);
    }
    #[cfg(feature = "sqlite")]
    if let Some(folder) = store.sqlite.clone() {
        let connect: Connect = Arc::new(move || {
            let folder = folder.clone();
            Box::pin(async move { Arc::new(folder.backend().await) as Arc<dyn Agenda> })
        });
        return (store, connect);
    }
    let backend = Arc::clone(&store.backend);
    let connect: Connect = Arc::new(move || Box::pin(std::future::ready(Arc::clone(&backend))));
    (store, connect)
}

fn config() -> StoreConfig {
    StoreConfig::new().lease(LEASE).retention(LONG).call_timeout(SHORT)
}

/// Runs an operation that blocks its runtime for several leases, while another instance observes the lease. Returns
/// how the task ended, and the log.
async fn run_blocking_operation(engine: Engine, is_dedicated: bool) -> (TaskPayload, String) {
    let (store, connect) = connect(engine).await;
    // This instance must not know that the runtime of the operation is in its own process.
    let other = manager(&elsewhere(&store.backend), LEASE);
    let instance = Instance::new();
    let task_id = instance
        .run(async move {
            let mut manager_config = ManagerConfig::new();
            let tasks = TaskStore::with_config(connect().await, config());
            if is_dedicated {
                manager_config = manager_config.dedicated_renewals(async move || Ok(connect().await));
            }
            let manager = DurableTaskManager::with_config(tasks, manager_config);
            let operation = |_| -> TaskFuture {
                Box::pin(async {
                    // Give the dedicated renewals time to connect.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    std::thread::sleep(LEASE * 4);
                    Ok(text("its own result"))
                })
            };
            manager.spawn(&alice(), "grind", TaskOptions::new(), operation).await.unwrap().task_id
        })
        .await;
    let payload = ended(&other, &task_id).await;
    // Wait until the runtime is free again.
    within(instance.run(async {})).await;
    let log = instance.log.clone();
    if !is_dedicated {
        until(|| log.text().contains("blocked the runtime")).await;
    }
    (payload, log.text())
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_that_blocks_its_runtime_loses_its_lease_and_a_warning_names_it(#[case] engine: Engine) {
    let (payload, log) = run_blocking_operation(engine, false).await;
    assert!(said(&payload).contains("worker"), "{payload:?}");
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("blocked the runtime")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    for part in ["WARN", "operation \"grind\" blocked the runtime for 8.", "use tokio::task::spawn_blocking"]
    {
        assert!(warnings[0].contains(part), "{}", warnings[0]);
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_that_blocks_its_runtime_keeps_its_lease_under_dedicated_renewals(
    #[case] engine: Engine,
) {
    let (payload, log) = run_blocking_operation(engine, true).await;
    assert_eq!(said(&payload), "its own result");
    assert!(!log.contains("blocked the runtime"), "{log}");
}

#[tokio::test]
async fn a_late_renewal_names_no_operation_that_did_not_block() {
    let instance = Instance::new();
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let own = Arc::clone(&backend);
    let (sender, received) = oneshot::channel();
    instance
        .run(async move {
            let manager = DurableTaskManager::new(TaskStore::with_config(own, config()));
            let idle = |_| -> TaskFuture { Box::pin(std::future::pending()) };
            manager.spawn(&alice(), "idle", TaskOptions::new(), idle).await.unwrap();
            // A task that is not an operation blocks the runtime.
            tokio::spawn(async move {
                std::thread::sleep(LEASE * 2);
                sender.send(()).unwrap();
            });
        })
        .await;
    within(received).await.unwrap();
    until(|| instance.log.text().contains("something blocked the runtime")).await;
}

/// Two connections to one engine.
fn two_gates() -> (Arc<Intercept<Gate>>, Arc<Intercept<Gate>>) {
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    (Intercept::new(Gate::of(Arc::clone(&backend))), Intercept::new(Gate::of(backend)))
}

fn reads(gate: &Gate) -> usize {
    gate.reads.load(Ordering::SeqCst)
}

#[tokio::test]
async fn dedicated_renewals_use_only_their_own_connection_and_end_with_the_manager_and_its_runs() {
    let (first, second) = two_gates();
    let dedicated = Arc::clone(&second);
    let failures = Arc::new(AtomicUsize::new(0));
    let fails = Arc::clone(&failures);
    let store_config = StoreConfig::new().lease(SHORT).call_timeout(SHORT);
    let store = TaskStore::with_config(Arc::clone(&first) as Arc<dyn Agenda>, store_config);
    let (connects, may_connect) = tokio::sync::watch::channel(false);
    let config = ManagerConfig::new().dedicated_renewals(async move || {
        if fails.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(unreachable_error());
        }
        let mut may_connect = may_connect.clone();
        let _ = may_connect.wait_for(|may| *may).await;
        Ok(Arc::clone(&dedicated) as Arc<dyn Agenda>)
    });
    let one = DurableTaskManager::with_config(store, config);
    let (finish, finished) = oneshot::channel::<()>();
    let task_id = spawn(&one, |context| async move {
        finished.await.unwrap();
        Ok(text(format!("attempt {}", context.attempt())))
    })
    .await;
    // Until the second connection exists, the renewals use the first one.
    let before = reads(&first);
    until(|| failures.load(Ordering::SeqCst) == 2 && reads(&first) >= before + 5).await;
    assert_eq!(reads(&second), 0);
    connects.send(true).unwrap();
    until(|| reads(&second) >= 2).await;
    let (before, renewed) = (reads(&first), reads(&second));
    until(|| reads(&second) >= renewed + 5).await;
    // The keeper may read the task too.
    assert!(reads(&first) <= before + 2, "{} reads", reads(&first) - before);
    // The run continues without its manager.
    drop(one);
    let renewed = reads(&second);
    until(|| reads(&second) >= renewed + 5).await;
    finish.send(()).unwrap();
    until(|| Arc::strong_count(&second) == 1).await;
    let other = manager(&(first as Arc<dyn Agenda>), SHORT);
    assert_eq!(said(&ended(&other, &task_id).await), "attempt 1");
}

#[tokio::test]
async fn dedicated_renewals_signal_to_the_operation_that_its_attempt_is_void() {
    let (first, second) = two_gates();
    // The run receives no other notification.
    first.watch_hangs.store(true, Ordering::SeqCst);
    let store_config = StoreConfig::new().lease(SHORT).call_timeout(SHORT);
    let store = TaskStore::with_config(Arc::clone(&first) as Arc<dyn Agenda>, store_config);
    let config =
        ManagerConfig::new().dedicated_renewals(async move || Ok(Arc::clone(&second) as Arc<dyn Agenda>));
    let one = DurableTaskManager::with_config(store, config);
    let (sender, received) = oneshot::channel();
    let task_id = spawn(&one, |context| async move {
        context.cancelled().await;
        sender.send(()).unwrap();
        Ok(text("late"))
    })
    .await;
    first.backend.delete(&key(&task_id)).await.unwrap();
    within(received).await.unwrap();
    until(|| one.running_task_count() == 0).await;
}

#[tokio::test]
async fn dedicated_renewals_of_a_run_end_with_its_runtime() {
    let instance = Instance::new();
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let (first, second) = (Arc::clone(&backend), Arc::clone(&backend));
    let (_manager, task_id) = instance
        .run(async move {
            let config = ManagerConfig::new().dedicated_renewals(async move || Ok(Arc::clone(&second)));
            let manager =
                DurableTaskManager::with_config(TaskStore::with_config(first, self::config()), config);
            manager.register("wait", |_, _| Box::pin(std::future::pending()));
            let spawned = manager.spawn_registered(&alice(), "wait", serde_json::Value::Null, resume()).await;
            (manager, spawned.unwrap().task_id)
        })
        .await;
    // The manager and its thread still exist.
    drop(instance);
    let other = manager(&backend, LEASE);
    let mut started = register(&other);
    assert_eq!(within(started.recv()).await.unwrap().0, 2);
    assert_eq!(said(&ended(&other, &task_id).await), "attempt 2");
}

#[tokio::test]
async fn leases_are_renewed_although_the_thread_of_the_dedicated_renewals_has_panicked() {
    let printed = Printed::default();
    let _subscribed = crate::support::subscribe(&printed, tracing::Level::WARN);
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let store = TaskStore::with_config(Arc::clone(&backend), StoreConfig::new().lease(SHORT));
    let config = ManagerConfig::new()
        .dedicated_renewals(async move || -> Result<Arc<dyn Agenda>, StorageError> { panic!("on purpose") });
    let one = DurableTaskManager::with_config(store, config);
    let mut task_ids = Vec::new();
    for _ in 0..2 {
        let operation = |_| async {
            tokio::time::sleep(SHORT * 8).await;
            Ok(text("done"))
        };
        task_ids.push(spawn(&one, operation).await);
    }
    // Without renewals, this instance would declare the workers lost.
    let other = manager(&elsewhere(&backend), SHORT);
    for task_id in &task_ids {
        assert_eq!(said(&ended(&other, task_id).await), "done");
    }
    assert_eq!(
        printed.text().matches("the dedicated renewals has panicked").count(),
        1,
        "{}",
        printed.text()
    );
}
