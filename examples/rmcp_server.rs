//! An MCP server whose tasks survive a restart. Several instances share one Redis, and each task has an owner.
use std::{error::Error, sync::Arc, time::Duration};

use axum::http::{StatusCode, header::AUTHORIZATION, request::Parts};
use axum::{Router, extract::Request, middleware, middleware::Next, response::Response};
use mcp_task_store::{DurableTaskManager, OwnerId, OwnerSource};
use mcp_task_store::{RedisBackend, TaskContext, TaskServer, TaskStore, TaskTools};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ServerHandler, model::*, schemars, task_manager::TaskExit};
use tokio::signal::unix::{SignalKind, signal};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Film {
    /// The number of frames
    frames: u64,
}

async fn render(task: TaskContext, film: Film) -> Result<CallToolResult, TaskExit> {
    for frame in 1..=film.frames {
        task.progress(frame, film.frames, format!("rendering frame {frame}"));
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {} // the slow work
            () = task.cancelled() => return Err(TaskExit::Cancelled),
        }
    }
    Ok(CallToolResult::success(vec![ContentBlock::text("rendered")]))
}

/// The server without its task tools. It may have other tools, prompts and resources.
#[derive(Clone)]
struct Studio;
impl ServerHandler for Studio {}

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
    let owners = OwnerSource::extensions(|request| request.get::<Parts>()?.extensions.get().cloned());
    let tools = TaskTools::new().tool("render", "Renders a film", render).resumable();
    let server = TaskServer::new(Studio, tasks.clone(), owners, tools)?;

    // A session lives in one instance, and the next request may reach another. So no instance keeps sessions.
    let config = StreamableHttpServerConfig::default().with_legacy_session_mode(false);
    let (stopping, streams) = (tasks.clone(), config.cancellation_token.clone());
    let sessions = Arc::new(NeverSessionManager::default());
    let mcp = StreamableHttpService::new(move || Ok(server.clone()), sessions, config);
    let app = Router::new().route_service("/mcp", mcp).layer(middleware::from_fn(authenticate));

    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {} _ = tokio::signal::ctrl_c() => {} }
        // Releases the leases, so another instance resumes the tasks at once. Answers the held calls.
        tokio::spawn(async move {
            stopping.shutdown().await;
            streams.cancel();
        });
    };
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    tasks.shutdown().await;
    Ok(())
}
