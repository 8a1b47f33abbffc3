//! The client of the SDK, in the scenarios of scenarios.mjs: `clients_rmcp MODE (stdio PROGRAM ARGUMENT... | http URL)`.
//!
//! It plays one scenario after the other, each over a connection of its own. It prints one JSON line a scenario.

mod connection;
mod scenario;
mod with_tasks;
mod without_tasks;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::json;

use crate::connection::Server;
use crate::scenario::{SCENARIOS, play};

#[derive(Parser)]
#[command(name = "clients_rmcp")]
struct Options {
    mode: Mode,
    #[command(subcommand)]
    server: ServerOptions,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    /// A protocol version before 2026-07-28
    Legacy,
    /// 2026-07-28
    Plain,
    /// 2026-07-28, with the tasks extension
    Tasks,
}

#[derive(Subcommand)]
enum ServerOptions {
    /// Start the server, and connect over its standard input and output
    Stdio {
        program: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Connect over streamable HTTP
    Http { url: String },
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { mode, server } = Options::parse();
    let server = match server {
        ServerOptions::Stdio { program, arguments } => Server::Program { program, arguments },
        ServerOptions::Http { url } => Server::Url(url),
    };
    for scenario in SCENARIOS {
        let got = play(scenario, mode, &server).await.unwrap_or_else(|error| format!("FAILED: {error}"));
        println!("{}", json!({ "scenario": scenario, "got": got }));
    }
    ExitCode::SUCCESS
}
