//! The MCP server. An instance holds only the running operations in its process. So every instance answers for every task, and can
//! resume the tasks of a lost instance.

use std::io;
use std::sync::Arc;

use axum::Router;
use mcp_task_store::{Agenda, DurableTaskManager, OnWorkerLost, OwnerId, OwnerSource, RegisteredOptions};
use rmcp::handler::server::common::schema_for_type;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CancelTaskParams, GetTaskParams, GetTaskResult, Implementation,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool, UpdateTaskParams,
};
use rmcp::service::RequestContext;
use rmcp::task_manager::TaskOptions;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::operation::{Arguments, digest_folder};
use crate::{Failure, Store};

pub const DIGEST_FOLDER: &str = "digest_folder";

/// Returns the name under which the instances of one user's server register the operation. An instance claims all tasks with the
/// name, of every owner. So the name contains the owner: another user's server on the same Redis may have other folders.
fn operation(owner: &OwnerId) -> String {
    format!("{DIGEST_FOLDER} {owner}")
}

/// One instance of the server. It answers its clients itself instead of being a `TaskServer`, because the name of its operation is
/// not that of its tool.
#[derive(Clone)]
pub struct DigestServer {
    tasks: DurableTaskManager<Arc<dyn Agenda>>,
    owner: OwnerSource,
}

impl DigestServer {
    /// Creates an instance for one user. From now on it resumes tasks of lost instances.
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
        let description = "Returns one SHA-256 over all files under a folder";
        Ok(ListToolsResult::with_all_items(vec![Tool::new(
            DIGEST_FOLDER,
            description,
            schema_for_type::<Arguments>(),
        )]))
    }

    /// Responds with a task, once the task is stored.
    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if call.name != DIGEST_FOLDER {
            return Err(ErrorData::invalid_params(format!("there is no tool {}", call.name), None));
        }
        let arguments = Value::Object(call.arguments.unwrap_or_default());
        Arguments::read(arguments.clone())?;
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

/// Serves until `stop`. Then finishes the responses that it has begun, and releases the leases, so another instance resumes the
/// tasks at once.
pub async fn serve(
    listener: TcpListener,
    server: DigestServer,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failure> {
    let tasks = server.tasks.clone();
    // A session lives in one instance, and the next request may reach another. So no instance keeps sessions.
    let config =
        StreamableHttpServerConfig::default().with_legacy_session_mode(false).with_json_response(true);
    let streams = config.cancellation_token.clone();
    let sessions = Arc::new(NeverSessionManager::default());
    let mcp = StreamableHttpService::new(move || Ok(server.clone()), sessions, config);
    let stop = async move {
        stop.await;
        streams.cancel();
    };
    axum::serve(listener, Router::new().route_service("/mcp", mcp)).with_graceful_shutdown(stop).await?;
    tasks.shutdown().await;
    Ok(())
}

/// Returns the address at which clients reach the server.
pub fn url(listener: &TcpListener) -> io::Result<String> {
    Ok(format!("http://{}/mcp", listener.local_addr()?))
}

/// Returns a future that ends when the process receives SIGTERM or Ctrl-C.
#[cfg(unix)]
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Returns a future that ends when the process receives Ctrl-C.
#[cfg(not(unix))]
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    Ok(async { drop(tokio::signal::ctrl_c().await) })
}
