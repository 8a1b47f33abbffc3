//! `mcp-tasks`: what operators do with the tasks of MCP servers.

mod action;
mod archive;
mod args;
mod audit_log;
mod bulk;
mod commands;
mod engine;
mod failure;
mod index_health;
mod input_form;
mod interrupt;
mod key;
mod output;
mod retry;
mod selection;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match commands::run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
