//! The capabilities of a server with task tools.

use rmcp::model::{ServerCapabilities, TASKS_EXTENSION_ID};

/// Adds tools and the tasks extension to the capabilities of a handler.
pub(super) fn with_tasks(mut capabilities: ServerCapabilities) -> ServerCapabilities {
    capabilities.tools.get_or_insert_default();
    capabilities.extensions.get_or_insert_default().entry(TASKS_EXTENSION_ID.to_owned()).or_default();
    capabilities
}
