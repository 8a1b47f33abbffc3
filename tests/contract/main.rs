//! The contract suite on each engine, and tests of what single engines do in addition.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod agenda_model;
#[cfg(feature = "redis-tests")]
mod elsewhere;
#[cfg(feature = "redis-tests")]
mod encrypted;
mod many_timers;
#[cfg(feature = "redis-tests")]
mod model;
#[cfg(feature = "redis-tests")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;
mod traits;

use mcp_task_store::conformance::{Capabilities, Subject};
use mcp_task_store::conformance_tests;

use support::{Engine, MAX_PART_BYTES};

fn capabilities() -> Capabilities {
    Capabilities::default().max_part_bytes(MAX_PART_BYTES)
}

mod memory {
    use super::*;

    async fn open() -> Subject {
        Subject::new(Engine::Memory.open().await.backend).capabilities(capabilities())
    }

    conformance_tests!(open);
}

/// An engine without notifications and without timers of its own.
mod polled {
    use super::*;

    async fn open() -> Subject {
        let capabilities = capabilities()
            .no_notified_watch("the engine polls")
            .no_owner_listing("a LocalAgenda cannot list owners");
        Subject::new(Engine::Polled.open().await.backend).capabilities(capabilities)
    }

    conformance_tests!(open);
}
