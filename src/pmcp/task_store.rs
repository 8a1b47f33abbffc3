//! The lifecycle of this crate as the task store of a `pmcp` server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::SecondsFormat;
use pmcp::server::task_store::{
    StoreConfig, TaskInputDelivery, TaskInputSnapshot, TaskStore as PmcpStore, TaskStoreError,
    partition_input_delivery,
};
use pmcp::types::CallToolResult;
use pmcp::types::mrtr::{InputRequest, InputRequests, InputResponse, InputResponses};
use pmcp::types::tasks::{Task as WireTask, TaskStatus as WireStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{owner, public_text};
use crate::backend::{Agenda, PageRequest, TaskId, TaskKey};
use crate::printable::Chain;
use crate::store::{Draft, NewTask, TaskError, TaskStore};
use crate::task::{PayloadKind, RpcError, StoredTask, Task, TaskStatus};

/// The only method that `pmcp` makes tasks of.
const METHOD: &str = "tools/call";
/// How many tasks `pmcp`'s own stores put on a page.
const PAGE: usize = 20;
/// Where a record keeps all requests of a task, those that are answered or withdrawn included: `pmcp` reads from them
/// of which kind an answer is.
const REQUESTS: &str = "recordedInputRequests";
/// Where a record keeps an error that is not exactly a JSON-RPC error object.
const ERROR: &str = "recordedError";

/// What `pmcp`'s `ServerBuilder::task_store(...)` takes, on any engine.
///
/// ```
/// use std::sync::Arc;
/// use mcp_task_store::PmcpTaskStore;
/// use mcp_task_store::{MemoryBackend, TaskStore};
///
/// # fn build() -> pmcp::Result<pmcp::Server> {
/// let tasks = PmcpTaskStore::new(TaskStore::new(MemoryBackend::new()));
/// pmcp::Server::builder().name("render").version("1.0.0").task_store(Arc::new(tasks)).build()
/// # }
/// # build().unwrap();
/// ```
///
/// It answers as `pmcp`'s `InMemoryTaskStore` does, on pages of 20 tasks, and cuts a TTL to the longest one that is
/// configured, with these differences:
///
/// * **A task ends once.** `pmcp` ends a task in two calls, in either order: `set_result` and
///   `update_status(Completed)`, or `set_error` and `update_status(Failed)`. The first ends it, so that no crash in
///   between leaves it open; the second finds it so, and adds what the first did not bring (the result, the error,
///   or the status message). What has once been given to an ended task is never replaced: that is an
///   `InvalidTransition`, and so is a result for a cancelled task.
/// * **More rounds of input**: requests under new keys may follow when those before are answered. A key that was
///   used before is refused as `Internal`.
/// * **Time**: a task whose TTL elapses before it has ended is shown as failed with "TTL elapsed". After its TTL, a call
///   that the status does not allow is `Expired`. Ended tasks are kept, result and all, for the retention that is
///   [configured](crate::StoreConfig::retention) on top of their TTL; what is gone is `NotFound`.
/// * A TTL of 0 is refused, and so is what goes beyond the limits of [`StoreConfig`](crate::StoreConfig).
/// * A cursor that was not given out by `list` is refused. A page may be short, or empty, before the last one.
/// * Writes that race are made again one after the other, as [`TaskStore`] does, so none is refused for the race alone.
///
/// `pmcp`'s trait has no cooperative cancellation, so `cancel` makes a task cancelled at once, and no arguments and
/// variables. [`tasks`](Self::tasks) is the same store with these; a task that was asked to cancel there takes no
/// more requests here.
///
/// # Errors
/// `NotFound` for a task that does not exist, is gone, or is another owner's, and for ids that no task can have;
/// `InvalidTransition` when the status does not allow the call; `Expired` as above; `Internal` with a reason for a
/// quota, a limit, and a call that made no sense. What an engine reports is logged, with its source, and only its
/// kind is said in `Internal`: the text reaches the client and names no host.
///
/// # Cancellation safety
/// Dropping the future of a call that changes something leaves the change made or not, as a whole.
#[derive(Debug)]
pub struct PmcpTaskStore<B> {
    tasks: TaskStore<B>,
    config: StoreConfig,
}

impl<B> Clone for PmcpTaskStore<B> {
    fn clone(&self) -> Self {
        Self { tasks: self.tasks.clone(), config: self.config.clone() }
    }
}

impl<B: Agenda> PmcpTaskStore<B> {
    /// The store behind `pmcp`'s trait. `pmcp` reads its defaults and limits from that of `tasks`.
    pub fn new(tasks: TaskStore<B>) -> Self {
        let defaults = tasks.defaults();
        let config = StoreConfig {
            default_ttl_ms: defaults.ttl,
            max_ttl_ms: defaults.max_ttl,
            // It cannot be left out here, as it can in a task.
            default_poll_interval_ms: defaults
                .poll_interval
                .unwrap_or(StoreConfig::default().default_poll_interval_ms),
            max_tasks_per_owner: defaults
                .max_tasks_per_owner
                .and_then(|max| usize::try_from(max).ok())
                .unwrap_or(usize::MAX),
        };
        Self { tasks, config }
    }

    /// The store below, for what `pmcp`'s trait does not have.
    pub fn tasks(&self) -> &TaskStore<B> {
        &self.tasks
    }

    async fn read(&self, task_id: &str, owner_id: &str) -> Result<StoredTask, TaskStoreError> {
        let key = key(task_id, owner_id)?;
        self.tasks.get(&key).await.map_err(|error| store_error(error, task_id, None))
    }

    /// The result of a task that was read, loaded if it is a part of the record.
    async fn result(&self, stored: &StoredTask) -> Result<Option<Value>, TaskStoreError> {
        let result = self.tasks.payload(stored, PayloadKind::Output).await;
        result.map_err(|error| store_error(error, stored.key.task.as_str(), None))
    }

    /// Changes a task; `to` is the status to which the call would bring it, if to another one.
    async fn change(
        &self,
        operation: &'static str,
        (task_id, owner_id): (&str, &str),
        to: Option<WireStatus>,
        change: impl Fn(&mut Draft<'_>) -> Result<bool, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskStoreError> {
        let key = key(task_id, owner_id)?;
        let expired = AtomicBool::new(false);
        let changed = self.tasks.amend(operation, &key, |draft| {
            let outcome = change(draft);
            let refused = matches!(outcome, Err(TaskError::InvalidTransition { .. }));
            let deadline = draft.task.deadline();
            let has_passed = deadline.is_some_and(|deadline| deadline <= self.tasks.backend().now());
            expired.store(refused && has_passed, Ordering::Relaxed);
            outcome
        });
        changed.await.map_err(|error| match error {
            TaskError::InvalidTransition { .. } if expired.load(Ordering::Relaxed) => {
                TaskStoreError::Expired { task_id: task_id.to_owned() }
            }
            error => store_error(error, task_id, to),
        })
    }
}

impl<B: Agenda> From<TaskStore<B>> for PmcpTaskStore<B> {
    fn from(tasks: TaskStore<B>) -> Self {
        Self::new(tasks)
    }
}

#[async_trait]
impl<B: Agenda> PmcpStore for PmcpTaskStore<B> {
    async fn create(&self, owner_id: &str, ttl: Option<u64>) -> Result<WireTask, TaskStoreError> {
        let owner = owner(owner_id).map_err(|error| internal(error.to_string()))?;
        let mut new = NewTask::new(METHOD);
        if let Some(ttl) = ttl {
            new = new.ttl(Duration::from_millis(ttl.min(self.config.max_ttl_ms.unwrap_or(u64::MAX))));
        }
        let created = self.tasks.create(&owner, new).await;
        created.map(|stored| wire(stored.task.into_task())).map_err(|error| store_error(error, "", None))
    }

    async fn get(&self, task_id: &str, owner_id: &str) -> Result<WireTask, TaskStoreError> {
        self.read(task_id, owner_id).await.map(|stored| wire(stored.task.into_task()))
    }

    async fn update_status(
        &self,
        task_id: &str,
        owner_id: &str,
        status: WireStatus,
        message: Option<String>,
    ) -> Result<WireTask, TaskStoreError> {
        let to = status_from(status);
        let change = |draft: &mut Draft<'_>| {
            match (draft.task.status, to) {
                // The second call of two that end a task. A message that is there is part of the outcome.
                (TaskStatus::Completed, TaskStatus::Completed) | (TaskStatus::Failed, TaskStatus::Failed) => {
                    if draft.task.status_message.is_some() || message.is_none() {
                        return Ok(false);
                    }
                }
                (from, _) if !wire_status(from).can_transition_to(&status) => {
                    return Err(draft.refusal("change its status"));
                }
                (_, TaskStatus::Working) => {
                    let asked = asked(draft.task);
                    if !asked.is_empty() {
                        record(draft.task, asked);
                    }
                    draft.task.input_requests.clear();
                    draft.task.status = to;
                }
                (_, TaskStatus::InputRequired) => await_input(draft)?,
                (_, TaskStatus::Completed | TaskStatus::Failed | TaskStatus::Cancelled) => draft.end(to)?,
            }
            draft.set_status_message(message.as_deref())?;
            Ok(true)
        };
        let changed = self.change("update_status", (task_id, owner_id), Some(status), change).await?;
        Ok(wire(changed.task.into_task()))
    }

    async fn list(
        &self,
        owner_id: &str,
        cursor: Option<&str>,
    ) -> Result<(Vec<WireTask>, Option<String>), TaskStoreError> {
        let Ok(owner) = owner(owner_id) else {
            return Ok((Vec::new(), None));
        };
        let mut request = PageRequest::new(PAGE);
        if let Some(cursor) = cursor {
            request = request.after(cursor);
        }
        let page = self.tasks.list(&owner, request).await.map_err(|error| store_error(error, "", None))?;
        for task in &page.unreadable {
            tracing::warn!(owner = %owner.printable(), task = %task.printable(), "left a task out of a page: its record cannot be read");
        }
        let tasks = page.tasks.into_iter().map(|stored| wire(stored.task.into_task())).collect();
        Ok((tasks, page.next.map(|cursor| cursor.as_str().to_owned())))
    }

    async fn cancel(&self, task_id: &str, owner_id: &str) -> Result<WireTask, TaskStoreError> {
        self.update_status(task_id, owner_id, WireStatus::Cancelled, None).await
    }

    async fn cleanup_expired(&self) -> Result<usize, TaskStoreError> {
        let removed = self.tasks.cleanup().await.map_err(|error| store_error(error, "", None))?;
        Ok(usize::try_from(removed).unwrap_or(usize::MAX))
    }

    fn config(&self) -> &StoreConfig {
        &self.config
    }

    async fn set_result(
        &self,
        task_id: &str,
        owner_id: &str,
        result: CallToolResult,
    ) -> Result<(), TaskStoreError> {
        let result = to_json("result", &result)?;
        let (id, to) = ((task_id, owner_id), Some(WireStatus::Completed));
        let has_one = AtomicBool::new(false);
        let change = |draft: &mut Draft<'_>| {
            let is_completed = draft.task.status == TaskStatus::Completed;
            has_one.store(is_completed && draft.task.result.is_some(), Ordering::Relaxed);
            match (draft.task.status, &draft.task.result) {
                // Compared below, as a change cannot load it. It never changes any more.
                (TaskStatus::Completed, Some(_)) => return Ok(false),
                (TaskStatus::Completed, None) => {
                    draft.check_depth("depth of a result", &result)?;
                    draft.task.result = Some(result.clone().into());
                }
                _ => {
                    draft.complete(&result)?;
                    // It told of a step on the way. That of the end comes with the second call.
                    draft.task.status_message = None;
                }
            }
            Ok(true)
        };
        let stored = self.change("set_result", id, to, change).await?;
        if !has_one.into_inner() || self.result(&stored).await?.as_ref() == Some(&result) {
            return Ok(());
        }
        // It has another one, so it is refused as any change of an ended task is.
        self.change("set_result", id, to, |draft| draft.complete(&result).map(|()| true)).await.map(drop)
    }

    async fn get_result(&self, task_id: &str, owner_id: &str) -> Result<CallToolResult, TaskStoreError> {
        let stored = self.read(task_id, owner_id).await?;
        let result = self.result(&stored).await?;
        from_json("result", result.ok_or_else(|| not_found(task_id))?)
    }

    fn supports_results(&self) -> bool {
        true
    }

    async fn deliver_task_inputs(
        &self,
        task_id: &str,
        owner_id: &str,
        responses: InputResponses,
    ) -> Result<TaskInputDelivery, TaskStoreError> {
        let responses = responses
            .iter()
            .map(|(key, response)| Ok((key.clone(), to_json("input response", response)?)))
            .collect::<Result<BTreeMap<_, _>, TaskStoreError>>()?;
        let delivery = Mutex::default();
        let change = |draft: &mut Draft<'_>| {
            if draft.task.status != TaskStatus::InputRequired {
                return Err(draft.refusal("deliver inputs"));
            }
            let open = &draft.task.input_requests;
            let asked = asked(draft.task);
            let keys: BTreeSet<String> = asked.keys().cloned().collect();
            let is_answered = |key: &str| !open.contains_key(key);
            let parts = partition_input_delivery(&keys, is_answered, responses.keys().cloned());
            let changed = draft.deliver_inputs(&responses)?;
            record(draft.task, asked);
            *delivery.lock().unwrap_or_else(PoisonError::into_inner) = parts;
            Ok(changed)
        };
        let to = Some(WireStatus::Working);
        self.change("deliver_task_inputs", (task_id, owner_id), to, change).await?;
        Ok(delivery.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn task_input_snapshot(
        &self,
        task_id: &str,
        owner_id: &str,
    ) -> Result<TaskInputSnapshot, TaskStoreError> {
        let StoredTask { task, .. } = self.read(task_id, owner_id).await?;
        let asked = asked(&task);
        if asked.is_empty() && !task.extra.contains_key(REQUESTS) {
            return Err(not_found(task_id));
        }
        let mut snapshot = TaskInputSnapshot {
            input_requests: InputRequests::new(),
            input_responses: InputResponses::new(),
            status: wire_status(task.status),
        };
        for (key, request) in asked {
            let request: InputRequest = from_json("input request", request)?;
            if let Some(response) = task.input_responses.get(&key) {
                // The answers of different kinds look alike, so only the request tells.
                let response = InputResponse::decode_for(request.kind(), response.clone());
                snapshot.input_responses.insert(
                    key.clone(),
                    response
                        .map_err(|error| internal(format!("an input response cannot be read: {error}")))?,
                );
            }
            snapshot.input_requests.insert(key, request);
        }
        Ok(snapshot)
    }

    async fn record_input_requests(
        &self,
        task_id: &str,
        owner_id: &str,
        requests: InputRequests,
    ) -> Result<WireTask, TaskStoreError> {
        let requests = requests
            .iter()
            .map(|(key, request)| Ok((key.clone(), to_json("input request", request)?)))
            .collect::<Result<Map<_, _>, TaskStoreError>>()?;
        let change = |draft: &mut Draft<'_>| {
            let mut recorded = asked(draft.task);
            if draft.task.status == TaskStatus::InputRequired && !recorded.is_empty() {
                let reason = format!("task {} has input requests already", draft.task.task_id);
                return Err(TaskError::InvalidArgument { reason });
            }
            if draft.task.status != TaskStatus::Working {
                return Err(draft.refusal("request input"));
            }
            for (key, request) in &requests {
                let used = recorded.insert(key.clone(), request.clone()).is_some();
                if used || draft.task.input_responses.contains_key(key) {
                    return Err(TaskError::InputKeyUsed {
                        task: draft.task.task_id.clone(),
                        key: key.clone(),
                    });
                }
            }
            record(draft.task, recorded);
            await_input(draft)?;
            Ok(true)
        };
        let to = Some(WireStatus::InputRequired);
        let changed = self.change("record_input_requests", (task_id, owner_id), to, change).await?;
        Ok(wire(changed.task.into_task()))
    }

    async fn set_error(&self, task_id: &str, owner_id: &str, error: Value) -> Result<(), TaskStoreError> {
        let change = |draft: &mut Draft<'_>| {
            match (draft.task.status, recorded_error(draft.task)) {
                (TaskStatus::Failed, Some(stored)) if stored == error => return Ok(false),
                (TaskStatus::Failed, None) => {}
                _ => {
                    draft.end(TaskStatus::Failed)?;
                    draft.task.status_message = None;
                }
            }
            draft.check_depth("depth of an error", &error)?;
            draft.task.error = Some(as_rpc_error(&error));
            if recorded_error(draft.task).as_ref() != Some(&error) {
                draft.task.extra.insert(ERROR.to_owned(), error.clone());
            }
            Ok(true)
        };
        self.change("set_error", (task_id, owner_id), Some(WireStatus::Failed), change).await.map(drop)
    }

    async fn get_error(&self, task_id: &str, owner_id: &str) -> Result<Value, TaskStoreError> {
        let StoredTask { task, .. } = self.read(task_id, owner_id).await?;
        recorded_error(&task).ok_or_else(|| not_found(task_id))
    }

    fn supports_inputs(&self) -> bool {
        true
    }

    async fn set_status_message(
        &self,
        task_id: &str,
        owner_id: &str,
        message: Option<String>,
    ) -> Result<WireTask, TaskStoreError> {
        let change = |draft: &mut Draft<'_>| {
            if draft.task.status.is_terminal() {
                return Err(draft.refusal("set its status message"));
            }
            draft.set_status_message(message.as_deref())?;
            Ok(true)
        };
        let changed = self.change("set_status_message", (task_id, owner_id), None, change).await?;
        Ok(wire(changed.task.into_task()))
    }
}

