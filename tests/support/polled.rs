//! An engine without notifications.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use mcp_task_store::backend::engine::watch_by_polling;
use mcp_task_store::{Agenda, MemoryBackend, StorageError, TaskKey};

use super::intercept::{Hooks, Intercept};

pub struct Polled(MemoryBackend);

/// Returns the memory engine with watches that poll.
pub fn polled(memory: MemoryBackend) -> Arc<Intercept<Polled>> {
    Intercept::new(Polled(memory))
}

impl Hooks for Polled {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::new(self.0.clone())
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        watch_by_polling(self.0.clone(), key.clone())
    }
}
