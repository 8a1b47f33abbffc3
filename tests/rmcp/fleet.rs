//! What holds across all instances that claim tasks: limits, and the turns of the owners.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use mcp_task_store::{
    Agenda, DurableTaskManager, ManagerConfig, OnWorkerLost, RegisteredOptions, StoreConfig, TaskContext,
    TaskStore,
};
use rmcp::task_manager::TaskFuture;
use rstest_reuse::apply;
use serde_json::Value;
use tokio::time::sleep;

use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine, owner};

fn instance(engine: &Arc<dyn Agenda>, lease: Duration, config: ManagerConfig<Arc<dyn Agenda>>) -> Manager {
    let store = StoreConfig::new().lease(lease).retention(LONG).max_tasks_per_owner(None);
    DurableTaskManager::with_config(TaskStore::with_config(Arc::clone(engine), store), config)
}

/// What the operations log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Starts>>);

#[derive(Default)]
struct Starts {
    /// How many tasks of each name run at once, and the most that did.
    counts: BTreeMap<String, (usize, usize)>,
    /// The names of the tasks in the order of their starts.
    names: Vec<String>,
}

impl Log {
    fn begin(&self, name: &str) {
        let starts = &mut *self.0.lock().unwrap();
        let (now, most) = starts.counts.entry(name.to_owned()).or_default();
        *now += 1;
        *most = (*now).max(*most);
        starts.names.push(name.to_owned());
    }

    fn end(&self, name: &str) {
        self.0.lock().unwrap().counts.get_mut(name).unwrap().0 -= 1;
    }

    fn most(&self, name: &str) -> usize {
        self.0.lock().unwrap().counts[name].1
    }

    fn starts(&self) -> Vec<String> {
        self.0.lock().unwrap().names.clone()
    }
}

/// Registers an operation that works for a while, and logs by the operation or by the owner of its task.
fn register_work(manager: &Manager, operation: &'static str, log: &Log, by_owner: bool, how_long: Duration) {
    let log = log.clone();
    manager.register(operation, move |context: TaskContext, _: Value| -> TaskFuture {
        let log = log.clone();
        Box::pin(async move {
            let name = if by_owner { context.owner().as_str() } else { operation };
            log.begin(name);
            sleep(how_long).await;
            log.end(name);
            Ok(text("done"))
        })
    });
}

async fn enqueue(manager: &Manager, of: &str, operation: &str) -> String {
    let options = RegisteredOptions::new().on_worker_lost(OnWorkerLost::Resume);
    manager.enqueue(&owner(of), operation, Value::Null, options).await.unwrap().task_id
}

async fn all_end(manager: &Manager, of: &str, ids: &[String]) {
    for id in ids {
        within(manager.store().wait(&crate::support::key(of, id))).await.unwrap();
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_an_operation_holds_across_instances_and_only_for_that_operation(#[case] engine: Engine) {
    let store = engine.open().await;
    let log = Log::default();
    let workers = [(); 3].map(|()| {
        let config = ManagerConfig::new().max_concurrent(8).limit("render", 3);
        let worker = instance(&store.backend, LONG, config);
        register_work(&worker, "render", &log, false, Duration::from_millis(20));
        register_work(&worker, "preview", &log, false, Duration::from_millis(20));
        worker
    });
    let limited = join_all((0..24).map(|_| enqueue(&workers[0], "alice", "render"))).await;
    let others = join_all((0..24).map(|_| enqueue(&workers[0], "alice", "preview"))).await;
    all_end(&workers[0], "alice", &limited).await;
    all_end(&workers[0], "alice", &others).await;
    assert!(log.most("render") <= 3, "{}", log.most("render"));
    assert!(log.most("preview") > 3, "{}", log.most("preview"));
    assert_eq!(log.starts().len(), 48);
    join_all(workers.iter().map(|worker| worker.shutdown())).await;
    // A shutdown frees the slots.
    let mut left = Vec::new();
    let mut after = None;
    loop {
        let page = store.backend.owners(after.as_ref()).await.unwrap();
        left.extend(page.owners);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    left.retain(|owner| owner.as_str().starts_with("\0mcp/slots/"));
    let until_gone = async {
        for owner in &left {
            while !store
                .backend
                .list(owner, mcp_task_store::PageRequest::new(1))
                .await
                .unwrap()
                .records
                .is_empty()
            {
                sleep(Duration::from_millis(1)).await;
            }
        }
    };
    within(until_gone).await;
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_of_an_instance_that_dies_is_free_again(#[case] engine: Engine) {
    let store = engine.open().await;
    let config = || ManagerConfig::new().limit("wait", 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let of_first = std::thread::scope(|scope| {
        scope.spawn(|| runtime.block_on(store.of_another_process())).join().unwrap()
    });
    let first = {
        let _in_runtime = runtime.enter();
        instance(&crate::support::elsewhere::elsewhere(&of_first), Duration::from_secs(1), config())
    };
    let mut started = register(&first);
    let other = instance(&store.backend, Duration::from_secs(1), config());
    let held = enqueue(&other, "alice", "wait").await;
    assert_eq!(within(started.recv()).await.unwrap().0, 1);
    let mut at_other = register(&other);
    let second = enqueue(&other, "alice", "wait").await;
    sleep(Duration::from_millis(600)).await;
    assert!(at_other.try_recv().is_err(), "the first instance holds the only slot");
    drop(first);
    runtime.shutdown_background();
    // One of the two tasks runs until it is cancelled.
    within(at_other.recv()).await.unwrap();
    for id in [&held, &second] {
        other.cancel_task(&alice(), id).await.unwrap();
    }
    all_end(&other, "alice", &[held, second]).await;
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_owners_holds_across_instances_and_other_owners_go_on(#[case] engine: Engine) {
    let store = engine.open().await;
    let log = Log::default();
    let workers = [(); 2].map(|()| {
        let config = ManagerConfig::new().max_concurrent(8).limit_per_owner(2);
        let worker = instance(&store.backend, LONG, config);
        register_work(&worker, "render", &log, true, Duration::from_millis(100));
        worker
    });
    let of_alice = join_all((0..8).map(|_| enqueue(&workers[0], "alice", "render"))).await;
    let of_bob = join_all((0..2).map(|_| enqueue(&workers[0], "bob", "render"))).await;
    all_end(&workers[0], "bob", &of_bob).await;
    let before = log.starts().iter().filter(|name| *name == "alice").count();
    all_end(&workers[0], "alice", &of_alice).await;
    assert!(log.most("alice") <= 2 && log.most("bob") <= 2);
    assert!(before < 8, "bob does not wait for the end of all tasks of alice");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_with_many_tasks_does_not_hold_up_one_with_a_single_task(#[case] engine: Engine) {
    const MANY: usize = 1_000;
    let store = engine.open().await;
    let log = Log::default();
    let server = instance(&store.backend, LONG, ManagerConfig::new());
    join_all((0..MANY).map(|_| enqueue(&server, "alice", "render"))).await;
    let single = enqueue(&server, "bob", "render").await;
    let worker = instance(&store.backend, LONG, ManagerConfig::new().max_concurrent(2));
    let begun = std::time::Instant::now();
    register_work(&worker, "render", &log, true, Duration::from_millis(20));
    all_end(&server, "bob", &[single]).await;
    let before = log.starts().iter().position(|name| name == "bob").unwrap();
    println!(
        "figure | {engine:?}: a task behind {MANY} tasks of another owner starts after {before} of them, {:.1?} after the worker",
        begun.elapsed()
    );
    assert!(before < MANY / 2, "{before} tasks of alice started first");
    within(worker.shutdown()).await;
}
