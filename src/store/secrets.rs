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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::OwnerId;
    use crate::memory::MemoryBackend;
    use crate::store::NewTask;

    #[tokio::test]
    async fn instances_that_give_a_task_a_secret_at_the_same_time_return_the_same_one() {
        let engine = MemoryBackend::new();
        let (one, other) = (TaskStore::new(engine.clone()), TaskStore::new(engine));
        let task =
            one.create(&OwnerId::try_from("alice").unwrap(), NewTask::new("tools/call")).await.unwrap();
        let of_other = other.get(&task.key).await.unwrap();
        let first = one.with_secret(&task).await.unwrap();
        // This copy is from before the secret.
        let second = other.with_secret(&of_other).await.unwrap();
        assert!(first.task.adapter.secret.is_some());
        assert_eq!(first.task, second.task);
        let ended = one.complete(&first, serde_json::Value::Null).await.unwrap();
        assert_eq!(ended.task.adapter.secret, None);
        let refused = one.with_secret(&ended).await;
        assert!(matches!(refused, Err(TaskError::InvalidTransition { .. })), "{refused:?}");
    }
}
