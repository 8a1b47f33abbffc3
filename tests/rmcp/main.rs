//! Tests of the task manager for servers on the SDK rmcp.

#![cfg(feature = "rmcp")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod announcements;
mod calls;
mod checkpoints;
mod concurrency;
mod enqueue_only;
mod fleet;
mod guide;
#[cfg(feature = "redis-tests")]
mod missing_keys;
#[cfg(all(feature = "redis-tests", unix))]
mod otel;
mod outages;
mod outcomes;
mod owner;
mod polls;
#[cfg(all(feature = "redis-tests", unix))]
mod port;
mod renewals;
mod request;
mod retries;
mod task_server;
mod tasks;
mod timing;
mod unknown_operations;
mod worker;
mod workers;
