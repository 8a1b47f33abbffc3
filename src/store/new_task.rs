//! What a task is created with.

use std::time::Duration;

use serde_json::Value;

use crate::task::OnWorkerLost;

/// For how long a task may run, from its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ttl {
    /// As the store's configuration says.
    #[default]
    Default,
    /// This long; a fraction of a millisecond counts as a whole one.
    After(Duration),
    /// Without end. Refused where the configuration sets a maximum.
    Unlimited,
}

impl From<Duration> for Ttl {
    fn from(ttl: Duration) -> Self {
        Self::After(ttl)
    }
}

/// What [`TaskStore::create`](crate::TaskStore::create) makes a task of.
///
/// ```
/// use std::time::Duration;
/// use mcp_task_store::NewTask;
/// use serde_json::json;
///
/// let new = NewTask::new("tools/call")
///     .arguments(json!({ "name": "render", "arguments": { "frames": 240 } }))
///     .ttl(Duration::from_secs(600))
///     .status_message("queued");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct NewTask {
    pub(super) method: String,
    pub(super) arguments: Value,
    pub(super) ttl: Ttl,
    pub(super) poll_interval: Option<Duration>,
    pub(super) status_message: Option<String>,
    pub(super) operation: Option<String>,
    pub(super) on_worker_lost: OnWorkerLost,
    pub(super) max_attempts: Option<u32>,
}

impl NewTask {
    /// A task for a call of `method`, such as `tools/call`.
    pub fn new(method: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            arguments: Value::Null,
            ttl: Ttl::Default,
            poll_interval: None,
            status_message: None,
            operation: None,
            on_worker_lost: OnWorkerLost::Fail,
            max_attempts: None,
        }
    }

    /// The arguments of the call; none unless set.
    pub fn arguments(mut self, arguments: Value) -> Self {
        self.arguments = arguments;
        self
    }

    /// For how long the task may run; as configured unless set.
    pub fn ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.ttl = ttl.into();
        self
    }

    /// How long a client should wait between two polls, in whole milliseconds, from 1 ms to 24 hours; as configured unless
    /// set.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = Some(interval);
        self
    }

    /// A first sentence for people; none unless set.
    pub fn status_message(mut self, message: impl Into<String>) -> Self {
        self.status_message = Some(message.into());
        self
    }

    /// The operation that the call is to run, by the name under which the instances of the server know it; none
    /// unless set. With the arguments in the record, it can be run again by another instance.
    pub fn operation(mut self, name: impl Into<String>) -> Self {
        self.operation = Some(name.into());
        self
    }

    /// What becomes of the task when its worker is lost; it fails unless set. Only a task with an
    /// [operation](Self::operation) can resume.
    pub fn on_worker_lost(mut self, then: OnWorkerLost) -> Self {
        self.on_worker_lost = then;
        self
    }

    /// How many workers of this task may be lost before it fails, at least 1;
    /// [as configured](crate::StoreConfig::max_attempts) unless set. It counts only for a task that can resume. Raise it
    /// for an operation that runs for days on machines that come and go; set it to 1 for one that must not run twice
    /// after a crash.
    pub fn max_attempts(mut self, max: u32) -> Self {
        self.max_attempts = Some(max.max(1));
        self
    }
}
