//! The lifecycle of tasks: `TaskStore` on each engine.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod calls;
mod common;
#[cfg(feature = "redis-tests")]
mod encrypted;
mod enqueue;
mod history;
mod keeper;
mod later;
mod leases;
mod limits;
mod lost_workers;
#[cfg(feature = "metrics")]
mod metrics;
mod observer;
mod payloads;
#[cfg(feature = "redis-tests")]
mod recorded;
mod retries;
mod scan;
mod tasks;
mod tracing_spans;
mod unique;
mod wait;
