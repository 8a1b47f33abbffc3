//! An MCP server with a slow tool, started several times over the same tasks, and a client that sees what becomes of
//! them: asked on one server and answered on another, cancelled across, resumed after a kill and after a shutdown.
//!
//! * `server.rs`: the server. The tool `digest_folder` is an operation registered with a `DurableTaskManager`.
//! * `digest.rs`: what the tool does, without a word of MCP.
//! * `client.rs`: the client, on the SDK.
//! * `instance.rs`: one server, as a process or as a runtime of its own in this process.
//! * `story.rs`: what is done with all of them, step by step, and what has to come out.
//!
//! With `--redis` the servers are processes that share a Redis. Without it they share a memory engine in this process,
//! with HTTP on the loopback in between all the same.

mod client;
mod digest;
mod instance;
mod server;
mod story;

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::num::ParseFloatError;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use mcp_task_store::{Agenda, MemoryBackend, OwnerId, StoreConfig, TaskStore};
use tokio::net::TcpListener;
use tracing_subscriber::filter::LevelFilter;

use server::DigestServer;

type Store = TaskStore<Arc<dyn Agenda>>;
type Failure = Box<dyn Error + Send + Sync>;

/// Where the servers find Redis, and the user may say so: a URL may hold a password, which has no place in a command
/// line.
const REDIS_VARIABLE: &str = "DIGEST_SERVER_REDIS_URL";

/// Short, so that there is not much to wait for when a server is killed.
const LEASE: Duration = Duration::from_secs(3);

/// Start an MCP server several times, and digest a folder as a task that outlives them.
///
/// A client calls the tool on one server and polls on another, answers there, cancels there; the first server is
/// killed half-way and the second takes its task up; the second is told to stop half-way and a third goes on. Each
/// digest is compared with what `sha256sum` says about the files.
///
/// Without --redis the same happens on the memory engine, in one process and with no other server at all.
#[derive(Clone, Parser)]
#[command(name = "digest_server")]
struct Options {
    /// The folder; this repository unless given. What git ignores is left out
    #[arg(default_value_os_t = repository())]
    folder: PathBuf,
    /// Keep the tasks in this Redis, and run each server as a process of its own
    #[arg(long, value_name = "URL", env = REDIS_VARIABLE, hide_env_values = true)]
    redis: Option<String>,
    /// Whose tasks they are; an owner of its own for each run unless given
    #[arg(long)]
    owner: Option<OwnerId>,
    /// How long the tool takes for the folder at the least, so that there is something to watch and to kill half-way
    #[arg(long, default_value = "2.5", value_parser = seconds)]
    seconds: Duration,
    /// Only serve, under this name, until SIGTERM or Ctrl-C; the address is printed
    #[arg(long, value_name = "NAME")]
    serve: Option<String>,
    /// The port on 127.0.0.1 to serve at; 0 picks a free one
    #[arg(long, default_value_t = 0, requires = "serve")]
    port: u16,
}

fn repository() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    if built_in.is_dir() { built_in.to_owned() } else { PathBuf::from(".") }
}

fn seconds(given: &str) -> Result<Duration, String> {
    let seconds = given.parse().map_err(|error: ParseFloatError| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.serve {
        Some(name) => serve(&options, name).await,
        None => story::tell(&options).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("digest_server: {}", in_one_line(&*error));
            ExitCode::FAILURE
        }
    }
}

/// What failed, and why. Each error says its own part; its source says the next.
fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let (mut line, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    line
}

/// What a process of its own does: it says where it serves, and does so until it is told to stop.
async fn serve(options: &Options, name: &str) -> Result<(), Failure> {
    // The SDK has something to say about each request at the level below.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();
    let stop = server::told_to_stop()?;
    let store = with_config(open(options.redis.as_deref()).await?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
    println!("{}", server::url(&listener)?);
    let owner = options.owner.clone().map_or_else(|| OwnerId::try_from("digest-server"), Ok)?;
    server::serve(listener, DigestServer::new(store, owner, name), stop).await
}

#[cfg(feature = "redis")]
async fn open(redis: Option<&str>) -> Result<Arc<dyn Agenda>, Failure> {
    Ok(match redis {
        Some(url) => Arc::new(mcp_task_store::RedisBackend::connect(url).await?),
        None => Arc::new(MemoryBackend::new()),
    })
}

#[cfg(not(feature = "redis"))]
async fn open(redis: Option<&str>) -> Result<Arc<dyn Agenda>, Failure> {
    match redis {
        Some(_) => Err("--redis needs a build with --features redis".into()),
        None => Ok(Arc::new(MemoryBackend::new())),
    }
}

fn with_config(backend: Arc<dyn Agenda>) -> Store {
    TaskStore::with_config(backend, StoreConfig::new().lease(LEASE))
}
