//! Adapters for servers that are built with [`pmcp`](https://docs.rs/pmcp) 2.x, with the feature `pmcp`.
//!
//! * [`PmcpTaskStore`] is a task store for `pmcp`'s `ServerBuilder::task_store(...)`: the lifecycle of this crate's
//!   [`TaskStore`](crate::TaskStore) behind `pmcp`'s `tasks/*` methods.
//! * [`PmcpTasksBackend`] is a `StorageBackend` of `pmcp-tasks` 0.2: this crate's engines below the lifecycle of
//!   `pmcp-tasks`, for servers that already use that crate.
//!
//! A server needs one of the two. Their records differ, so neither can read the tasks of the other. Each needs an
//! engine, or a key prefix, of its own.
//!
//! # Owners
//! `pmcp` names the owner of each call:
//!
//! * the subject that its authentication established;
//! * `local` for clients of MCP 2025-11-25 without authentication;
//! * an empty string for clients of MCP 2026-07-28 on a server without authentication.
//!
//! The adapters store the empty owner as [`PMCP_ANONYMOUS`], and reject a subject of that name, so that no subject can read the
//! tasks of anonymous clients. All clients without authentication share one owner, and see each other's tasks.

mod storage;
mod task_store;
mod wire;

pub use storage::PmcpTasksBackend;
pub use task_store::PmcpTaskStore;

use crate::backend::{OwnerId, StorageError};

/// The owner of the tasks of `pmcp`'s empty owner.
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

/// Returns what a client may read about an engine's error. It contains no host, no port, and no text of the server.
fn public_text(error: &StorageError) -> &'static str {
    match error {
        _ if error.outcome_unknown() => {
            "the task storage failed, and it is not known whether it applied the change"
        }
        StorageError::Unavailable { .. } => "the task storage is unavailable; try again later",
        StorageError::CapacityExceeded { .. } => "the task storage is full",
        StorageError::Corrupt { .. } | StorageError::MissingKey { .. } => {
            "the record of the task cannot be read"
        }
        _ => "the task storage failed",
    }
}
