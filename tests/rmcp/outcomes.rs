//! Outcomes, requests and status messages of an operation survive a failing engine: the manager tries again. A shutdown waits
//! for them for a limited time.

mod messages;
#[cfg(feature = "redis-tests")]
mod replicas;
mod requests;
mod shutdown;
mod stored;

use std::sync::Arc;

use crate::support::rmcp::{Gate, Intercept};
use mcp_task_store::{Agenda, MemoryBackend};

fn memory() -> Arc<Intercept<Gate>> {
    Intercept::new(Gate::of(Arc::new(MemoryBackend::new())))
}

fn agenda(gate: &Arc<Intercept<Gate>>) -> Arc<dyn Agenda> {
    gate.agenda()
}
