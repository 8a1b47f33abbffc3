//! Changes that the public calls do not offer one by one, for the adapters to other SDKs.

use std::collections::BTreeMap;

use serde_json::Value;

use super::change::Kind;
use super::limits::{MAX_JSON_DEPTH, check, check_depth};
use super::transitions::{self, Change};
use super::{StoreConfig, TaskError, TaskRef, TaskStore, millis};
use crate::backend::{Agenda, TaskKey};
use crate::task::{StoredTask, Task, TaskStatus};

/// What a store gives to a task that asks for nothing, and the most that it gives; times in milliseconds.
pub(crate) struct Defaults {
    pub(crate) ttl: Option<u64>,
    pub(crate) max_ttl: Option<u64>,
    pub(crate) poll_interval: Option<u64>,
    pub(crate) max_tasks_per_owner: Option<u64>,
}

/// A task that is being changed. The steps hold it against the same rules and limits as the public calls.
pub(crate) struct Draft<'a> {
    pub(crate) task: &'a mut Task,
    config: &'a StoreConfig,
}

impl<B: Agenda> TaskStore<B> {
    pub(crate) fn defaults(&self) -> Defaults {
        let StoreConfig { default_ttl, max_ttl, default_poll_interval, max_tasks_per_owner, .. } =
            self.0.config;
        let ttl = [default_ttl, max_ttl].into_iter().flatten().min();
        Defaults {
            ttl: ttl.map(millis),
            max_ttl: max_ttl.map(millis),
            poll_interval: default_poll_interval.map(millis),
            max_tasks_per_owner,
        }
    }

    /// Changes a task as the public calls do: in one write, made again on what others have written meanwhile.
    /// `change` says whether there is something to write.
    pub(crate) async fn amend(
        &self,
        operation: &'static str,
        key: &TaskKey,
        change: impl Fn(&mut Draft<'_>) -> Result<bool, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let config = &self.0.config;
        let change = |task: &mut Task| {
            Ok(if change(&mut Draft { task, config })? { Change::Made } else { Change::None })
        };
        self.change(Kind::Input, operation, TaskRef::Key(key), change).await
    }
}

impl Draft<'_> {
    /// That the task's status does not allow `action`.
    pub(crate) fn refusal(&self, action: &'static str) -> TaskError {
        TaskError::InvalidTransition { task: self.task.task_id.clone(), from: self.task.status, action }
    }

    pub(crate) fn check_depth(&self, what: &'static str, value: &Value) -> Result<(), TaskError> {
        check_depth(what, value, MAX_JSON_DEPTH)
    }

    pub(crate) fn set_status_message(&mut self, message: Option<&str>) -> Result<(), TaskError> {
        let limit = self.config.max_status_message_bytes;
        check("bytes of a status message", message.map_or(0, str::len), limit)?;
        self.task.status_message = message.map(str::to_owned);
        Ok(())
    }

    pub(crate) fn request_input(&mut self, requests: &[(String, Value)]) -> Result<(), TaskError> {
        transitions::request_input(self.task, requests, self.config).map(drop)
    }

    /// Says whether any of the responses answers an open request.
    pub(crate) fn deliver_inputs(&mut self, responses: &BTreeMap<String, Value>) -> Result<bool, TaskError> {
        Ok(transitions::deliver_inputs(self.task, responses)? == Change::Made)
    }

    pub(crate) fn complete(&mut self, result: &Value) -> Result<(), TaskError> {
        transitions::complete(self.task, result).map(drop)
    }

    /// Ends the task with no result and no error.
    pub(crate) fn end(&mut self, status: TaskStatus) -> Result<(), TaskError> {
        transitions::end(self.task, status, "end it")
    }
}
