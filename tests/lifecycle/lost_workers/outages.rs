//! A server stops for two leases. No worker that renews its lease afterwards is declared lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use mcp_task_store::{
    Agenda, DurableTaskManager, OwnerId, Page, PageRequest, RedisBackend, RedisBuilder, StorageBackend,
    StoreConfig, Task, TaskId, TaskKey, TaskStatus, TaskStore,
};
use rmcp::model::{CallToolResult, ContentBlock};
use rmcp::task_manager::TaskOptions;
use serde_json::json;
use tokio::sync::watch;

use super::{PATIENCE, config, has_ended, open, plain, until};
use crate::support::elsewhere::elsewhere;
use crate::support::redis::Server;
use crate::support::{in_a_process_that_dies, owner};

/// The operations that run while the server stops.
struct Load {
    operations: usize,
    argument_bytes: usize,
    lease: Duration,
}

/// The time limit of a call is longer than a short pause of the server.
fn patient(lease: Duration) -> StoreConfig {
    config(lease).call_timeout(Duration::from_secs(2))
}

const OWNERS: usize = 24;

fn owners() -> Vec<OwnerId> {
    (0..OWNERS).map(|number| owner(&format!("owner {number}"))).collect()
}

/// Reads a page. A busy server may fail the first tries.
async fn page(backend: &RedisBackend, owner: &OwnerId, page: PageRequest) -> Page {
    loop {
        match backend.list(owner, page.clone()).await {
            Ok(listed) => return listed,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
}

/// Reads all tasks of all owners without a call of a store.
async fn records(backend: &RedisBackend) -> Vec<Task> {
    let mut tasks = Vec::new();
    for owner in owners() {
        let mut request = PageRequest::new(256);
        loop {
            let listed = page(backend, &owner, request).await;
            let decoded = |data: &[u8]| serde_json::from_slice(data).unwrap();
            tasks.extend(listed.records.iter().map(|record| decoded(&record.data)));
            match listed.next {
                Some(next) => request = PageRequest::new(256).after(next),
                None => break,
            }
        }
    }
    tasks
}

/// Waits until all tasks are as `expected`.
async fn all(backend: &RedisBackend, count: usize, expected: impl Fn(&Task) -> bool) {
    let looking = async {
        loop {
            let tasks = records(backend).await;
            assert_eq!(tasks.len(), count);
            let ended = tasks.iter().find(|task| task.status == TaskStatus::Failed);
            assert!(ended.is_none(), "{ended:?}");
            if tasks.iter().all(&expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(PATIENCE * 5, looking).await.expect("all tasks become as expected");
}

/// Kills the process of a worker. Returns how long after the last renewal a keeper finds the lost worker.
async fn found_after(backend: &RedisBackend, lease: Duration) -> Duration {
    let agenda: Arc<dyn Agenda> = Arc::new(backend.clone());
    let life = async move {
        let tasks = open(&elsewhere(&agenda), patient(lease));
        let (stored, attempt) = tasks.start(&owner("the lost"), plain()).await.unwrap();
        attempt.renew().await.unwrap();
        std::mem::forget(attempt);
        (stored.key, Instant::now())
    };
    let (key, renewed): (TaskKey, Instant) = in_a_process_that_dies(life).await;
    until(backend, &key, has_ended).await;
    renewed.elapsed()
}

/// Connects to a server. A busy machine may fail the first tries.
async fn connect(server: &Server, builder: RedisBuilder) -> RedisBackend {
    loop {
        match builder.clone().connect(&server.url()).await {
            Ok(backend) => return backend,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
}

/// Returns the settings for large calls. A busy machine may need a while for them.
fn slow() -> RedisBuilder {
    RedisBackend::builder().response_timeout(Duration::from_secs(10))
}

/// Returns a manager whose operation `idle` ends once the returned channel holds `true`.
async fn idle_worker(
    server: &Server,
    lease: Duration,
) -> (DurableTaskManager<Arc<dyn Agenda>>, watch::Sender<bool>) {
    // The observers must not know that the attempts are held.
    let worker: Arc<dyn Agenda> = Arc::new(connect(server, slow()).await);
    let manager = DurableTaskManager::new(open(&elsewhere(&worker), patient(lease)));
    let (finish, finished) = watch::channel(false);
    manager.register("idle", move |_, _| {
        let mut finished = finished.clone();
        Box::pin(async move {
            let _ = finished.wait_for(|finished| *finished).await;
            Ok(CallToolResult::success(vec![ContentBlock::text("done")]))
        })
    });
    (manager, finish)
}

async fn spawn_all(manager: &DurableTaskManager<Arc<dyn Agenda>>, operations: usize, argument_bytes: usize) {
    let (owners, argument) = (&owners(), &"x".repeat(argument_bytes));
    let spawning = stream::iter(0..operations).for_each_concurrent(16, |number| async move {
        let arguments = json!({ "text": argument });
        let owner = &owners[number % OWNERS];
        manager.spawn_registered(owner, "idle", arguments, TaskOptions::new()).await.unwrap();
    });
    spawning.await;
}

fn renewals(task: &Task) -> u64 {
    task.lease.as_ref().map_or(0, |lease| lease.renewals)
}

/// Stops the server for two leases, and waits until each task is renewed again.
async fn outlast_an_outage(server: &Server, reader: &RedisBackend, operations: usize, lease: Duration) {
    let before = records(reader).await;
    server.signal("STOP");
    tokio::time::sleep(lease * 2).await;
    server.signal("CONT");
    let back = Instant::now();
    let before: HashMap<TaskId, u64> =
        before.iter().map(|task| (task.task_id.clone(), renewals(task))).collect();
    all(reader, operations, |task| renewals(task) > before[&task.task_id]).await;
    println!(
        "figure | {operations} live leases of {lease:?} are renewed again after the server came back | {:.1?}",
        back.elapsed()
    );
}

async fn survive_an_outage_of_two_leases(load: Load) {
    let Load { operations, argument_bytes, lease } = load;
    let server = Server::start(&[]);
    let observer = async || connect(&server, RedisBackend::builder()).await;
    let observers = [
        TaskStore::with_config(observer().await, patient(lease)),
        TaskStore::with_config(observer().await, patient(lease)),
    ];
    let (manager, finish) = idle_worker(&server, lease).await;
    spawn_all(&manager, operations, argument_bytes).await;
    let reader = connect(&server, slow()).await;
    all(&reader, operations, |task| renewals(task) > 0).await;
    outlast_an_outage(&server, &reader, operations, lease).await;
    // No later observation declares these workers lost.
    tokio::time::sleep(lease * 4 / 3 + Duration::from_secs(2)).await;
    all(&reader, operations, |task| task.lease.as_ref().is_some_and(|lease| lease.attempt == 1)).await;

    let found = found_after(&reader, lease).await;
    let promised = lease * 4 / 3 + Duration::from_secs(5);
    println!(
        "figure | row 5: {operations} operations with {argument_bytes} bytes, the server stopped for {:?} | none failed; a lost worker was found after {found:.1?} of {promised:.1?}",
        lease * 2
    );
    finish.send_replace(true);
    all(&reader, operations, |task| task.status == TaskStatus::Completed).await;
    drop(observers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_operations_survive_a_server_that_stops_for_two_leases() {
    let lease = Duration::from_secs(3);
    survive_an_outage_of_two_leases(Load { operations: 300, argument_bytes: 100, lease }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_with_large_arguments_survive_a_server_that_stops_for_two_leases() {
    let lease = Duration::from_secs(3);
    survive_an_outage_of_two_leases(Load { operations: 20, argument_bytes: 500_000, lease }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the long form"]
async fn long_12_000_small_operations_survive_a_server_that_stops_for_two_leases() {
    let lease = Duration::from_secs(30);
    survive_an_outage_of_two_leases(Load { operations: 12_000, argument_bytes: 100, lease }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the long form"]
async fn long_150_operations_with_large_arguments_survive_a_server_that_stops_for_two_leases() {
    let lease = Duration::from_secs(6);
    survive_an_outage_of_two_leases(Load { operations: 150, argument_bytes: 500_000, lease }).await;
}
