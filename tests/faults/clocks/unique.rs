//! Unique tasks on a server whose clock steps.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, NewTask, PageRequest, StoredTask, TaskStatus, TaskStore, UniqueKey, UniqueStart,
};

use super::stepped::Stepped;
use crate::support::owner;

const PATIENCE: Duration = Duration::from_secs(60);

type Tasks = TaskStore<Arc<dyn Agenda>>;

async fn start(tasks: &Tasks) -> UniqueStart<Arc<dyn Agenda>> {
    let new = NewTask::new("tools/call").ttl(Duration::from_secs(3600));
    tasks.start_unique(&owner("alice"), new, &UniqueKey::new("render", "7")).await.unwrap()
}

/// Starts until the call starts a task: the estimate of the clock follows a step with the next reply that states the time.
async fn started(tasks: &Tasks) -> StoredTask {
    let starting = async {
        loop {
            match start(tasks).await {
                // The worker of the task lives on, so the store must not end its lease.
                UniqueStart::Started { task, attempt } => {
                    std::mem::forget(attempt);
                    return task;
                }
                UniqueStart::Joined(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, starting).await.expect("the TTL of the first task has elapsed")
}

async fn open_tasks(tasks: &Tasks) -> Vec<StoredTask> {
    let page = tasks.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    page.tasks.into_iter().filter(|stored| !stored.task.status.is_terminal()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_task_of_a_key_is_open_after_the_clock_steps_forward_past_its_ttl_and_back_again() {
    let stepped = Stepped::start("+0");
    let (one, other) = (TaskStore::new(stepped.agenda().await), TaskStore::new(stepped.agenda().await));
    let first = started(&one).await;
    let UniqueStart::Joined(joined) = start(&other).await else { panic!("two tasks are open") };
    assert_eq!(joined.key, first.key);

    stepped.step("+90m");
    let second = started(&other).await;
    stepped.step("+0");
    for tasks in [&one, &other] {
        let UniqueStart::Joined(joined) = start(tasks).await else { panic!("two tasks are open") };
        assert_eq!(joined.key, second.key);
    }
    let open: Vec<_> = open_tasks(&one).await.into_iter().map(|stored| stored.key).collect();
    assert_eq!(open, [second.key]);
    assert_eq!(one.get(&first.key).await.unwrap().task.status, TaskStatus::Failed);
}
