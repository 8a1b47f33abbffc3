//! A console in the browser for the tasks that MCP servers store with [`mcp_task_store`].
//!
//! [`Console`] is an axum [`Router`](axum::Router) that a server mounts. `mcp-tasks serve` runs it as a program of its own. It shows
//! an overview, lists of tasks, owners and workers, and each task with its timeline, questions, arguments and result.
//!
//! * **It changes nothing**, unless [`Console::allow_actions`] lets visitors cancel, requeue, delete and answer. It reads the store as an
//!   observer.
//! * **It costs writers nothing.** The console reads all records at a bounded rate, and keeps what its lists need in memory. So each
//!   page says as of when it counts. The tasks that a page shows are read when it is requested.
//! * **Prometheus reads `/metrics`**: gauges of the store, and what the recorder of the process shows ([`Console::metrics`]). `/healthz` says
//!   whether the engine answers.
//! * **It needs no script.** With the one that it has, an open page is live. Nothing is loaded from other hosts.
//!
//! ```
//! use std::sync::Arc;
//!
//! use axum::Router;
//! use mcp_task_console::{Access, Console};
//! use mcp_task_store::{MemoryBackend, TaskStore};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), mcp_task_console::AccessError> {
//! let store = TaskStore::new(MemoryBackend::new());
//! let access = Access::token("9f86d081884c7d659a2feaa0c55ad015")?;
//! let console = Console::new(Arc::new(store.backend().clone()), access);
//! let app: Router = Router::new().nest("/console", console.router());
//! # Ok(())
//! # }
//! ```

mod actions;
mod frame;
mod health;
mod json;
mod layout;
mod live;
mod metrics;
pub mod operator;
mod pages;
mod router;
mod security;
mod snapshot;
mod text;

pub use router::Console;
pub use security::{Access, AccessError};