/// Every request that was made of the client in this task.
fn asked(task: &Task) -> BTreeMap<String, Value> {
    let recorded = task.extra.get(REQUESTS).and_then(Value::as_object).into_iter().flatten();
    recorded
        .chain(&task.answered_requests)
        .chain(&task.input_requests)
        .map(|(key, request)| (key.clone(), request.clone()))
        .collect()
}

/// Keeps all requests of the task, as those that are answered or withdrawn are no longer among the open ones.
fn record(task: &mut Task, asked: BTreeMap<String, Value>) {
    task.extra.insert(REQUESTS.to_owned(), asked.into_iter().collect());
}

/// Moves the task to `input_required`, with every request open that has no answer.
fn await_input(draft: &mut Draft<'_>) -> Result<(), TaskError> {
    if draft.task.cancel_requested {
        return Err(draft.refusal("request input"));
    }
    let mut open = asked(draft.task);
    open.retain(|key, _| !draft.task.input_responses.contains_key(key));
    draft.task.input_requests.clear();
    if open.is_empty() {
        draft.task.status = TaskStatus::InputRequired;
        return Ok(());
    }
    draft.request_input(&open.into_iter().collect::<Vec<_>>())
}

/// The error as it was given.
fn recorded_error(task: &Task) -> Option<Value> {
    match task.extra.get(ERROR) {
        Some(error) => Some(error.clone()),
        None => serde_json::to_value(task.error.as_ref()?).ok(),
    }
}

