//! This crate's engines as the storage of `pmcp-tasks`.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use pmcp_tasks::store::backend::{StorageBackend as PmcpBackend, StorageError as PmcpError, VersionedRecord};
use serde::Deserialize;
use serde_json::Value;

use super::{owner, public_text};
use crate::backend::{
    Cursor, Expiry, MAX_PAGE_LIMIT, PageRequest, PutOptions, StorageBackend, StorageError, TaskId, TaskKey,
};
use crate::printable::{Chain, Printable};

/// A `StorageBackend` of `pmcp-tasks`, on any engine of this crate.
///
/// Use it for a server that already has a `pmcp_tasks::GenericTaskStore`. For a new server use
/// [`PmcpTaskStore`](super::PmcpTaskStore).
///
/// ```
/// use mcp_task_store::MemoryBackend;
/// use mcp_task_store::PmcpTasksBackend;
/// use pmcp_tasks::{GenericTaskStore, ServerTaskStore};
///
/// let store = GenericTaskStore::new(PmcpTasksBackend::new(MemoryBackend::new()));
/// let for_a_server = ServerTaskStore::new(store);
/// ```
///
/// * **Keys** are `{owner}:{task}`, split at the last colon. An owner may contain colons, a task id may not. The adapter compares
///   whole owners, so the prefix `a:` does not list the tasks of the owner `a:b`. Each id has up to 256 bytes.
/// * **Prefixes** consist of an owner, a colon, and optionally the beginning of a task id. Other prefixes are rejected, because
///   the engines have no call without an owner. A listing reads all pages. It leaves out records that the engine cannot read,
///   and logs them.
/// * **Expiry** is the `expiresAt` of the record, by the engine's clock, rounded up to the next millisecond. From
///   that time on the record is absent for every call.
///     * A record whose `expiresAt` is missing or `null`, or that is not a JSON object, does not expire.
///     * With a time in the past, the record expires after one millisecond. A time beyond 100 years counts as 100
///       years.
///     * Any other value that is not an RFC 3339 time is rejected: without this check the record would never expire.
/// * **`put_if_version` never creates** a record: version 0 is a conflict, or `NotFound` if there is no record.
/// * **`cleanup_expired`** returns 0 on engines whose server expires records.
/// * **No parts.** The trait of `pmcp-tasks` stores one blob per task, so a record has no
///   [parts](crate::PutOptions::parts). Every update of a task sends its arguments and its result again, and every
///   poll reads them. Together they are limited to the size of a record's data.
///   [`PmcpTaskStore`](super::PmcpTaskStore) does not have this cost.
/// * **Quota.** `pmcp-tasks` lists and counts an owner's tasks before it creates one. The quota is not part of the write, so racing
///   creates can exceed it, and each create reads everything that the owner has stored.
///
/// # Errors
/// `NotFound`, also for an invalid key; `VersionConflict`; `CapacityExceeded` if the engine is full; `Backend` for
/// everything else.
///
/// The source of `Backend` is the [`StorageError`]. The adapter also logs it, because `pmcp-tasks` passes on only the message. The
/// message may reach a client, so it names no host.
///
/// # Cancellation safety
/// If the future of a write is dropped, the write is applied as a whole or not at all.
#[derive(Clone, Debug)]
pub struct PmcpTasksBackend<B> {
    engine: B,
}

impl<B: StorageBackend> PmcpTasksBackend<B> {
    /// Creates an adapter for an engine.
    pub fn new(engine: B) -> Self {
        Self { engine }
    }

    /// Returns the engine.
    pub fn engine(&self) -> &B {
        &self.engine
    }

    /// Returns the options of a write of this data.
    fn options(&self, data: &[u8]) -> Result<PutOptions, PmcpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Expiring {
            #[serde(default)]
            expires_at: Value,
        }
        // serde also reads an array as a struct, so look for an object first.
        if !data.trim_ascii_start().starts_with(b"{") {
            return Ok(Expiry::Never.into());
        }
        let at = match serde_json::from_slice(data) {
            Ok(Expiring { expires_at: Value::Null }) | Err(_) => return Ok(Expiry::Never.into()),
            Ok(Expiring { expires_at: Value::String(at) }) => DateTime::parse_from_rfc3339(&at).ok(),
            Ok(_) => None,
        };
        let at = at.ok_or_else(|| invalid("the expiresAt of the record is not a time in RFC 3339"))?;
        Ok(expiry_at(at.to_utc(), self.engine.now()).into())
    }
}

#[async_trait]
impl<B: StorageBackend> PmcpBackend for PmcpTasksBackend<B> {
    async fn get(&self, key: &str) -> Result<VersionedRecord, PmcpError> {
        let split = split(key).map_err(|_| not_found(key))?;
        let record = self.engine.get(&split).await.map_err(|error| storage_error(error, key))?;
        Ok(VersionedRecord { data: record.data.into(), version: record.version.get() })
    }

