//! The adapters for servers on the SDK pmcp.

#![cfg(feature = "pmcp")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod server;
mod storage;
mod task_store;
