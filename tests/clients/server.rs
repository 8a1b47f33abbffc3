//! The server that clients of other authors call. It has one tool for each thing that a call may need, and stores its tasks in
//! Redis.
//!
//! It serves one client over stdio, or any number of clients over streamable HTTP. Several instances can share one Redis behind
//! a proxy, unless they keep sessions. `make clients` runs the clients against it.

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clap::Parser;
use mcp_task_store::{
    DurableTaskManager, MAX_PAGE_LIMIT, OwnerId, OwnerSource, PageRequest, RedisBackend, StoreConfig,
    TaskContext, TaskServer, TaskServerConfig, TaskStore, TaskTools,
};
use redis::{ScanOptions, TypedCommands};
use rmcp::model::{
    CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams, ElicitationSchema, EmptyObject,
    InputRequest, PrimitiveSchemaDefinition, StringSchema,
};
use rmcp::schemars::{self, JsonSchema};
use rmcp::task_manager::TaskExit;
use rmcp::transport::streamable_http_server::session::SessionManager;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, ServerHandler, ServiceExt, tool, tool_handler, tool_router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How often `work` reports its progress.
const STEP: Duration = Duration::from_millis(100);

/// Serve tools to MCP clients, with tasks in Redis.
#[derive(Parser)]
#[command(name = "clients_server")]
struct Options {
    /// Serve over streamable HTTP on a free port of 127.0.0.1, and print the URL; by default over stdio
    #[arg(long)]
    http: bool,
    /// Keep sessions for clients of protocol versions before 2026-07-28
    #[arg(long, requires = "http")]
    sessions: bool,
    /// The Redis that stores the tasks
    #[arg(long, value_name = "URL", default_value = "redis://127.0.0.1:6379")]
    redis: String,
    /// The prefix of all keys in the Redis
    #[arg(long, default_value = "clients")]
    prefix: String,
    /// Print how many tasks have not ended, delete all keys with the prefix, and end
    #[arg(long)]
    erase: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Over stdio, the standard output belongs to the protocol.
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clients_server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let backend = RedisBackend::builder().prefix(&options.prefix).connect(&options.redis).await?;
    // A short lease: the clients wait until another instance resumes the task of a killed one.
    let config = StoreConfig::new().lease(Duration::from_secs(3)).default_ttl(Duration::from_secs(600));
    let store = TaskStore::with_config(backend, config);
    let owner = OwnerId::try_from("client")?;
    if options.erase {
        println!("{}", open_tasks(&store, &owner).await?);
        drop(store);
        return erase(&options);
    }
    let tasks = DurableTaskManager::new(store);
    let owners = OwnerSource::fixed(owner);
    // Less than the seven seconds that the longest call of the clients takes.
    let config = TaskServerConfig::new()
        .hold_for(Duration::from_secs(3))
        .hold_for_with_progress(Duration::from_secs(6));
    let server = TaskServer::with_config(Handler, tasks.clone(), owners, tools(), config)?;
    let served = match (options.http, options.sessions) {
        (false, _) => serve_stdio(server).await,
        (true, false) => serve_http(server, NeverSessionManager::default(), false).await,
        (true, true) => serve_http(server, LocalSessionManager::default(), true).await,
    };
    tasks.shutdown().await;
    served
}

/// Serves the client that started this process, until it closes the connection.
async fn serve_stdio(server: impl ServerHandler) -> Result<(), Box<dyn Error>> {
    let running = server.serve((tokio::io::stdin(), tokio::io::stdout())).await?;
    running.waiting().await?;
    Ok(())
}

/// Serves until SIGTERM, and finishes the responses that it has begun.
async fn serve_http(
    server: impl ServerHandler + Clone,
    sessions: impl SessionManager,
    keeps_sessions: bool,
) -> Result<(), Box<dyn Error>> {
    let config = StreamableHttpServerConfig::default().with_legacy_session_mode(keeps_sessions);
    let streams = config.cancellation_token.clone();
    let mcp = StreamableHttpService::new(move || Ok(server.clone()), Arc::new(sessions), config);

    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("http://{}/mcp", listener.local_addr()?);
    let stop = async move {
        terminate.recv().await;
        streams.cancel();
    };
    let app = Router::new().route_service("/mcp", mcp);
    Ok(axum::serve(listener, app).with_graceful_shutdown(stop).await?)
}

