//! Reports of a running operation about its work. One write stores the whole report.

use super::attempt::Attempt;
use super::config::StoreConfig;
use super::error::TaskError;
use super::machine::{self, Change};
use super::write::ChangeKind;
use crate::backend::Agenda;
use crate::task::{Progress, StoredTask, Task};

/// What an operation reports about its work.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProgressReport {
    pub(crate) status_message: String,
    /// `None` leaves the stored progress as it is.
    pub(crate) progress: Option<Progress>,
}

impl ProgressReport {
    pub(super) fn apply(&self, task: &mut Task, config: &StoreConfig) -> Result<Change, TaskError> {
        let change = machine::set_status_message(task, &self.status_message, config)?;
        match &self.progress {
            Some(progress) => machine::set_progress(task, progress),
            None => Ok(change),
        }
    }
}

impl<B: Agenda> Attempt<B> {
    /// Stores a report. `copy`: the task of this attempt as the run knows it.
    pub(crate) async fn report_progress(
        &self,
        copy: Option<&StoredTask>,
        report: &ProgressReport,
    ) -> Result<StoredTask, TaskError> {
        let config = &self.store.records_only().config;
        let apply = |task: &mut Task| report.apply(task, config);
        self.change_task(self.task(copy), ChangeKind::Progress, "report_progress", apply).await
    }
}
