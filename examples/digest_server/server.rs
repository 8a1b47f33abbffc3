//! The MCP server. It keeps nothing of a task in the process but the operation that runs, so any instance answers for
//! every task, and resumes those whose server is lost.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use mcp_task_store::{
    Agenda, DurableTaskManager, OnWorkerLost, OwnerId, OwnerSource, RegisteredOptions, TaskContext,
};
use rmcp::handler::server::common::schema_for_type;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, ContentBlock, ElicitRequest,
    ElicitRequestParams, ElicitationSchema, GetTaskParams, GetTaskResult, Implementation, InputRequest,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool, UpdateTaskParams,
};
use rmcp::schemars::{self, JsonSchema};
use rmcp::service::RequestContext;
use rmcp::task_manager::{TaskExit, TaskOptions};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use crate::digest::{self, FolderDigest};
use crate::{Failure, Store};

pub const DIGEST_FOLDER: &str = "digest_folder";

/// What the tool is called with. It is stored with the task, for whoever resumes it.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct Arguments {
    /// The folder to digest.
    pub folder: PathBuf,
    /// The least time for a file, in milliseconds; at most a minute.
    #[serde(default)]
    pub pace: f64,
    /// Whether to ask before it begins.
    #[serde(default)]
    pub confirm: bool,
}

/// What the tool returns.
#[derive(Serialize, Deserialize)]
pub struct Digested {
    pub sha256: String,
    pub files: usize,
    /// The name of the server that did the work.
    pub server: String,
    pub attempt: u32,
}

/// How far an operation is: the status message of its task.
#[derive(Clone, PartialEq, Eq)]
pub struct Progress {
    pub done: usize,
    pub files: usize,
    pub server: String,
    pub attempt: u32,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, files, server, attempt } = self;
        write!(f, "{done} of {files} files (server {server}, attempt {attempt})")
    }
}

impl FromStr for Progress {
    type Err = Failure;

    fn from_str(message: &str) -> Result<Self, Failure> {
        let parts = || {
            let (done, rest) = message.split_once(" of ")?;
            let (files, rest) = rest.split_once(" files (server ")?;
            let (server, attempt) = rest.strip_suffix(')')?.split_once(", attempt ")?;
            Some((done, files, server, attempt))
        };
        let (done, files, server, attempt) = parts().ok_or("not a progress")?;
        let server = server.to_owned();
        Ok(Self { done: done.parse()?, files: files.parse()?, server, attempt: attempt.parse()? })
    }
}

/// The operation behind the tool. A second attempt begins again from the start, which here does no harm.
async fn digest_folder(
    arguments: Value,
    server: String,
    task: TaskContext,
) -> Result<CallToolResult, TaskExit> {
    let Arguments { folder, pace, confirm } = read(arguments)?;
    let pace = Duration::from_secs_f64(pace / 1000.0);
    if confirm {
        // In the same words at each attempt, so that a later one finds the answer to an earlier one.
        let question = elicitation(format!("Digest the files under {}?", folder.display()));
        let answer = task.request_input("confirm", question).await?;
        if answer["action"] != "accept" {
            return Ok(CallToolResult::error(vec![ContentBlock::text("not confirmed")]));
        }
    }

    let files = {
        let folder = folder.clone();
        spawn_blocking(move || digest::files(&folder)).await.map_err(|error| internal(&error))?
    };
    let files = match files {
        Ok(files) => files,
        Err(error) => return Ok(CallToolResult::error(vec![ContentBlock::text(error.to_string())])),
    };
    let mut progress = Progress { done: 0, files: files.len(), server, attempt: task.attempt() };
    let mut digest = FolderDigest::default();
    let mut next_at = Instant::now();
    for file in files {
        task.set_status_message(progress.to_string());
        next_at += pace;
        let hashing = async {
            let (folder, file) = (folder.clone(), file.clone());
            let hashed = spawn_blocking(move || digest::sha256(&folder, &file)).await;
            sleep_until(next_at).await;
            hashed
        };
        let hashed = tokio::select! {
            hashed = hashing => hashed.map_err(|error| internal(&error))?,
            () = task.cancelled() => {
                let stopped = format!("stopped after {} of {} files", progress.done, progress.files);
                task.set_status_message(stopped);
                return Err(TaskExit::Cancelled);
            }
        };
        match hashed {
            Ok(sha256) => digest.add(&file, &sha256),
            Err(error) => return Ok(CallToolResult::error(vec![ContentBlock::text(error)])),
        }
        progress.done += 1;
    }
    let Progress { done: files, server, attempt, .. } = progress;
    let digested = Digested { sha256: digest.finish(), files, server, attempt };
    Ok(CallToolResult::structured(serde_json::to_value(digested).map_err(|error| internal(&error))?))
}

