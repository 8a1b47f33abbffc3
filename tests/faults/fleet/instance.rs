//! One instance of the server: this test program, started again. It serves over HTTP without sessions until its input ends.

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
    TaskServerConfig, TaskStore, TaskTools,
};
use rmcp::model::{CallToolResult, ContentBlock, ErrorData, Extensions};
use rmcp::task_manager::TaskExit;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ServerHandler, schemars};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

/// The environment variables with the URL of the Redis, the path of the log, and how many milliseconds a call is held.
const REDIS: &str = "FLEET_REDIS";
const LOG: &str = "FLEET_LOG";
const HOLD_FOR: &str = "FLEET_HOLD_FOR";
/// Precedes the address of the instance, among the lines that the test harness prints.
const ADDRESS: &str = "fleet> ";
/// The header that names the owner of a request.
pub const OWNER: &str = "x-owner";
/// The time between two reports of an operation.
const STEP: Duration = Duration::from_millis(100);
/// How long an instance may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(60);

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

#[tokio::test]
#[ignore = "is an instance of the fleet"]
async fn instance_process() {
    let (Ok(redis), Ok(log)) = (std::env::var(REDIS), std::env::var(LOG)) else { return };
    let log = Arc::new(OpenOptions::new().append(true).open(log).unwrap());
    let store = TaskStore::with_config(
        RedisBackend::connect(&redis).await.unwrap(),
        StoreConfig::new().default_poll_interval(Duration::from_millis(500)).max_tasks_per_owner(None),
    );
    let tasks = DurableTaskManager::new(store);
    let tools = TaskTools::new()
        .tool("work", "Works", move |task, arguments| work(Arc::clone(&log), task, arguments));
    let hold_for = Duration::from_millis(std::env::var(HOLD_FOR).unwrap().parse().unwrap());
    let config = TaskServerConfig::new().hold_for(hold_for);
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
    let input_ended = async move {
        tokio::io::stdin().read_to_end(&mut Vec::new()).await.unwrap();
        streams.cancel();
    };
    axum::serve(listener, app).with_graceful_shutdown(input_ended).await.unwrap();
    tasks.shutdown().await;
}

/// A running instance. Dropping it kills the process.
pub struct Instance {
    /// The host and port.
    pub address: String,
    process: Child,
    input: ChildStdin,
}

impl Instance {
    pub async fn start(redis: &str, log: &Path, hold_for: Duration) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "fleet::instance::instance_process", "--nocapture"])
            .args(["--test-threads", "1"])
            .env(REDIS, redis)
            .env(LOG, log)
            .env(HOLD_FOR, hold_for.as_millis().to_string())
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

    /// Returns the memory of the process that is in RAM, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Shuts the instance down, and waits until it has ended without an error.
    pub async fn stop(mut self) {
        drop(self.input);
        let ended = timeout(LIMIT, self.process.wait()).await.expect("the instance stops in time").unwrap();
        assert!(ended.success(), "an instance ended with {ended}");
    }
}
