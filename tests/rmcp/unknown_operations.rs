//! Tasks of operations that an instance has not registered, as during a rolling upgrade.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, NewTask, OnWorkerLost, PageRequest, Priority, Queue, StoreConfig, Task, TaskKey, TaskStatus,
    TaskStore,
};
use rstest_reuse::apply;
use serde_json::Value;
use tracing::Level;

use crate::support::elsewhere::elsewhere;
use crate::support::rmcp::*;
use crate::support::{
    Engine, Printed, Store, in_a_process_that_dies, on_every_agenda, on_every_engine, subscribe, timers,
};

/// Operations that differ from `render`: by another name, another version, and the beginning of the name.
const UNKNOWN: [&str; 3] = ["convert", "render/v2", "rend"];
const PRIORITIES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

fn new(operation: &str) -> NewTask {
    NewTask::new("tools/call").operation(operation).on_worker_lost(OnWorkerLost::Resume)
}

/// Registers an operation that returns its name.
fn register(manager: &Manager, name: &'static str) {
    manager.register(name, move |_, _: Value| Box::pin(async move { Ok(text(name)) }));
}

/// Leaves tasks of each operation behind: one of each priority that waits for a worker, and one whose worker is lost. Returns the
/// keys of the tasks, each with the number of its attempts.
async fn leave_tasks(engine: Arc<dyn Agenda>, lease: Duration) -> BTreeMap<TaskKey, u32> {
    in_a_process_that_dies(async move {
        let config = StoreConfig::new().lease(lease).retention(LONG);
        let tasks = TaskStore::with_config(elsewhere(&engine), config);
        let mut left = BTreeMap::new();
        for operation in UNKNOWN {
            for priority in PRIORITIES {
                let task = tasks.enqueue(&alice(), new(operation).priority(priority)).await.unwrap();
                left.insert(task.key, 0);
            }
            let (task, attempt) = tasks.start(&alice(), new(operation)).await.unwrap();
            left.insert(task.key, 1);
            std::mem::forget(attempt);
        }
        left
    })
    .await
}

async fn read(store: &Store, key: &TaskKey) -> Task {
    serde_json::from_slice(&store.get(key).await.unwrap().data).unwrap()
}

/// Returns the lines about tasks that wait for a worker.
fn lines(printed: &Printed) -> Vec<String> {
    let text = printed.text();
    text.lines().filter(|line| line.contains("waits for a worker")).map(str::to_owned).collect()
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn an_instance_leaves_tasks_of_operations_that_it_does_not_know_alone_and_says_so_once(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let left = leave_tasks(store.of_another_process().await, SHORT).await;
    let printed = Printed::default();
    let _guard = subscribe(&printed, Level::WARN);
    let old = manager(&store.backend, SHORT);
    register(&old, "render");
    let known = old.spawn_registered(&alice(), "render", Value::Null, resume()).await.unwrap();
    let waiting = old.store().enqueue(&alice(), new("render")).await.unwrap();
    for task in [known.task_id.as_str(), waiting.key.task.as_str()] {
        assert_eq!(said(&ended(&old, task).await), "render");
    }
    // This instance finds the lost workers, and offers all tasks to others, each ten leases again.
    let waits = async |key: &TaskKey, attempts: u32| {
        let task = read(&store, key).await;
        assert_eq!(task.status, TaskStatus::Working);
        let lease = task.lease.unwrap();
        assert_eq!(lease.attempt, attempts, "no attempt begins here");
        lease.holder.is_none()
    };
    const OFFERS: u64 = 2;
    within(async {
        for (key, attempts) in &left {
            while !waits(key, *attempts).await || store.get(key).await.unwrap().version.get() <= OFFERS {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    })
    .await;
    until(|| lines(&printed).len() >= UNKNOWN.len()).await;
    for (key, attempts) in &left {
        assert!(waits(key, *attempts).await);
    }
    for operation in UNKNOWN {
        let named = format!("operation={operation} ");
        let lines = lines(&printed);
        assert_eq!(lines.iter().filter(|line| line.contains(&named)).count(), 1, "{lines:?}");
        for priority in PRIORITIES {
            let queue = Queue::work(operation, priority).unwrap();
            let expected = if priority == Priority::Normal { 2 } else { 1 };
            assert_eq!(timers(&*store, &queue).await.len(), expected, "{queue}");
        }
    }

    let later = manager(&elsewhere(&store.backend), SHORT);
    UNKNOWN.into_iter().for_each(|operation| register(&later, operation));
    for (key, attempts) in left {
        let operation = read(&store, &key).await.operation.unwrap();
        assert_eq!(said(&ended(&old, key.task.as_str()).await), operation, "after {attempts} attempts");
    }
    assert_eq!(lines(&printed).len(), UNKNOWN.len());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_process_that_only_enqueues_logs_nothing_while_workers_take_the_tasks_in_time(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let printed = Printed::default();
    let _guard = subscribe(&printed, Level::WARN);
    let server = manager(&store.backend, SHORT);
    let worker = manager(&elsewhere(&store.backend), SHORT);
    register(&worker, "render");
    for _ in 0..20 {
        server.store().enqueue(&alice(), new("render")).await.unwrap();
    }
    for stored in server.store().list(&alice(), PageRequest::new(50)).await.unwrap().tasks {
        assert_eq!(said(&ended(&server, stored.key.task.as_str()).await), "render");
    }
    // The timer of each lease fires once more.
    within(async {
        while !timers(&*store, &Queue::leases()).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(lines(&printed), Vec::<String>::new());
}
