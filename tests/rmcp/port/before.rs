//! A calculator that adds in a task.

use std::time::Duration;

use rmcp::handler::server::common::schema_for_type;
use rmcp::handler::server::tool::ToolCallContext;
use rmcp::model::*;
use rmcp::service::RequestContext;
use rmcp::task_manager::{TaskContext, TaskExit, TaskManager, TaskOptions};
use rmcp::{ErrorData, RoleServer, ServerHandler, schemars, tool, tool_handler, tool_router};

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
pub struct Calculator {
    tasks: TaskManager,
}

#[tool_router]
impl Calculator {
    #[tool(description = "Returns pi")]
    async fn pi(&self) -> String {
        std::f64::consts::PI.to_string()
    }
}

#[tool_handler]
impl ServerHandler for Calculator {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut tools = Self::tool_router().list_all();
        tools.push(Tool::new("add", "Adds two numbers, slowly", schema_for_type::<Numbers>()));
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if request.name != "add" {
            return Self::tool_router().call(ToolCallContext::new(self, request, context)).await;
        }
        if !context.client_capabilities().is_some_and(|client| client.supports_tasks()) {
            let required = ClientCapabilities::builder().enable_tasks().build();
            return Err(ErrorData::missing_required_client_capability(required));
        }
        let arguments = serde_json::Value::Object(request.arguments.unwrap_or_default());
        let numbers = serde_json::from_value(arguments)
            .map_err(|error| ErrorData::invalid_params(error.to_string(), None))?;
        let task = self.tasks.spawn(TaskOptions::default(), |task| Box::pin(add(task, numbers)));
        Ok(CreateTaskResult::new(task).into())
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        Ok(GetTaskResult::new(self.tasks.get_task(&request.task_id)?))
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.tasks.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.tasks.cancel_task(&request.task_id)
    }
}

pub async fn server() -> Result<impl ServerHandler, Box<dyn std::error::Error>> {
    Ok(Calculator { tasks: TaskManager::new() })
}
