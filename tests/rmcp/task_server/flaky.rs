//! An engine that is down from time to time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;
use mcp_task_store::{Agenda, MemoryBackend, StorageError};

use crate::support::intercept::{Call, Hooks, Intercept, Reply, unavailable};
use crate::support::rmcp::unreachable_error;

/// Counts the calls of the engine, and refuses them while it is down.
pub struct Flaky {
    engine: MemoryBackend,
    pub calls: AtomicUsize,
    pub is_down: AtomicBool,
    /// The engine applies each call, and no reply arrives, except to the calls that schedule a timer: a task is created after it.
    pub loses_replies: AtomicBool,
}

impl Flaky {
    pub fn new() -> Arc<Intercept<Self>> {
        Intercept::new(Self {
            engine: MemoryBackend::new(),
            calls: AtomicUsize::default(),
            is_down: AtomicBool::default(),
            loses_replies: AtomicBool::default(),
        })
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
        let is_lost = self.loses_replies.load(Relaxed) && !matches!(call, Call::Schedule { .. });
        let reply = call.send(&*self.engine()).await;
        if is_lost { Err(unavailable("the reply was lost", true)) } else { reply }
    }
}
