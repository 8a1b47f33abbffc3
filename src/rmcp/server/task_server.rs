//! The server: a handler of the SDK, and the tools whose calls become tasks.

use std::fmt;
use std::sync::Arc;

use rmcp::ServerHandler;

use super::call_settings::CallSettings;
use super::config::TaskServerConfig;
use crate::backend::Agenda;
use crate::rmcp::manager::DurableTaskManager;
use crate::rmcp::owner::OwnerSource;
use crate::rmcp::tools::{TaskTool, TaskTools};
use crate::store::TaskError;
use crate::telemetry;

/// Adds [`TaskTools`] to a server of the SDK. It wraps the server's [`ServerHandler`], and is one itself.
///
/// * `tools/list` has the task tools and the tools of the handler. A call of a task tool runs its function. All other calls go to
///   the handler.
/// * For clients that do not declare the tasks extension, there are also the [companions](crate::Companions), with which a model
///   reaches its tasks.
/// * `tasks/get`, `tasks/update` and `tasks/cancel` go to the manager. If the manager has no such task and the handler
///   declares the tasks extension, they go to the handler.
/// * The capabilities are those of the handler, the tools and the tasks extension.
/// * Everything else goes to the handler: prompts, resources, completions, subscriptions, notifications.
///
/// A call that ends [soon](TaskServerConfig::answer_within) is answered with its result, and nothing is stored. A call that takes
/// longer becomes a task:
/// * A client that declares the tasks extension receives the task once it is stored.
/// * The call of any other client is [held](TaskServerConfig::hold_for) until the task ends, and receives the result. If that takes
///   too long, the call receives the state and the id of the task, and the task goes on.
/// * If the operation [asks](crate::TaskContext::request_input) for input meanwhile, that client is asked as it declares: with an
///   input-required result (2026-07-28), or with requests of the server (older protocols). A client that declares neither receives
///   the question as text.
///
/// A clone shares the tools and the manager, and has a clone of the handler. So the factory of a transport can return a clone
/// for each session.
///
/// # Examples
/// ```
/// use mcp_task_store::{
///     DurableTaskManager, MemoryBackend, OwnerId, OwnerSource, TaskContext, TaskServer, TaskStore, TaskTools,
/// };
/// use rmcp::model::{CallToolResult, ContentBlock};
/// use rmcp::task_manager::TaskExit;
/// use rmcp::{schemars, tool, tool_handler, tool_router};
///
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// struct Render {
///     scene: String,
/// }
///
/// async fn render(task: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
///     task.set_status_message(format!("rendering {}", render.scene));
///     Ok(CallToolResult::success(vec![ContentBlock::text("rendered")]))
/// }
///
/// #[derive(Clone)]
/// struct Studio;
///
/// #[tool_router]
/// impl Studio {
///     #[tool(description = "Names the studio")]
///     async fn name(&self) -> String {
///         "the studio".to_owned()
///     }
/// }
///
/// #[tool_handler]
/// impl rmcp::ServerHandler for Studio {}
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tasks = DurableTaskManager::new(TaskStore::new(MemoryBackend::new()));
/// let owners = OwnerSource::fixed(OwnerId::try_from("me")?);
/// let tools = TaskTools::new().tool("render", "Renders a scene", render).resumable();
/// let server = TaskServer::new(Studio, tasks.clone(), owners, tools)?;
/// # drop(server);
/// tasks.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct TaskServer<H, B> {
    pub(super) handler: H,
    pub(super) tasks: DurableTaskManager<B>,
    pub(super) owners: OwnerSource,
    pub(super) tools: Arc<[TaskTool]>,
    pub(super) config: TaskServerConfig,
}

impl<H: Clone, B> Clone for TaskServer<H, B> {
    fn clone(&self) -> Self {
        Self {
            handler: self.handler.clone(),
            tasks: self.tasks.clone(),
            owners: self.owners.clone(),
            tools: Arc::clone(&self.tools),
            config: self.config.clone(),
        }
    }
}

impl<H, B> fmt::Debug for TaskServer<H, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskServer")
            .field("tasks", &self.tasks)
            .field("owners", &self.owners)
            .field("tools", &self.tools)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl<H: ServerHandler, B: Agenda> TaskServer<H, B> {
    /// Creates a server of these tools around a handler, and registers the resumable tools with the manager.
    ///
    /// # Errors
    /// [`InvalidArgument`](TaskError::InvalidArgument) for a mistake in the tools: a name that exists twice, also among
    /// the [companions](crate::Companions) and the tools that the handler's [`get_tool`](ServerHandler::get_tool) returns;
    /// arguments that are no JSON object; a setting without a tool, without effect, or over a limit of the
    /// store.
    ///
    /// A handler that does not implement `get_tool` hides its tools until a client lists them. If one of them has the name
    /// of a task tool or of a companion, `tools/list` fails.
    pub fn new(
        handler: H,
        tasks: DurableTaskManager<B>,
        owners: OwnerSource,
        tools: TaskTools,
    ) -> Result<Self, TaskError> {
        Self::with_config(handler, tasks, owners, tools, TaskServerConfig::default())
    }

    /// Creates a server as [`new`](Self::new) does, with this configuration.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_config(
        handler: H,
        tasks: DurableTaskManager<B>,
        owners: OwnerSource,
        tools: TaskTools,
        config: TaskServerConfig,
    ) -> Result<Self, TaskError> {
        let tools: Arc<[TaskTool]> = tools.checked(tasks.store())?.into();
        if let Some(tool) = tools.iter().find(|tool| handler.get_tool(tool.name()).is_some()) {
            let reason = format!(
                "the tool {:?} exists twice: the handler has it, too; rename one of the two",
                tool.name()
            );
            return Err(TaskError::InvalidArgument { reason });
        }
        config
            .companions
            .check(|name| tools.iter().any(|tool| tool.name() == name) || handler.get_tool(name).is_some())?;
        tools.iter().for_each(|tool| telemetry::register_tool(tool.name()));
        if !config.only_enqueues {
            tools.iter().for_each(|tool| tasks.announce(tool.name()));
            tools.iter().filter(|tool| tool.is_resumable()).for_each(|tool| tasks.register_tool(tool));
        }
        Ok(Self { handler, tasks, owners, tools, config })
    }

    /// Returns what all calls share.
    pub(super) fn call_settings(&self) -> CallSettings<'_, B> {
        CallSettings { tasks: &self.tasks, owners: &self.owners, config: &self.config }
    }

    /// Returns the task tool of this name.
    pub(super) fn tool(&self, name: &str) -> Option<&TaskTool> {
        self.tools.iter().find(|tool| tool.name() == name)
    }
}
