//! Tasks on an encrypted store.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, Encrypted, PageRequest, PayloadKind, Queue, StorageError, StoreConfig, StoredTask, TaskError,
    TaskStatus, TaskStore,
};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::common::{LONG, SHORT, resumable, within};
use crate::support::encryption::encrypted;
use crate::support::{Engine, Store, in_a_process_that_dies, on_every_engine, owner, timers};

type Tasks = TaskStore<Arc<Encrypted<Arc<dyn Agenda>>>>;

fn tasks(store: &Store, keys: &[&str], lease: Duration) -> Tasks {
    let config = StoreConfig::new().lease(lease).retention(LONG);
    TaskStore::with_config(Arc::new(encrypted(store, keys)), config)
}

/// Returns a value that becomes a part of the record.
fn large(letter: &str) -> Value {
    json!({ "text": letter.repeat(5000) })
}

async fn rotate(tasks: &Tasks) -> u64 {
    let mut rotation = tasks.backend().rotation();
    while let Some(page) = rotation.step().await.unwrap() {
        assert!(page.failed.is_empty(), "{:?}", page.failed);
    }
    rotation.counts().rotated
}

async fn payload(tasks: &Tasks, stored: &StoredTask, kind: PayloadKind) -> Value {
    tasks.payload(stored, kind).await.unwrap().unwrap()
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_lives_from_its_creation_to_its_result_across_a_rotation(#[case] engine: Engine) {
    let store = engine.open().await;
    let (before, after) = (tasks(&store, &["old", "new"], LONG), tasks(&store, &["new", "old"], LONG));
    let alice = owner("alice");
    before.create(&alice, resumable()).await.unwrap();
    let (_, attempt) = before.start(&alice, resumable().arguments(large("a"))).await.unwrap();
    attempt.set_checkpoint(large("c")).await.unwrap();
    assert_eq!(attempt.last_checkpoint().await.unwrap(), Some(large("c")));

    // A worker that still writes with the old key continues after the rotation.
    assert_eq!(rotate(&after).await, 2);
    let stored = attempt.set_status_message("after the rotation").await.unwrap();
    assert_eq!(payload(&after, &stored, PayloadKind::Checkpoint).await, large("c"));
    attempt.release().await.unwrap();
    let (claimed, attempt) = after.claim(attempt.key()).await.unwrap().unwrap();
    assert_eq!(claimed.task.status_message.as_deref(), Some("after the rotation"));
    assert_eq!(payload(&after, &claimed, PayloadKind::Input).await, large("a"));
    assert_eq!(attempt.last_checkpoint().await.unwrap(), Some(large("c")));
    let ended = attempt.complete(large("r")).await.unwrap();

    rotate(&after).await;
    let new = tasks(&store, &["new"], LONG);
    assert_eq!(payload(&new, &ended, PayloadKind::Output).await, large("r"));
    let page = new.list(&alice, PageRequest::new(10)).await.unwrap();
    assert!(page.unreadable.is_empty());
    let statuses: Vec<_> = page.tasks.iter().map(|stored| stored.task.status).collect();
    assert_eq!(statuses, [TaskStatus::Completed, TaskStatus::Working]);
    assert!(new.owners(None).await.is_ok());
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_copy_of_a_task_from_before_a_rotation_is_read_again_and_then_changed(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = tasks(&store, &["new", "old"], LONG);
    let old = self::tasks(&store, &["old"], LONG);
    let created = old.create(&owner("alice"), resumable()).await.unwrap();
    let copy = tasks.get(&created.key).await.unwrap();
    assert_eq!(rotate(&tasks).await, 1);
    let changed = tasks.set_status_message(&copy, "changed").await.unwrap();
    assert_eq!(changed.version.get(), copy.version.get() + 2, "the rotation and the change");
    assert_eq!(changed.task.created_at, copy.task.created_at);
    let read = self::tasks(&store, &["new"], LONG).get(&created.key).await.unwrap();
    assert_eq!(read.task.status_message.as_deref(), Some("changed"));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_instance_without_the_key_serves_nothing_and_leaves_the_timer_for_those_that_have_it(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let backend = Arc::new(encrypted(&store, &["k1"]));
    let lost = in_a_process_that_dies(async move {
        let tasks = TaskStore::with_config(backend, StoreConfig::new().lease(SHORT).retention(LONG));
        tasks.start(&owner("alice"), resumable()).await.unwrap().0.key
    })
    .await;
    let without = tasks(&store, &["k2"], LONG);
    let is_missing = |error: &TaskError| matches!(error, TaskError::Storage(StorageError::MissingKey { key_id, .. }) if key_id == "k1");
    let error = without.get(&lost).await.unwrap_err();
    assert!(is_missing(&error) && !error.is_retryable(), "{error:?}");
    assert!(is_missing(&without.cancel(&lost).await.unwrap_err()));
    assert!(is_missing(&without.claim(&lost).await.unwrap_err()));
    let page = without.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    assert_eq!((page.tasks.len(), &page.unreadable[..]), (0, &[lost.task.clone()][..]));

    // Its keeper takes the timer of the lease, and moves it.
    store.schedule(&Queue::leases(), &lost, Duration::ZERO).await.unwrap();
    let half = store.now() + LONG / 2;
    let due_at = async || {
        let timers = timers(&*store, &Queue::leases()).await;
        let [timer] = &timers[..] else { panic!("the timer of an open task stays: {timers:?}") };
        timer.due_at
    };
    within(async {
        while due_at().await < half {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    // An instance that has the key finds the lost worker by a read.
    let with = tasks(&store, &["k1"], SHORT);
    let offered = async {
        while with.get(&lost).await.unwrap().task.lease.as_ref().is_some_and(|lease| lease.holder.is_some()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(offered).await;
    assert!(with.claim(&lost).await.unwrap().is_some());
}
