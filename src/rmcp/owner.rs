//! Determines which owner a request belongs to.

use std::fmt;
use std::sync::Arc;

use rmcp::model::{ErrorData, Extensions, ProtocolVersion};
use rmcp::service::{RequestContext, RoleServer};

use crate::backend::OwnerId;
use crate::store::TaskError;

/// The header that names a session (MCP 2025-11-25, "Session Management").
const SESSION_ID: &str = "mcp-session-id";

/// How the server determines which owner a request belongs to.
///
/// An owner reaches its own tasks only, so a client must not be able to choose its owner. Use the subject that your
/// authentication layer has verified ([`extensions`](Self::extensions)). A server with a single user has one owner for all
/// requests ([`fixed`](Self::fixed)).
///
/// # Examples
/// A layer in front of the server verifies the token of a request and inserts an [`OwnerId`] into the request's
/// extensions. Over HTTP the SDK passes these extensions on in the `Parts` of the request:
/// ```
/// use http::request::Parts;
/// use mcp_task_store::{OwnerId, OwnerSource};
///
/// let owners = OwnerSource::extensions(|request| request.get::<Parts>()?.extensions.get::<OwnerId>().cloned());
/// ```
/// A handler then asks for the owner of its request:
/// ```
/// use mcp_task_store::{DurableTaskManager, MemoryBackend, OwnerSource};
/// use rmcp::model::{CancelTaskParams, ErrorData};
/// use rmcp::service::{RequestContext, RoleServer};
///
/// async fn cancel_task(
///     tasks: &DurableTaskManager<MemoryBackend>,
///     owners: &OwnerSource,
///     cancel: CancelTaskParams,
///     context: RequestContext<RoleServer>,
/// ) -> Result<(), ErrorData> {
///     let owner = owners.owner(&context)?;
///     Ok(tasks.cancel_task(&owner, &cancel.task_id).await?)
/// }
/// ```
#[derive(Clone)]
pub struct OwnerSource(Source);

/// Finds the owner in the extensions of a request.
type FindOwner = dyn Fn(&Extensions) -> Option<OwnerId> + Send + Sync;

#[derive(Clone)]
enum Source {
    Extensions(Arc<FindOwner>),
    Session,
    Fixed(OwnerId),
}

impl fmt::Debug for OwnerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Extensions(_) => f.write_str("Extensions(..)"),
            Source::Session => f.write_str("Session"),
            Source::Fixed(owner) => f.debug_tuple("Fixed").field(owner).finish(),
        }
    }
}

impl OwnerSource {
    /// Takes the owner from the extensions of a request, where the authentication layer has put it.
    ///
    /// Over HTTP the extensions hold the `http::request::Parts` of the request. The extensions of those parts hold
    /// the values that a layer in front of the server has inserted. `subject` returns `None` for a request without a
    /// verified subject.
    pub fn extensions(subject: impl Fn(&Extensions) -> Option<OwnerId> + Send + Sync + 'static) -> Self {
        Self(Source::Extensions(Arc::new(subject)))
    }

    /// Takes the id of the session as the owner. A client loses its tasks when its session ends.
    ///
    /// Pass the `legacy_session_mode` of the transport's `StreamableHttpServerConfig`. The SDK validates a session id
    /// only if that mode is on, and only for protocol versions before 2026-07-28. A request of a newer version has no
    /// owner, because the client can write any session id into its header.
    ///
    /// # Errors
    /// [`InvalidArgument`](TaskError::InvalidArgument) if the mode is off: the transport validates no session id, so every
    /// request would lack an owner. Use [`extensions`](Self::extensions) instead.
    ///
    /// # Examples
    /// ```
    /// use mcp_task_store::OwnerSource;
    ///
    /// // The value in the transport's `StreamableHttpServerConfig`.
    /// let legacy_session_mode = true;
    /// let owners = OwnerSource::session(legacy_session_mode)?;
    /// assert!(OwnerSource::session(false).is_err());
    /// # Ok::<(), mcp_task_store::TaskError>(())
    /// ```
    pub fn session(legacy_session_mode: bool) -> Result<Self, TaskError> {
        if legacy_session_mode {
            return Ok(Self(Source::Session));
        }
        let reason = "sessions cannot be owners while legacy_session_mode is off, because the transport validates no session id; \
                      use OwnerSource::extensions";
        Err(TaskError::InvalidArgument { reason: reason.to_owned() })
    }

    /// Takes this owner for all requests. Use it only for a server with a single user.
    ///
    /// # Examples
    /// ```
    /// use mcp_task_store::{OwnerId, OwnerSource};
    ///
    /// let owners = OwnerSource::fixed(OwnerId::try_from("me")?);
    /// # Ok::<(), mcp_task_store::StorageError>(())
    /// ```
    pub const fn fixed(owner: OwnerId) -> Self {
        Self(Source::Fixed(owner))
    }

    /// Returns the owner of a request.
    ///
    /// # Errors
    /// `-32600` (invalid request) for a request without an owner. There is no default owner.
    pub fn owner(&self, context: &RequestContext<RoleServer>) -> Result<OwnerId, ErrorData> {
        let owner = match &self.0 {
            Source::Fixed(owner) => Some(owner.clone()),
            Source::Extensions(subject) => subject(&context.extensions),
            Source::Session => validated_session(context),
        };
        owner.ok_or_else(|| {
            ErrorData::invalid_request(
                "the request has no authenticated subject that could own a task; authenticate and try again",
                None,
            )
        })
    }
}

/// Returns the session id of a request that the SDK routes to a session, and has therefore validated.
fn validated_session(context: &RequestContext<RoleServer>) -> Option<OwnerId> {
    if context.meta.protocol_version().is_some()
        || context.protocol_version()? >= ProtocolVersion::V_2026_07_28
    {
        return None;
    }
    let parts = context.extensions.get::<http::request::Parts>()?;
    OwnerId::try_from(parts.headers.get(SESSION_ID)?.to_str().ok()?).ok()
}
