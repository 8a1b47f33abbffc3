//! Adapters for servers that are built with [`pmcp`](https://docs.rs/pmcp) 2.x, with the feature `pmcp`.
//!
//! * [`PmcpTaskStore`] is what `pmcp`'s `ServerBuilder::task_store(...)` takes: the lifecycle of this crate's
//!   [`TaskStore`](crate::TaskStore) under `pmcp`'s `tasks/*` methods.
//! * [`PmcpTasksBackend`] is a `StorageBackend` of `pmcp-tasks` 0.2: this crate's engines under the lifecycle of
//!   that crate, for servers that use it today.
//!
//! A server needs one of the two. They keep different records, so tasks of the one are not tasks of the other, and
//! each wants an engine, or a key prefix, of its own.
//!
//! # Owners
//! `pmcp` names the owner of each call: the subject that its authentication established, `local` for clients of
//! MCP 2025-11-25 without one, and an empty text for those of 2026-07-28 on a server without authentication. The
//! empty owner is stored as [`PMCP_ANONYMOUS`]; a subject of that very name is refused, so that nobody but them reads
//! their tasks. All clients without authentication share one owner, and with it each other's tasks.

mod storage;
mod task_store;

pub use storage::PmcpTasksBackend;
pub use task_store::PmcpTaskStore;

use crate::backend::{OwnerId, StorageError};

/// The owner under which tasks of `pmcp`'s empty owner are stored.
pub const PMCP_ANONYMOUS: &str = "(anonymous)";

fn owner(id: &str) -> Result<OwnerId, StorageError> {
    match id {
        "" => OwnerId::try_from(PMCP_ANONYMOUS),
        PMCP_ANONYMOUS => {
            Err(StorageError::InvalidKey { reason: format!("the owner id {PMCP_ANONYMOUS} is reserved") })
        }
        id => OwnerId::try_from(id),
    }
}

/// What a client may be told of an engine's error: no host, no port, nothing of what the server said.
fn public_text(error: &StorageError) -> &'static str {
    match error {
        _ if error.outcome_unknown() => {
            "the task storage failed, and it is not known whether it made the change"
        }
        StorageError::Unavailable { .. } => "the task storage is unavailable, try again later",
        StorageError::CapacityExceeded { .. } => "the task storage is full",
        StorageError::Corrupt { .. } => "the record of the task cannot be read",
        _ => "the task storage failed",
    }
}
