//! Loading the payloads that a read of a task leaves in the engine.

use std::pin::pin;

use serde_json::Value;
use tracing::instrument;

use super::deadline::Subject;
use super::{TaskError, TaskStore, check_key};
use crate::backend::{Agenda, StorageBackend};
use crate::task::{Payload, PayloadKind, StoredTask};

impl<B: Agenda> TaskStore<B> {
    /// Returns a payload of a task; `None` if the task has none of this kind. An inline payload costs no call of the
    /// engine, and a stored one a single read of its part.
    ///
    /// A stored payload that was replaced since `task` was read is returned as it is now: arguments never change, and a
    /// result never changes once it is there, but a checkpoint may.
    ///
    /// # Errors
    /// [`NotFound`](TaskError::NotFound) when the record has gone since `task` was read,
    /// [`Unreadable`](TaskError::Unreadable) when the part is not JSON.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    #[instrument(level = "debug", skip_all, fields(owner = %task.key.owner.printable(), task = %task.key.task.printable(), ?kind))]
    pub async fn payload(&self, task: &StoredTask, kind: PayloadKind) -> Result<Option<Value>, TaskError> {
        check_key(&task.key)?;
        let load = pin!(self.load(task, kind));
        self.deadline().limit("payload", Subject::Task(&task.key), load).await
    }

    async fn load(&self, task: &StoredTask, kind: PayloadKind) -> Result<Option<Value>, TaskError> {
        let id = &task.key.task;
        let part_name = kind.part();
        let mut payload = task.task.payload(kind).cloned();
        for attempt in 0..self.0.config.max_conflicts {
            match payload {
                None => return Ok(None),
                Some(Payload::Inline(value)) => return Ok(Some(value)),
                Some(Payload::Stored { .. }) => {}
            }
            self.back_off(attempt).await;
            let part = self.0.backend.part(&task.key, &part_name);
            let part = self.0.answers.count_large(Some(&task.key.owner), part).await;
            if let Some(part) = part.map_err(|error| TaskError::from_storage(error, id))? {
                let value = serde_json::from_slice(&part.data);
                return value.map(Some).map_err(|source| TaskError::Unreadable { task: id.clone(), source });
            }
            // Since the task was read, the part was removed: the payload is gone, or has become small.
            payload = self.read(&task.key).await?.task.payload(kind).cloned();
        }
        Err(self.contended(&task.key))
    }
}
