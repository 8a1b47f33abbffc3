//! The server as the SDK calls it.

#![expect(deprecated, reason = "the SDK calls these methods for clients of older protocol versions")]

use std::borrow::Cow;

use rmcp::model::*;
use rmcp::service::{NotificationContext, RequestContext, RoleServer, SubscriptionContext};
use rmcp::{ErrorData, ServerHandler};

use super::task_server::TaskServer;
use super::{call, capabilities, companions, listing};
use crate::backend::Agenda;
use crate::store::TaskError;

type Context = RequestContext<RoleServer>;
type Notified = NotificationContext<RoleServer>;
type Page = Option<PaginatedRequestParams>;

/// Implements methods of `ServerHandler` by those of the wrapped handler.
macro_rules! forward {
    ($($method:ident($($argument:ident: $type:ty),+) -> $returned:ty;)+) => {$(
        async fn $method(&self, $($argument: $type),+) -> $returned {
            self.handler.$method($($argument),+).await
        }
    )+};
}

impl<H: ServerHandler, B: Agenda> ServerHandler for TaskServer<H, B> {
    forward! {
        ping(context: Context) -> Result<(), ErrorData>;
        complete(request: CompleteRequestParams, context: Context) -> Result<CompleteResult, ErrorData>;
        set_level(request: SetLevelRequestParams, context: Context) -> Result<(), ErrorData>;
        get_prompt(request: GetPromptRequestParams, context: Context) -> Result<GetPromptResponse, ErrorData>;
        list_prompts(request: Page, context: Context) -> Result<ListPromptsResult, ErrorData>;
        list_resources(request: Page, context: Context) -> Result<ListResourcesResult, ErrorData>;
        list_resource_templates(request: Page, context: Context)
            -> Result<ListResourceTemplatesResult, ErrorData>;
        read_resource(request: ReadResourceRequestParams, context: Context)
            -> Result<ReadResourceResponse, ErrorData>;
        listen(context: SubscriptionContext) -> Result<(), ErrorData>;
        subscribe(request: SubscribeRequestParams, context: Context) -> Result<(), ErrorData>;
        unsubscribe(request: UnsubscribeRequestParams, context: Context) -> Result<(), ErrorData>;
        on_custom_request(request: CustomRequest, context: Context) -> Result<CustomResult, ErrorData>;
        on_cancelled(notification: CancelledNotificationParam, context: Notified) -> ();
        on_progress(notification: ProgressNotificationParam, context: Notified) -> ();
        on_initialized(context: Notified) -> ();
        on_roots_list_changed(context: Notified) -> ();
        on_custom_notification(notification: CustomNotification, context: Notified) -> ();
        list_skills(request: Page, context: Context) -> Result<ListSkillsResult, ErrorData>;
        get_skill(request: GetSkillRequestParams, context: Context) -> Result<GetSkillResult, ErrorData>;
        read_resource_directory(request: ReadResourceDirectoryRequestParams, context: Context)
            -> Result<ReadResourceDirectoryResult, ErrorData>;
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        self.handler.supported_protocol_versions()
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        self.handler.accepted_subscription_filter(requested)
    }

    fn get_info(&self) -> ServerConfig {
        with_tasks(self.handler.get_info())
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: Context,
    ) -> Result<InitializeResult, ErrorData> {
        self.handler.initialize(request, context).await.map(with_tasks)
    }

    fn negotiate_initialize(&self, request: &InitializeRequestParams) -> Result<InitializeResult, ErrorData> {
        self.handler.negotiate_initialize(request).map(with_tasks)
    }

    async fn discover(&self, context: Context) -> Result<DiscoverResult, ErrorData> {
        let mut discovered = self.handler.discover(context).await?;
        discovered.capabilities = capabilities::with_tasks(discovered.capabilities);
        Ok(discovered)
    }

    async fn list_tools(&self, request: Page, context: Context) -> Result<ListToolsResult, ErrorData> {
        listing::page(&self.tools, &self.config.companions, &self.handler, request, context).await
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        if let Some(tool) = self.tool(name) {
            return Some(tool.tool().clone());
        }
        let companions = &self.config.companions;
        match companions.find(name) {
            Some(companion) => companions.tool(companion),
            None => self.handler.get_tool(name),
        }
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Some(tool) = self.tool(&request.name) {
            return call::answer(self.call_settings(), tool, request, &context).await;
        }
        match self.config.companions.find(&request.name) {
            Some(companion) => companions::answer(self.call_settings(), companion, request, &context).await,
            None => self.call_tool_of_handler(request, context).await,
        }
    }

    async fn get_task(&self, request: GetTaskParams, context: Context) -> Result<GetTaskResult, ErrorData> {
        let owner = self.owners.owner(&context)?;
        match self.tasks.get_task(&owner, &request.task_id).await {
            Err(error) if self.may_be_of_handler(&error) => self.handler.get_task(request, context).await,
            task => Ok(GetTaskResult::new(task?)),
        }
    }

    async fn update_task(&self, request: UpdateTaskParams, context: Context) -> Result<(), ErrorData> {
        let owner = self.owners.owner(&context)?;
        let answers = request.input_responses.clone();
        match self.tasks.update_task(&owner, &request.task_id, answers).await {
            Err(error) if self.may_be_of_handler(&error) => self.handler.update_task(request, context).await,
            updated => Ok(updated?),
        }
    }

    async fn cancel_task(&self, request: CancelTaskParams, context: Context) -> Result<(), ErrorData> {
        let owner = self.owners.owner(&context)?;
        match self.tasks.cancel_task(&owner, &request.task_id).await {
            Err(error) if self.may_be_of_handler(&error) => self.handler.cancel_task(request, context).await,
            cancelled => Ok(cancelled?),
        }
    }
}

impl<H: ServerHandler, B: Agenda> TaskServer<H, B> {
    /// Calls a tool of the handler.
    async fn call_tool_of_handler(
        &self,
        request: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = request.name.clone();
        match self.handler.call_tool(request, context).await {
            // The handler has no tools. This server does, so the name is wrong, not the method.
            Err(error) if error == ErrorData::method_not_found::<CallToolRequestMethod>() => {
                let message = format!("tool not found: {name:?}; call tools/list for the names of the tools");
                Err(ErrorData::invalid_params(message, None))
            }
            called => called,
        }
    }

    /// Returns whether the handler may have the task that the manager does not have.
    fn may_be_of_handler(&self, error: &TaskError) -> bool {
        matches!(error, TaskError::NotFound { .. }) && self.handler.get_info().capabilities.supports_tasks()
    }
}

/// Adds the capabilities of task tools to what a handler declares.
fn with_tasks(mut info: ServerConfig) -> ServerConfig {
    info.capabilities = capabilities::with_tasks(info.capabilities);
    info
}
