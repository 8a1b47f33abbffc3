//! Whose tasks a request is about.

use std::fmt;
use std::sync::Arc;

use rmcp::model::{ErrorData, Extensions, ProtocolVersion};
use rmcp::service::{RequestContext, RoleServer};

use crate::backend::OwnerId;

/// The header that names a session (MCP 2025-11-25, "Session Management").
const SESSION_ID: &str = "mcp-session-id";

/// Finds the owner in the extensions of a request.
pub type Subject = Arc<dyn Fn(&Extensions) -> Option<OwnerId> + Send + Sync>;

/// How the server determines which owner a request belongs to. An owner reaches its own tasks only, so it must be something
/// that a client cannot choose.
#[derive(Clone)]
#[non_exhaustive]
pub enum OwnerSource {
    /// What the authentication layer has put into the extensions of the request. Over HTTP these hold the
    /// `http::request::Parts`, whose own extensions hold what a layer in front of the server has put there.
    /// `None` is a request without a subject.
    Extensions(Subject),
    /// The session that the SDK's HTTP transport has looked up, see [`session`](Self::session).
    Session {
        /// Whether the transport keeps sessions.
        legacy_session_mode: bool,
    },
    /// One owner for all requests, for a server with a single user.
    Fixed(OwnerId),
}

impl fmt::Debug for OwnerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extensions(_) => f.write_str("Extensions(..)"),
            Self::Session { legacy_session_mode } => {
                f.debug_struct("Session").field("legacy_session_mode", legacy_session_mode).finish()
            }
            Self::Fixed(owner) => f.debug_tuple("Fixed").field(owner).finish(),
        }
    }
}

impl OwnerSource {
    /// What this function finds in the extensions of a request.
    pub fn extensions(subject: impl Fn(&Extensions) -> Option<OwnerId> + Send + Sync + 'static) -> Self {
        Self::Extensions(Arc::new(subject))
    }

    /// The id of the session, which ends with the session: its client cannot reach its tasks any more after that.
    ///
    /// The SDK looks a session id up only for requests of protocol versions before 2026-07-28, and only if
    /// `legacy_session_mode` is on in the `StreamableHttpServerConfig` of the transport, which you must pass here.
    /// In every other case the header is whatever the client has written into it, and the request has no subject.
    pub const fn session(legacy_session_mode: bool) -> Self {
        Self::Session { legacy_session_mode }
    }

    /// The owner of a request's tasks.
    ///
    /// # Errors
    /// `-32600` (invalid request) for a request without a subject. There is no owner by default.
    pub fn owner(&self, context: &RequestContext<RoleServer>) -> Result<OwnerId, ErrorData> {
        let owner = match self {
            Self::Fixed(owner) => Some(owner.clone()),
            Self::Extensions(subject) => subject(&context.extensions),
            Self::Session { legacy_session_mode } => {
                legacy_session_mode.then(|| validated_session(context)).flatten()
            }
        };
        owner.ok_or_else(|| {
            ErrorData::invalid_request("the request has no subject that could own a task", None)
        })
    }
}

/// The session id of a request that the SDK routes to a session.
fn validated_session(context: &RequestContext<RoleServer>) -> Option<OwnerId> {
    if context.meta.protocol_version().is_some()
        || context.protocol_version()? >= ProtocolVersion::V_2026_07_28
    {
        return None;
    }
    let parts = context.extensions.get::<http::request::Parts>()?;
    OwnerId::try_from(parts.headers.get(SESSION_ID)?.to_str().ok()?).ok()
}
