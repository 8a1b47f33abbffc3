//! The payloads of a task: its arguments, its result and its checkpoint, which may be large.

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::Task;
use crate::backend::{PartChange, PartChanges, PartName, PartSizes};

/// A payload whose JSON has more bytes than this becomes a part of the record.
pub(crate) const MAX_INLINE_BYTES: usize = 4096;

/// A payload of a task that was read: its value, or only its size.
///
/// Reading a task never loads a large payload. [`TaskStore::payload`](crate::TaskStore::payload) loads a payload. A
/// payload that was not loaded has no value, so a caller cannot mistake it for `null`, and no write sends it back.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, Payload, PayloadKind, TaskStore};
/// use serde_json::json;
///
/// let store = TaskStore::new(MemoryBackend::new());
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let text = json!("x".repeat(100_000));
/// let task = store.create(&alice, NewTask::new("tools/call").arguments(text.clone())).await?;
/// assert_eq!(task.task.arguments, Payload::Stored { bytes: 100_002 });
/// assert_eq!(store.payload(&task, PayloadKind::Input).await?, Some(text));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// The value. Its JSON has at most 4 KiB, unless no write has stored the value yet.
    Inline(Value),
    /// The engine stores the value as a part of the record. The read has not loaded it.
    Stored {
        /// The size of the payload's JSON.
        bytes: usize,
    },
}

impl Payload {
    /// Returns the value of an inline payload; `None` for a payload that was not loaded.
    pub fn as_inline(&self) -> Option<&Value> {
        match self {
            Self::Inline(value) => Some(value),
            Self::Stored { .. } => None,
        }
    }

    /// Returns whether the payload is a part of the record and was not loaded.
    pub fn is_stored(&self) -> bool {
        matches!(self, Self::Stored { .. })
    }
}

impl From<Value> for Payload {
    fn from(value: Value) -> Self {
        Self::Inline(value)
    }
}

/// Selects one of the payloads of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PayloadKind {
    /// The [arguments](Task::arguments) of the call.
    Input,
    /// The [result](Task::result).
    Output,
    /// The [checkpoint](Task::checkpoint).
    Checkpoint,
}

impl PayloadKind {
    const ALL: [Self; 3] = [Self::Input, Self::Output, Self::Checkpoint];

    /// Returns the field of the record's JSON that holds a small payload.
    fn field(self) -> &'static str {
        match self {
            Self::Input => "arguments",
            Self::Output => "result",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// Returns the name of the record's part that holds a large payload.
    pub fn part(self) -> PartName {
        match self {
            Self::Input => const { PartName::from_static("input") },
            Self::Output => const { PartName::from_static("output") },
            Self::Checkpoint => const { PartName::from_static("checkpoint") },
        }
    }
}

/// Which payloads the record of a task has as parts.
///
/// A task keeps this information from the read to the write. So the write can remove the part of a payload that was
/// removed or has become small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeldParts([bool; PayloadKind::ALL.len()]);

impl Task {
    /// Returns a payload of the task, loaded or not; `None` if the task has none of this kind.
    ///
    /// A task that was created without arguments has no input.
    pub fn payload(&self, kind: PayloadKind) -> Option<&Payload> {
        match kind {
            PayloadKind::Input => Some(&self.arguments).filter(|arguments| !is_none(arguments)),
            PayloadKind::Output => self.result.as_ref(),
            PayloadKind::Checkpoint => self.checkpoint.as_ref(),
        }
    }

    fn mark_stored(&mut self, kind: PayloadKind, bytes: usize) {
        let stored = Payload::Stored { bytes };
        match kind {
            PayloadKind::Input => self.arguments = stored,
            PayloadKind::Output => self.result = Some(stored),
            PayloadKind::Checkpoint => self.checkpoint = Some(stored),
        }
        self.held_parts.0[kind as usize] = true;
    }

    /// Marks the payloads of a decoded task that are parts of its record.
    pub(crate) fn with_parts(mut self, parts: &PartSizes) -> Self {
        for kind in PayloadKind::ALL {
            if let Some(bytes) = parts.get(&kind.part()) {
                self.mark_stored(kind, *bytes);
            }
        }
        self
    }

