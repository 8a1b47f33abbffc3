//! The variables of a task, which the server sets.

use serde_json::Value;

use super::TaskStore;
use super::error::TaskError;
use super::machine;
use super::task_ref::TaskRef;
use super::write::ChangeKind;
use crate::backend::Agenda;
use crate::task::{StoredTask, Task};

impl<B: Agenda> TaskStore<B> {
    /// Merges variables into those of the task: a value replaces the value of the same name.
    /// [`remove_variables`](Self::remove_variables) removes variables.
    ///
    /// # Errors
    /// [`InvalidArgument`](TaskError::InvalidArgument) for a variable that is `null`. `serde_json` turns NaN and
    /// infinity into `null`, so a `null` is usually a mistake. [`InvalidTransition`](TaskError::InvalidTransition) if
    /// the task has ended; [`LimitExceeded`](TaskError::LimitExceeded) if the merged variables are too large or
    /// nested too deeply, or contain a string that is too long.
    pub async fn set_variables<'a, K: Into<String>>(
        &self,
        task: impl Into<TaskRef<'a>>,
        variables: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<StoredTask, TaskError> {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let config = &self.0.records_only().config;
        let set = |task: &mut Task| machine::set_variables(task, &variables, config);
        self.change(ChangeKind::Progress, "set_variables", task.into(), set).await
    }

    /// Removes the variables with these names. Ignores names that the task does not have.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) if the task has ended.
    pub async fn remove_variables<'a, K: Into<String>>(
        &self,
        task: impl Into<TaskRef<'a>>,
        names: impl IntoIterator<Item = K>,
    ) -> Result<StoredTask, TaskError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let remove = |task: &mut Task| machine::remove_variables(task, &names);
        self.change(ChangeKind::Progress, "remove_variables", task.into(), remove).await
    }
}
