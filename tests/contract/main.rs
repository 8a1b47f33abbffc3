//! The contract of an engine, on each engine.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod agenda;
mod agenda_model;
mod backend_contract;
#[cfg(feature = "redis-tests")]
mod model;
