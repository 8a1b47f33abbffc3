//! The lifecycle of this crate as the task store of a `pmcp` server.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use pmcp::server::task_store::{
    StoreConfig, TaskInputDelivery, TaskInputSnapshot, TaskStore as PmcpStore, TaskStoreError,
    partition_input_delivery,
};
use pmcp::types::CallToolResult;
use pmcp::types::mrtr::{InputRequest, InputRequests, InputResponse, InputResponses};
use pmcp::types::tasks::{Task as WireTask, TaskStatus as WireStatus};
use serde_json::Value;

use super::owner;
use super::wire::{self, from_json, internal, not_found, store_error, to_json};
use crate::backend::{Agenda, PageRequest, TaskKey};
use crate::store::{NewTask, SetResult, TaskError, TaskStore};
use crate::task::{PayloadKind, StoredTask, Task};

/// The only method that `pmcp` creates tasks for.
const METHOD: &str = "tools/call";
/// The page size of `pmcp`'s own stores.
const PAGE: usize = 20;

/// A task store for `pmcp`'s `ServerBuilder::task_store(...)`, on any engine.
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
/// It answers like `pmcp`'s `InMemoryTaskStore`: a page has 20 tasks, and a TTL over the configured maximum is cut to
/// the maximum. It differs in the following:
///
/// * **A task ends once.** `pmcp` ends a task in two calls, in either order: `set_result` and
///   `update_status(Completed)`, or `set_error` and `update_status(Failed)`. The first call ends the task, so no
///   crash between the two leaves it open. The second call adds the part that is missing: the result, the error, or
///   the status message. A call never replaces a part that an ended task has: it fails with `InvalidTransition`. So
///   does a result for a cancelled task.
/// * **More rounds of input.** Once all requests are answered, requests under new keys may follow. A key that the task has used
///   before is rejected with `Internal`.
/// * **Time.** A task whose TTL elapses before it has ended is failed with "TTL elapsed". After the TTL, a call that the status
///   does not allow fails with `Expired`. The engine keeps an ended task, with its result, for its TTL and the
///   [retention](crate::StoreConfig::retention). After that, calls fail with `NotFound`.
/// * **Limits.** A call with a TTL of 0, or with a value over another limit of [`StoreConfig`](crate::StoreConfig), fails.
/// * **Pages.** A call with a cursor that `list` did not return fails. A page before the last one may be short or empty.
/// * **Races.** The store applies racing writes one after the other, as [`TaskStore`] does. A write
///   that loses [`max_conflicts`](crate::StoreConfig::max_conflicts) times to other processes fails with `Internal`.
///
/// `pmcp`'s trait has no cooperative cancel, no arguments and no variables: its `cancel` makes a task cancelled at once.
/// [`tasks`](Self::tasks) returns the [`TaskStore`], which has all of these. After `request_cancel` on that store, the adapter
/// accepts no more input requests for the task.
///
/// # Errors
/// `NotFound` if the task does not exist, has expired, or belongs to another owner, and for an id that no task can
/// have; `InvalidTransition` if the status does not allow the call; `Expired` as above; `Internal` with a reason for
/// a quota, a limit and an invalid call.
///
/// The adapter logs an error of the engine with its causes. The message of `Internal` reaches the client, so it states only the
/// kind of the error, and names no host.
///
/// # Cancellation safety
/// If the future of a call is dropped, its change is applied as a whole or not at all.
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
    /// Creates an adapter for a store. `pmcp` reads its defaults and limits from the configuration of `tasks`.
    pub fn new(tasks: TaskStore<B>) -> Self {
        let limits = tasks.config().stated_limits();
        let pmcp = StoreConfig::default();
        let config = StoreConfig {
            default_ttl_ms: limits.default_ttl_ms,
            max_ttl_ms: limits.max_ttl_ms,
            // A task may have no poll interval, but `pmcp` must state one.
            default_poll_interval_ms: limits
                .default_poll_interval_ms
                .unwrap_or(pmcp.default_poll_interval_ms),
            max_tasks_per_owner: limits
                .max_tasks_per_owner
                .and_then(|max| usize::try_from(max).ok())
                .unwrap_or(usize::MAX),
        };
        Self { tasks, config }
    }

    /// Returns the [`TaskStore`] that the adapter uses. Call it for everything that `pmcp`'s trait does not have.
    pub fn tasks(&self) -> &TaskStore<B> {
        &self.tasks
    }

    async fn read(&self, task_id: &str, owner_id: &str) -> Result<StoredTask, TaskStoreError> {
        let key = wire::key(task_id, owner_id)?;
        self.tasks.get(&key).await.map_err(|error| store_error(error, task_id, None))
    }

    /// Loads the result of a task.
    async fn result(&self, stored: &StoredTask) -> Result<Option<Value>, TaskStoreError> {
        let result = self.tasks.payload(stored, PayloadKind::Output).await;
        result.map_err(|error| store_error(error, stored.key.task.as_str(), None))
    }

    /// Converts the error of a change. `to` is the status that the change would set, if it sets one. A change that
    /// the status does not allow is `Expired` after the TTL.
    async fn change_error(&self, error: TaskError, key: &TaskKey, to: Option<WireStatus>) -> TaskStoreError {
        if matches!(error, TaskError::InvalidTransition { .. })
            && let Ok(stored) = self.tasks.get(key).await
            && self.is_past_ttl(&stored.task)
        {
            return TaskStoreError::Expired { task_id: key.task.as_str().to_owned() };
        }
        store_error(error, key.task.as_str(), to)
    }

    fn is_past_ttl(&self, task: &Task) -> bool {
        task.deadline().is_some_and(|deadline| deadline <= self.tasks.backend().now())
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
        created
            .map(|stored| wire::task(stored.task.into_task()))
            .map_err(|error| store_error(error, "", None))
    }

    async fn get(&self, task_id: &str, owner_id: &str) -> Result<WireTask, TaskStoreError> {
        self.read(task_id, owner_id).await.map(|stored| wire::task(stored.task.into_task()))
    }

    async fn update_status(
        &self,
        task_id: &str,
        owner_id: &str,
        status: WireStatus,
        message: Option<String>,
    ) -> Result<WireTask, TaskStoreError> {
        let key = wire::key(task_id, owner_id)?;
        let calls = self.tasks.split_calls();
        match calls.set_status(&key, wire::status_from(status), message.as_deref()).await {
            Ok(changed) => Ok(wire::task(changed.task.into_task())),
            Err(error) => Err(self.change_error(error, &key, Some(status)).await),
        }
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
            tracing::warn!(owner = %owner.printable(), task = %task.printable(), "a page leaves out a task whose record cannot be read");
        }
        let tasks = page.tasks.into_iter().map(|stored| wire::task(stored.task.into_task())).collect();
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
        let key = wire::key(task_id, owner_id)?;
        let completed = Some(WireStatus::Completed);
        let stored = match self.tasks.split_calls().set_result(&key, &result).await {
            Ok(SetResult::Set) => return Ok(()),
            Ok(SetResult::HasResult(stored)) => stored,
            Err(error) => return Err(self.change_error(error, &key, completed).await),
        };
        if self.result(&stored).await?.as_ref() == Some(&result) {
            return Ok(());
        }
        // The task has another result. `complete` rejects the change of an ended task.
        match self.tasks.complete(&stored, result).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.change_error(error, &key, completed).await),
        }
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
        let key = wire::key(task_id, owner_id)?;
        match self.tasks.split_calls().deliver_inputs(&key, &responses).await {
            Ok(before) => {
                let is_answered = |key: &str| !before.open.contains(key);
                Ok(partition_input_delivery(&before.all, is_answered, responses.into_keys()))
            }
            Err(error) => Err(self.change_error(error, &key, Some(WireStatus::Working)).await),
        }
    }

    async fn task_input_snapshot(
        &self,
        task_id: &str,
        owner_id: &str,
    ) -> Result<TaskInputSnapshot, TaskStoreError> {
        let StoredTask { task, .. } = self.read(task_id, owner_id).await?;
        let requests = task.all_requests();
        if requests.is_empty() && task.adapter.requests.is_none() {
            return Err(not_found(task_id));
        }
        let mut snapshot = TaskInputSnapshot {
            input_requests: InputRequests::new(),
            input_responses: InputResponses::new(),
            status: wire::status(task.status),
        };
        for (key, request) in requests {
            let request: InputRequest = from_json("input request", request)?;
            if let Some(response) = task.input_responses.get(&key) {
                snapshot.input_responses.insert(key.clone(), decode_response(&request, response)?);
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
            .collect::<Result<BTreeMap<_, _>, TaskStoreError>>()?;
        let key = wire::key(task_id, owner_id)?;
        match self.tasks.split_calls().record_input_requests(&key, &requests).await {
            Ok(changed) => Ok(wire::task(changed.task.into_task())),
            Err(error) => Err(self.change_error(error, &key, Some(WireStatus::InputRequired)).await),
        }
    }

    async fn set_error(&self, task_id: &str, owner_id: &str, error: Value) -> Result<(), TaskStoreError> {
        let key = wire::key(task_id, owner_id)?;
        match self.tasks.split_calls().set_error(&key, &error).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.change_error(error, &key, Some(WireStatus::Failed)).await),
        }
    }

    async fn get_error(&self, task_id: &str, owner_id: &str) -> Result<Value, TaskStoreError> {
        let StoredTask { task, .. } = self.read(task_id, owner_id).await?;
        task.error_as_set().ok_or_else(|| not_found(task_id))
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
        let key = wire::key(task_id, owner_id)?;
        match self.tasks.split_calls().set_status_message(&key, message.as_deref()).await {
            Ok(changed) => Ok(wire::task(changed.task.into_task())),
            Err(error) => Err(self.change_error(error, &key, None).await),
        }
    }
}

/// Answers of different kinds look alike, so the kind of the request decides how to decode its answer.
fn decode_response(request: &InputRequest, response: &Value) -> Result<InputResponse, TaskStoreError> {
    InputResponse::decode_for(request.kind(), response.clone())
        .map_err(|error| internal(format!("an input response cannot be read: {error}")))
}