    /// Moves the payloads over `max_inline` bytes out of a task that is about to be written. Returns how the write
    /// changes the parts of the record. A payload that is already stored is not written again.
    pub(crate) fn store_payloads(&mut self, max_inline: usize) -> Result<PartChanges, serde_json::Error> {
        let mut changes = PartChanges::new();
        for kind in PayloadKind::ALL {
            let large = match self.payload(kind) {
                Some(Payload::Stored { .. }) => continue,
                Some(Payload::Inline(value)) => large_json(value, max_inline)?,
                None => None,
            };
            let large = large.map(|json| self.exact.restore_field(kind.field(), json));
            if let Some(json) = large {
                self.mark_stored(kind, json.len());
                // An engine that keeps these bytes in memory must not keep the spare capacity of the vector.
                let json = Bytes::from(json.into_boxed_slice());
                changes.insert(kind.part(), PartChange::Set(json));
            } else if std::mem::take(&mut self.held_parts.0[kind as usize]) {
                changes.insert(kind.part(), PartChange::Clear);
            }
        }
        Ok(changes)
    }
}

/// Returns the JSON of a value that is too large to stay inline.
fn large_json(value: &Value, max_inline: usize) -> Result<Option<Vec<u8>>, serde_json::Error> {
    // Most values are small, and even their longest JSON would be. Counting the bytes of the others avoids a buffer.
    if longest_json(value) <= max_inline || serde_json::to_writer(Room(max_inline), value).is_ok() {
        return Ok(None);
    }
    serde_json::to_vec(value).map(Some)
}

/// Returns a size that a value's JSON does not exceed. This is much faster than counting its bytes, and exact for most text.
fn longest_json(value: &Value) -> usize {
    /// The size of `-2.2250738585072014e-308`.
    const NUMBER: usize = 24;
    match value {
        Value::Null | Value::Bool(_) => "false".len(),
        Value::Number(_) => NUMBER,
        Value::String(text) => longest_string(text),
        Value::Array(items) => 2 + items.iter().map(|item| longest_json(item) + 1).sum::<usize>(),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| longest_string(name) + longest_json(value) + 2);
            2 + members.sum::<usize>()
        }
    }
}

fn longest_string(text: &str) -> usize {
    let is_escaped = |byte: u8| matches!(byte, ..b' ' | b'"' | b'\\');
    // A loop that never ends early compiles to vector instructions.
    let has_escapes = text.bytes().fold(false, |found, byte| found | is_escaped(byte));
    let longest_character = if has_escapes { "\\u001f".len() } else { 1 };
    2 + longest_character * text.len()
}

/// A writer that accepts this many bytes. A write beyond them fails.
struct Room(usize);

impl io::Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns whether the task has no arguments.
fn is_none(arguments: &Payload) -> bool {
    matches!(arguments, Payload::Inline(Value::Null))
}

/// The arguments in the JSON of a record. The JSON leaves out stored arguments: the part of the record shows that
/// they exist.
pub(crate) mod required {
    use super::*;

    pub(crate) fn is_left_out(payload: &Payload) -> bool {
        payload.is_stored() || is_none(payload)
    }

    pub(crate) fn absent() -> Payload {
        Payload::Inline(Value::Null)
    }

    pub(crate) fn serialize<S: Serializer>(payload: &Payload, serializer: S) -> Result<S::Ok, S::Error> {
        payload.as_inline().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Payload, D::Error> {
        Value::deserialize(deserializer).map(Payload::Inline)
    }
}

/// An optional payload in the JSON of a record. An explicit `null` is a value.
pub(crate) mod optional {
    use super::*;

    pub(crate) fn is_left_out(payload: &Option<Payload>) -> bool {
        payload.as_ref().is_none_or(Payload::is_stored)
    }

    pub(crate) fn serialize<S: Serializer>(
        payload: &Option<Payload>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        payload.as_ref().and_then(Payload::as_inline).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Payload>, D::Error> {
        required::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde_json::json;

    fn value() -> impl Strategy<Value = Value> {
        let text = || "[a\"\\\\\\x00-\\x1f\\x7fé🦀]{0,8}";
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, move |inner| {
            let members = btree_map(text(), inner.clone(), 0..4);
            prop_oneof![vec(inner, 0..4).prop_map(Value::from), members.prop_map(|members| json!(members))]
        })
    }

    proptest! {
        #[test]
        fn a_value_is_large_if_its_json_has_more_bytes_than_the_maximum(value in value()) {
            let json = serde_json::to_vec(&value).unwrap();
            prop_assert_eq!(large_json(&value, json.len()).unwrap(), None);
            prop_assert_eq!(large_json(&value, json.len() - 1).unwrap(), Some(json));
        }
    }
}
