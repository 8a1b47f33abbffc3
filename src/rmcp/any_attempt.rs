//! An attempt on any engine, for the context of an operation.

use async_trait::async_trait;
use serde_json::Value;

use crate::backend::Agenda;
use crate::store::{Attempt, TaskError};
use crate::task::StoredTask;

#[async_trait]
pub(super) trait AnyAttempt: Send + Sync {
    fn number(&self) -> u32;
    async fn request_input(&self, key: String, request: Value) -> Result<StoredTask, TaskError>;
    async fn set_checkpoint(&self, checkpoint: Value) -> Result<StoredTask, TaskError>;
    async fn last_checkpoint(&self) -> Result<Option<Value>, TaskError>;
}

#[async_trait]
impl<B: Agenda> AnyAttempt for Attempt<B> {
    fn number(&self) -> u32 {
        Self::number(self)
    }

    async fn request_input(&self, key: String, request: Value) -> Result<StoredTask, TaskError> {
        Self::request_input(self, key, request).await
    }

    async fn set_checkpoint(&self, checkpoint: Value) -> Result<StoredTask, TaskError> {
        Self::set_checkpoint(self, checkpoint).await
    }

    async fn last_checkpoint(&self) -> Result<Option<Value>, TaskError> {
        Self::last_checkpoint(self).await
    }
}
