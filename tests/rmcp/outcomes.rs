//! What an operation has produced, asked and said is not lost because the engine fails: the durable task manager for rmcp
//! tries again, and a shutdown waits for it only for so long.

mod messages;
mod outcomes;
mod requests;
mod shutdown;

use std::sync::Arc;

use crate::support::rmcp::{Gate, Intercept};
use mcp_task_store::{Agenda, MemoryBackend};

fn memory() -> Arc<Intercept<Gate>> {
    Intercept::new(Gate::of(Arc::new(MemoryBackend::new())))
}

fn on(gate: &Arc<Intercept<Gate>>) -> Arc<dyn Agenda> {
    gate.agenda()
}
