//! An engine that records writes and loaded parts, and loses writes and replies when a test says so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use mcp_task_store::{Agenda, LocalAgenda, PartChange, PartChanges, PartName, StorageError};

use super::intercept::{Call, Hooks, Intercept, Reply, unavailable};

/// A write that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub data: Bytes,
    pub parts: PartChanges,
}

impl Sent {
    /// Returns the size of the data and the parts.
    pub fn bytes(&self) -> usize {
        let parts = self.parts.values().map(|change| match change {
            PartChange::Set(data) => data.len(),
            PartChange::Clear => 0,
        });
        self.data.len() + parts.sum::<usize>()
    }
}

/// What gets lost of a write.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// The engine applies the write, and its reply is lost.
    Reply,
    /// The write is lost before the engine receives it.
    Write,
}

pub struct Recording {
    engine: Arc<dyn Agenda>,
    sent: Mutex<Vec<Sent>>,
    loaded: Mutex<Vec<PartName>>,
    losses: Mutex<VecDeque<Loss>>,
}

impl Recording {
    /// Returns the recorder in front of an engine, and the engine for a store to use.
    pub fn of(engine: &Arc<dyn Agenda>) -> (Arc<Intercept<Self>>, Arc<dyn Agenda>) {
        let recording = Intercept::new(Self {
            engine: Arc::clone(engine),
            sent: Mutex::default(),
            loaded: Mutex::default(),
            losses: Mutex::default(),
        });
        let engine = Arc::new(LocalAgenda::new(Arc::clone(&recording)));
        (recording, engine)
    }

    /// Takes the writes since the last call.
    pub fn sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    /// Takes the names of the parts that were loaded since the last call.
    pub fn loaded(&self) -> Vec<String> {
        let loaded = std::mem::take(&mut *self.loaded.lock().unwrap());
        loaded.iter().map(|name| name.as_str().to_owned()).collect()
    }

    /// Loses the next write for which no loss is set yet.
    pub fn lose(&self, loss: Loss) {
        self.losses.lock().unwrap().push_back(loss);
    }
}

#[async_trait]
impl Hooks for Recording {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        let loss = match &call {
            Call::Part { name, .. } => {
                self.loaded.lock().unwrap().push(name.clone());
                None
            }
            Call::PutIfVersion { data, options, .. } => {
                let sent = Sent { data: data.clone(), parts: options.parts.clone() };
                self.sent.lock().unwrap().push(sent);
                self.losses.lock().unwrap().pop_front()
            }
            Call::Put { .. } => unreachable!("a task store writes only under conditions"),
            _ => None,
        };
        match loss {
            None => return call.send(&*self.engine).await,
            Some(Loss::Reply) => drop(call.send(&*self.engine).await?),
            Some(Loss::Write) => {}
        }
        Err(unavailable("no answer", true))
    }
}
