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
    /// Stores a report.
    pub(crate) async fn report_progress(&self, report: &ProgressReport) -> Result<StoredTask, TaskError> {
        let config = &self.store.records_only().config;
        self.change(ChangeKind::Progress, "report_progress", |task| report.apply(task, config)).await
    }
}
