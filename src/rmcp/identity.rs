//! What identifies an attempt at a task, and never changes during it. It is known before the task is stored.

use rmcp::model::JsonObject;
use tracing::field::Empty;
use tracing::{Id, Span, info_span};

use crate::backend::TaskKey;
use crate::spans::{self, Message};
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
    /// The `traceparent` of the span of the attempt before, while the task waits for this attempt.
    previous_attempt: Option<String>,
}

impl Identity {
    /// Returns the identity of an attempt at a stored task.
    pub(super) fn of(stored: &StoredTask, attempt: u32) -> Self {
        let task = &stored.task;
        let waiting = task.lease.as_ref().filter(|lease| lease.holder.is_none());
        Self {
            key: stored.key.clone(),
            attempt,
            operation: task.operation.clone(),
            extensions: task.extensions.clone(),
            traceparent: task.traceparent.clone(),
            can_resume: task.on_worker_lost == OnWorkerLost::Resume,
            previous_attempt: waiting.and_then(|lease| lease.traceparent.clone()),
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
            previous_attempt: None,
        }
    }

    /// Creates the span of everything that the attempt does, as a child of `parent` if there is one. In a trace, its parent is the
    /// span that created the task.
    pub(super) fn span(&self, parent: Option<Id>) -> Span {
        let (operation, traceparent) = (self.operation.as_deref(), self.traceparent.as_deref());
        let span = info_span!(
            parent: parent,
            "task",
            task = %self.key.task.printable(),
            owner = %self.key.owner.printable(),
            operation,
            attempt = self.attempt,
            traceparent,
            otel.kind = Empty,
            otel.name = Empty,
        );
        let message = Message { task: Some(&self.key.task), operation, traceparent };
        spans::attempt(&span, &message, self.attempt, self.previous_attempt.as_deref());
        span
    }
}
