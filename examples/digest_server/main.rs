//! Several instances of an MCP server with a slow tool, and a client that uses all instances. The instances share their tasks. The
//! client answers and cancels a task on an instance that does not run the task. When an instance is killed or shut down, another
//! instance resumes its tasks.
//!
//! * `server.rs`: the server. The tool `digest_folder` is an operation registered with a `DurableTaskManager`.
//! * `operation.rs`: the operation behind the tool.
//! * `digest.rs`: the digest of a folder, without MCP.
//! * `engine.rs`: the engine that keeps the tasks: memory, SQLite or Redis.
//! * `client.rs`: the client, on the SDK.
//! * `instance.rs`: one instance of the server, as a process or as a runtime in this process.
//! * `demo.rs`: the demonstration, step by step, with the expected results.
//!
//! With `--sqlite` the instances are processes that share a file, and with `--redis` they are processes that share a Redis. With
//! neither they share a memory engine in this process. The client reaches them over HTTP in each case.

mod client;
mod demo;
mod digest;
mod engine;
mod instance;
mod operation;
mod server;

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::num::ParseFloatError;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use mcp_task_store::{Agenda, OwnerId, StoreConfig, TaskStore};
use tokio::net::TcpListener;
use tracing_subscriber::filter::LevelFilter;

use engine::Engine;
use server::DigestServer;

type Store = TaskStore<Arc<dyn Agenda>>;
type Failure = Box<dyn Error + Send + Sync>;

/// Short, so that another instance soon resumes the task of a killed instance.
const LEASE: Duration = Duration::from_secs(3);

/// Start several instances of an MCP server, and digest a folder in tasks that survive the instances.
///
/// A client calls the tool on one server, and polls, answers and cancels on another. The first server is killed halfway, and
/// the second resumes its task. The second is shut down halfway, and the third resumes its task. Each digest is compared with
/// the one that `sha256sum` computes.
///
/// Without --sqlite and --redis, the servers run on the memory engine in one process.
#[derive(Clone, Parser)]
#[command(name = "digest_server")]
struct Options {
    /// The folder, by default this repository; without the files that git ignores
    #[arg(default_value_os_t = repository())]
    folder: PathBuf,
    /// Store the tasks in this SQLite file, and run each server as its own process
    #[arg(long, value_name = "FILE")]
    sqlite: Option<PathBuf>,
    /// Store the tasks in this Redis, and run each server as its own process; without --sqlite and --redis, the environment
    /// variable DIGEST_SERVER_REDIS_URL has the same effect
    #[arg(long, value_name = "URL", conflicts_with = "sqlite")]
    redis: Option<String>,
    /// The owner of the tasks; by default a new owner for each run
    #[arg(long)]
    owner: Option<OwnerId>,
    /// The minimum time that the tool takes for the folder, so that a server can be killed halfway
    #[arg(long, default_value = "2.5", value_parser = seconds)]
    seconds: Duration,
    /// Run one server with this name until SIGTERM or Ctrl-C, and print its address
    #[arg(long, value_name = "NAME")]
    serve: Option<String>,
    /// The port on 127.0.0.1 to serve on; 0 chooses a free port
    #[arg(long, default_value_t = 0, requires = "serve")]
    port: u16,
}

fn repository() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    if built_in.is_dir() { built_in.to_owned() } else { PathBuf::from(".") }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|error: ParseFloatError| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.serve {
        Some(name) => serve(&options, name).await,
        None => demo::run(&options).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("digest_server: {}", in_one_line(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Joins an error and its causes in one line.
fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let (mut line, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    line
}

/// Prints the address and serves until the process receives a signal to stop.
async fn serve(options: &Options, name: &str) -> Result<(), Failure> {
    // At the level INFO, the SDK logs every request.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();
    let stop = server::stop_signal()?;
    let store = with_config(Engine::of(options)?.open().await?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
    println!("{}", server::url(&listener)?);
    let owner = options.owner.clone().map_or_else(|| OwnerId::try_from("digest-server"), Ok)?;
    server::serve(listener, DigestServer::new(store, owner, name), stop).await
}

fn with_config(backend: Arc<dyn Agenda>) -> Store {
    TaskStore::with_config(backend, StoreConfig::new().lease(LEASE))
}
