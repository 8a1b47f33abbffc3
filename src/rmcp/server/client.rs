//! What the client of a call can do, as its request says.

use rmcp::model::{ClientCapabilities, ProgressToken, ProtocolVersion};
use rmcp::service::{RequestContext, RoleServer};

/// The client of one request.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// What the client declares. A client of an older protocol without a session declares nothing, because only its
    /// `initialize` could.
    pub(super) capabilities: ClientCapabilities,
    /// The client answers the questions of an operation by repeating its call (2026-07-28). An older one answers requests of
    /// the server.
    pub(super) repeats_calls: bool,
    /// The client asks for notifications about the progress of its call.
    pub(super) progress_token: Option<ProgressToken>,
}

impl Client {
    pub(super) fn of(context: &RequestContext<RoleServer>) -> Self {
        let version = context.protocol_version();
        Self {
            capabilities: context.client_capabilities().unwrap_or_default(),
            repeats_calls: version.is_some_and(|version| version >= ProtocolVersion::V_2026_07_28),
            progress_token: context.meta.get_progress_token(),
        }
    }

    /// Returns whether the client polls tasks.
    pub(super) fn has_tasks(&self) -> bool {
        self.capabilities.supports_tasks()
    }
}
