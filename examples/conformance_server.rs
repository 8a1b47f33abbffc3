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
use mcp_task_store::{DurableTaskManager, OwnerId, RedisBackend, StoreConfig, TaskContext, TaskStore};
use rmcp::handler::server::common::{schema_for_empty_input, schema_for_type};
use rmcp::model::{
    BooleanSchema, CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams,
    ClientCapabilities, ContentBlock, ElicitRequest, ElicitRequestParams, ElicitationSchema, GetTaskParams,
    GetTaskResult, Implementation, InputRequest, InputRequiredResult, InputResponses, JsonObject,
    ListToolsResult, PaginatedRequestParams, PrimitiveSchemaDefinition, ServerCapabilities, ServerConfig,
    StringSchema, Tool, UpdateTaskParams,
};
use rmcp::schemars::{self, JsonSchema};
use rmcp::service::RequestContext;
use rmcp::task_manager::{TaskExit, TaskOptions};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::Deserialize;
use serde::de::DeserializeOwned;
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
        StoreConfig::new().max_tasks_per_owner(None),
    );
    let tasks = DurableTaskManager::new(store);
    let server = ConformanceServer { tasks: tasks.clone(), owner: OwnerId::try_from("conformance")? };

    // A session lives in one instance, and the next request may reach another. So no instance keeps sessions.
    let config = StreamableHttpServerConfig::default().with_legacy_session_mode(false);
    let streams = config.cancellation_token.clone();
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
        streams.cancel();
    };
    let app = Router::new().route_service("/mcp", mcp);
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    tasks.shutdown().await;
    Ok(())
}

#[derive(Clone)]
struct ConformanceServer {
    tasks: DurableTaskManager<RedisBackend>,
    owner: OwnerId,
}

/// The tools that always respond with a task. A client without the tasks extension cannot call them.
const TASK_REQUIRED: [&str; 4] = ["failing_job", "confirm_delete", "multi_input", "test_tool_with_task"];

fn tools() -> Vec<Tool> {
    let nothing = schema_for_empty_input;
    vec![
        Tool::new("greet", "Greets at once", schema_for_type::<Greeting>()),
        Tool::new("slow_compute", "Computes for some seconds", schema_for_type::<Computation>()),
        Tool::new("failing_job", "Runs for a second and returns an error of the tool", nothing()),
        Tool::new("protocol_error_job", "Fails with a JSON-RPC error", nothing()),
        Tool::new("confirm_delete", "Deletes a file after a confirmation", schema_for_type::<Deletion>()),
        Tool::new("multi_input", "Requests two values at once", nothing()),
        Tool::new("test_tool_with_task", "Requests a name, then greets in a task", nothing()),
    ]
}

impl ServerHandler for ConformanceServer {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
            .with_server_info(Implementation::new("conformance_server", env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools()))
    }

    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let supports_tasks = context.client_capabilities().is_some_and(|client| client.supports_tasks());
        if !supports_tasks && TASK_REQUIRED.contains(&&*call.name) {
            let required = ClientCapabilities::builder().enable_tasks().build();
            return Err(ErrorData::missing_required_client_capability(required));
        }
        let tool = &*call.name;
        match tool {
            "greet" => Ok(greet(arguments(call.arguments)?).into()),
            "slow_compute" => {
                let computation = arguments(call.arguments)?;
                match supports_tasks {
                    true => self.start(&context, tool, |task| slow_compute_task(computation, task)).await,
                    false => Ok(slow_compute(computation).await?.into()),
                }
            }
            "failing_job" => self.start(&context, tool, |_| failing_job()).await,
            "protocol_error_job" if supports_tasks => {
                self.start(&context, tool, |_| async { Err(protocol_error().into()) }).await
            }
            "protocol_error_job" => Err(protocol_error()),
            "confirm_delete" => {
                let deletion = arguments(call.arguments)?;
                self.start(&context, tool, |task| confirm_delete(deletion, task)).await
            }
            "multi_input" => self.start(&context, tool, multi_input).await,
            "test_tool_with_task" => match answered_name(call.input_responses.as_ref()) {
                Some(name) => {
                    self.start(&context, tool, |_| async move { Ok(text(format!("Hello, {name}! (async)"))) })
                        .await
                }
                None => Ok(request_name().into()),
            },
            unknown => Err(ErrorData::invalid_params(format!("there is no tool {unknown}"), None)),
        }
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        Ok(GetTaskResult::new(self.tasks.get_task(&self.owner, &request.task_id).await?))
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(self.tasks.update_task(&self.owner, &request.task_id, request.input_responses).await?)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(self.tasks.cancel_task(&self.owner, &request.task_id).await?)
    }
}

