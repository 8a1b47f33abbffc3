//! A server with task tools: what it forwards to its handler, what it lists, and how it answers calls.

mod booth;
mod brief_outages;
mod calls;
mod companions;
pub mod flaky;
mod forwarding;
mod held;
mod http;
mod left_behind;
mod limits;
mod listing;
#[cfg(feature = "metrics")]
mod metrics;
mod mistakes;
mod notifications;
mod questions;
pub mod raw;
mod retries;
mod settings;
mod unique;

use std::sync::Arc;

use mcp_task_store::{Agenda, MemoryBackend, OwnerSource, TaskContext, TaskServer, TaskTools};
use rmcp::model::{CallToolResult, ClientCapabilities, ContentBlock, EmptyObject};
use rmcp::task_manager::TaskExit;
use rmcp::{ServerHandler, schemars, tool, tool_handler, tool_router};

use crate::support::rmcp::{LONG, Manager, alice, manager, text};

pub type Server<H> = TaskServer<H, Arc<dyn Agenda>>;

/// Returns a manager of tasks in memory.
fn in_memory() -> Manager {
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    manager(&backend, LONG)
}

/// Wraps a handler in a server of alice.
fn serve<H: ServerHandler>(handler: H, tasks: &Manager, tools: TaskTools) -> Server<H> {
    TaskServer::new(handler, tasks.clone(), OwnerSource::fixed(alice()), tools).unwrap()
}

fn with_tasks() -> ClientCapabilities {
    ClientCapabilities::builder().enable_tasks().build()
}

/// The arguments of a tool.
#[derive(Debug, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
pub struct Render {
    /// The number of frames
    pub frames: u64,
}

pub async fn render(task: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
    Ok(text(format!("{} frames in attempt {}", render.frames, task.attempt())))
}

async fn nothing(_: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
    Ok(text("nothing"))
}

/// Runs until it must stop.
pub async fn until_cancelled<A>(task: TaskContext, _: A) -> Result<CallToolResult, TaskExit> {
    task.cancelled().await;
    Err(TaskExit::Cancelled)
}

/// A server as authors write it with the macros of the SDK.
#[derive(Clone)]
pub struct Router;

#[tool_router]
impl Router {
    #[tool(description = "Echoes")]
    async fn echo(&self) -> Result<CallToolResult, rmcp::ErrorData> {
        Ok(CallToolResult::success(vec![ContentBlock::text("echo of the handler")]))
    }
}

#[tool_handler]
impl ServerHandler for Router {}
