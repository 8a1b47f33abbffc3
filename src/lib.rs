//! Where servers of the Model Context Protocol (MCP) keep their long-running tasks.
//!
//! A server answers a slow `tools/call` with a *task handle*; the client polls the task, answers its questions,
//! may cancel it (MCP Tasks extension, SEP-2663). Such a task must be stored before the client hears of it, and
//! every instance of the server must be able to answer. Three layers, each of which knows only the one below:
//!
//! * [`TaskStore`]: the lifecycle. Status machine, TTL, quotas, inputs, variables.
//! * [`StorageBackend`]: the contract of an engine. Versioned records by owner and task. [`Agenda`] adds timers across
//!   owners.
//! * The engines: [`MemoryBackend`], and `RedisBackend` with the feature `redis`.
//!
//! For servers on the official SDK, the feature `rmcp` has a task manager on top, `DurableTaskManager`. Servers on the SDK
//! `pmcp` find `PmcpTaskStore` and `PmcpTasksBackend` with the feature `pmcp`.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStore};
//! use serde_json::json;
//!
//! let store = TaskStore::new(MemoryBackend::new());
//! let owner = OwnerId::try_from("alice")?;
//! let created = store.create(&owner, NewTask::new("tools/call")).await?;
//! store.complete(&created, json!({ "content": [] })).await?;
//! assert!(store.get(&created.key).await?.task.result.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! The [README](https://crates.io/crates/mcp-task-store) has the key schema and the configuration.

#![warn(missing_docs, unreachable_pub)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::todo,
        clippy::print_stdout,
        clippy::print_stderr
    )
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guide;
mod memory;
#[cfg(feature = "pmcp")]
mod pmcp;
mod printable;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "rmcp")]
mod rmcp;
#[cfg(feature = "redis")]
mod scripts;
mod store;
mod task;

pub use backend::{
    Agenda, BoxError, CorruptRecord, Cursor, DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES, Due, Expiry,
    ListedRecord, LocalAgenda, MAX_ID_BYTES, MAX_PAGE_LIMIT, MAX_PARTS, Next, OwnerId, OwnerPage, Page,
    PageRequest, Part, PartChange, PartChanges, PartName, PartSizes, PutOptions, Queue, Record,
    StorageBackend, StorageError, Taken, TaskId, TaskKey, Timer, TimerPage, Version, Written,
};
pub use memory::MemoryBackend;
#[cfg(feature = "pmcp")]
#[cfg_attr(docsrs, doc(cfg(feature = "pmcp")))]
pub use pmcp::{PMCP_ANONYMOUS, PmcpTaskStore, PmcpTasksBackend};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use redis::{Credentials, RedisBackend, RedisBuilder};
#[cfg(feature = "rmcp")]
#[cfg_attr(docsrs, doc(cfg(feature = "rmcp")))]
pub use rmcp::{DurableTaskManager, ManagerConfig, OwnerSource, RegisteredOptions, TaskContext};
pub use store::{Attempt, NewTask, StoreConfig, TaskError, TaskPage, TaskRef, TaskStore, Ttl};
pub use task::{Lease, OnWorkerLost, Payload, PayloadKind, RpcError, Snapshot, StoredTask, Task, TaskStatus};

/// The examples of the README compile.
#[cfg(all(doctest, feature = "redis", feature = "rmcp"))]
#[doc = include_str!("../README.md")]
struct Readme;
