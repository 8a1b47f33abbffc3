//! This crate.

use std::path::Path;

use anyhow::Result;
use bytes::Bytes;
use mcp_task_store::{Expiry, PageRequest, PutOptions, SqliteBackend, StorageBackend, TaskKey, Version};
use sqlite_calls::{Contender, PAGE, SIZE, TTL};

pub struct Ours(SqliteBackend);

impl Contender for Ours {
    type Record = (TaskKey, Bytes);

    async fn open(file: &Path) -> Result<Self> {
        Ok(Self(SqliteBackend::open(file).await?))
    }

    fn record(owner: &str, task: &str) -> (TaskKey, Bytes) {
        (TaskKey::new(owner, task).expect("legal ids"), vec![b'x'; SIZE].into())
    }

    async fn create(&self, (key, data): &(TaskKey, Bytes)) -> Result<()> {
        let options = PutOptions::new(Expiry::After(TTL));
        self.0.put_if_version(key, data.clone(), options, Version::ABSENT).await?;
        Ok(())
    }

    async fn swap(&self, (key, data): &(TaskKey, Bytes), version: u64) -> Result<()> {
        let options = PutOptions::new(Expiry::Keep);
        self.0.put_if_version(key, data.clone(), options, Version::from(version)).await?;
        Ok(())
    }

    async fn get(&self, (key, data): &(TaskKey, Bytes)) -> Result<bool> {
        Ok(self.0.get(key).await?.data == data)
    }

    async fn page(&self, (key, _): &(TaskKey, Bytes)) -> Result<usize> {
        Ok(self.0.list(&key.owner, PageRequest::new(PAGE)).await?.records.len())
    }
}
