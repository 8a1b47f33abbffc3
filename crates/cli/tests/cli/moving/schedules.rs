//! Imported open tasks: servers find each of them by its timers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_task_store::{
    Agenda, Priority, Queue, StorageBackend, StoreConfig, TaskKey, TaskStore, UniqueEnqueue, UniqueKey,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

use super::File;
use crate::support::{Engine, Store, in_every_direction, owner, resumable};

const LEASE: Duration = Duration::from_secs(1);

/// Returns the record once it is as expected. The read never schedules the task.
async fn until(store: &Store, key: &TaskKey, is_so: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let record = store.record(key).await.unwrap();
        if is_so(&record) {
            return record;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{record:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[apply(in_every_direction)]
#[tokio::test(flavor = "multi_thread")]
async fn workers_find_waiting_tasks_and_lost_workers_are_detected(#[case] from: Engine, #[case] to: Engine) {
    let (source, target, file) = (from.open().await, to.open().await, File::new());
    let config = || StoreConfig::new().lease(LEASE).max_ttl(None);
    let workers = TaskStore::with_config(Arc::clone(source.tasks.backend()), config().observer(true));
    let alice = owner("alice");
    let waiting = workers.enqueue(&alice, resumable("render").priority(Priority::High)).await.unwrap().key;
    let later =
        workers.enqueue(&alice, resumable("print").delay(Duration::from_secs(600))).await.unwrap().key;
    // Another process has held these leases: no server ends an attempt of its own process.
    let held = |operation: &str, on_worker_lost: &str| {
        json!({
            "operation": operation, "onWorkerLost": on_worker_lost, "arguments": {},
            "lease": { "holder": "gone", "attempt": 1, "durationMs": 1_000, "deadline": source.ago(0) },
        })
    };
    let resumed = source.put("alice", "resumed", held("render", "resume")).await;
    let failed = source.put("alice", "failed", held("scan", "fail")).await;
    source.run(&["export", "--output", file.path()]).ok();
    target.run(&["import", file.path()]).ok();

    // Before any server runs, the queues have the tasks that wait.
    let backend = target.tasks.backend();
    let queue = Queue::work("render", Priority::High).unwrap();
    let taken = backend.take_due(&[queue], 10, Duration::from_secs(60)).await.unwrap();
    assert_eq!(taken.due.iter().map(|due| &due.key).collect::<Vec<_>>(), [&waiting]);
    let delayed = backend.timers(&Queue::work("print", Priority::Normal).unwrap(), None).await.unwrap();
    let left = (delayed.timers[0].due_at - backend.now()).num_seconds();
    assert!(delayed.timers[0].key == later && (500..=600).contains(&left), "{left} s");
    let leases = backend.timers(&Queue::leases(), None).await.unwrap();
    assert_eq!(leases.total, 4, "each open task has the timer of its lease");

    // A server then finds that the holders are gone, without a read of these tasks by anyone else.
    let server = TaskStore::with_config(Arc::clone(backend), config());
    server.owners(None).await.unwrap();
    let record = until(&target, &resumed, |record| record["lease"].get("holder").is_none()).await;
    assert_eq!((&record["lease"]["losses"], &record["status"]), (&json!(1), &json!("working")), "{record:#}");
    let record = until(&target, &failed, |record| record["status"] != "working").await;
    assert_eq!(record["status"], "failed", "{record:#}");
    let (claimed, attempt) = server.claim(&resumed).await.unwrap().expect("it waits");
    assert_eq!(claimed.task.lease.as_ref().unwrap().attempt, 2);
    attempt.complete(json!({ "content": [] })).await.unwrap();
}

#[apply(in_every_direction)]
#[tokio::test(flavor = "multi_thread")]
async fn an_imported_unique_task_runs_to_its_end_and_then_its_key_is_free(
    #[case] from: Engine,
    #[case] to: Engine,
) {
    let (source, target, file) = (from.open().await, to.open().await, File::new());
    let (alice, key) = (owner("alice"), UniqueKey::new("render", "scene 7"));
    let enqueued = source.tasks.enqueue_unique(&alice, resumable("render"), &key).await.unwrap();
    let UniqueEnqueue::Enqueued(task) = enqueued else { panic!("{enqueued:?}") };
    source.run(&["export", "--output", file.path()]).ok();
    target.run(&["import", file.path()]).ok();
    let (_, attempt) = target.tasks.claim(&task.key).await.unwrap().expect("it waits");
    attempt.complete(json!({ "content": [] })).await.unwrap();
    assert_eq!(target.record(&task.key).await.unwrap()["status"], "completed");
    let again = target.tasks.enqueue_unique(&alice, resumable("render"), &key).await.unwrap();
    assert!(matches!(again, UniqueEnqueue::Enqueued(_)), "{again:?}");
}