/// Counts the tasks that have not ended.
async fn open_tasks(store: &TaskStore<RedisBackend>, owner: &OwnerId) -> Result<usize, Box<dyn Error>> {
    let mut page = store.list(owner, PageRequest::new(MAX_PAGE_LIMIT)).await?;
    let mut open = 0;
    loop {
        open += page.tasks.iter().filter(|stored| !stored.task.status.is_terminal()).count();
        let Some(next) = page.next else { return Ok(open) };
        page = store.list(owner, PageRequest::new(MAX_PAGE_LIMIT).after(next)).await?;
    }
}

/// Deletes what the servers of a run have left in the Redis: ended tasks, and timers.
fn erase(options: &Options) -> Result<(), Box<dyn Error>> {
    let mut redis = redis::Client::open(options.redis.as_str())?.get_connection()?;
    let pattern = format!("{}:*", options.prefix);
    let keys = redis.scan_options::<String>(ScanOptions::default().with_pattern(pattern).with_count(1000))?;
    let keys = keys.collect::<Result<Vec<String>, _>>()?;
    if !keys.is_empty() {
        redis.del(keys)?;
    }
    Ok(())
}

/// The handler has a tool of its own, whose calls are no tasks.
#[derive(Clone)]
struct Handler;

#[tool_router]
impl Handler {
    #[tool(description = "Returns the id of the process that serves the call")]
    async fn process(&self) -> Result<CallToolResult, ErrorData> {
        Ok(text(std::process::id().to_string()))
    }
}

#[tool_handler]
impl ServerHandler for Handler {}

fn tools() -> TaskTools {
    TaskTools::new()
        .tool("work", "Works for some seconds, and reports its progress", work)
        .output_schema::<Worked>()
        .poll_interval(STEP)
        .tool("greet", "Asks for a name, and greets", greet)
        .poll_interval(STEP)
        .tool("wait", "Runs until it is cancelled", wait)
        .cancel_with_request()
        .poll_interval(STEP)
        .tool("survive", "Ends in the first attempt after its process was killed", survive)
        .resumable()
        .poll_interval(STEP)
}

#[derive(Deserialize, JsonSchema)]
struct Work {
    seconds: f64,
}

#[derive(Serialize, JsonSchema)]
struct Worked {
    /// For how many seconds it has worked
    seconds: f64,
}

async fn work(task: TaskContext, work: Work) -> Result<CallToolResult, TaskExit> {
    let duration = Duration::try_from_secs_f64(work.seconds)
        .map_err(|error| ErrorData::invalid_params(format!("seconds: {error}"), None))?;
    let steps = duration.div_duration_f64(STEP).ceil() as u64;
    for step in 0..steps {
        task.progress(step, steps, format!("step {step} of {steps}"));
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            () = task.cancelled() => return Err(TaskExit::Cancelled),
        }
    }
    let mut result = text(format!("worked for {} s", work.seconds));
    result.structured_content = Some(json!(Worked { seconds: work.seconds }));
    Ok(result)
}

async fn greet(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    let name = PrimitiveSchemaDefinition::String(StringSchema::new());
    let question =
        InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
            meta: None,
            message: "Which name?".to_owned(),
            requested_schema: ElicitationSchema::new([("name".to_owned(), name)].into())
                .with_required(vec!["name".to_owned()]),
        }));
    let answer = task.request_input("name", question).await?;
    match answer["content"]["name"].as_str() {
        Some(name) => Ok(text(format!("Hello, {name}!"))),
        None => Ok(CallToolResult::error(vec![ContentBlock::text(format!("no name: {answer}"))])),
    }
}

async fn wait(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    task.set_status_message("waiting");
    task.cancelled().await;
    Err(TaskExit::Cancelled)
}

/// The first attempt runs until its process is killed. The message of the task says which process that is.
async fn survive(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    if let Some(process) = task.last_checkpoint::<Value>().await? {
        return Ok(text(format!("survived process {process} in attempt {}", task.attempt())));
    }
    let process = std::process::id();
    task.checkpoint(&process).await?;
    task.set_status_message(format!("in process {process}"));
    task.cancelled().await;
    Err(TaskExit::Cancelled)
}

fn text(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}