impl ConformanceServer {
    /// Starts an operation as a task. Returns the response once the task is stored.
    async fn start<F>(
        &self,
        context: &RequestContext<RoleServer>,
        name: &str,
        operation: impl FnOnce(TaskContext) -> F + Send,
    ) -> Result<CallToolResponse, ErrorData>
    where
        F: Future<Output = Result<CallToolResult, TaskExit>> + Send + 'static,
    {
        let options = TaskOptions::new().with_poll_interval_ms(200);
        self.tasks.spawn_for(context, &self.owner, name, options, |task| Box::pin(operation(task))).await
    }
}

#[derive(Deserialize, JsonSchema)]
struct Greeting {
    name: String,
}

fn greet(greeting: Greeting) -> CallToolResult {
    text(format!("Hello, {}!", greeting.name))
}

#[derive(Deserialize, JsonSchema)]
struct Computation {
    seconds: f64,
    label: String,
}

async fn slow_compute(computation: Computation) -> Result<CallToolResult, ErrorData> {
    let Computation { seconds, label } = computation;
    let duration = Duration::try_from_secs_f64(seconds)
        .map_err(|error| ErrorData::invalid_params(format!("seconds: {error}"), None))?;
    tokio::time::sleep(duration).await;
    Ok(text(format!("{label}: computed for {seconds} s")))
}

async fn slow_compute_task(computation: Computation, task: TaskContext) -> Result<CallToolResult, TaskExit> {
    tokio::select! {
        computed = slow_compute(computation) => Ok(computed?),
        () = task.cancelled() => Err(TaskExit::Cancelled),
    }
}

/// An error of the tool is a result, so the task is completed, not failed.
async fn failing_job() -> Result<CallToolResult, TaskExit> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(CallToolResult::error(vec![ContentBlock::text("the job failed, as it always does")]))
}

fn protocol_error() -> ErrorData {
    ErrorData::internal_error("the job broke the protocol, as it always does", None)
}

#[derive(Deserialize, JsonSchema)]
struct Deletion {
    filename: String,
}

async fn confirm_delete(deletion: Deletion, task: TaskContext) -> Result<CallToolResult, TaskExit> {
    let Deletion { filename } = deletion;
    let field = PrimitiveSchemaDefinition::Boolean(BooleanSchema::new());
    let question = elicitation(format!("Delete {filename}?"), "confirm", field);
    let answer = task.request_input("confirm", question).await?;
    let confirmed = accepted(&answer, "confirm").and_then(Value::as_bool).unwrap_or(false);
    Ok(text(if confirmed { format!("deleted {filename}") } else { format!("kept {filename}") }))
}

async fn multi_input(task: TaskContext) -> Result<CallToolResult, TaskExit> {
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

fn request_name() -> InputRequiredResult {
    let field = PrimitiveSchemaDefinition::String(StringSchema::new());
    let question = elicitation("Which name shall I greet?", "name", field);
    InputRequiredResult::from_input_requests([("user_name".to_owned(), question)].into())
}

fn answered_name(responses: Option<&InputResponses>) -> Option<String> {
    let name = accepted(responses?.get("user_name")?, "name")?;
    name.as_str().map(str::to_owned)
}

fn arguments<T: DeserializeOwned>(arguments: Option<JsonObject>) -> Result<T, ErrorData> {
    serde_json::from_value(Value::Object(arguments.unwrap_or_default()))
        .map_err(|error| ErrorData::invalid_params(error.to_string(), None))
}

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