/// The nearest JSON-RPC error object, for whoever reads the task by other means.
fn as_rpc_error(error: &Value) -> RpcError {
    serde_json::from_value(error.clone()).unwrap_or_else(|_| {
        let message = error.get("message").unwrap_or(error).as_str();
        RpcError::new(-32603, message.unwrap_or("the task failed"))
    })
}

fn key(task_id: &str, owner_id: &str) -> Result<TaskKey, TaskStoreError> {
    match (owner(owner_id), TaskId::try_from(task_id)) {
        (Ok(owner), Ok(task)) => Ok(TaskKey { owner, task }),
        _ => Err(not_found(task_id)),
    }
}

fn not_found(task_id: &str) -> TaskStoreError {
    TaskStoreError::NotFound { task_id: task_id.to_owned() }
}

fn internal(message: String) -> TaskStoreError {
    TaskStoreError::Internal { message }
}

fn store_error(error: TaskError, task_id: &str, to: Option<WireStatus>) -> TaskStoreError {
    match error {
        TaskError::NotFound { .. } => not_found(task_id),
        TaskError::InvalidTransition { from, .. } => {
            let from = wire_status(from);
            TaskStoreError::InvalidTransition { task_id: task_id.to_owned(), from, to: to.unwrap_or(from) }
        }
        TaskError::Storage(error) => {
            // The store has one line in the log for an outage.
            if matches!(error, crate::backend::StorageError::Corrupt { .. }) {
                tracing::error!(task = task_id, error = %Chain(&error), "a task could not be served: its record cannot be read");
            } else {
                tracing::debug!(task = task_id, error = %Chain(&error), "a task could not be served");
            }
            internal(public_text(&error).to_owned())
        }
        other => internal(other.to_string()),
    }
}

