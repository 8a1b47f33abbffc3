//! What an operation has produced, asked and said is not lost because the engine fails: the durable task manager for rmcp
//! tries again, and a shutdown waits for it only for so long.

#![cfg(feature = "rmcp")]

#[macro_use]
mod support;

#[path = "rmcp_outcomes/messages.rs"]
mod messages;
#[path = "rmcp_outcomes/outcomes.rs"]
mod outcomes;
#[path = "rmcp_outcomes/requests.rs"]
mod requests;
#[path = "rmcp_outcomes/shutdown.rs"]
mod shutdown;

use std::sync::Arc;

use mcp_task_store::{Agenda, MemoryBackend};
use support::rmcp::Gate;

fn memory() -> Arc<Gate> {
    Arc::new(Gate::of(Arc::new(MemoryBackend::new())))
}

fn on(gate: &Arc<Gate>) -> Arc<dyn Agenda> {
    Arc::<Gate>::clone(gate)
}
