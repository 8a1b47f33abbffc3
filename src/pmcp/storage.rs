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
/// ```
/// use mcp_task_store::MemoryBackend;
/// use mcp_task_store::PmcpTasksBackend;
/// use pmcp_tasks::{GenericTaskStore, ServerTaskStore};
///
/// let store = GenericTaskStore::new(PmcpTasksBackend::new(MemoryBackend::new()));
/// let for_a_server = ServerTaskStore::new(store);
/// ```
///
/// * **Keys** are `{owner}:{task}`, split at the last colon: an owner may hold colons, a task id may not. Owners are
///   kept apart by the whole name, so the prefix `a:` does not list the tasks of an owner `a:b`. Both ids take up to
///   256 bytes.
/// * **Prefixes** hold an owner and a colon, and may hold the beginning of a task id. The engines have no call
///   without an owner, so others are refused. All pages are read. Records that the engine cannot read are left out
///   and logged.
/// * **Expiry** is the `expiresAt` of the record, by the engine's clock, to the next millisecond; a record that has
///   none or `null`, or is no JSON object, does not expire. At that time the record is gone for every call. A time that
///   has passed already leaves the record a millisecond; one beyond 100 years counts as 100 years; text that is not
///   an RFC 3339 time is refused, as the record would stay for ever.
/// * **`put_if_version` never creates**: version 0 is a conflict, or `NotFound` without a record.
/// * `cleanup_expired` is 0 where the server expires records by itself.
/// * **No parts**: the trait of `pmcp-tasks` knows one blob a task, so a record here has no
///   [parts](crate::PutOptions::parts). Every update of a task sends its arguments and its result again, every poll
///   reads them, and together they have the size that the engine allows for the data of a record.
///   [`PmcpTaskStore`](super::PmcpTaskStore) has no such cost.
/// * **Quota**: `pmcp-tasks` lists an owner's tasks, and counts them, before it creates one. The quota is not part of
///   the write, so creates that race can exceed it, and a create reads everything that the owner has stored.
///
/// # Errors
/// `NotFound` also for keys that no record can have; `VersionConflict`; `CapacityExceeded` when the engine is full;
/// `Backend` for the rest, whose source is the [`StorageError`]. It is logged too, as `pmcp-tasks` passes on the
/// message only: that may reach a client, and names no host.
///
/// # Cancellation safety
/// Dropping the future of a write leaves the write applied or not, as a whole.
#[derive(Clone, Debug)]
pub struct PmcpTasksBackend<B> {
    engine: B,
}

impl<B: StorageBackend> PmcpTasksBackend<B> {
    /// The engine behind the trait of `pmcp-tasks`.
    pub fn new(engine: B) -> Self {
        Self { engine }
    }

    /// The engine.
    pub fn engine(&self) -> &B {
        &self.engine
    }

    /// What to write beside the data.
    fn options(&self, data: &[u8]) -> Result<PutOptions, PmcpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Expiring {
            #[serde(default)]
            expires_at: Value,
        }
        // An array would be read as the fields of the struct.
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
            // To the engine it means that the record is to be created, which this call must not do.
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
            prefix.rsplit_once(':').ok_or_else(|| invalid("a prefix has no colon behind the owner"))?;
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
                tracing::warn!(owner = %owner.printable(), task = %corrupt.task.printable(), reason = %Printable(&corrupt.reason), "left a record out of a listing");
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

/// When a record is to go that expires `at`, said as the engines want it: by a duration of at least a millisecond.
fn expiry_at(at: DateTime<Utc>, now: DateTime<Utc>) -> Expiry {
    let left = (at - now).to_std().unwrap_or_default();
    Expiry::After(left.clamp(Duration::from_millis(1), Expiry::MAX))
}

fn split(key: &str) -> Result<TaskKey, StorageError> {
    let (owner_id, task) = key
        .rsplit_once(':')
        .ok_or_else(|| StorageError::InvalidKey { reason: "it has no colon behind the owner".to_owned() })?;
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
        // What the caller got wrong: no server has a part in it.
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
