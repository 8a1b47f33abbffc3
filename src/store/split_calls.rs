//! Changes for SDKs that set a status, a result, an error and a status message in separate calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::config::StoreConfig;
use super::error::TaskError;
use super::keeper::KeptRecords;
use super::machine::{Change, split};
use super::records::ChangeCall;
use super::task_ref::TaskRef;
use super::write::ChangeKind;
use crate::backend::{Agenda, TaskKey};
use crate::task::{StoredTask, Task, TaskStatus};

/// The calls of an SDK that changes a task in several calls. Each call is one change, with the rules and limits of
/// [`TaskStore`](crate::TaskStore).
pub(crate) struct SplitCalls<'a, B>(pub(super) &'a KeptRecords<B>);

/// The outcome of [`SplitCalls::set_result`].
pub(crate) enum SetResult {
    /// The task has this result now.
    Set,
    /// The task already has a result, which the call has neither loaded nor compared.
    HasResult(StoredTask),
}

/// The requests of a task immediately before a call delivered answers to them.
#[derive(Default)]
pub(crate) struct RequestsBefore {
    pub(crate) all: BTreeSet<String>,
    pub(crate) open: BTreeSet<String>,
}

impl<B: Agenda> SplitCalls<'_, B> {
    pub(crate) async fn set_status(
        &self,
        key: &TaskKey,
        status: TaskStatus,
        message: Option<&str>,
    ) -> Result<StoredTask, TaskError> {
        self.change("set_status", key, |task, config| split::set_status(task, status, message, config)).await
    }

    pub(crate) async fn set_status_message(
        &self,
        key: &TaskKey,
        message: Option<&str>,
    ) -> Result<StoredTask, TaskError> {
        let set = |task: &mut Task, config: &_| split::set_status_message(task, message, config);
        self.change("set_status_message", key, set).await
    }

    pub(crate) async fn set_result(&self, key: &TaskKey, result: &Value) -> Result<SetResult, TaskError> {
        let has_result = AtomicBool::new(false);
        let set = |task: &mut Task, _: &_| {
            let change = split::set_result(task, result)?;
            has_result.store(change == Change::None, Ordering::Relaxed);
            Ok(change)
        };
        let stored = self.change("set_result", key, set).await?;
        Ok(if has_result.into_inner() { SetResult::HasResult(stored) } else { SetResult::Set })
    }

    pub(crate) async fn set_error(&self, key: &TaskKey, error: &Value) -> Result<StoredTask, TaskError> {
        self.change("set_error", key, |task, _| split::set_error(task, error)).await
    }

    pub(crate) async fn record_input_requests(
        &self,
        key: &TaskKey,
        requests: &BTreeMap<String, Value>,
    ) -> Result<StoredTask, TaskError> {
        let record = |task: &mut Task, config: &_| split::record_input_requests(task, requests, config);
        self.change("record_input_requests", key, record).await
    }

    pub(crate) async fn deliver_inputs(
        &self,
        key: &TaskKey,
        responses: &BTreeMap<String, Value>,
    ) -> Result<RequestsBefore, TaskError> {
        let before = Mutex::default();
        let deliver = |task: &mut Task, _: &_| {
            let requests = RequestsBefore {
                all: task.all_requests().into_keys().collect(),
                open: task.input_requests.keys().cloned().collect(),
            };
            let change = split::deliver_inputs(task, responses)?;
            *before.lock().unwrap_or_else(PoisonError::into_inner) = requests;
            Ok(change)
        };
        self.change("deliver_inputs", key, deliver).await?;
        Ok(before.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn change(
        &self,
        operation: &'static str,
        key: &TaskKey,
        change: impl Fn(&mut Task, &StoreConfig) -> Result<Change, TaskError> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        let records = self.0.records();
        let call = ChangeCall::new(ChangeKind::Input, operation, TaskRef::Key(key));
        records.change(&records.deadline(), call, |task| change(task, &records.config)).await
    }
}
