//! An acknowledged cancel is never forgotten, however the task loses its worker.

#[cfg(feature = "redis-tests")]
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mcp_task_store::{NewTask, PutOptions, Queue, Task, TaskKey, TaskStatus};
use rstest::rstest;

use super::{LONG, SHORT, TaskAttempt, Tasks, config, has_ended, open, plain, resumable, start, until};
use crate::support::elsewhere::elsewhere;
use crate::support::spy::Spy;
use crate::support::{Engine, Store, in_a_process_that_dies, owner};

/// How a task loses its worker after the cancel was acknowledged.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// The attempt is dropped.
    Dropped,
    /// The runtime of the attempt ends.
    RuntimeEnds,
    /// The process dies, and a keeper takes the timer of the lease.
    Killed,
    /// The process dies, the timer is lost, and a reader reads the task.
    KilledAndRead,
    /// The worker releases the task, as at a shutdown.
    Released,
    /// The task has no worker, in a form that only other versions write, and a worker claims it.
    Claimed,
    /// The task has no worker, and a keeper takes its timer.
    Waiting,
    /// The TTL elapses, and a reader reads the task.
    Expired,
}

/// Starts a task, requests its cancel, and ends its worker.
async fn lose(store: &Store, tasks: &Tasks, new: NewTask, loss: Loss) -> TaskKey {
    match loss {
        Loss::Dropped => start_and_cancel(tasks, new).await.0,
        Loss::Released => {
            let (key, attempt) = start_and_cancel(tasks, new).await;
            attempt.release().await.unwrap();
            key
        }
        Loss::RuntimeEnds => end_the_runtime(tasks, new).await,
        Loss::Killed | Loss::KilledAndRead => kill(store, tasks, new, loss).await,
        Loss::Claimed | Loss::Waiting => remove_the_holder(store, tasks, new, loss).await,
        Loss::Expired => {
            let (key, attempt) = start_and_cancel(tasks, new.ttl(Duration::from_millis(300))).await;
            store.until(task(store, &key).await.deadline().unwrap()).await;
            let read = tasks.get(&key).await.unwrap();
            assert_eq!(read.task.status, TaskStatus::Cancelled);
            drop(attempt);
            key
        }
    }
}

async fn start_and_cancel(tasks: &Tasks, new: NewTask) -> (TaskKey, TaskAttempt) {
    let (key, attempt) = start(tasks, new).await;
    let requested = tasks.request_cancel(&key).await.unwrap();
    assert!(requested.task.cancel_requested && requested.task.status == TaskStatus::Working);
    (key, attempt)
}

async fn end_the_runtime(tasks: &Tasks, new: NewTask) -> TaskKey {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let there = tasks.clone();
    let started = runtime.spawn(async move {
        let (key, attempt) = start(&there, new).await;
        tokio::spawn(async move { drop((std::future::pending::<()>().await, attempt)) });
        key
    });
    let key = started.await.unwrap();
    tasks.request_cancel(&key).await.unwrap();
    runtime.shutdown_background();
    key
}

async fn kill(store: &Store, tasks: &Tasks, new: NewTask, loss: Loss) -> TaskKey {
    let spy = Spy::new(&store.backend);
    spy.loses_timers.store(matches!(loss, Loss::KilledAndRead), Ordering::SeqCst);
    let agenda = elsewhere(&spy.agenda());
    let life = async move {
        let (stored, attempt) = open(&agenda, config(SHORT)).start(&owner("alice"), new).await.unwrap();
        std::mem::forget(attempt);
        stored
    };
    let started = in_a_process_that_dies(life).await;
    tasks.request_cancel(&started.key).await.unwrap();
    if matches!(loss, Loss::KilledAndRead) {
        store.until(started.task.lease.as_ref().unwrap().deadline).await;
        tasks.get(&started.key).await.unwrap();
    }
    started.key
}

/// No store of this version writes a task like this.
async fn remove_the_holder(store: &Store, tasks: &Tasks, new: NewTask, loss: Loss) -> TaskKey {
    let (key, attempt) = start_and_cancel(tasks, new).await;
    let mut json = record(store, &key).await;
    json["lease"].as_object_mut().unwrap().remove("holder");
    store.put(&key, json.to_string().into(), PutOptions::default()).await.unwrap();
    std::mem::forget(attempt);
    if matches!(loss, Loss::Claimed) {
        assert!(tasks.claim(&key).await.unwrap().is_none());
        assert_eq!(task(store, &key).await.status, TaskStatus::Cancelled, "the claim cancels the task");
    } else {
        store.schedule(&Queue::leases(), &key, Duration::ZERO).await.unwrap();
    }
    key
}

async fn record(store: &Store, key: &TaskKey) -> serde_json::Value {
    serde_json::from_slice(&store.get(key).await.unwrap().data).unwrap()
}

async fn task(store: &Store, key: &TaskKey) -> Task {
    super::record(&*store.backend, key).await
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_cancel_was_acknowledged_ends_cancelled_however_it_loses_its_worker(
    #[values(
        Loss::Dropped,
        Loss::RuntimeEnds,
        Loss::Killed,
        Loss::KilledAndRead,
        Loss::Released,
        Loss::Claimed,
        Loss::Waiting,
        Loss::Expired
    )]
    loss: Loss,
    #[values(true, false)] can_resume: bool,
) {
    let engines = [
        Engine::Memory,
        #[cfg(feature = "redis-tests")]
        Engine::Redis,
    ];
    for engine in engines {
        let store = engine.open().await;
        let survivor = open(&store.backend, config(LONG));
        let new = if can_resume { resumable() } else { plain() };
        let key = lose(&store, &survivor, new, loss).await;
        let ended = until(&*store, &key, |task| {
            has_ended(task) || task.lease.as_ref().is_some_and(|lease| lease.attempt > 1)
        })
        .await;
        assert_eq!((ended.status, ended.error), (TaskStatus::Cancelled, None), "{engine:?}");
        assert!(ended.cancel_requested && ended.lease.is_none());
        assert!(survivor.claim(&key).await.unwrap().is_none(), "no worker can claim the task again");
    }
}

#[cfg(feature = "redis-tests")]
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_ignores_its_cancel_is_cancelled_by_the_shutdown_of_its_instance(
    #[values(true, false)] can_resume: bool,
) {
    use mcp_task_store::{Agenda, MemoryBackend, OnWorkerLost};
    use mcp_task_store::{DurableTaskManager, RegisteredOptions};

    let agenda: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let manager = || {
        let manager = DurableTaskManager::new(open(&agenda, config(LONG)));
        manager.register("ignores", |_, _| Box::pin(std::future::pending()));
        manager
    };
    let (here, other) = (manager(), manager());
    let options = RegisteredOptions::new().on_worker_lost(if can_resume {
        OnWorkerLost::Resume
    } else {
        OnWorkerLost::Fail
    });
    let spawned =
        here.spawn_registered(&owner("alice"), "ignores", serde_json::Value::Null, options).await.unwrap();
    let key = crate::support::key("alice", &spawned.task_id);
    here.cancel_task(&key.owner, &spawned.task_id).await.unwrap();
    here.shutdown().await;
    let ended = until(&*agenda, &key, has_ended).await;
    assert_eq!(ended.status, TaskStatus::Cancelled);
    assert_eq!(other.running_task_count(), 0);
}
