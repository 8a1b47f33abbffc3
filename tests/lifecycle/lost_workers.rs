//! Lost workers, and workers that only seem to be lost: what ends their tasks, what does not, and how long it takes to find
//! one.

mod bound;
mod cancel;
#[cfg(feature = "redis-tests")]
mod outages;
mod renewals;
mod this_process;

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{Agenda, NewTask, OnWorkerLost, StoreConfig, Task, TaskKey, TaskStore};

type Tasks = TaskStore<Arc<dyn Agenda>>;

/// A lease that does not lapse in a test.
const LONG: Duration = Duration::from_secs(3600);
/// One that does.
const SHORT: Duration = Duration::from_millis(50);

/// How long a test waits for what is to come.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(lease: Duration) -> StoreConfig {
    StoreConfig::new()
        .lease(lease)
        .call_timeout(Duration::from_secs(1))
        .retention(LONG)
        .max_tasks_per_owner(None)
}

fn open(agenda: &Arc<dyn Agenda>, config: StoreConfig) -> Tasks {
    TaskStore::with_config(Arc::clone(agenda), config)
}

fn closure() -> NewTask {
    NewTask::new("tools/call")
}

fn resumable() -> NewTask {
    closure().operation("render").on_worker_lost(OnWorkerLost::Resume)
}

async fn record(agenda: &dyn Agenda, key: &TaskKey) -> Task {
    serde_json::from_slice(&agenda.get(key).await.unwrap().data).unwrap()
}

/// Looks at a record, which no store notices, until it is as wanted.
async fn until(agenda: &dyn Agenda, key: &TaskKey, wanted: impl Fn(&Task) -> bool) -> Task {
    let looking = async {
        loop {
            let task = record(agenda, key).await;
            if wanted(&task) {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("it comes to that")
}

fn has_ended(task: &Task) -> bool {
    task.status.is_terminal()
}

fn waits(task: &Task) -> bool {
    task.lease.as_ref().is_some_and(|lease| lease.holder.is_none())
}
