//! The pointer of a unique key: a record under a reserved owner that names the open task of the key.
//!
//! Each named task is a part of the record. The name of the part is the id of the task, and the size of the part is the state of
//! the entry. So a read of the record returns every entry, and a write never removes an entry that it does not name. This matters
//! because versions start again at 1 once a record has expired: a late compare-and-swap can meet the version that it expects in a
//! later pointer of the same key. It then adds its own entry, keeps the other one, and the next read shows both.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::durations::millis;
use super::engine::EngineClient;
use super::error::TaskError;
use crate::backend::{
    Agenda, Expiry, OwnerId, PartChange, PartChanges, PartName, PutOptions, Record, StorageError, TaskId,
    TaskKey, Version,
};

/// The reserved owners of pointers: one for each owner of tasks, by the hash of its id.
const POINTERS: &str = "\0mcp/unique/";

/// Returns the hash of texts, in hexadecimal. Ids that differ have hashes that differ, whoever chooses the ids. The hasher of the
/// standard library cannot serve here: its 64 bits collide, and another version of Rust may compute another hash.
pub(super) fn hash(texts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        // The length separates the texts: ("a", "bc") is not ("ab", "c").
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The state of an entry. Its part has as many bytes as the number of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryState {
    /// A start has claimed the key for this task, and has not confirmed the task yet.
    Pending = 1,
    /// The task may be open.
    Confirmed = 2,
    /// The start of the task took too long, and can no longer confirm it. The record of the task must be removed before the entry.
    Void = 3,
}

/// A task that a pointer names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) task: TaskId,
    pub(super) state: EntryState,
}

impl Entry {
    fn decode(name: &PartName, size: usize) -> Option<Self> {
        let task = uuid::Uuid::try_parse(name.as_str()).ok()?.to_string().try_into().ok()?;
        let state = match size {
            1 => EntryState::Pending,
            2 => EntryState::Confirmed,
            3 => EntryState::Void,
            _ => return None,
        };
        Some(Self { task, state })
    }
}

/// Returns the name of the part of a task. A part name has at most 32 characters, as many as a UUID has digits.
fn part_name(task: &TaskId) -> Result<PartName, TaskError> {
    PartName::try_from(task.as_str().replace('-', "")).map_err(TaskError::Storage)
}

/// Adds the write of an entry to the changes of a pointer.
pub(super) fn set(changes: &mut PartChanges, task: &TaskId, state: EntryState) -> Result<(), TaskError> {
    let bytes = Bytes::from_static(&[b'.'; 3]).slice(..state as usize);
    changes.insert(part_name(task)?, PartChange::Set(bytes));
    Ok(())
}

/// Adds the removal of an entry to the changes of a pointer.
pub(super) fn clear(changes: &mut PartChanges, task: &TaskId) -> Result<(), TaskError> {
    changes.insert(part_name(task)?, PartChange::Clear);
    Ok(())
}

/// The data of the record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PointerData {
    /// How long the record lives from its last write on. With the expiry it states when that write was, by the engine's clock.
    lives_ms: u64,
    /// The time limit of a call of the store that wrote the record.
    limit_ms: u64,
}

/// A pointer, as the engine returned it.
#[derive(Debug)]
pub(super) struct Pointer {
    pub(super) version: Version,
    pub(super) expires_at: Option<DateTime<Utc>>,
    pub(super) entries: Vec<Entry>,
    data: PointerData,
}

impl Pointer {
    fn decode(key: &TaskKey, record: &Record) -> Result<Self, TaskError> {
        let corrupt = |reason: String| {
            TaskError::Storage(StorageError::Corrupt { key: key.clone(), reason, source: None })
        };
        let data = serde_json::from_slice(&record.data)
            .map_err(|error| corrupt(format!("the pointer of a unique key is not readable: {error}")))?;
        let entries = record.parts.iter().map(|(name, size)| {
            let unreadable = || corrupt(format!("the part {name} of {size} bytes names no task"));
            Entry::decode(name, *size).ok_or_else(unreadable)
        });
        let entries = entries.collect::<Result<_, _>>()?;
        Ok(Self { version: record.version, expires_at: record.expires_at, entries, data })
    }

    pub(super) fn state_of(&self, task: &TaskId) -> Option<EntryState> {
        self.entries.iter().find(|entry| entry.task == *task).map(|entry| entry.state)
    }

    /// Returns the tasks in this state, except `but`.
    pub(super) fn others(&self, but: &TaskId, state: EntryState) -> impl Iterator<Item = &TaskId> {
        let others = self.entries.iter().filter(move |entry| entry.state == state && entry.task != *but);
        others.map(|entry| &entry.task)
    }

