//! Secrets of tasks, with which servers seal what clients later return.

use super::TaskStore;
use super::error::TaskError;
use super::machine;
use super::write::ChangeKind;
use crate::backend::Agenda;
use crate::task::secret::Secret;
use crate::task::{StoredTask, Task};

impl<B: Agenda> TaskStore<B> {
    /// Returns an open task with a secret in its record. Writes the secret if the task has none.
    ///
    /// # Errors
    /// [`InvalidTransition`](TaskError::InvalidTransition) if the task has ended.
    pub(crate) async fn with_secret(&self, stored: &StoredTask) -> Result<StoredTask, TaskError> {
        if stored.task.adapter.secret.is_some() {
            return Ok(stored.clone());
        }
        let secret = Secret::random();
        let add = |task: &mut Task| machine::add_secret(task, &secret);
        self.change(ChangeKind::Input, "with_secret", stored.into(), add).await
    }
}
