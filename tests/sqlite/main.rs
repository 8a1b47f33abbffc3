//! Tests of the SQLite engine alone: processes on one file, files that cannot be used, group commit, and the size of
//! the file.

#![cfg(feature = "sqlite")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod churn;
mod elsewhere;
mod files;
mod full;
mod group_commit;
mod kills;
mod load;
mod locked;
mod log;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(unix)]
mod power;
