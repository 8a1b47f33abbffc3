//! A calculator that adds in a task.

use std::time::Duration;

use mcp_task_store::*;
use rmcp::model::*;
use rmcp::task_manager::TaskExit;
use rmcp::{ServerHandler, schemars, tool, tool_handler, tool_router};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Numbers {
    a: i32,
    b: i32,
}

async fn add(task: TaskContext, numbers: Numbers) -> Result<CallToolResult, TaskExit> {
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
        () = task.cancelled() => return Err(TaskExit::Cancelled),
    }
    Ok(CallToolResult::success(vec![ContentBlock::text((numbers.a + numbers.b).to_string())]))
}

#[derive(Clone)]
pub struct Calculator;

#[tool_router]
impl Calculator {
    #[tool(description = "Returns pi")]
    async fn pi(&self) -> String {
        std::f64::consts::PI.to_string()
    }
}

#[tool_handler]
impl ServerHandler for Calculator {}

pub async fn server() -> Result<impl ServerHandler, Box<dyn std::error::Error>> {
    let store = TaskStore::new(super::connect("redis://127.0.0.1:6379").await?);
    let tools = TaskTools::new().tool("add", "Adds two numbers, slowly", add);
    let owners = OwnerSource::fixed(OwnerId::try_from("me")?);
    Ok(TaskServer::new(Calculator, DurableTaskManager::new(store), owners, tools)?)
}