/// The name under which the instances of one user's server know the operation. Instances take the tasks of every owner,
/// and those of another user's server, on the same Redis, may have other folders.
fn operation(owner: &OwnerId) -> String {
    format!("{DIGEST_FOLDER} {owner}")
}

/// One instance of the server.
#[derive(Clone)]
pub struct DigestServer {
    tasks: DurableTaskManager<Arc<dyn Agenda>>,
    owner: OwnerSource,
}

impl DigestServer {
    /// All its tasks are one user's. From now on it resumes those of a lost server.
    pub fn new(store: Store, owner: OwnerId, name: &str) -> Self {
        let tasks = DurableTaskManager::new(store);
        let name = name.to_owned();
        tasks.register(operation(&owner), move |task, arguments| {
            Box::pin(digest_folder(arguments, name.clone(), task))
        });
        Self { tasks, owner: OwnerSource::fixed(owner) }
    }
}

impl ServerHandler for DigestServer {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
            .with_server_info(Implementation::new("digest_server", env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let what = "One SHA-256 over all files under a folder";
        Ok(ListToolsResult::with_all_items(vec![Tool::new(
            DIGEST_FOLDER,
            what,
            schema_for_type::<Arguments>(),
        )]))
    }

    /// The handle goes out when the task is stored, not before.
    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if call.name != DIGEST_FOLDER {
            return Err(ErrorData::invalid_params(format!("there is no tool {}", call.name), None));
        }
        let arguments = Value::Object(call.arguments.unwrap_or_default());
        read(arguments.clone())?;
        let task = TaskOptions::new().with_ttl_ms(600_000).with_poll_interval_ms(100);
        let options = RegisteredOptions::from(task).on_worker_lost(OnWorkerLost::Resume);
        let owner = self.owner.owner(&context)?;
        self.tasks.spawn_registered_for(&context, &owner, &operation(&owner), arguments, options).await
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let owner = self.owner.owner(&context)?;
        Ok(GetTaskResult::new(self.tasks.get_task(&owner, &request.task_id).await?))
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let owner = self.owner.owner(&context)?;
        Ok(self.tasks.update_task(&owner, &request.task_id, request.input_responses).await?)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let owner = self.owner.owner(&context)?;
        Ok(self.tasks.cancel_task(&owner, &request.task_id).await?)
    }
}

/// Serves until `stop`. Then leases are released, so that another instance goes on with the tasks at once, while
/// the answers that are under way go out.
pub async fn serve(
    listener: TcpListener,
    server: DigestServer,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let tasks = server.tasks.clone();
    // A session would live in one instance, and the next request may reach another.
    let config =
        StreamableHttpServerConfig::default().with_legacy_session_mode(false).with_json_response(true);
    let streams = config.cancellation_token.clone();
    let sessions = Arc::new(NeverSessionManager::default());
    let mcp = StreamableHttpService::new(move || Ok(server.clone()), sessions, config);

    let connections = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = &mut stop => break,
        };
        let mcp = mcp.clone();
        let answer = service_fn(move |request| {
            let mcp = mcp.clone();
            async move { Ok::<_, io::Error>(mcp.handle(request).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
    drop(listener);
    streams.cancel();
    tokio::join!(tasks.shutdown(), connections.shutdown());
    Ok(())
}

/// Where a client finds what listens here.
pub fn url(listener: &TcpListener) -> io::Result<String> {
    Ok(format!("http://{}/mcp", listener.local_addr()?))
}

/// Returns once the process gets SIGTERM or Ctrl-C.
#[cfg(unix)]
pub fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Returns once the process gets Ctrl-C.
#[cfg(not(unix))]
pub fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    Ok(async { drop(tokio::signal::ctrl_c().await) })
}

fn read(arguments: Value) -> Result<Arguments, ErrorData> {
    let invalid = |reason: String| ErrorData::invalid_params(reason, None);
    let arguments: Arguments =
        serde_json::from_value(arguments).map_err(|error| invalid(error.to_string()))?;
    match arguments.pace {
        0.0..=60_000.0 => Ok(arguments),
        pace => Err(invalid(format!("a pace of {pace} ms is not between 0 and 60000"))),
    }
}

fn internal(error: &dyn fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

/// A question that is answered by accepting or declining it.
fn elicitation(message: String) -> InputRequest {
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message,
        requested_schema: ElicitationSchema::new(BTreeMap::new()),
    }))
}
