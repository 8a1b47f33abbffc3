//! Outcomes, requests and status messages of an operation survive a failing engine: the manager tries again. A shutdown waits
//! for them for a limited time.

mod messages;
mod requests;
mod shutdown;
mod stored;

use std::sync::Arc;

use crate::support::rmcp::Gate;
use mcp_task_store::{Agenda, MemoryBackend};

fn memory() -> Arc<Gate> {
    Arc::new(Gate::of(Arc::new(MemoryBackend::new())))
}

fn on(gate: &Arc<Gate>) -> Arc<dyn Agenda> {
    Arc::<Gate>::clone(gate)
}
