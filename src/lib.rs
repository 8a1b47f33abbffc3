//! Durable tasks for servers of the Model Context Protocol (MCP).
//!
//! A server answers a slow `tools/call` with a *task handle*. The client polls the task, answers its questions, and may
//! cancel it (MCP Tasks extension, SEP-2663). This crate stores the task before the client receives the handle: in a SQLite file,
//! or in Redis or Valkey. So every instance of the server can answer every poll, also after a restart.
//!
//! # Layers
//!
//! Each layer knows only the one below it.
//!
//! * `DurableTaskManager` (feature `rmcp`), `PmcpTaskStore` and `PmcpTasksBackend` (feature `pmcp`) adapt the library to an SDK.
//! * [`TaskStore`] is the lifecycle of tasks: status machine, TTL, quota, inputs, variables, leases.
//! * [`StorageBackend`] is the contract of an engine, which stores versioned records of one owner. [`Agenda`] adds timers across owners.
//! * [`MemoryBackend`], `SqliteBackend` (feature `sqlite`) and `RedisBackend` (feature `redis`) are engines.
//!
//! # Which type to start from
//!
//! | your server | start from |
//! |---|---|
//! | uses the official SDK, rmcp | `TaskServer` or `DurableTaskManager`, and [the guide to rmcp servers](guide::rmcp), which begins with a complete server |
//! | uses pmcp or pmcp-tasks | `PmcpTaskStore` or `PmcpTasksBackend`, and [the guide to pmcp servers](guide::pmcp) |
//! | has its own protocol code | [`TaskStore`], and [`Attempt`] for [workers with leases](guide::workers) |
//! | stores tasks in another database | [`StorageBackend`], [`backend::engine`], and [the guide to writing an engine](guide::engine) |
//!
//! [Operations](guide::operations) lists all settings. [Failures](guide::failures) says which error a call returns when a Redis or
//! Valkey server fails.
//!
//! # Examples
//!
//! ```
//! use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStore};
//! use serde_json::json;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = TaskStore::new(MemoryBackend::new());
//! let alice = OwnerId::try_from("alice")?;
//!
//! // `tools/call`: once `create` returns, the task is stored and the client may receive its id.
//! let created = store.create(&alice, NewTask::new("tools/call")).await?;
//!
//! // The work has ended. Any instance can store its result.
//! store.complete(&created, json!({ "content": [] })).await?;
//!
//! // `tasks/get`: any instance can read the task.
//! let task = store.get(&created.key).await?.task;
//! assert!(task.status.is_terminal());
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `sqlite` | `SqliteBackend`, with SQLite built in |
//! | `redis` | `RedisBackend` |
//! | `postgres` | `PostgresBackend`, which is still in development |
//! | `encryption` | `Encrypted`, which [encrypts](guide::encryption) what any engine stores |
//! | `redis-cluster`, `redis-sentinel`, `redis-tls` | Redis Cluster, a master behind Redis Sentinel, `rediss://` |
//! | `rmcp` | `DurableTaskManager`, `TaskServer` and `TaskTools`, for the official SDK, rmcp 3 |
//! | `pmcp` | `PmcpTaskStore` and `PmcpTasksBackend`, for pmcp 2 and pmcp-tasks 0.2 |
//! | `metrics` | counters, gauges and histograms, through the `metrics` facade |
//! | `otel` | one [trace](guide::rmcp#traces) for each task, in OpenTelemetry |
//! | `conformance` | the contract as a test suite, for [authors of engines](guide::engine) |

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
#[cfg(feature = "encryption")]
mod encryption;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guide;
mod memory;
#[cfg(feature = "pmcp")]
mod pmcp;
#[cfg(feature = "postgres")]
mod postgres;
mod printable;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "rmcp")]
mod rmcp;
#[cfg(feature = "redis")]
mod scripts;
mod spans;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod task;
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub mod telemetry;
#[cfg(not(feature = "metrics"))]
mod telemetry;

pub use backend::{
    Agenda, BoxError, CheckedPage, CorruptRecord, Cursor, DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES,
    Diagnose, Due, Expiry, Fault, FaultKind, Finding, Health, ListedRecord, LocalAgenda, MAX_ID_BYTES,
    MAX_PAGE_LIMIT, MAX_PARTS, Next, OwnerId, OwnerPage, Page, PageRequest, Part, PartChange, PartChanges,
    PartName, PartSizes, Priority, PutOptions, Queue, QueuePage, Record, StorageBackend, StorageError, Taken,
    TaskId, TaskKey, Timer, TimerPage, Version, Written,
};
#[cfg(feature = "encryption")]
#[cfg_attr(docsrs, doc(cfg(feature = "encryption")))]
pub use encryption::{
    ENVELOPE_BYTES, Encrypted, FailedRotation, Keyring, KeyringError, RotatedPage, Rotation, RotationCounts,
    RotationPosition,
};
pub use memory::MemoryBackend;
#[cfg(feature = "pmcp")]
#[cfg_attr(docsrs, doc(cfg(feature = "pmcp")))]
pub use pmcp::{PMCP_ANONYMOUS, PmcpTaskStore, PmcpTasksBackend};
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use postgres::{PostgresBackend, PostgresBuilder};
pub use printable::Printable;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use redis::{Credentials, RedisBackend, RedisBuilder};
#[cfg(feature = "rmcp")]
#[cfg_attr(docsrs, doc(cfg(feature = "rmcp")))]
pub use rmcp::{
    Companions, DurableTaskManager, ManagerConfig, OwnerSource, RegisteredOptions, TaskContext, TaskServer,
    TaskServerConfig, TaskTools, Worker,
};
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use sqlite::{SqliteBackend, SqliteBuilder, Synchronous};
pub use store::{
    Attempt, DeadTaskPage, NewTask, Retry, ScanPosition, ScannedPage, StoreConfig, TaskError, TaskFilter,
    TaskPage, TaskRef, TaskScan, TaskStore, Ttl, UniqueEnqueue, UniqueKey, UniqueStart, WorkerPage,
    WorkerStatus, WorkerTask,
};
pub use task::{
    EventKind, Lease, OnWorkerLost, Payload, PayloadKind, Progress, RetryDelay, RpcError, Snapshot,
    StoredTask, Task, TaskEvent, TaskStatus,
};

/// Compiles the examples of the README.
#[cfg(all(doctest, feature = "sqlite", feature = "rmcp"))]
#[doc = include_str!("../README.md")]
struct Readme;
