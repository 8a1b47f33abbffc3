//! An MCP server whose tasks survive a restart. Several instances share one Redis, and each task has an owner.
use std::{error::Error, sync::Arc, time::Duration};

use axum::http::{StatusCode, header::AUTHORIZATION, request::Parts};
use axum::{Router, extract::Request, middleware, middleware::Next, response::Response};
use mcp_task_store::{DurableTaskManager, OnWorkerLost, OwnerId, OwnerSource};
use mcp_task_store::{RedisBackend, RegisteredOptions, TaskStore};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler, model::*, task_manager::TaskExit};
use rmcp::{service::RequestContext, tool, tool_handler, tool_router};
use tokio::signal::unix::{SignalKind, signal};

type Context = RequestContext<RoleServer>;

#[derive(Clone)]
struct Server {
    tasks: DurableTaskManager<RedisBackend>,
    owners: OwnerSource,
}

#[tool_router]
impl Server {
    #[tool(description = "Renders a film")]
    async fn render(&self, context: Context) -> Result<CallToolResponse, ErrorData> {
        let options = RegisteredOptions::new().on_worker_lost(OnWorkerLost::Resume);
        let owner = self.owners.owner(&context)?;
        self.tasks.spawn_registered_for(&context, &owner, "render", ().into(), options).await
    }
}

#[tool_handler]
impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
    }
    async fn get_task(&self, get: GetTaskParams, context: Context) -> Result<GetTaskResult, ErrorData> {
        let task = self.tasks.get_task(&self.owners.owner(&context)?, &get.task_id).await?;
        Ok(GetTaskResult::new(task))
    }
    async fn update_task(&self, update: UpdateTaskParams, context: Context) -> Result<(), ErrorData> {
        let owner = self.owners.owner(&context)?;
        Ok(self.tasks.update_task(&owner, &update.task_id, update.input_responses).await?)
    }
    async fn cancel_task(&self, cancel: CancelTaskParams, context: Context) -> Result<(), ErrorData> {
        Ok(self.tasks.cancel_task(&self.owners.owner(&context)?, &cancel.task_id).await?)
    }
}

/// Inserts the owner into the request. Verify the tokens of your users here.
async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    let owner = match request.headers().get(AUTHORIZATION).map(|token| token.as_bytes()) {
        Some(b"Bearer token-of-alice") => OwnerId::try_from("alice"),
        _ => return Err(StatusCode::UNAUTHORIZED),
    };
    request.extensions_mut().insert(owner.map_err(|_| StatusCode::UNAUTHORIZED)?);
    Ok(next.run(request).await)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = RedisBackend::connect("redis://127.0.0.1:6379").await?;
    let tasks = DurableTaskManager::new(TaskStore::new(backend));
    tasks.register("render", |task, _arguments| {
        Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(10)) => {}
                () = task.cancelled() => return Err(TaskExit::Cancelled),
            }
            Ok(CallToolResult::success(vec![ContentBlock::text("rendered")]))
        })
    });
    let owners = OwnerSource::extensions(|request| request.get::<Parts>()?.extensions.get().cloned());
    let server = Server { tasks: tasks.clone(), owners };

    // A session lives in one instance, and the next request may reach another. So no instance keeps sessions.
    let config = StreamableHttpServerConfig::default().with_legacy_session_mode(false);
    let (streams, sessions) = (config.cancellation_token.clone(), NeverSessionManager::default());
    let mcp = StreamableHttpService::new(move || Ok(server.clone()), Arc::new(sessions), config);
    let app = Router::new().route_service("/mcp", mcp).layer(middleware::from_fn(authenticate));

    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
        streams.cancel();
    };
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    // Releases the leases. Another instance resumes the tasks at once.
    tasks.shutdown().await;
    Ok(())
}
