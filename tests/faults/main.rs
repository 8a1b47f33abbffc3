//! Servers, connections, processes and clocks that fail.

#![cfg(feature = "redis-tests")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod chaos;
mod clocks;
#[cfg(target_os = "linux")]
mod fleet;
mod half_dead;
mod linearizability;
#[cfg(target_os = "linux")]
mod load;
mod sent_once;
mod server;
mod tasks;
mod two_processes;
mod workers;
