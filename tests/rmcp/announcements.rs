//! Workers announce themselves to operators.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use mcp_task_store::{
    Agenda, Expiry, ManagerConfig, OwnerSource, PageRequest, PutOptions, StorageBackend, StorageError,
    StoreConfig, TaskFilter, TaskKey, TaskServer, TaskServerConfig, TaskStore, TaskTools, Worker,
    WorkerStatus,
};
use rstest::rstest;
use rstest_reuse::apply;
use tokio::sync::oneshot;

use crate::support::intercept::{Call, Hooks, Intercept, Reply};
use crate::support::rmcp::*;
use crate::support::{Engine, Store, on_every_engine, owner};
use crate::task_server::{Router, render};

const WORKERS: &str = "\0mcp/workers";
/// A lease whose third is the shortest period of announcements.
const QUICK: Duration = Duration::from_secs(3);

fn store(engine: &Arc<dyn Agenda>) -> TaskStore<Arc<dyn Agenda>> {
    TaskStore::with_config(Arc::clone(engine), StoreConfig::new().lease(QUICK).retention(LONG))
}

async fn workers(store: &TaskStore<Arc<dyn Agenda>>) -> Vec<WorkerStatus> {
    store.workers(None).await.unwrap().workers
}

/// Waits until the workers meet a condition.
async fn until_workers(
    store: &TaskStore<Arc<dyn Agenda>>,
    wanted: impl Fn(&[WorkerStatus]) -> bool,
) -> Vec<WorkerStatus> {
    within(async {
        loop {
            let workers = workers(store).await;
            if wanted(&workers) {
                return workers;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

async fn announces_what_it_runs(opened: Store) {
    let manager = manager(&opened.backend, QUICK);
    let observer = store(&opened.backend);
    let mut attempts = register(&manager);
    let task = manager.spawn_registered(&alice(), "wait", serde_json::Value::Null, resume()).await.unwrap();
    within(attempts.recv()).await.unwrap();
    let announced = until_workers(&observer, |workers| !workers.is_empty()).await;
    let [worker] = &announced[..] else { panic!("one worker has announced itself: {announced:?}") };
    let stored = observer.get(&key(&task.task_id)).await.unwrap();
    let lease = stored.task.lease.as_ref().unwrap();
    assert_eq!(Some(&worker.holder), lease.holder.as_ref());
    assert_eq!((worker.process_id, worker.version.as_str()), (std::process::id(), env!("CARGO_PKG_VERSION")));
    assert!(!worker.host.is_empty());
    assert_eq!((&worker.operations[..], worker.operation_count), (&["wait".to_owned()][..], 1));
    assert_eq!((worker.tasks.len(), worker.tasks[0].key()), (1, stored.key.clone()));
    assert_eq!((worker.tasks[0].attempt, worker.task_count), (1, 1));
    assert!(!worker.is_lost(observer.backend().now()));
    let first_seen = worker.last_seen_at;
    let again = until_workers(&observer, |workers| workers[0].last_seen_at > first_seen).await;
    assert_eq!((again.len(), again[0].started_at), (1, worker.started_at));
    manager.shutdown().await;
    assert_eq!(workers(&observer).await, [], "a shutdown removes the record");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_announces_what_it_runs_until_it_shuts_down(#[case] engine: Engine) {
    announces_what_it_runs(engine.open().await).await;
}

#[cfg(feature = "encryption")]
#[tokio::test]
async fn a_worker_announces_itself_on_an_encrypted_engine() {
    let opened = Engine::Memory.open().await;
    let plain = Arc::clone(&opened.backend);
    let encrypted = crate::support::encryption::encrypting(opened);
    let manager = manager(&encrypted.backend, QUICK);
    register(&manager);
    until_workers(&store(&encrypted.backend), |workers| workers.len() == 1).await;
    let listed = plain.list(&owner(WORKERS), PageRequest::new(10)).await.unwrap();
    let stored = String::from_utf8_lossy(&listed.records[0].data).into_owned();
    assert!(!stored.contains("holder") && listed.records[0].task.as_str().len() == 64, "{stored}");
    assert_eq!(store(&plain).workers(None).await.unwrap().unreadable, 1);
    manager.shutdown().await;
    announces_what_it_runs(encrypted).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_whose_process_has_crashed_is_lost(#[case] engine: Engine) {
    let opened = engine.open().await;
    let (mortal, observer) = (Mortal::start(&opened, QUICK), store(&opened.backend));
    // A process that crashes drops nothing.
    let manager = mortal.manager.clone();
    let registers = manager.clone();
    let register_two = async move {
        for name in ["render", "other"] {
            registers.register(name, |_, _| Box::pin(async { Ok(text("done")) }));
        }
    };
    mortal.spawn(register_two).await;
    until_workers(&observer, |workers| workers.len() == 1).await;
    mortal.kill();
    let lost = |workers: &[WorkerStatus]| workers[0].is_lost(observer.backend().now());
    let workers = until_workers(&observer, lost).await;
    drop(manager);
    assert_eq!(workers[0].operations, ["other", "render"]);
    let listed = opened.backend.list(&owner(WORKERS), PageRequest::new(10)).await.unwrap();
    let expires_in = listed.records[0].expires_at.unwrap() - observer.backend().now();
    assert!((1..=60).contains(&expires_in.num_minutes()), "the record expires by itself: {expires_in}");
}

#[tokio::test]
async fn a_manager_without_operations_announces_nothing_and_a_server_announces_its_tools() {
    let opened = Engine::Memory.open().await;
    let observer = store(&opened.backend);
    let tools = || TaskTools::new().tool("render", "Renders a scene", render);
    let server = |config| {
        let tasks = manager(&opened.backend, QUICK);
        let owners = OwnerSource::fixed(alice());
        (TaskServer::with_config(Router, tasks.clone(), owners, tools(), config).unwrap(), tasks)
    };
    let (_enqueues, idle) = server(TaskServerConfig::new().enqueue_only());
    let (_serves, busy) = server(TaskServerConfig::new());
    // The announcement of the other one would have come first.
    let announced = until_workers(&observer, |workers| !workers.is_empty()).await;
    assert_eq!((announced.len(), &announced[0].operations[..]), (1, &["render".to_owned()][..]));
    idle.shutdown().await;
    drop(busy);
    until_workers(&observer, |workers| !workers.is_empty()).await;
}

#[tokio::test]
async fn a_worker_states_its_capacity_and_its_end_removes_its_record() {
    let opened = Engine::Memory.open().await;
    let observer = store(&opened.backend);
    let config = ManagerConfig::new().max_concurrent(7);
    let tools = TaskTools::new().tool("render", "Renders a scene", render);
    let worker = Worker::with_config(store(&opened.backend), config).operations(tools);
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(worker.run_until(async { stopped.await.unwrap() }));
    let announced = until_workers(&observer, |workers| !workers.is_empty()).await;
    assert_eq!(announced[0].capacity, 7);
    stop.send(()).unwrap();
    within(running).await.unwrap().unwrap();
    assert_eq!(workers(&observer).await, []);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn records_of_workers_are_no_tasks_and_unreadable_ones_are_skipped(#[case] engine: Engine) {
    let opened = engine.open().await;
    let observer = store(&opened.backend);
    let manager = manager(&opened.backend, QUICK);
    register(&manager);
    until_workers(&observer, |workers| workers.len() == 1).await;
    let expires = PutOptions::new(Expiry::After(LONG));
    for number in 0..120 {
        let key = TaskKey::new(WORKERS, &format!("later{number}")).unwrap();
        opened.backend.put(&key, "[]".into(), expires.clone()).await.unwrap();
    }
    let first = observer.workers(None).await.unwrap();
    let next = observer.workers(first.next.as_ref()).await.unwrap();
    assert_eq!((first.workers.len(), first.unreadable), (0, 100));
    assert_eq!((next.workers.len(), next.unreadable, next.next), (1, 20, None));

    let listed = observer.owners(None).await.unwrap();
    assert_eq!(listed.owners, []);
    assert!(observer.list(&owner(WORKERS), PageRequest::new(10)).await.is_err());
    // `stats` and `export` read the tasks of a scan.
    let mut scan = observer.scan(TaskFilter::new());
    while let Some(page) = scan.next_page().await.unwrap() {
        assert_eq!((page.tasks.len(), page.unreadable.len()), (0, 0));
    }
    manager.shutdown().await;
}

/// An engine that refuses the records of workers, or never answers.
struct NoWorkers {
    engine: Arc<dyn Agenda>,
    refused: AtomicUsize,
    hangs: AtomicBool,
}

#[async_trait]
impl Hooks for NoWorkers {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        match &call {
            Call::PutIfVersion { key, .. } if key.owner.as_str() == WORKERS => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                if self.hangs.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                Err(denied_error())
            }
            _ => call.send(&*self.engine).await,
        }
    }
}

#[rstest]
#[case::denied(false)]
#[case::unanswered(true)]
#[tokio::test]
async fn a_worker_that_cannot_announce_itself_works_and_tries_again(#[case] hangs: bool) {
    let opened = Engine::Memory.open().await;
    let engine = Intercept::new(NoWorkers {
        engine: Arc::clone(&opened.backend),
        refused: AtomicUsize::new(0),
        hangs: AtomicBool::new(hangs),
    });
    let config = StoreConfig::new().lease(QUICK).call_timeout(Duration::from_millis(200));
    let manager = Manager::new(TaskStore::with_config(engine.agenda(), config));
    manager.register("render", |_, _| Box::pin(async { Ok(text("done")) }));
    until(|| engine.refused.load(Ordering::SeqCst) >= 2).await;
    let task = manager.spawn_registered(&alice(), "render", serde_json::Value::Null, resume()).await.unwrap();
    assert_eq!(said(&ended(&manager, &task.task_id).await), "done");
    within(manager.shutdown()).await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_runtime_that_no_longer_runs() {
    let opened = Engine::Memory.open().await;
    let manager = manager(&opened.backend, QUICK);
    let stopped = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guard = stopped.enter();
    manager.register("render", |_, _| Box::pin(async { Ok(text("done")) }));
    drop(guard);
    let begun = tokio::time::Instant::now();
    within(manager.shutdown()).await;
    assert!(begun.elapsed() <= Duration::from_secs(6), "{:?}", begun.elapsed());
    stopped.shutdown_background();
}