fn to_json(what: &'static str, value: &(impl Serialize + Sync)) -> Result<Value, TaskStoreError> {
    serde_json::to_value(value).map_err(|error| internal(format!("{what} cannot be stored: {error}")))
}

fn from_json<T: DeserializeOwned>(what: &'static str, value: Value) -> Result<T, TaskStoreError> {
    serde_json::from_value(value).map_err(|error| internal(format!("{what} cannot be read: {error}")))
}

fn wire(task: Task) -> WireTask {
    let time = |at: chrono::DateTime<chrono::Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut wire = WireTask::new(task.task_id.as_str(), wire_status(task.status))
        .with_timestamps(time(task.created_at), time(task.last_updated_at));
    wire.ttl = task.ttl_ms;
    wire.poll_interval = task.poll_interval_ms;
    wire.status_message = task.status_message;
    wire
}

fn wire_status(status: TaskStatus) -> WireStatus {
    match status {
        TaskStatus::Working => WireStatus::Working,
        TaskStatus::InputRequired => WireStatus::InputRequired,
        TaskStatus::Completed => WireStatus::Completed,
        TaskStatus::Failed => WireStatus::Failed,
        TaskStatus::Cancelled => WireStatus::Cancelled,
    }
}

fn status_from(status: WireStatus) -> TaskStatus {
    match status {
        WireStatus::Working => TaskStatus::Working,
        WireStatus::InputRequired => TaskStatus::InputRequired,
        WireStatus::Completed => TaskStatus::Completed,
        WireStatus::Failed => TaskStatus::Failed,
        WireStatus::Cancelled => TaskStatus::Cancelled,
    }
}
