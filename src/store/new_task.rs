//! The options of a new task, and the task that the store creates from them.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};

use super::config::{DEFAULT_MAX_ATTEMPTS, MAX_JSON_DEPTH, StoreConfig};
use super::durations::millis;
use super::error::TaskError;
use super::limits::check_life;
use super::limits::{check, check_depth, check_extensions, check_poll_interval, check_retention};
#[cfg(feature = "rmcp")]
use super::progress_report::ProgressReport;
use super::retry::Retry;
use super::ttl::{Ttl, expiry, resolve_ttl};
use crate::backend::{Expiry, Priority, Queue, TaskId};
use crate::task::{EventKind, Lease, OnWorkerLost, Progress, Task, TaskStatus, traceparent};

/// A task that [`TaskStore::create`](crate::TaskStore::create) or [`TaskStore::start`](crate::TaskStore::start) stores.
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
    method: String,
    arguments: Value,
    ttl: Ttl,
    retention: Option<Duration>,
    poll_interval: Option<Duration>,
    status_message: Option<String>,
    progress: Option<Progress>,
    pub(crate) operation: Option<String>,
    pub(crate) on_worker_lost: OnWorkerLost,
    max_attempts: Option<u32>,
    retry: Option<Retry>,
    pub(crate) extensions: Map<String, Value>,
    pub(crate) traceparent: Option<String>,
    unique: Option<String>,
    priority: Priority,
    earliest_start: EarliestStart,
    requeued_from: Option<TaskId>,
}

/// When the first attempt at an enqueued task may begin.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum EarliestStart {
    #[default]
    Now,
    After(Duration),
    At(DateTime<Utc>),
}