    /// Returns whether the last write of the pointer is older than a call of the store that wrote it may take. `now` is the clock of
    /// the server that holds the pointer. If that clock was set back since the write, the write counts as old.
    pub(super) fn is_older_than_a_call(&self, now: DateTime<Utc>) -> bool {
        let lives = i64::try_from(self.data.lives_ms).ok().and_then(chrono::TimeDelta::try_milliseconds);
        let written_at = self.expires_at.zip(lives).and_then(|(at, lives)| at.checked_sub_signed(lives));
        let Some(written_at) = written_at else { return true };
        (now - written_at).abs().to_std().unwrap_or(Duration::MAX) > Duration::from_millis(self.data.limit_ms)
    }
}

/// The calls of the engine about one pointer.
pub(super) struct PointerClient<'a, B> {
    engine: &'a EngineClient<B>,
    limit: Duration,
    key: TaskKey,
}

impl<'a, B: Agenda> PointerClient<'a, B> {
    /// `id` is the hash of the unique key, `limit` the time limit of a call of this store.
    pub(super) fn new(
        engine: &'a EngineClient<B>,
        owner: &OwnerId,
        id: &str,
        limit: Duration,
    ) -> Result<Self, TaskError> {
        let owner = format!("{POINTERS}{}", hash(&[owner.as_str()]));
        let key = TaskKey::new(&owner, id).map_err(TaskError::Storage)?;
        Ok(Self { engine, limit, key })
    }

    /// Reads the pointer; `None` if the key has none.
    pub(super) async fn read(&self) -> Result<Option<Pointer>, TaskError> {
        match self.engine.runtime_record(&self.key).await {
            Ok(record) => Pointer::decode(&self.key, &record).map(Some),
            Err(StorageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(TaskError::Storage(error)),
        }
    }

    /// Writes over the pointer as it was read. Returns whether the engine applied the write: another writer may have been first, or
    /// the pointer may have expired.
    pub(super) async fn write(
        &self,
        read: Option<&Pointer>,
        changes: PartChanges,
        life: Duration,
    ) -> Result<bool, TaskError> {
        let data = PointerData { lives_ms: millis(life), limit_ms: millis(self.limit) };
        let data = serde_json::to_vec(&data)
            .map_err(|source| TaskError::Unencodable { task: self.key.task.clone(), source })?;
        let mut options = PutOptions::new(Expiry::After(life));
        options.parts = changes;
        let expected = read.map_or(Version::ABSENT, |read| read.version);
        match self.engine.put(&self.key, data.into(), options, expected).await {
            Ok(_) => Ok(true),
            Err(StorageError::VersionConflict { .. } | StorageError::NotFound { .. }) => Ok(false),
            Err(error) => Err(TaskError::Storage(error)),
        }
    }

    /// Asks the server that holds the pointer for its clock.
    pub(super) async fn clock(&self) -> Result<DateTime<Utc>, TaskError> {
        self.engine.clock(&self.key).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_each_text_is_part_of_the_hash() {
        let distinct = [hash(&["a", "bc"]), hash(&["ab", "c"]), hash(&["abc"]), hash(&["abc", ""])];
        for (at, one) in distinct.iter().enumerate() {
            assert_eq!(one.len(), 64);
            assert!(!distinct[..at].contains(one));
        }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let task = TaskId::random();
        for state in [EntryState::Pending, EntryState::Confirmed, EntryState::Void] {
            let mut changes = PartChanges::new();
            set(&mut changes, &task, state).unwrap();
            let (name, change) = changes.pop_first().unwrap();
            let PartChange::Set(bytes) = change else { panic!("the entry is set") };
            assert_eq!(Entry::decode(&name, bytes.len()), Some(Entry { task: task.clone(), state }));
        }
    }

    #[test]
    fn a_pending_entry_is_old_after_a_call_and_after_the_clock_was_set_back() {
        let at = |millis: i64| DateTime::from_timestamp_millis(1_000_000_000 + millis).unwrap();
        let pointer = |lives_ms| Pointer {
            version: Version::FIRST,
            expires_at: Some(at(60_001)),
            entries: Vec::new(),
            data: PointerData { lives_ms, limit_ms: 10_000 },
        };
        let written = pointer(60_000);
        for (now, is_old) in
            [(0, false), (1, false), (10_001, false), (10_002, true), (-9_000, false), (-11_000, true)]
        {
            assert_eq!(written.is_older_than_a_call(at(now)), is_old, "{now}");
        }
    }
}
