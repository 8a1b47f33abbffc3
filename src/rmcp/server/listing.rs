//! The list of all tools: the task tools, the companions, then those of the handler.

use rmcp::ServerHandler;
use rmcp::model::{CacheScope, ErrorCode, ErrorData, ListToolsResult, PaginatedRequestParams, Tool};
use rmcp::service::{RequestContext, RoleServer};

use super::client::Client;
use super::companion_names::Companions;
use super::output_schema::accept_state;
use crate::rmcp::tools::TaskTool;

/// Returns a page of all tools. The first page has the task tools, the companions if the client does not support tasks, and the
/// first page of the handler. The cursors are those of the handler.
///
/// # Errors
/// `-32603` (internal error) if a tool of the handler has the name of a task tool or a companion; the errors of the handler.
pub(super) async fn page<H: ServerHandler>(
    tools: &[TaskTool],
    companions: &Companions,
    handler: &H,
    request: Option<PaginatedRequestParams>,
    context: RequestContext<RoleServer>,
) -> Result<ListToolsResult, ErrorData> {
    let client = Client::of(&context);
    let is_first = request.as_ref().is_none_or(|request| request.cursor.is_none());
    let mut page = match handler.list_tools(request, context).await {
        // The handler has no tools.
        Err(error) if is_first && error.code == ErrorCode::METHOD_NOT_FOUND => ListToolsResult::default(),
        page => page?,
    };
    let is_own = |name: &str| tools.iter().any(|tool| tool.name() == name) || companions.find(name).is_some();
    if let Some(tool) = page.tools.iter().find(|listed| is_own(&listed.name)) {
        let name = &tool.name;
        let message =
            format!("the tool {name:?} exists twice; the author of the server must rename one of the two");
        return Err(ErrorData::internal_error(message, None));
    }
    if is_first {
        let companions = if client.has_tasks() { Vec::new() } else { companions.tools() };
        if page.ttl_ms.is_some() || page.cache_scope.is_some() {
            // Clients with tasks have another list than clients without.
            page.cache_scope = Some(CacheScope::Private);
        }
        page.tools.splice(..0, tools.iter().map(|tool| listed(tool, &client)).chain(companions));
    }
    Ok(page)
}

/// Returns a tool as this client sees it.
fn listed(tool: &TaskTool, client: &Client) -> Tool {
    let mut listed = tool.tool().clone();
    if !client.has_tasks() && !tool.is_required() {
        accept_state(&mut listed);
    }
    listed
}