impl NewTask {
    /// Returns a task for a call of `method`, such as `tools/call`.
    pub fn new(method: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            arguments: Value::Null,
            ttl: Ttl::Default,
            retention: None,
            poll_interval: None,
            status_message: None,
            progress: None,
            operation: None,
            on_worker_lost: OnWorkerLost::Fail,
            max_attempts: None,
            retry: None,
            extensions: Map::new(),
            traceparent: None,
            unique: None,
            priority: Priority::default(),
            earliest_start: EarliestStart::default(),
            requeued_from: None,
        }
    }

    /// Sets the arguments of the call; none by default.
    pub fn arguments(mut self, arguments: Value) -> Self {
        self.arguments = arguments;
        self
    }

    /// Sets how long the task may run; by default as [configured](crate::StoreConfig::default_ttl).
    pub fn ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.ttl = ttl.into();
        self
    }

    /// Sets how long the record of the task lives after the task has ended, from 1 ms to 100 years. By default it lives for the TTL and
    /// the [configured](crate::StoreConfig::retention) retention, whenever the task ends.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Sets how long a client should wait between two polls; by default as
    /// [configured](crate::StoreConfig::default_poll_interval). The store accepts 1 ms to 24 hours, and rounds the
    /// interval up to whole milliseconds.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = Some(interval);
        self
    }

    /// Sets the first status message, a sentence for people; none by default.
    pub fn status_message(mut self, message: impl Into<String>) -> Self {
        self.status_message = Some(message.into());
        self
    }

    /// Sets the name under which the instances of the server have registered the operation of the call; none by
    /// default. The arguments are in the record, so another instance can run the operation again.
    pub fn operation(mut self, name: impl Into<String>) -> Self {
        self.operation = Some(name.into());
        self
    }

    /// Sets what happens to the task when its worker is lost; by default the task fails. Only a task with an
    /// [operation](Self::operation) can resume.
    pub fn on_worker_lost(mut self, then: OnWorkerLost) -> Self {
        self.on_worker_lost = then;
        self
    }

    /// Sets the number of attempts at which this task fails, at least 1; by default as
    /// [configured](crate::StoreConfig::max_attempts). It has an effect only on a task that can resume.
    ///
    /// Raise it for an operation that runs for days on machines that are often replaced. Set it to 1 for an operation
    /// that must not run twice after a crash.
    pub fn max_attempts(mut self, max: u32) -> Self {
        self.max_attempts = Some(max.max(1));
        self
    }

    /// Sets how many attempts this task has, and how long it waits before each further one. Only a task that can resume may have
    /// a retry. It states the number of attempts, so [`max_attempts`](Self::max_attempts) must not be set.
    ///
    /// By default a task whose worker is lost waits as described in the guide about [workers](crate::guide::workers). An error of
    /// the operation is retried only if the worker calls [`Attempt::retry`](crate::Attempt::retry).
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Sets what the task keeps of the request, for example the tenant or the locale; nothing by default. The values are
    /// in the record, so every attempt on every instance can read them. They never change, and have at most 4 KiB as JSON.
    ///
    /// Whoever can read the engine can read the values. So do not keep the token of a request.
    pub fn extensions(mut self, extensions: Map<String, Value>) -> Self {
        self.extensions = extensions;
        self
    }

    /// Sets the `traceparent` of the request (W3C Trace Context, version 00); none by default. Every attempt belongs to
    /// this trace.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// Sets which of the tasks that wait for a worker of this operation are claimed first; [`Priority::Normal`] by default. It
    /// applies whenever the task waits, also between two attempts.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Lets the first attempt at an [enqueued](crate::TaskStore::enqueue) task begin only after this time; at once by default. The
    /// delay must be shorter than the TTL, which counts from the creation.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.earliest_start = EarliestStart::After(delay);
        self
    }

    /// Lets the first attempt at an [enqueued](crate::TaskStore::enqueue) task begin only at this time of the engine's clock; a time
    /// in the past means at once. Replaces a [`delay`](Self::delay).
    pub fn not_before(mut self, time: DateTime<Utc>) -> Self {
        self.earliest_start = EarliestStart::At(time);
        self
    }

    /// Returns a task that does the work of an ended task again, with these arguments.
    pub(super) fn again(ended: &Task, arguments: Value) -> Self {
        let attempts = ended.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS);
        let retry = ended.retry.as_ref().map(|delay| Retry::of(delay, attempts));
        Self {
            arguments,
            ttl: ended.ttl_ms.map_or(Ttl::Unlimited, |ms| Duration::from_millis(ms).into()),
            retention: ended.retention(),
            poll_interval: ended.poll_interval_ms.map(Duration::from_millis),
            operation: ended.operation.clone(),
            on_worker_lost: ended.on_worker_lost,
            max_attempts: retry.is_none().then_some(attempts),
            retry,
            extensions: ended.extensions.clone(),
            traceparent: ended.traceparent.clone(),
            priority: ended.priority,
            requeued_from: Some(ended.task_id.clone()),
            ..Self::new(ended.method.clone())
        }
    }

    /// Sets the earliest start. Replaces a [`delay`](Self::delay) and a [`not_before`](Self::not_before).
    #[cfg(feature = "rmcp")]
    pub(crate) fn earliest_start(mut self, start: EarliestStart) -> Self {
        self.earliest_start = start;
        self
    }

    /// Sets what the operation of this task has reported before the task is stored.
    #[cfg(feature = "rmcp")]
    pub(crate) fn report(mut self, report: ProgressReport) -> Self {
        self.status_message = Some(report.status_message);
        self.progress = report.progress;
        self
    }

    /// Sets the id of the pointer that names this task.
    pub(super) fn unique(mut self, pointer: String) -> Self {
        self.unique = Some(pointer);
        self
    }

    /// Returns how long an enqueued task waits from `now` on until its first attempt may begin.
    pub(super) fn delay_at(&self, now: DateTime<Utc>, config: &StoreConfig) -> Result<Duration, TaskError> {
        let delay = match self.earliest_start {
            EarliestStart::Now => return Ok(Duration::ZERO),
            EarliestStart::After(delay) => delay,
            EarliestStart::At(time) => (time - now).to_std().unwrap_or_default(),
        };
        let longest = resolve_ttl(self.ttl, config)?.unwrap_or(Expiry::MAX);
        if delay < longest {
            return Ok(delay);
        }
        let reason = format!(
            "the task would begin {delay:?} after its creation, and its TTL of {longest:?} elapses before that; set a longer TTL or a shorter delay"
        );
        Err(TaskError::InvalidArgument { reason })
    }

    /// Checks that the task can wait for a worker.
    pub(super) fn check_can_wait(&self) -> Result<(), TaskError> {
        if self.operation.is_some() {
            return Ok(());
        }
        let reason =
            "a task without an operation cannot wait for a worker; set NewTask::operation".to_owned();
        Err(TaskError::InvalidArgument { reason })
    }

    /// Checks the task against the configuration. Returns when its record will expire.
    pub(super) fn record_expiry(&self, config: &StoreConfig) -> Result<Expiry, TaskError> {
        self.check(config)?;
        expiry(resolve_ttl(self.ttl, config)?, TimeDelta::zero(), self.retention, config)
    }

    /// Checks the task against the configuration. Returns the task to store, and when its record expires.
    pub(super) fn into_task(
        self,
        id: TaskId,
        now: DateTime<Utc>,
        lease: Option<Lease>,
        config: &StoreConfig,
    ) -> Result<(Task, Expiry), TaskError> {
        self.check(config)?;
        let is_enqueued = lease.as_ref().is_some_and(|lease| lease.holder.is_none());
        if !is_enqueued && !matches!(self.earliest_start, EarliestStart::Now) {
            let reason = "only an enqueued task can begin later; use TaskStore::enqueue".to_owned();
            return Err(TaskError::InvalidArgument { reason });
        }
        let poll_interval = self.poll_interval.or(config.default_poll_interval);
        poll_interval.map_or(Ok(()), check_poll_interval)?;
        let ttl = resolve_ttl(self.ttl, config)?;
        let expiry = expiry(ttl, TimeDelta::zero(), self.retention, config)?;
        // Only a number other than the default is in the record.
        let max_attempts = (self.on_worker_lost == OnWorkerLost::Resume)
            .then(|| {
                self.retry.map(|retry| retry.attempts()).or(self.max_attempts).unwrap_or(config.max_attempts)
            })
            .filter(|max| *max != DEFAULT_MAX_ATTEMPTS);
        let mut task = Task {
            task_id: id,
            status: TaskStatus::Working,
            status_message: self.status_message,
            progress: self.progress,
            created_at: now,
            last_updated_at: now,
            ttl_ms: ttl.map(millis),
            retention_ms: self.retention.map(millis),
            poll_interval_ms: poll_interval.map(millis),
            method: self.method,
            arguments: self.arguments.into(),
            input_requests: BTreeMap::new(),
            input_responses: BTreeMap::new(),
            answered_requests: BTreeMap::new(),
            cancel_requested: false,
            checkpoint: None,
            result: None,
            error: None,
            lease,
            operation: self.operation,
            priority: self.priority,
            on_worker_lost: self.on_worker_lost,
            max_attempts,
            retry: self.retry.map(|retry| retry.delay()),
            gave_up_after: None,
            requeued_from: self.requeued_from,
            variables: BTreeMap::new(),
            extensions: self.extensions,
            traceparent: self.traceparent,
            unique: self.unique,
            history: Vec::new(),
            adapter: Default::default(),
            write_ids: Vec::new(),
            held_parts: Default::default(),
            exact: Default::default(),
            new_events: Vec::new(),
            unknown_status: None,
            extra: Map::new(),
        };
        note_creation(&mut task);
        task.record_events(now);
        Ok((task, expiry))
    }

    /// Checks whatever can be checked without the engine.
    pub(super) fn check_all(&self, config: &StoreConfig) -> Result<(), TaskError> {
        self.check(config)?;
        self.poll_interval.or(config.default_poll_interval).map_or(Ok(()), check_poll_interval)?;
        match self.record_expiry(config)? {
            Expiry::After(life) => check_life(life),
            _ => Ok(()),
        }
    }

    fn check(&self, config: &StoreConfig) -> Result<(), TaskError> {
        if self.method.is_empty() {
            return Err(TaskError::InvalidArgument {
                reason: "the method is empty; name the method of the call, tools/call for example".to_owned(),
            });
        }
        if self.on_worker_lost == OnWorkerLost::Resume && self.operation.is_none() {
            let reason = "a task without an operation cannot resume; set NewTask::operation".to_owned();
            return Err(TaskError::InvalidArgument { reason });
        }
        let work = |operation| Queue::work(operation, self.priority);
        self.check_retry()?;
        let work_queue = self.operation.as_deref().map(work).transpose();
        work_queue.map_err(|error| TaskError::InvalidArgument { reason: error.to_string() })?;
        if let Some(invalid) = self.traceparent.as_deref().filter(|text| !traceparent::is_valid(text)) {
            let reason =
                format!("{invalid:?} is not a traceparent of version 00; create the task without one");
            return Err(TaskError::InvalidArgument { reason });
        }
        self.retention.map_or(Ok(()), check_retention)?;
        check_extensions(&self.extensions)?;
        check_depth("depth of the arguments", &self.arguments, MAX_JSON_DEPTH)?;
        let message_bytes = self.status_message.as_ref().map_or(0, String::len);
        check("bytes of a status message", message_bytes, config.max_status_message_bytes)
    }

    fn check_retry(&self) -> Result<(), TaskError> {
        let Some(retry) = &self.retry else { return Ok(()) };
        retry.check()?;
        let invalid = |reason: &str| Err(TaskError::InvalidArgument { reason: reason.to_owned() });
        if self.on_worker_lost != OnWorkerLost::Resume {
            return invalid(
                "a task that cannot resume cannot retry; set NewTask::on_worker_lost to OnWorkerLost::Resume",
            );
        }
        if self.max_attempts.is_some() {
            return invalid(
                "the retry of the task states the number of attempts; remove NewTask::max_attempts",
            );
        }
        Ok(())
    }
}

/// Notes the creation of a task, and how it begins.
fn note_creation(task: &mut Task) {
    let begin = task.lease.as_ref().map(|lease| match (&lease.holder, &task.requeued_from) {
        (Some(_), _) => EventKind::Started,
        (None, Some(_)) => EventKind::Requeued,
        (None, None) => EventKind::Enqueued,
    });
    task.note(EventKind::Created);
    if let Some(begin) = begin {
        task.note(begin);
    }
}
