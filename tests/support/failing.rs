//! An engine whose server cannot be reached.

use std::sync::Arc;

use async_trait::async_trait;
use mcp_task_store::{Agenda, MemoryBackend, StorageError};

use super::intercept::{Call, Hooks, Intercept, Reply};

/// Refuses every call.
#[derive(Default)]
pub struct Failing(Arc<MemoryBackend>);

/// Returns an engine on which every call fails.
pub fn failing() -> Arc<Intercept<Failing>> {
    Intercept::new(Failing::default())
}

#[async_trait]
impl Hooks for Failing {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::<MemoryBackend>::clone(&self.0)
    }

    async fn call(&self, _: Call) -> Result<Reply, StorageError> {
        Err(StorageError::Unavailable {
            address: "10.0.0.7:6379".to_owned(),
            reason: "connection refused".to_owned(),
            outcome_unknown: false,
            source: None,
        })
    }
}
