//! Prints the audit log of the console on stderr.

use std::io;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::failure::Failure;

/// Begins to print the audit log, one line for each attempt to change a task.
pub fn start() -> Result<(), Failure> {
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
    let audit = Targets::new().with_target("mcp_task_console::audit", LevelFilter::INFO);
    let started = tracing_subscriber::registry().with(lines).with(audit).try_init();
    started.map_err(|error| Failure::failed(format!("the audit log cannot be printed: {error}")))
}
