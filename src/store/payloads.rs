//! Loads the stored payloads of a task, which a read of the task does not load.

use serde_json::Value;

use super::durations::pause_after_conflicts;
use super::error::TaskError;
use super::records::Records;
use crate::backend::Agenda;
use crate::task::{Payload, PayloadKind, StoredTask};

pub(super) async fn load<B: Agenda>(
    records: &Records<B>,
    task: &StoredTask,
    kind: PayloadKind,
) -> Result<Option<Value>, TaskError> {
    let id = &task.key.task;
    let part_name = kind.part();
    let mut payload = task.task.payload(kind).cloned();
    for conflicts in 0..records.config.max_conflicts {
        match payload {
            None => return Ok(None),
            Some(Payload::Inline(value)) => return Ok(Some(value)),
            Some(Payload::Stored { .. }) => {}
        }
        pause_after_conflicts(conflicts).await;
        if let Some(part) = records.engine.part(&task.key, &part_name).await? {
            let value = serde_json::from_slice(&part.data);
            return value.map(Some).map_err(|source| TaskError::Unreadable { task: id.clone(), source });
        }
        // A write has removed the part since the task was read: the payload was removed, or has become small.
        payload = records.read(&task.key).await?.task.payload(kind).cloned();
    }
    Err(records.contended(&task.key))
}
