//! Unique tasks: at most one open task of an owner for each key.

mod faults;
mod late_writes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use mcp_task_store::{
    Agenda, Cursor, Expiry, NewTask, PageRequest, PutOptions, RpcError, StoreConfig, StoredTask, TaskError,
    TaskStatus, TaskStore, Ttl, UniqueKey, UniqueStart,
};
use rstest_reuse::apply;
use serde_json::json;

use crate::common::{LONG, PATIENCE, TaskAttempt, Tasks, plain, resumable, until};
use crate::support::elsewhere::elsewhere;
use crate::support::{Engine, Store, on_every_agenda, on_every_engine, owner};

const ALICE: &str = "alice";
const DAY: TimeDelta = TimeDelta::days(1);
/// The TTL of a task whose record and pointer expire in a test.
const BRIEF: Duration = Duration::from_millis(200);
/// The time limit of the calls in a test that waits until a pointer is old.
const LIMIT: Duration = Duration::from_secs(2);

fn key() -> UniqueKey {
    UniqueKey::new("render", "scene 7")
}

fn config() -> StoreConfig {
    StoreConfig::new().lease(LONG).max_ttl(None)
}

/// Opens a store as an instance of its own: over another connection, and as another process.
async fn instance(store: &Store, config: StoreConfig) -> Tasks {
    TaskStore::with_config(elsewhere(&store.of_another_process().await), config)
}

async fn try_start(tasks: &Tasks, new: NewTask) -> Result<UniqueStart<Arc<dyn Agenda>>, TaskError> {
    tasks.start_unique(&owner(ALICE), new, &key()).await
}

async fn started(tasks: &Tasks, new: NewTask) -> (StoredTask, TaskAttempt) {
    match try_start(tasks, new).await.unwrap() {
        UniqueStart::Started { task, attempt } => (task, attempt),
        UniqueStart::Joined(task) => panic!("the call joined {task:?}"),
    }
}

async fn joined(tasks: &Tasks) -> StoredTask {
    match try_start(tasks, plain()).await.unwrap() {
        UniqueStart::Joined(task) => task,
        UniqueStart::Started { task, .. } => panic!("the call started {task:?}"),
    }
}

/// Returns the open tasks of the owner.
async fn open_tasks(tasks: &Tasks) -> Vec<StoredTask> {
    let page = tasks.list(&owner(ALICE), PageRequest::new(256)).await.unwrap();
    assert!(page.next.is_none() && page.unreadable.is_empty());
    page.tasks.into_iter().filter(|stored| !stored.task.status.is_terminal()).collect()
}

async fn assert_only_open(tasks: &Tasks, expected: &StoredTask) {
    let open: Vec<_> = open_tasks(tasks).await.into_iter().map(|stored| stored.key).collect();
    assert_eq!(open, std::slice::from_ref(&expected.key));
}

