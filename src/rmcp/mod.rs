//! Durable tasks for servers on the official SDK, [rmcp] 3: what its `task_manager` does in the memory of one process,
//! on any engine and for every instance of a server.
//!
//! [`DurableTaskManager`] mirrors `rmcp::task_manager::TaskManager`, and speaks in the SDK's own types. What differs:
//! every call takes the [`OwnerId`](crate::OwnerId), is async, and can fail with a storage error.
//!
//! [rmcp]: https://crates.io/crates/rmcp

mod calls;
mod config;
mod context;
mod lateness;
mod manager;
mod meaning;
mod operation;
mod outcome;
mod owner;
mod places;
mod progress;
mod renewals;
mod renewer;
mod run;
mod stop;
mod wire;
mod worker;

pub use config::ManagerConfig;
pub use context::TaskContext;
pub use manager::{DurableTaskManager, RegisteredOptions};
pub use owner::{OwnerSource, Subject};
