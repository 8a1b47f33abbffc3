//! What identifies an attempt at a task, and never changes during it. It is known before the task is stored.

use rmcp::model::JsonObject;
use tracing::{Id, Span, info_span};

use crate::backend::TaskKey;
use crate::store::NewTask;
use crate::task::{OnWorkerLost, StoredTask};

/// The identity of an attempt.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) key: TaskKey,
    /// The number of the attempt.
    pub(super) attempt: u32,
    pub(super) operation: Option<String>,
    pub(super) extensions: JsonObject,
    pub(super) traceparent: Option<String>,
    pub(super) can_resume: bool,
}

impl Identity {
    /// Returns the identity of an attempt at a stored task.
    pub(super) fn of(stored: &StoredTask, attempt: u32) -> Self {
        let task = &stored.task;
        Self {
            key: stored.key.clone(),
            attempt,
            operation: task.operation.clone(),
            extensions: task.extensions.clone(),
            traceparent: task.traceparent.clone(),
            can_resume: task.on_worker_lost == OnWorkerLost::Resume,
        }
    }

    /// Returns the identity of the first attempt at a task that is not stored yet.
    pub(super) fn of_new(key: TaskKey, new: &NewTask) -> Self {
        Self {
            key,
            attempt: 1,
            operation: new.operation.clone(),
            extensions: new.extensions.clone(),
            traceparent: new.traceparent.clone(),
            can_resume: new.on_worker_lost == OnWorkerLost::Resume,
        }
    }

    /// Creates the span of everything that the attempt does, as a child of `parent` if there is one.
    pub(super) fn span(&self, parent: Option<Id>) -> Span {
        info_span!(
            parent: parent,
            "task",
            task = %self.key.task.printable(),
            owner = %self.key.owner.printable(),
            operation = self.operation.as_deref(),
            attempt = self.attempt,
            traceparent = self.traceparent.as_deref(),
        )
    }
}
