//! One instance of the server, or one worker: this test program, started again. An instance serves over HTTP without sessions. Both
//! run until their input ends.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::request::Parts;
use mcp_task_store::{
    DurableTaskManager, OwnerId, OwnerSource, RedisBackend, StoreConfig, TaskContext, TaskServer,
    TaskServerConfig, TaskStore, TaskTools, Worker,
};
use rmcp::model::{CallToolResult, ContentBlock, ErrorData, Extensions};
use rmcp::task_manager::TaskExit;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ServerHandler, schemars};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

/// The environment variables with the URL of the Redis, the path of the log, and the role of the process.
const REDIS: &str = "FLEET_REDIS";
const LOG: &str = "FLEET_LOG";
const ROLE: &str = "FLEET_ROLE";
/// Precedes the address of the instance, among the lines that the test harness prints. A worker has none.
const ADDRESS: &str = "fleet> ";
/// The header that names the owner of a request.
pub const OWNER: &str = "x-owner";
/// The time between two reports of an operation.
const STEP: Duration = Duration::from_secs(1);
/// The lease of a call that a worker runs.
const LEASE: Duration = Duration::from_secs(5);
/// How long an instance may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(60);

/// What a process does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Role {
    /// Serves calls, holds each for this long at most, and runs them itself.
    Server { hold_for: Duration },
    /// Serves calls, and leaves them to the workers. The record of a call lives for this long after its end.
    Enqueuer { retention: Duration },
    /// Runs this many calls at once.
    Worker { concurrency: usize },
}

/// The server has only task tools.
#[derive(Clone)]
struct Nothing;

impl ServerHandler for Nothing {}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Work {
    /// Names the call
    call: String,
    milliseconds: u64,
}

/// Works for some time, and returns the name of the call. The log has a line for each run.
async fn work(log: Arc<File>, task: TaskContext, work: Work) -> Result<CallToolResult, TaskExit> {
    // One write, so that no other instance writes into the line.
    (&*log)
        .write_all(format!("{}\n", work.call).as_bytes())
        .map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
    let (mut left, mut steps) = (Duration::from_millis(work.milliseconds), 0);
    while !left.is_zero() {
        let pause = left.min(STEP);
        sleep(pause).await;
        (left, steps) = (left - pause, steps + 1);
        task.progress(steps, None, format!("step {steps} of {}", work.call));
    }
    Ok(CallToolResult::success(vec![ContentBlock::text(work.call)]))
}

fn owner(request: &Extensions) -> Option<OwnerId> {
    let name = request.get::<Parts>()?.headers.get(OWNER)?.to_str().ok()?;
    OwnerId::try_from(name).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is a process of the fleet"]
async fn instance_process() {
    let (Ok(redis), Ok(log), Ok(role)) = (std::env::var(REDIS), std::env::var(LOG), std::env::var(ROLE))
    else {
        return;
    };
    let log = Arc::new(OpenOptions::new().append(true).open(log).unwrap());
    let tools = TaskTools::new()
        .tool("work", "Works", move |task, arguments| work(Arc::clone(&log), task, arguments));
    let engine = RedisBackend::connect(&redis).await.unwrap();
    let config = StoreConfig::new().max_tasks_per_owner(None);
    match serde_json::from_str(&role).unwrap() {
        Role::Server { hold_for } => {
            let config = config.default_poll_interval(Duration::from_millis(500));
            let tasks = DurableTaskManager::new(TaskStore::with_config(engine, config));
            serve(tasks, tools, TaskServerConfig::new().hold_for(hold_for)).await;
        }
        Role::Enqueuer { retention } => {
            let config = config.lease(LEASE).default_poll_interval(Duration::from_millis(100));
            let tasks = DurableTaskManager::new(TaskStore::with_config(engine, config));
            let config = TaskServerConfig::new().enqueue_only().answer_within(Duration::ZERO);
            serve(tasks, tools.resumable().retention(retention), config).await;
        }
        Role::Worker { concurrency } => {
            let store = TaskStore::with_config(engine, config.lease(LEASE));
            println!("\n{ADDRESS}");
            let worker = Worker::new(store).operations(tools.resumable()).concurrency(concurrency);
            worker.run_until(input_ended()).await.unwrap();
        }
    }
}

async fn input_ended() {
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.unwrap();
}

/// Serves calls over HTTP until the input ends.
async fn serve(tasks: DurableTaskManager<RedisBackend>, tools: TaskTools, config: TaskServerConfig) {
    let server =
        TaskServer::with_config(Nothing, tasks.clone(), OwnerSource::extensions(owner), tools, config)
            .unwrap();
    let config = StreamableHttpServerConfig::default().with_legacy_session_mode(false);
    let streams = config.cancellation_token.clone();
    let sessions = Arc::new(NeverSessionManager::default());
    let mcp = StreamableHttpService::new(move || Ok(server.clone()), sessions, config);
    let counted = tasks.clone();
    let running = get(move || async move { counted.running_task_count().to_string() });
    let app = Router::new().route_service("/mcp", mcp).route("/running", running);

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    println!("\n{ADDRESS}{}", listener.local_addr().unwrap());
    let stop = async move {
        input_ended().await;
        streams.cancel();
    };
    axum::serve(listener, app).with_graceful_shutdown(stop).await.unwrap();
    tasks.shutdown().await;
}

/// A running process. Dropping it kills the process.
pub struct Instance {
    /// The host and port; empty for a worker.
    pub address: String,
    process: Child,
    input: ChildStdin,
}

impl Instance {
    pub async fn start(redis: &str, log: &Path, role: Role) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "fleet::instance::instance_process", "--nocapture"])
            .args(["--test-threads", "1"])
            .env(REDIS, redis)
            .env(LOG, log)
            .env(ROLE, serde_json::to_string(&role).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut lines = BufReader::new(output).lines();
        let address = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the instance starts");
                if let Some((_, address)) = line.split_once(ADDRESS) {
                    return address.to_owned();
                }
            }
        };
        let address = timeout(LIMIT, address).await.expect("the instance starts in time");
        // The harness of the process prints the outcome of its one test, and must not fail to.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { address, process, input }
    }

    /// Returns the memory of the process that is in RAM, without that of its program file, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Shuts the instance down, and waits until it has ended without an error.
    pub async fn stop(mut self) {
        drop(self.input);
        let ended = timeout(LIMIT, self.process.wait()).await.expect("the instance stops in time").unwrap();
        assert!(ended.success(), "an instance ended with {ended}");
    }
}