    async fn put(&self, key: &str, data: &[u8]) -> Result<u64, PmcpError> {
        let split = split(key).map_err(|error| storage_error(error, key))?;
        let options = self.options(data)?;
        let written = self.engine.put(&split, Bytes::copy_from_slice(data), options).await;
        Ok(written.map_err(|error| storage_error(error, key))?.version.get())
    }

    async fn put_if_version(&self, key: &str, data: &[u8], expected_version: u64) -> Result<u64, PmcpError> {
        let split = split(key).map_err(|_| not_found(key))?;
        if expected_version == 0 {
            // For the engine, 0 means "create", which this call must not do.
            let record = self.engine.get(&split).await.map_err(|error| storage_error(error, key))?;
            let (key, actual) = (key.to_owned(), record.version.get());
            return Err(PmcpError::VersionConflict { key, expected: 0, actual });
        }
        let options = self.options(data)?;
        let data = Bytes::copy_from_slice(data);
        let written = self.engine.put_if_version(&split, data, options, expected_version.into()).await;
        Ok(written.map_err(|error| storage_error(error, key))?.version.get())
    }

    async fn delete(&self, key: &str) -> Result<bool, PmcpError> {
        let Ok(split) = split(key) else {
            return Ok(false);
        };
        self.engine.delete(&split).await.map_err(|error| storage_error(error, key))
    }

    async fn list_by_prefix(&self, prefix: &str) -> Result<Vec<(String, VersionedRecord)>, PmcpError> {
        let (owner_id, beginning) =
            prefix.rsplit_once(':').ok_or_else(|| invalid("the prefix has no colon after the owner"))?;
        let Ok(owner) = owner(owner_id) else {
            return Ok(Vec::new());
        };
        let mut records = Vec::new();
        let mut next: Option<Cursor> = None;
        loop {
            let mut request = PageRequest::new(MAX_PAGE_LIMIT);
            if let Some(cursor) = next {
                request = request.after(cursor);
            }
            let page =
                self.engine.list(&owner, request).await.map_err(|error| storage_error(error, prefix))?;
            for corrupt in &page.corrupt {
                tracing::warn!(owner = %owner.printable(), task = %corrupt.task.printable(), reason = %Printable(&corrupt.reason), "a listing leaves out a record that cannot be read");
            }
            for listed in page.records {
                if listed.task.as_str().starts_with(beginning) {
                    let record = VersionedRecord { data: listed.data.into(), version: listed.version.get() };
                    records.push((format!("{owner_id}:{}", listed.task), record));
                }
            }
            next = page.next;
            if next.is_none() {
                return Ok(records);
            }
        }
    }

    async fn cleanup_expired(&self) -> Result<usize, PmcpError> {
        let removed = self.engine.cleanup_expired().await.map_err(|error| storage_error(error, ""))?;
        Ok(usize::try_from(removed).unwrap_or(usize::MAX))
    }
}

/// Converts the time at which a record expires into the expiry of a write: a duration of at least one millisecond.
fn expiry_at(at: DateTime<Utc>, now: DateTime<Utc>) -> Expiry {
    let left = (at - now).to_std().unwrap_or_default();
    Expiry::After(left.clamp(Duration::from_millis(1), Expiry::MAX))
}

fn split(key: &str) -> Result<TaskKey, StorageError> {
    let (owner_id, task) = key.rsplit_once(':').ok_or_else(|| StorageError::InvalidKey {
        reason: "the key has no colon after the owner".to_owned(),
    })?;
    Ok(TaskKey { owner: owner(owner_id)?, task: TaskId::try_from(task)? })
}

fn not_found(key: &str) -> PmcpError {
    PmcpError::NotFound { key: key.to_owned() }
}

fn invalid(message: &str) -> PmcpError {
    PmcpError::Backend { message: message.to_owned(), source: None }
}

fn storage_error(error: StorageError, key: &str) -> PmcpError {
    let message = match &error {
        StorageError::NotFound { .. } => return not_found(key),
        StorageError::VersionConflict { expected, actual, .. } => {
            return PmcpError::VersionConflict {
                key: key.to_owned(),
                expected: expected.get(),
                actual: actual.get(),
            };
        }
        // A mistake of the caller. The message contains no text of a server.
        StorageError::TooLarge { .. } | StorageError::InvalidKey { .. } => error.to_string(),
        _ => {
            tracing::error!(key, error = %Chain(&error), "the task storage failed");
            public_text(&error).to_owned()
        }
    };
    match error {
        StorageError::CapacityExceeded { .. } => PmcpError::CapacityExceeded { message },
        error => PmcpError::Backend { message, source: Some(Box::new(error)) },
    }
}
