//! Tests of the Redis engine alone: access, topologies, notifications, and the protocol.

#![cfg(feature = "redis-tests")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod access;
mod agenda;
mod bandwidth;
mod cluster;
mod group_commit;
mod one_owner;
mod sentinel;
mod tls;
mod watch;
mod wire;
