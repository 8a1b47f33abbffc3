//! A memory engine on which faults happen to conditional writes, in turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use mcp_task_store::{Agenda, MemoryBackend, StorageError, TaskKey, TaskStore};
use serde_json::json;

use crate::support::intercept::{Call, Hooks, Intercept, Reply, unavailable};

/// What happens to a conditional write.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The engine applies the write, and its reply is lost.
    AnswerLost,
    /// The write is lost before the engine receives it.
    WriteLost,
    /// The engine applies the write, other processes write this many times, and the reply is lost.
    AnswerLostAndOverwritten(usize),
    /// The write is lost, and another process writes.
    WriteLostAndOverwritten,
    /// The write arrives late: after the next read, and before the next write.
    Late,
    /// Another process writes first.
    Raced,
    /// The engine is out of memory.
    Refused,
}

pub struct Faulty {
    memory: Arc<MemoryBackend>,
    faults: Mutex<VecDeque<Fault>>,
    late: Mutex<Option<Call>>,
    /// How many conditional writes were sent.
    pub writes: AtomicUsize,
    /// How many of the next reads fail.
    pub reads_without_answer: AtomicUsize,
    /// How many of the next timers are lost before the engine receives them.
    pub timers_without_answer: AtomicUsize,
}

impl Faulty {
    pub fn new() -> Arc<Intercept<Self>> {
        Intercept::new(Self {
            memory: Arc::new(MemoryBackend::new()),
            faults: Mutex::default(),
            late: Mutex::default(),
            writes: AtomicUsize::new(0),
            reads_without_answer: AtomicUsize::new(0),
            timers_without_answer: AtomicUsize::new(0),
        })
    }

    /// Adds a fault to those that wait for a write.
    pub fn inject(&self, fault: Fault) {
        self.faults.lock().unwrap().push_back(fault);
    }

    /// Returns whether every fault has happened.
    pub fn is_done(&self) -> bool {
        self.faults.lock().unwrap().is_empty()
    }

    /// Writes to the task as another process does.
    async fn others_write(&self, key: &TaskKey, times: usize) {
        let others = TaskStore::new(Arc::clone(&self.memory));
        for time in 0..times {
            others.set_variables(key, [("others", json!(time))]).await.unwrap();
        }
    }

    async fn read(&self, call: Call) -> Result<Reply, StorageError> {
        lose_one(&self.reads_without_answer)?;
        let record = call.send(&*self.memory).await;
        // As on a network, calls of other processes arrive between a read and the write that follows it.
        tokio::task::yield_now().await;
        record
    }

    async fn write(&self, key: TaskKey, call: Call) -> Result<Reply, StorageError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let late = self.late.lock().unwrap().take();
        if let Some(late) = late {
            late.send(&*self.memory).await.unwrap();
        }
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            None => return call.send(&*self.memory).await,
            Some(Fault::Raced) => {
                self.others_write(&key, 1).await;
                return call.send(&*self.memory).await;
            }
            Some(Fault::Refused) => {
                let reason = "out of memory".to_owned();
                return Err(StorageError::CapacityExceeded { reason, quota: None, source: None });
            }
            Some(Fault::AnswerLost) => drop(call.send(&*self.memory).await.unwrap()),
            Some(Fault::AnswerLostAndOverwritten(times)) => {
                call.send(&*self.memory).await.unwrap();
                self.others_write(&key, times).await;
            }
            Some(Fault::WriteLost) => {}
            Some(Fault::WriteLostAndOverwritten) => self.others_write(&key, 1).await,
            Some(Fault::Late) => *self.late.lock().unwrap() = Some(call),
        }
        Err(no_answer())
    }
}

/// Fails while there are calls left to lose.
fn lose_one(left: &AtomicUsize) -> Result<(), StorageError> {
    let one_less = |left: usize| left.checked_sub(1);
    match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
        Ok(_) => Err(no_answer()),
        Err(_) => Ok(()),
    }
}

fn no_answer() -> StorageError {
    unavailable("no answer", true)
}

#[async_trait]
impl Hooks for Faulty {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::<MemoryBackend>::clone(&self.memory)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        match &call {
            Call::Get { .. } => self.read(call).await,
            Call::PutIfVersion { key, .. } => self.write(key.clone(), call).await,
            Call::Put { .. } => unreachable!("a task store writes only under conditions"),
            Call::Schedule { .. } => {
                lose_one(&self.timers_without_answer)?;
                call.send(&*self.memory).await
            }
            _ => call.send(&*self.memory).await,
        }
    }
}
