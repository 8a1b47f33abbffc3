//! An MCP server over stdio, whose slow tool survives the server. Its tasks are in one SQLite file.

use std::{error::Error, time::Duration};

use mcp_task_store::{DurableTaskManager, OwnerId, OwnerSource, SqliteBackend};
use mcp_task_store::{TaskContext, TaskServer, TaskStore, TaskTools};
use rmcp::{ServerHandler, ServiceExt, model::*, schemars, task_manager::TaskExit, transport::stdio};
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
    let rendered = format!("rendered {} frames in attempt {}", film.frames, task.attempt());
    Ok(CallToolResult::success(vec![ContentBlock::text(rendered)]))
}

/// The server without its task tools. It may have other tools, prompts and resources.
struct Studio;
impl ServerHandler for Studio {}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).unwrap_or("tasks.db".to_owned());
    let tasks = DurableTaskManager::new(TaskStore::new(SqliteBackend::open(file).await?));
    let owner = OwnerSource::fixed(OwnerId::try_from("me")?); // a server over stdio has one user
    let tools = TaskTools::new().tool("render", "Renders a film", render).resumable();
    let server = TaskServer::new(Studio, tasks.clone(), owner, tools)?;

    let mut terminate = signal(SignalKind::terminate())?;
    let running = async { Ok::<_, Box<dyn Error>>(server.serve(stdio()).await?.waiting().await?) };
    tokio::pin!(running);
    let ended = tokio::select! {
        ended = &mut running => ended.map(drop), // the client has closed stdin
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    tasks.shutdown().await; // releases the tasks: the next server resumes them at once
    ended?;
    std::process::exit(0) // a return would wait for stdin, which the client may keep open
}
