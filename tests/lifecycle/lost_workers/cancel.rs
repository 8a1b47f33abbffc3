//! A cancel that was acknowledged is never forgotten, however the task loses its worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mcp_task_store::{NewTask, PutOptions, Queue, Task, TaskKey, TaskStatus};
use rstest::rstest;

use super::{LONG, SHORT, Tasks, closure, config, has_ended, open, resumable, until};
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
    /// The process dies, the timer is lost, and somebody reads the task.
    KilledAndRead,
    /// The worker gives it back, as at a shutdown.
    Released,
    /// Nobody works on it, as an earlier version left it, and a worker wants to.
    Claimed,
    /// The same, and a keeper takes its timer.
    Waiting,
    /// The TTL elapses, and somebody reads it.
    Expired,
}

/// Begins a task, asks to cancel it, and lets its worker go.
async fn lose(store: &Store, tasks: &Tasks, new: NewTask, loss: Loss) -> TaskKey {
    let begin = async |new| {
        let (stored, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
        let asked = tasks.request_cancel(&stored.key).await.unwrap();
        assert!(asked.task.cancel_requested && asked.task.status == TaskStatus::Working);
        (stored.key, attempt)
    };
    match loss {
        Loss::Dropped => begin(new).await.0,
        Loss::Released => {
            let (key, attempt) = begin(new).await;
            attempt.release().await.unwrap();
            key
        }
        Loss::RuntimeEnds => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            let (there, agenda) = (tasks.clone(), Arc::clone(&store.backend));
            let begun = runtime.spawn(async move {
                let (stored, attempt) = there.start(&owner("alice"), new).await.unwrap();
                let key = stored.key;
                tokio::spawn(async move { drop((std::future::pending::<()>().await, attempt)) });
                (key, agenda)
            });
            let (key, _) = begun.await.unwrap();
            tasks.request_cancel(&key).await.unwrap();
            runtime.shutdown_background();
            key
        }
        Loss::Killed | Loss::KilledAndRead => {
            let spy = Spy::new(&store.backend);
            spy.loses_timers.store(matches!(loss, Loss::KilledAndRead), Ordering::SeqCst);
            let agenda = elsewhere(&spy.agenda());
            let life = async move {
                let (stored, attempt) =
                    open(&agenda, config(SHORT)).start(&owner("alice"), new).await.unwrap();
                std::mem::forget(attempt);
                stored
            };
            let begun = in_a_process_that_dies(life).await;
            tasks.request_cancel(&begun.key).await.unwrap();
            if matches!(loss, Loss::KilledAndRead) {
                store.until(begun.task.lease.as_ref().unwrap().deadline).await;
                tasks.get(&begun.key).await.unwrap();
            }
            begun.key
        }
        Loss::Claimed | Loss::Waiting => {
            // No store of this version leaves a task like this.
            let (key, attempt) = begin(new).await;
            let mut json = record(store, &key).await;
            json["lease"].as_object_mut().unwrap().remove("holder");
            store.put(&key, json.to_string().into(), PutOptions::default()).await.unwrap();
            std::mem::forget(attempt);
            if matches!(loss, Loss::Claimed) {
                assert!(tasks.claim(&key).await.unwrap().is_none());
                assert_eq!(task(store, &key).await.status, TaskStatus::Cancelled, "at once");
            } else {
                store.schedule(&Queue::leases(), &key, Duration::ZERO).await.unwrap();
            }
            key
        }
        Loss::Expired => {
            let (key, attempt) = begin(new.ttl(Duration::from_millis(300))).await;
            store.until(task(store, &key).await.deadline().unwrap()).await;
            let read = tasks.get(&key).await.unwrap();
            assert_eq!(read.task.status, TaskStatus::Cancelled);
            drop(attempt);
            key
        }
    }
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
        let new = if can_resume { resumable() } else { closure() };
        let key = lose(&store, &survivor, new, loss).await;
        let ended = until(&*store, &key, |task| {
            has_ended(task) || task.lease.as_ref().is_some_and(|lease| lease.attempt > 1)
        })
        .await;
        assert_eq!((ended.status, ended.error), (TaskStatus::Cancelled, None), "{engine:?}");
        assert!(ended.cancel_requested && ended.lease.is_none());
        assert!(survivor.claim(&key).await.unwrap().is_none(), "nobody works on it again");
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
