//! An engine whose server cannot be reached.

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use mcp_task_store::backend::engine::watch_by_polling;
use mcp_task_store::{
    OwnerId, Page, PageRequest, Part, PartName, PutOptions, Record, StorageBackend, StorageError, TaskKey,
    Version, Written,
};

#[derive(Debug)]
pub struct Failing;

fn unavailable() -> StorageError {
    StorageError::Unavailable {
        address: "10.0.0.7:6379".to_owned(),
        reason: "connection refused".to_owned(),
        outcome_unknown: false,
        source: None,
    }
}

#[async_trait]
impl StorageBackend for Failing {
    async fn get(&self, _: &TaskKey) -> Result<Record, StorageError> {
        Err(unavailable())
    }

    async fn part(&self, _: &TaskKey, _: &PartName) -> Result<Option<Part>, StorageError> {
        Err(unavailable())
    }

    async fn clock(&self, _: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        Err(unavailable())
    }

    async fn put(&self, _: &TaskKey, _: Bytes, _: PutOptions) -> Result<Written, StorageError> {
        Err(unavailable())
    }

    async fn put_if_version(
        &self,
        _: &TaskKey,
        _: Bytes,
        _: PutOptions,
        _: Version,
    ) -> Result<Written, StorageError> {
        Err(unavailable())
    }

    async fn delete(&self, _: &TaskKey) -> Result<bool, StorageError> {
        Err(unavailable())
    }

    async fn list(&self, _: &OwnerId, _: PageRequest) -> Result<Page, StorageError> {
        Err(unavailable())
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        Err(unavailable())
    }

    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        watch_by_polling(Self, key.clone())
    }
}
