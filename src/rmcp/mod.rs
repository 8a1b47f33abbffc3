//! Durable tasks for servers on the official SDK, [rmcp] 3.
//!
//! [`DurableTaskManager`] takes the place of `rmcp::task_manager::TaskManager` and uses the SDK's own types. It keeps tasks
//! in a [`TaskStore`](crate::TaskStore), so they outlive the process, and every instance of a server answers for all of them.
//!
//! [`TaskServer`] wraps a handler of the SDK, and serves [`TaskTools`]: tools that are written once, as an async function, and
//! whose calls become tasks of a manager. A [`Worker`] runs the calls that servers only enqueue.
//!
//! [rmcp]: https://crates.io/crates/rmcp

mod announcer;
mod any_attempt;
mod asked;
mod call_run;
mod calls;
mod checkpoints;
mod claim;
mod claimer;
mod config;
mod context;
mod count;
mod delivered;
mod enqueue;
mod error_class;
mod fleet_limits;
mod follow;
mod identity;
mod manager;
mod operation;
mod options;
mod outcome;
mod owner;
mod owner_turns;
mod places;
mod polls;
mod progress_reports;
mod renewal_delay;
mod renewals;
mod renewer;
mod request;
mod retry_mark;
mod run;
mod running_mark;
mod runtime;
mod server;
mod shutdown;
mod slots;
mod stage;
mod supervise;
mod task_state;
mod timeouts;
mod tools;
mod wire;
mod worker;

pub use config::ManagerConfig;
pub use context::TaskContext;
pub use manager::DurableTaskManager;
pub use options::RegisteredOptions;
pub use owner::OwnerSource;
pub use server::{Companions, TaskServer, TaskServerConfig};
pub use tools::TaskTools;
pub use worker::Worker;
