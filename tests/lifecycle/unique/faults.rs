//! Faults between each pair of steps of a start: a call of the engine fails, has no answer, or the caller drops the start.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use mcp_task_store::{Agenda, StorageError, StoredTask, TaskStore, UniqueStart};
use rstest_reuse::apply;
use serde_json::json;
use tokio::sync::Notify;

use super::{Tasks, config, instance, open_tasks, started, try_start};
use crate::common::{PATIENCE, TaskAttempt, plain, resumable};
use crate::support::elsewhere::elsewhere;
use crate::support::intercept::{Call, Hooks, Intercept, Reply, unavailable};
use crate::support::{Engine, Store, on_every_engine};

/// The time limit of the calls.
const LIMIT: Duration = Duration::from_secs(1);
/// A start makes fewer calls.
const MAX_STEPS: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The engine refuses the call.
    Refused,
    /// The call is lost on its way to the engine, and its outcome is unknown.
    CallLost,
    /// The engine applies the call, and its reply is lost.
    ReplyLost,
    /// The caller drops the start before the engine receives the call.
    DroppedBefore,
    /// The caller drops the start after the engine has applied the call.
    DroppedAfter,
}

const FAULTS: [Fault; 5] =
    [Fault::Refused, Fault::CallLost, Fault::ReplyLost, Fault::DroppedBefore, Fault::DroppedAfter];

/// An engine on which one call of a start has a fault.
struct Faulty {
    engine: Arc<dyn Agenda>,
    fault: Fault,
    /// How many calls are left until the fault.
    left: AtomicUsize,
    /// The caller must drop the start now.
    drops: Notify,
}

impl Faulty {
    /// Returns whether the call is the one with the fault.
    fn is_next(&self, call: &Call) -> bool {
        let is_step =
            call.is_write() || matches!(call, Call::Get { .. } | Call::Clock { .. } | Call::Schedule { .. });
        let one_less = |left: usize| left.checked_sub(1);
        is_step && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) == Ok(1)
    }
}

#[async_trait]
impl Hooks for Faulty {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        if !self.is_next(&call) {
            return call.send(&*self.engine).await;
        }
        let changes = call.is_write() || matches!(call, Call::Schedule { .. });
        if matches!(self.fault, Fault::ReplyLost | Fault::DroppedAfter) {
            // An error of the engine is lost like any other reply.
            let _ = call.send(&*self.engine).await;
        }
        match self.fault {
            Fault::Refused => Err(unavailable("refused", false)),
            Fault::CallLost | Fault::ReplyLost => Err(unavailable("no answer", changes)),
            Fault::DroppedBefore | Fault::DroppedAfter => {
                self.drops.notify_one();
                std::future::pending().await
            }
        }
    }
}

/// What a start with a fault returned.
struct Faulted {
    /// The store lives on: its keeper ends the attempts that were dropped.
    _tasks: Tasks,
    started: Option<(StoredTask, TaskAttempt)>,
    is_fault_reached: bool,
}

async fn start_with(store: &Store, fault: Fault, step: usize) -> Faulted {
    let engine = elsewhere(&store.of_another_process().await);
    let faulty = Intercept::new(Faulty { engine, fault, left: AtomicUsize::new(step), drops: Notify::new() });
    let tasks = TaskStore::with_config(faulty.agenda(), config().call_timeout(LIMIT));
    let start = tokio::select! {
        start = try_start(&tasks, resumable()) => start.ok(),
        () = faulty.drops.notified() => None,
    };
    let started = match start {
        Some(UniqueStart::Started { task, attempt }) => Some((task, attempt)),
        Some(UniqueStart::Joined(task)) => panic!("{fault:?} at step {step}: joined {task:?}"),
        None => None,
    };
    Faulted { _tasks: tasks, started, is_fault_reached: faulty.left.load(Ordering::SeqCst) == 0 }
}

/// Starts until a call succeeds: a call that waits for an abandoned start may reach its time limit.
async fn start_after(tasks: &Tasks) -> UniqueStart<Arc<dyn Agenda>> {
    let starting = async {
        loop {
            match try_start(tasks, plain()).await {
                Ok(start) => return start,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, starting).await.expect("the key is free after the time limit of a call")
}

/// Runs one start with a fault, then one of another instance. Returns whether the first start reached the fault.
async fn survives(engine: Engine, fault: Fault, step: usize, has_predecessor: bool) -> bool {
    let what = format!("{fault:?} at step {step}, {has_predecessor}");
    let store = engine.open().await;
    let other = instance(&store, config().call_timeout(LIMIT)).await;
    if has_predecessor {
        let (_, attempt) = started(&other, plain()).await;
        attempt.complete(json!(1)).await.unwrap();
    }
    let first = start_with(&store, fault, step).await;
    let open = match (&first.started, start_after(&other).await) {
        (Some((task, _)), UniqueStart::Joined(joined)) => {
            assert_eq!(joined.key, task.key, "{what}");
            Some((joined, None))
        }
        (Some(_), UniqueStart::Started { .. }) => panic!("{what}: both calls started a task"),
        (None, UniqueStart::Started { task, attempt }) => Some((task, Some(attempt))),
        // The first call was confirmed before it was dropped. Its keeper releases the task.
        (None, UniqueStart::Joined(_)) => None,
    };
    let only_one = async {
        loop {
            let keys: Vec<_> = open_tasks(&other).await.into_iter().map(|stored| stored.key).collect();
            match &open {
                Some((task, _)) if keys == [task.key.clone()] => return,
                None if keys.len() <= 1 => return,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, only_one).await.unwrap_or_else(|_| panic!("{what}: one task stays open"));
    first.is_fault_reached
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn one_task_is_open_after_a_fault_at_any_step(
    #[case] engine: Engine,
    #[values(false, true)] has_predecessor: bool,
) {
    let _alone = crate::support::heavy().await;
    for fault in FAULTS {
        let runs = (1..MAX_STEPS).map(|step| survives(engine, fault, step, has_predecessor));
        let reached = join_all(runs).await;
        let steps = reached.iter().filter(|is_reached| **is_reached).count();
        assert!((7..MAX_STEPS - 1).contains(&steps), "{fault:?}: {steps} steps had the fault");
    }
}
