//! What a task keeps of the request that starts it.

use std::sync::Arc;

use rmcp::model::JsonObject;
use rmcp::service::{RequestContext, RoleServer};

use crate::store::NewTask;
use crate::task::traceparent;

/// Finds the values of a request that its task keeps.
pub(super) type FindExtensions = Arc<dyn Fn(&RequestContext<RoleServer>) -> JsonObject + Send + Sync>;

/// Adds what a task keeps of its request: the position in a trace, and the values that the server has chosen.
pub(super) fn keep(
    new: NewTask,
    context: &RequestContext<RoleServer>,
    extensions: Option<&FindExtensions>,
) -> NewTask {
    let new = match extensions {
        Some(find) => new.extensions(find(context)),
        None => new,
    };
    match traceparent(context) {
        Some(parent) => new.traceparent(parent),
        None => new,
    }
}

/// Returns the `traceparent` of a request. A server ignores one that it cannot read, as W3C Trace Context says.
pub(super) fn traceparent(context: &RequestContext<RoleServer>) -> Option<&str> {
    context.meta.get_traceparent().filter(|text| traceparent::is_valid(text))
}
