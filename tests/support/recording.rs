//! An engine that records what passes through it, and loses replies and writes when it is told to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use mcp_task_store::{
    Agenda, LocalAgenda, OwnerId, Page, PageRequest, Part, PartChange, PartChanges, PartName, PutOptions,
    Record, StorageBackend, StorageError, TaskKey, Version, Written,
};

/// A write that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub data: Bytes,
    pub parts: PartChanges,
}

impl Sent {
    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        let parts = self.parts.values().map(|change| match change {
            PartChange::Set(data) => data.len(),
            PartChange::Clear => 0,
        });
        self.data.len() + parts.sum::<usize>()
    }
}

/// What happens to a write.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// It is applied, and the reply is lost.
    Reply,
    /// It is lost before it is applied.
    Write,
}

pub struct Recording {
    engine: Arc<dyn Agenda>,
    sent: Mutex<Vec<Sent>>,
    loaded: Mutex<Vec<PartName>>,
    losses: Mutex<VecDeque<Loss>>,
}

impl Recording {
    /// The recorder in front of an engine, and the engine to be used.
    pub fn of(engine: &Arc<dyn Agenda>) -> (Arc<Self>, Arc<dyn Agenda>) {
        let recording = Arc::new(Self {
            engine: Arc::clone(engine),
            sent: Mutex::default(),
            loaded: Mutex::default(),
            losses: Mutex::default(),
        });
        let engine = Arc::new(LocalAgenda::new(Arc::clone(&recording)));
        (recording, engine)
    }

    /// The writes since this was asked last.
    pub fn sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    /// The parts that were loaded since this was asked last.
    pub fn loaded(&self) -> Vec<String> {
        let loaded = std::mem::take(&mut *self.loaded.lock().unwrap());
        loaded.iter().map(|name| name.as_str().to_owned()).collect()
    }

    /// The next write is lost so.
    pub fn lose(&self, loss: Loss) {
        self.losses.lock().unwrap().push_back(loss);
    }
}

#[async_trait]
impl StorageBackend for Recording {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.engine.get(key).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        self.loaded.lock().unwrap().push(name.clone());
        self.engine.part(key, name).await
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        self.engine.clock(key).await
    }

    async fn put(&self, _: &TaskKey, _: Bytes, _: PutOptions) -> Result<Written, StorageError> {
        unreachable!("a task store writes under conditions only")
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.sent.lock().unwrap().push(Sent { data: data.clone(), parts: options.parts.clone() });
        let loss = self.losses.lock().unwrap().pop_front();
        let write = self.engine.put_if_version(key, data, options, expected);
        match loss {
            None => return write.await,
            Some(Loss::Reply) => drop(write.await?),
            Some(Loss::Write) => {}
        }
        Err(StorageError::Unavailable {
            address: "nowhere".to_owned(),
            reason: "no answer".to_owned(),
            outcome_unknown: true,
            source: None,
        })
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.engine.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        self.engine.list(owner, page).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.engine.cleanup_expired().await
    }

    fn now(&self) -> DateTime<Utc> {
        self.engine.now()
    }

    fn max_value_bytes(&self) -> usize {
        self.engine.max_value_bytes()
    }

    fn generation(&self) -> u64 {
        self.engine.generation()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.engine.watch(key)
    }
}