/// Returns the owners that have records.
async fn owners(agenda: &dyn Agenda) -> Vec<String> {
    let (mut owners, mut after) = (Vec::new(), None);
    loop {
        let page = agenda.owners(after.as_ref()).await.unwrap();
        owners.extend(page.owners.into_iter().map(String::from));
        after = page.next;
        if after.is_none() {
            return owners;
        }
    }
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_instances_that_start_at_once_one_starts_and_the_others_join(#[case] engine: Engine) {
    let store = engine.open().await;
    let instances = join_all((0..16).map(|_| instance(&store, config()))).await;
    for round in 0..5 {
        let starts = join_all(instances.iter().map(|tasks| try_start(tasks, plain()))).await;
        let (mut attempts, mut tasks) = (Vec::new(), BTreeSet::new());
        for start in starts {
            match start.unwrap() {
                UniqueStart::Started { task, attempt } => {
                    attempts.push(attempt);
                    tasks.insert(task.key);
                }
                UniqueStart::Joined(task) => drop(tasks.insert(task.key)),
            }
        }
        assert_eq!((attempts.len(), tasks.len()), (1, 1), "round {round}");
        let open = open_tasks(&instances[0]).await;
        assert_eq!(open.len(), 1, "round {round}");
        attempts[0].complete(json!({ "round": round })).await.unwrap();
    }
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_starts_at_two_instances_one_starts_and_the_others_join(#[case] engine: Engine) {
    let store = engine.open().await;
    let (one, other) = (instance(&store, config()).await, instance(&store, config()).await);
    for round in 0..5 {
        let starts = (0..16).map(|number| try_start(if number % 2 == 0 { &one } else { &other }, plain()));
        let starts: Vec<_> = join_all(starts).await.into_iter().map(Result::unwrap).collect();
        let open = open_tasks(&one).await;
        assert_eq!(open.len(), 1, "round {round}");
        let mut attempts = Vec::new();
        for start in starts {
            let (task, attempt) = match start {
                UniqueStart::Started { task, attempt } => (task, Some(attempt)),
                UniqueStart::Joined(task) => (task, None),
            };
            assert_eq!(task.key, open[0].key, "round {round}");
            attempts.extend(attempt);
        }
        assert_eq!(attempts.len(), 1, "round {round}");
        attempts[0].complete(json!({ "round": round })).await.unwrap();
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn an_ended_task_lets_a_new_one_start(#[case] engine: Engine) {
    let store = engine.open().await;
    let (one, other) = (instance(&store, config()).await, instance(&store, config()).await);
    for end in [TaskStatus::Completed, TaskStatus::Failed, TaskStatus::Cancelled] {
        let (task, attempt) = started(&one, plain()).await;
        assert_eq!(joined(&other).await.key, task.key);
        match end {
            TaskStatus::Completed => attempt.complete(json!(1)).await.unwrap(),
            TaskStatus::Failed => attempt.fail(RpcError::new(1, "no")).await.unwrap(),
            _ => other.cancel(&task.key).await.unwrap(),
        };
    }
    let (task, _attempt) = started(&other, plain()).await;
    assert_only_open(&one, &task).await;
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_deleted_task_lets_a_new_one_start(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = instance(&store, config()).await;
    let (task, _attempt) = started(&tasks, plain()).await;
    tasks.delete(&task.key).await.unwrap();
    let (again, _attempt) = started(&tasks, plain()).await;
    assert_ne!(again.key, task.key);
    assert_only_open(&tasks, &again).await;
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_task_whose_ttl_has_elapsed_lets_a_new_one_start(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = instance(&store, config().retention(LONG)).await;
    let (task, _attempt) = started(&tasks, plain().ttl(BRIEF)).await;
    store.until(task.task.deadline().unwrap()).await;
    let (again, _attempt) = started(&tasks, plain()).await;
    assert_eq!(tasks.get(&task.key).await.unwrap().task.status, TaskStatus::Failed);
    assert_only_open(&tasks, &again).await;
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn tasks_of_other_keys_tools_and_owners_are_independent(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = instance(&store, config()).await;
    let mut attempts = Vec::new();
    for (id, tool, text) in
        [(ALICE, "render", "a"), (ALICE, "render", "b"), (ALICE, "rendera", ""), ("bob", "render", "a")]
    {
        let start = tasks.start_unique(&owner(id), plain(), &UniqueKey::new(tool, text)).await.unwrap();
        let UniqueStart::Started { attempt, .. } = start else { panic!("{id}, {tool}, {text}: joined") };
        attempts.push(attempt);
    }
    assert_eq!(open_tasks(&tasks).await.len(), 3);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind_once_everything_has_expired(#[case] engine: Engine) {
    let store = engine.open().await;
    let config = config().retention(Duration::ZERO).call_timeout(LIMIT);
    let instances = join_all((0..4).map(|_| instance(&store, config.clone()))).await;
    // The records and the pointers expire while the instances start.
    let until = std::time::Instant::now() + BRIEF * 10;
    let work = instances.iter().map(async |tasks| {
        let mut started = 0;
        while std::time::Instant::now() < until {
            match try_start(tasks, plain().ttl(Duration::from_millis(20))).await {
                Ok(UniqueStart::Started { .. }) => started += 1,
                Ok(UniqueStart::Joined(_)) => tokio::task::yield_now().await,
                // The task of a very short TTL may have expired before its confirmation, over and over.
                Err(TaskError::Storage(_) | TaskError::NotFound { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        started
    });
    assert!(join_all(work).await.into_iter().sum::<i32>() > 1);
    let empty = async {
        while !owners(&*store.backend).await.is_empty() {
            store.cleanup_expired().await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("all records expire");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_expired_pointer_lets_a_new_task_start(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = instance(&store, config().retention(Duration::ZERO).call_timeout(LIMIT)).await;
    let (task, _attempt) = started(&tasks, plain().ttl(BRIEF)).await;
    let gone = async {
        while owners(&*store.backend).await.iter().any(|owner| owner.starts_with('\0')) {
            store.cleanup_expired().await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the pointer expires");
    let (again, _attempt) = started(&tasks, plain()).await;
    assert_ne!(again.key, task.key);
    assert_only_open(&tasks, &again).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_longer_ttl_keeps_the_pointer_for_as_long(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = instance(&store, config().retention(Duration::ZERO)).await;
    let (task, attempt) = started(&tasks, plain().ttl(LONG)).await;
    let pointer_owner = owners(&*store.backend).await.into_iter().find(|id| id.starts_with('\0')).unwrap();
    let expiry = async || store.walk(&owner(&pointer_owner), 256).await[0].expires_at;
    let first = expiry().await.unwrap();
    let longer = tasks.set_ttl(&task.key, LONG * 2).await.unwrap();
    assert!(expiry().await.unwrap() > first + LONG / 2);
    assert!(expiry().await.unwrap() > longer.expires_at.unwrap());
    let longest = attempt.set_ttl(LONG * 3).await.unwrap();
    assert!(expiry().await.unwrap() > longest.expires_at.unwrap());
    let unlimited = attempt.set_ttl(Ttl::Unlimited).await.unwrap();
    assert_eq!(unlimited.expires_at, None);
    assert!(expiry().await.unwrap() > store.now() + DAY * 29);
    assert_eq!(joined(&tasks).await.key, task.key);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_pointer_of_a_task_without_a_ttl_expires_unless_the_open_task_extends_it(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = instance(&store, config().lease(BRIEF * 5)).await;
    let (task, attempt) = started(&tasks, plain().ttl(Ttl::Unlimited)).await;
    let pointer_owner = owners(&*store.backend).await.into_iter().find(|id| id.starts_with('\0')).unwrap();
    let pointer = crate::support::key(&pointer_owner, &store.ids(&pointer_owner).await[0]);
    let expiry = async || store.get(&pointer).await.unwrap().expires_at.unwrap();
    let within_a_month = |at| at > store.now() + DAY * 29 && at < store.now() + DAY * 31;
    assert!(within_a_month(expiry().await));

    // Most of the life of the pointer passes.
    let record = store.get(&pointer).await.unwrap();
    let soon = PutOptions::new(Expiry::After(LONG));
    store.put_if_version(&pointer, record.data, soon, record.version).await.unwrap();
    let extended = async {
        while !within_a_month(expiry().await) {
            attempt.renew().await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, extended).await.expect("the keeper extends the pointer");
    assert_eq!(joined(&tasks).await.key, task.key);

    tasks.delete(&task.key).await.unwrap();
    let (again, _attempt) = started(&tasks, plain()).await;
    assert_only_open(&tasks, &again).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_owners_of_pointers_are_no_owners_of_tasks(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = instance(&store, config()).await;
    let (_, _attempt) = started(&tasks, plain()).await;
    tasks.create(&owner("bob"), plain()).await.unwrap();
    assert_eq!(owners(&*store.backend).await.len(), 3);
    let (mut found, mut after) = (BTreeSet::new(), None);
    loop {
        let page = tasks.owners(after.as_ref()).await.unwrap();
        found.extend(page.owners.into_iter().map(String::from));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, [ALICE.to_owned(), "bob".to_owned()].into());
    assert_refused!(tasks.owners(Some(&Cursor::from("forged"))).await, TaskError::InvalidPage { .. });
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_worker_claims_the_open_task_of_a_key_and_fails_every_other_one(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks = instance(&store, config()).await;
    let (task, attempt) = started(&tasks, resumable()).await;
    attempt.release().await.unwrap();
    let (_, attempt) = tasks.claim(&task.key).await.unwrap().expect("the task waits for a worker");
    attempt.release().await.unwrap();
    // A start that died after its create leaves a task that the pointer does not name.
    let mut other = serde_json::to_value(&*tasks.get(&task.key).await.unwrap().task).unwrap();
    let ghost = crate::support::key(ALICE, "3f0c8f6e-6a1f-4d5c-9c70-0d3f3f1f5b11");
    other["taskId"] = json!(ghost.task);
    let data = serde_json::to_vec(&other).unwrap();
    store.put(&ghost, data.into(), crate::support::in_an_hour()).await.unwrap();
    assert!(tasks.claim(&ghost).await.unwrap().is_none());
    let failed = until(&*store.backend, &ghost, |task| task.status.is_terminal()).await;
    assert_eq!(failed.status, TaskStatus::Failed);
    let (_, attempt) = tasks.claim(&task.key).await.unwrap().expect("the task still waits for a worker");
    attempt.complete(json!(1)).await.unwrap();
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_refused_create_leaves_the_key_free(#[case] engine: Engine) {
    let store = engine.open().await;
    let full = instance(&store, config().max_tasks_per_owner(1)).await;
    let filler = full.create(&owner(ALICE), plain()).await.unwrap();
    assert_refused!(try_start(&full, plain()).await, TaskError::QuotaExceeded { quota: 1 });
    full.delete(&filler.key).await.unwrap();
    let at_once = tokio::time::timeout(Duration::from_secs(5), started(&full, plain()));
    let (task, _attempt) = at_once.await.expect("the next call need not wait for the time limit");
    assert_only_open(&full, &task).await;
    let invalid = full.start_unique(&owner("\0mcp/unique/"), plain(), &key()).await;
    assert_refused!(invalid, TaskError::InvalidArgument { .. });
}
