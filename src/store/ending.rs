//! Ends a task for a runtime: one write stores the outcome and the last report. Also ends the attempt of a
//! run.

use std::sync::Arc;

use serde_json::Value;

use super::attempt::Attempt;
use super::error::TaskError;
use super::local_attempts::AttemptGuard;
use super::machine;
use super::progress_report::ProgressReport;
use super::write::{ChangeKind, Event};
use crate::backend::Agenda;
use crate::task::{RpcError, StoredTask, Task, TaskStatus};

/// The outcome of the work on a task.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Completed(Value),
    Failed(RpcError),
    Cancelled,
}

impl<B: Agenda> Attempt<B> {
    /// Ends the task, and stores the last report if there is one.
    pub(crate) async fn end(
        &self,
        ending: &Ending,
        report: Option<&ProgressReport>,
    ) -> Result<StoredTask, TaskError> {
        let config = &self.store.records_only().config;
        let end = |task: &mut Task| {
            if let Some(report) = report {
                report.apply(task, config)?;
            }
            match ending {
                Ending::Completed(result) => machine::complete(task, result),
                Ending::Failed(error) => machine::fail(task, error),
                Ending::Cancelled => machine::cancel(task),
            }
        };
        self.change(ChangeKind::Lifecycle, ending.name(), end).await
    }

    /// Logs the end of the task. Call it if the call that ended the task was dropped before its reply arrived.
    pub(crate) fn log_end(&self, ending: &Ending, operation: Option<&str>) {
        Event::Ended(ending.status()).log(self.key(), operation);
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
            Self::Failed(_) => TaskStatus::Failed,
            Self::Cancelled => TaskStatus::Cancelled,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Completed(_) => "complete",
            Self::Failed(_) => "fail",
            Self::Cancelled => "cancel",
        }
    }
}
