//! The server that the official MCP conformance suite calls. It has the tools that the suite's `tasks-*` scenarios name, and
//! stores its tasks in Redis.
//!
//! An instance holds only the running operations in its process, and has no sessions. So any number of instances can share one
//! Redis behind a proxy that sends each request to another instance. `make conformance` runs the suite on one instance, and on two
//! instances behind such a proxy.

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clap::Parser;
use mcp_task_store::{
    DurableTaskManager, OwnerId, OwnerSource, RedisBackend, StoreConfig, TaskContext, TaskServer, TaskStore,
    TaskTools,
};
use rmcp::handler::server::tool::InputResponses;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{
    BooleanSchema, CallToolResponse, CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams,
    ElicitationSchema, EmptyObject, InputRequest, InputRequiredResult, PrimitiveSchemaDefinition,
    StringSchema,
};
use rmcp::schemars::{self, JsonSchema};
use rmcp::service::RequestContext;
use rmcp::task_manager::{TaskExit, TaskOptions};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler, tool, tool_handler, tool_router};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serve the tools of the MCP conformance suite over streamable HTTP, with tasks in Redis.
#[derive(Parser)]
#[command(name = "conformance_server")]
struct Options {
    /// The port on 127.0.0.1; 0 chooses a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The Redis that stores the tasks
    #[arg(long, value_name = "URL", default_value = "redis://127.0.0.1:6379")]
    redis: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    match serve(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("conformance_server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or Ctrl-C, and finishes the responses that it has begun.
async fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let store = TaskStore::with_config(
        RedisBackend::connect(&options.redis).await?,
        // All runs use one owner, and the tasks of earlier runs may still exist.
        StoreConfig::new().max_tasks_per_owner(None).default_poll_interval(Duration::from_millis(200)),
    );
    let tasks = DurableTaskManager::new(store);
    let owner = OwnerId::try_from("conformance")?;
    let handler = Handler { tasks: tasks.clone(), owner: owner.clone() };
    let server = TaskServer::new(handler, tasks.clone(), OwnerSource::fixed(owner), task_tools())?;

    // A session lives in one instance, and the next request may reach another. So no instance keeps sessions.
    let config = StreamableHttpServerConfig::default().with_legacy_session_mode(false);
    let (stopping, streams) = (tasks.clone(), config.cancellation_token.clone());
    let sessions = Arc::new(NeverSessionManager::default());
    let mcp = StreamableHttpService::new(move || Ok(server.clone()), sessions, config);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
    println!("http://{}/mcp", listener.local_addr()?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            stopping.shutdown().await;
            streams.cancel();
        });
    };
    let app = Router::new().route_service("/mcp", mcp);
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    tasks.shutdown().await;
    Ok(())
}

/// The tools whose calls become tasks.
fn task_tools() -> TaskTools {
    TaskTools::new()
        .tool("slow_compute", "Computes for some seconds", slow_compute)
        .tool("failing_job", "Runs for a second and returns an error of the tool", failing_job)
        .required()
        .tool("protocol_error_job", "Runs for a second and fails with a JSON-RPC error", protocol_error_job)
        .tool("confirm_delete", "Deletes a file after a confirmation", confirm_delete)
        .tool("multi_input", "Requests two values at once", multi_input)
}

#[derive(Deserialize, JsonSchema)]
struct Computation {
    seconds: f64,
    label: String,
}

async fn slow_compute(task: TaskContext, computation: Computation) -> Result<CallToolResult, TaskExit> {
    let Computation { seconds, label } = computation;
    let duration = Duration::try_from_secs_f64(seconds)
        .map_err(|error| ErrorData::invalid_params(format!("seconds: {error}"), None))?;
    tokio::select! {
        () = tokio::time::sleep(duration) => Ok(text(format!("{label}: computed for {seconds} s"))),
        () = task.cancelled() => Err(TaskExit::Cancelled),
    }
}

/// An error of the tool is a result, so the task is completed, not failed.
async fn failing_job(_: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(CallToolResult::error(vec![ContentBlock::text("the job failed, as it always does")]))
}

async fn protocol_error_job(_: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    Err(ErrorData::internal_error("the job broke the protocol, as it always does", None).into())
}

#[derive(Deserialize, JsonSchema)]
struct Deletion {
    filename: String,
}

async fn confirm_delete(task: TaskContext, deletion: Deletion) -> Result<CallToolResult, TaskExit> {
    let Deletion { filename } = deletion;
    let field = PrimitiveSchemaDefinition::Boolean(BooleanSchema::new());
    let question = elicitation(format!("Delete {filename}?"), "confirm", field);
    let answer = task.request_input("confirm", question).await?;
    let confirmed = accepted(&answer, "confirm").and_then(Value::as_bool).unwrap_or(false);
    Ok(text(if confirmed { format!("deleted {filename}") } else { format!("kept {filename}") }))
}

async fn multi_input(task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    let question =
        |message| elicitation(message, "value", PrimitiveSchemaDefinition::String(StringSchema::new()));
    let (a, b) = tokio::try_join!(
        task.request_input("input-a", question("The first value?")),
        task.request_input("input-b", question("The second value?")),
    )?;
    // The suite answers with fields that were not requested, and expects a completed task.
    let value = |answer| accepted(answer, "value").and_then(Value::as_str).unwrap_or("nothing").to_owned();
    Ok(text(format!("got {} and {}", value(&a), value(&b))))
}

/// The other tools. Their calls go past the task tools.
#[derive(Clone)]
struct Handler {
    tasks: DurableTaskManager<RedisBackend>,
    owner: OwnerId,
}

#[derive(Deserialize, JsonSchema)]
struct Greeting {
    name: String,
}

#[tool_router]
impl Handler {
    #[tool(description = "Greets at once")]
    async fn greet(&self, Parameters(greeting): Parameters<Greeting>) -> String {
        format!("Hello, {}!", greeting.name)
    }

    /// Requests a name before its task exists, so the client repeats the call with the name.
    #[tool(description = "Requests a name, then greets in a task")]
    async fn test_tool_with_task(
        &self,
        InputResponses(responses): InputResponses,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let answer = responses.and_then(|mut responses| responses.remove("user_name")).unwrap_or_default();
        let Some(name) = accepted(&answer, "name").and_then(Value::as_str) else {
            let field = PrimitiveSchemaDefinition::String(StringSchema::new());
            let question = elicitation("Which name shall I greet?", "name", field);
            let requests = [("user_name".to_owned(), question)].into();
            return Ok(InputRequiredResult::from_input_requests(requests).into());
        };
        let greeting = text(format!("Hello, {name}! (async)"));
        let operation = |_| Box::pin(async { Ok(greeting) }) as _;
        let (owner, options) = (&self.owner, TaskOptions::new());
        self.tasks.spawn_for(&context, owner, "test_tool_with_task", options, operation).await
    }
}

#[tool_handler(name = "conformance_server")]
impl ServerHandler for Handler {}

fn text(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

fn elicitation(message: impl Into<String>, field: &str, schema: PrimitiveSchemaDefinition) -> InputRequest {
    let properties = [(field.to_owned(), schema)].into();
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: message.into(),
        requested_schema: ElicitationSchema::new(properties).with_required(vec![field.to_owned()]),
    }))
}

/// Returns a field of an answer, unless the user declined.
fn accepted<'a>(answer: &'a Value, field: &str) -> Option<&'a Value> {
    (answer["action"] == "accept").then(|| answer["content"].get(field)).flatten()
}
