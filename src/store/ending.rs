//! The calls of a run for a runtime. They do less if the run has a fresh copy of its task. The last write stores the
//! outcome and the last report. Also ends the attempt of a run.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::TaskStore;
use super::attempt::Attempt;
use super::dead::is_dead;
use super::error::TaskError;
use super::local_attempts::AttemptGuard;
use super::machine::{self, Change};
use super::progress_report::ProgressReport;
use super::records::ChangeCall;
use super::task_ref::TaskRef;
use super::write::{ChangeKind, Event};
use crate::backend::{Agenda, Expiry};
use crate::task::{RpcError, StoredTask, Task, TaskStatus};
use crate::telemetry;

/// The outcome of the work on a task.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Completed(Value),
    Failed(RpcError),
    /// The operation has failed with an error that the runtime retries. The task fails only after its last attempt.
    Retry(RpcError),
    Cancelled,
}

impl<B: Agenda> TaskStore<B> {
    /// Makes the record of an ended task expire after `keep_for`, unless it expires sooner. The task itself stays as it is.
    pub(crate) async fn shorten_retention(
        &self,
        ended: &StoredTask,
        keep_for: Duration,
    ) -> Result<(), TaskError> {
        let records = self.0.records();
        let latest = records.engine.now() + keep_for;
        if ended.expires_at.is_some_and(|expires_at| expires_at <= latest) {
            return Ok(());
        }
        // A dead task stays for its retention, so that an operator can requeue it.
        let shorten = |task: &mut Task| match task.status.is_terminal() && !is_dead(task) {
            true => Ok(Change::Retention(Expiry::After(keep_for))),
            false => Ok(Change::None),
        };
        let call = ChangeCall::new(ChangeKind::Lifecycle, "shorten_retention", TaskRef::Stored(ended));
        records.change(&records.deadline(), call, shorten).await.map(drop)
    }
}

impl<B: Agenda> Attempt<B> {
    /// Reads the task. `copy` returns the task of this attempt as the run knows it.
    pub(crate) async fn read_again(
        &self,
        copy: impl Fn() -> Arc<StoredTask> + Send + Sync,
    ) -> Result<StoredTask, TaskError> {
        self.read_task(|| Some(copy())).await
    }

    pub(super) fn task<'a>(&'a self, copy: Option<&'a StoredTask>) -> TaskRef<'a> {
        copy.map_or(TaskRef::Key(self.key()), TaskRef::Stored)
    }

    /// Ends the task, and stores the last report if there is one. `copy`: the task of this attempt as the run knows it.
    /// `keep_for`: how long the ended task is of use; `None` if as long as its record lives.
    pub(crate) async fn end(
        &self,
        copy: Option<&StoredTask>,
        ending: &Ending,
        report: Option<&ProgressReport>,
        keep_for: Option<Duration>,
    ) -> Result<StoredTask, TaskError> {
        let records = self.store.records_only();
        let config = &records.config;
        let end = |task: &mut Task| {
            if let Some(report) = report {
                report.apply(task, config)?;
            }
            let change = match ending {
                Ending::Completed(result) => machine::complete(task, result),
                Ending::Failed(error) | Ending::Retry(error) => machine::fail(task, error),
                Ending::Cancelled => machine::cancel(task),
            }?;
            match keep_for {
                Some(keep_for) => Ok(records.kept_for(task, keep_for)),
                None => Ok(change),
            }
        };
        self.change_task(self.task(copy), ChangeKind::Lifecycle, ending.name(), end).await
    }

    /// Writes the ended task once more, without a change, so that an engine that waits for replicas confirms its end. Returns
    /// whether the task has ended with this status. It may be open again after another server has become the master.
    pub(crate) async fn confirm_end(&self, ending: &Ending) -> Result<bool, TaskError> {
        let has_ended = |task: &Task| task.status == ending.status();
        let confirm = |task: &mut Task| Ok(if has_ended(task) { Change::Internal } else { Change::None });
        let key = TaskRef::Key(self.key());
        let found = self.change_task(key, ChangeKind::Lifecycle, "confirm the end of", confirm).await?;
        Ok(has_ended(&found.task))
    }

    /// Logs and counts the end of the task. Call it if the call that ended the task was dropped before its reply arrived.
    pub(crate) fn log_end(&self, ending: &Ending, operation: Option<&str>) {
        Event::Ended(ending.status()).log(self.key(), operation);
        telemetry::ended(ending.status(), operation);
    }

    /// Returns a guard that ends the attempt in this process when the guard is dropped, even if a clone of the
    /// attempt still exists: code of the operation may still own a context. If the task is still open at that time,
    /// its worker counts as lost.
    pub(crate) fn drop_guard(&self) -> DropGuard {
        DropGuard(self.guard())
    }
}

/// The guard that the run of an attempt holds.
pub(crate) struct DropGuard(Arc<AttemptGuard>);

impl Drop for DropGuard {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Ending {
    /// Returns the status of a task with this outcome.
    pub(crate) fn status(&self) -> TaskStatus {
        match self {
            Self::Completed(_) => TaskStatus::Completed,
            Self::Failed(_) | Self::Retry(_) => TaskStatus::Failed,
            Self::Cancelled => TaskStatus::Cancelled,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Completed(_) => "complete",
            Self::Failed(_) | Self::Retry(_) => "fail",
            Self::Cancelled => "cancel",
        }
    }
}
