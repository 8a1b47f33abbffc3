//! What only the Redis engine has: access, topologies, notifications, the wire.

#![cfg(feature = "redis-tests")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod access;
mod agenda;
mod bandwidth;
mod cluster;
mod one_owner;
mod sentinel;
mod tls;
mod watch;
mod wire;
