//! An attempt on any engine, for the context of an operation.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::backend::Agenda;
use crate::store::{Attempt, TaskError, Ttl};
use crate::task::StoredTask;

#[async_trait]
pub(super) trait AnyAttempt: Send + Sync {
    async fn request_input(&self, key: String, request: Value) -> Result<StoredTask, TaskError>;
    async fn set_checkpoint(&self, checkpoint: Value) -> Result<StoredTask, TaskError>;
    async fn last_checkpoint(&self) -> Result<Option<Value>, TaskError>;
    async fn set_ttl(&self, ttl: Ttl) -> Result<StoredTask, TaskError>;
    async fn set_poll_interval(&self, interval: Duration) -> Result<StoredTask, TaskError>;
}

#[async_trait]
impl<B: Agenda> AnyAttempt for Attempt<B> {
    async fn request_input(&self, key: String, request: Value) -> Result<StoredTask, TaskError> {
        Self::request_input(self, key, request).await
    }

    async fn set_checkpoint(&self, checkpoint: Value) -> Result<StoredTask, TaskError> {
        Self::set_checkpoint(self, checkpoint).await
    }

    async fn last_checkpoint(&self) -> Result<Option<Value>, TaskError> {
        Self::last_checkpoint(self).await
    }

    async fn set_ttl(&self, ttl: Ttl) -> Result<StoredTask, TaskError> {
        Self::set_ttl(self, ttl).await
    }

    async fn set_poll_interval(&self, interval: Duration) -> Result<StoredTask, TaskError> {
        Self::set_poll_interval(self, interval).await
    }
}
