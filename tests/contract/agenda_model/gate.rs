//! The gate before the engine of a process: each call and each reply waits for a decision of the scheduler.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use mcp_task_store::{Agenda, PutOptions, Queue, StorageBackend, StorageError, Task, TaskKey, Version};
use tokio::sync::{mpsc, oneshot};

use super::LIMIT;
use crate::support::Engine;
use crate::support::intercept::{Call, Hooks, Intercept, Reply, unavailable};

/// The decision of the scheduler about a call that waits before the engine, or about a reply that waits after it.
pub(super) enum Decision {
    Go,
    /// The connection breaks.
    Fail,
}

pub(super) struct Request {
    pub(super) process: usize,
    pub(super) decision: oneshot::Sender<Decision>,
}

/// The calls that reached the engine, and their outcomes.
#[derive(Default)]
pub(super) struct Log {
    pub(super) scheduled: HashMap<TaskKey, Instant>,
    /// Tasks created later than `LIMIT` after their timer was scheduled. Such a task needs no timer until it is
    /// acknowledged.
    pub(super) slow: HashSet<TaskKey>,
    pub(super) acknowledged: HashSet<TaskKey>,
    /// The records that were written, by version.
    pub(super) written: HashMap<TaskKey, BTreeMap<u64, Task>>,
}

/// The engine of one process, behind the gate.
pub(super) struct Gated {
    pub(super) engine: Arc<dyn Agenda>,
    pub(super) process: usize,
    pub(super) requests: mpsc::UnboundedSender<Request>,
    pub(super) log: Arc<Mutex<Log>>,
}

impl Gated {
    async fn step(&self, outcome_unknown: bool) -> Result<(), StorageError> {
        let (decision, decided) = oneshot::channel();
        let _ = self.requests.send(Request { process: self.process, decision });
        match decided.await {
            Ok(Decision::Go) => Ok(()),
            // An error means that the history has ended.
            Ok(Decision::Fail) | Err(_) => Err(unavailable("connection reset", outcome_unknown)),
        }
    }

    /// Sends a call to the engine, and logs what a test checks later.
    async fn apply(&self, call: Call) -> Result<Reply, StorageError> {
        match &call {
            Call::PutIfVersion { key, data, expected, .. } => {
                let (key, expected, task) = (key.clone(), *expected, serde_json::from_slice(data).unwrap());
                self.write(key, expected, task, call).await
            }
            Call::Schedule { queue, key, .. } => {
                if *queue == Queue::leases() {
                    self.log.lock().unwrap().scheduled.entry(key.clone()).or_insert_with(Instant::now);
                }
                call.send(&*self.engine).await
            }
            _ => call.send(&*self.engine).await,
        }
    }

    async fn write(
        &self,
        key: TaskKey,
        expected: Version,
        task: Task,
        call: Call,
    ) -> Result<Reply, StorageError> {
        // A write that is dropped before the engine replies may arrive at any time.
        if expected == Version::ABSENT {
            self.log.lock().unwrap().slow.insert(key.clone());
        }
        let reply = call.send(&*self.engine).await;
        let mut log = self.log.lock().unwrap();
        if log.scheduled.get(&key).is_some_and(|at| at.elapsed() + LIMIT / 10 <= LIMIT) {
            log.slow.remove(&key);
        }
        if let Ok(Reply::Written(written)) = &reply {
            log.written.entry(key).or_default().insert(written.version.get(), task);
        }
        reply
    }
}

#[async_trait]
impl Hooks for Gated {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        self.step(false).await?;
        let reply = self.apply(call).await;
        self.step(true).await?;
        reply
    }
}

#[tokio::test]
async fn the_gate_lets_a_call_through_only_after_the_decision_of_the_scheduler() {
    let store = Engine::Memory.open().await;
    let (requests, mut received) = mpsc::unbounded_channel();
    let hooks = Gated { engine: Arc::clone(&store.backend), process: 0, requests, log: Arc::default() };
    let gated = Intercept::new(hooks);
    let key = crate::support::key("alice", "t1");
    let put = gated.put(&key, "data".into(), PutOptions::default());
    let scheduler = async {
        let before: Request = received.recv().await.unwrap();
        assert!(store.get(&key).await.is_err());
        before.decision.send(Decision::Go).ok().unwrap();
        let after = received.recv().await.unwrap();
        assert!(store.get(&key).await.is_ok());
        after.decision.send(Decision::Fail).ok().unwrap();
    };
    let (put, ()) = tokio::join!(put, scheduler);
    assert!(put.unwrap_err().outcome_unknown());
}
