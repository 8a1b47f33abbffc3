//! An engine that is down from time to time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;
use mcp_task_store::{Agenda, MemoryBackend, StorageError};

use crate::support::intercept::{Call, Hooks, Intercept, Reply};
use crate::support::rmcp::unreachable_error;

/// Counts the calls of the engine, and refuses them while it is down.
pub struct Flaky {
    engine: MemoryBackend,
    pub calls: AtomicUsize,
    pub is_down: AtomicBool,
}

impl Flaky {
    pub fn new() -> Arc<Intercept<Self>> {
        let (calls, is_down) = (AtomicUsize::new(0), AtomicBool::new(false));
        Intercept::new(Self { engine: MemoryBackend::new(), calls, is_down })
    }
}

#[async_trait]
impl Hooks for Flaky {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::new(self.engine.clone())
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        if !matches!(call, Call::TakeDue { .. }) {
            self.calls.fetch_add(1, Relaxed);
        }
        if self.is_down.load(Relaxed) {
            return Err(unreachable_error());
        }
        call.send(&*self.engine()).await
    }
}
