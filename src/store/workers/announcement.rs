//! The record of one worker, as the worker itself writes it.

use std::pin::pin;
use std::time::Duration;

use chrono::{DateTime, Utc};
use once_cell::sync::Lazy;

use super::{WORKERS, WorkerStatus, WorkerTask};
use crate::backend::{Agenda, Expiry, PutOptions, StorageError, TaskKey, Version};
use crate::store::deadline::CallTarget;
use crate::store::durations::millis;
use crate::store::pointer::hash;
use crate::store::{TaskError, TaskStore};
use crate::telemetry::{EngineCall, timed};

/// How long the record lives from each write on. So operators see a worker that was lost within the last hour.
const LIFE: Duration = Duration::from_secs(3600);
/// A worker announces itself each third of a lease, within these bounds.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);
const LONGEST_PERIOD: Duration = Duration::from_secs(20);
/// How many tasks and operations the record names, and how many characters of the name of an operation it has.
const MAX_TASKS: usize = 16;
const MAX_OPERATIONS: usize = 32;
const MAX_NAME: usize = 200;

static HOST: Lazy<String> = Lazy::new(|| gethostname::gethostname().to_string_lossy().into_owned());

/// The record of one worker. Only the worker writes it.
pub(crate) struct Announcement<B> {
    store: TaskStore<B>,
    key: TaskKey,
    /// The version that the next write expects.
    version: Version,
    started_at: DateTime<Utc>,
}

impl<B: Agenda> TaskStore<B> {
    /// Returns the record of a worker on this store, which is not written yet. `id` tells the workers apart that share this store.
    pub(crate) fn announcement(&self, id: &str) -> Result<Announcement<B>, TaskError> {
        let records = self.0.records_only();
        let key =
            TaskKey::new(WORKERS, &hash(&[&records.attempts.holder, id])).map_err(TaskError::Storage)?;
        let started_at = records.engine.now();
        Ok(Announcement { store: self.clone(), key, version: Version::ABSENT, started_at })
    }
}

impl<B: Agenda> Announcement<B> {
    /// Returns how often to write the record.
    pub(crate) fn period(&self) -> Duration {
        (self.store.lease_duration() / 3).clamp(SHORTEST_PERIOD, LONGEST_PERIOD)
    }

    /// Writes the record: the operations that the worker runs, how many tasks it runs at once, and what it runs now.
    ///
    /// The answers of the engine do not count as failures of the store, because the workers are of use only to operators.
    pub(crate) async fn write(&mut self, operations: Vec<String>, capacity: usize) -> Result<(), TaskError> {
        let status = self.status(operations, capacity);
        let unencodable = |source| TaskError::Unencodable { task: self.key.task.clone(), source };
        let data = bytes::Bytes::from(serde_json::to_vec(&status).map_err(unencodable)?);
        let (records, key, expected) = (self.store.0.records(), &self.key, self.version);
        let mut write = pin!(async {
            let mut expected = expected;
            loop {
                let options = PutOptions::new(Expiry::After(LIFE)).quiet();
                let put = records.engine.backend.put_if_version(key, data.clone(), options, expected);
                match timed(EngineCall::Put, put).await {
                    Ok(written) => return Ok(written.version),
                    // An earlier write was applied, and its answer was lost. Or the record has expired.
                    Err(StorageError::VersionConflict { actual, .. }) if actual != expected => {
                        expected = actual
                    }
                    Err(StorageError::NotFound { .. }) if expected != Version::ABSENT => {
                        expected = Version::ABSENT
                    }
                    Err(error) => return Err(TaskError::Storage(error)),
                }
            }
        });
        self.version = records.deadline().limit("announce", CallTarget::Store, write.as_mut()).await?;
        Ok(())
    }

    /// Removes the record: the worker has ended.
    pub(crate) async fn remove(self) -> Result<(), TaskError> {
        let records = self.store.0.records_only();
        let delete = pin!(async {
            let deleted = timed(EngineCall::Delete, records.engine.backend.delete(&self.key)).await;
            deleted.map_err(TaskError::Storage)
        });
        records.deadline().limit("remove the worker", CallTarget::Store, delete).await.map(drop)
    }

    fn status(&self, operations: Vec<String>, capacity: usize) -> WorkerStatus {
        let records = self.store.0.records_only();
        let (tasks, task_count) = records.attempts.held(MAX_TASKS);
        let name = |name: &String| name.chars().take(MAX_NAME).collect();
        WorkerStatus {
            holder: records.attempts.holder.clone(),
            host: HOST.clone(),
            process_id: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            operation_count: operations.len(),
            operations: operations.iter().take(MAX_OPERATIONS).map(name).collect(),
            capacity,
            tasks: tasks.into_iter().map(WorkerTask::from).collect(),
            task_count,
            started_at: self.started_at,
            last_seen_at: records.engine.now(),
            period_ms: millis(self.period()),
        }
    }
}

impl From<(TaskKey, u32)> for WorkerTask {
    fn from((TaskKey { owner, task: task_id }, attempt): (TaskKey, u32)) -> Self {
        Self { owner, task_id, attempt }
    }
}
