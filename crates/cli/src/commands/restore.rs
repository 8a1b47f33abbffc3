//! Writes one record of an export into a store, with the timers of its task.

use std::time::Duration;

use chrono::{DateTime, Utc};
use mcp_task_store::{
    Agenda, Expiry, Lease, PartChange, PutOptions, Queue, Record, StorageBackend, StorageError, Task,
    TaskFilter, TaskKey, Version,
};

use crate::archive::ArchivedRecord;
use crate::engine::Store;

/// How much longer than a lease the first timer of an open task waits: longer than its record takes to be written.
const CREATE_LIMIT: Duration = Duration::from_secs(30);
/// When the timer of a dead task fires to look whether its record is gone.
const LOOK_AFTER_DEAD: Duration = Duration::from_secs(24 * 3600);
/// The lease that a record may have which cannot be read as a task.
const UNKNOWN_LEASE: Duration = Duration::from_secs(30);
/// How often to overwrite a record that other writers change.
const MAX_CONFLICTS: u32 = 10;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    Created,
    /// It replaced a record with other content.
    Overwritten,
    /// The store has it already, with the same content.
    Present,
    /// The store has a record with other content, which stays as it is.
    Differs,
    /// It has expired since the export.
    Expired,
}

/// Writes a record, unless the store has it. With `overwrite`, replaces one with other content.
pub async fn restore(
    store: &Store,
    record: &ArchivedRecord,
    overwrite: bool,
) -> Result<Restored, StorageError> {
    let (backend, now) = (store.backend(), store.backend().now());
    let Some(expiry) = expiry(record.expires_at, now) else { return Ok(Restored::Expired) };
    let timers = Timers::of(record);
    let options = options(record, expiry);
    let data = || record.data.clone().into();
    let written = match timers.lease_after() {
        Some(after) => {
            backend.create_with_timer(&record.key, data(), options.clone(), &Queue::leases(), after).await
        }
        None => backend.put_if_version(&record.key, data(), options.clone(), Version::ABSENT).await,
    };
    let restored = match written {
        Ok(_) => Restored::Created,
        Err(StorageError::VersionConflict { .. }) => replace(store, record, options, overwrite).await?,
        Err(error) => return Err(error),
    };
    if restored != Restored::Differs {
        timers.schedule(store, &record.key).await?;
    }
    Ok(restored)
}

/// Returns the expiry; `None` if it has passed.
fn expiry(expires_at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Expiry> {
    let Some(expires_at) = expires_at else { return Some(Expiry::Never) };
    let left = (expires_at - now).to_std().ok().filter(|left| *left >= Duration::from_millis(1))?;
    Some(Expiry::After(left.min(Expiry::MAX)))
}

fn options(record: &ArchivedRecord, expiry: Expiry) -> PutOptions {
    let mut options = PutOptions::new(expiry);
    for (name, part) in &record.parts {
        options = options.set_part(name.clone(), part.clone());
    }
    options
}

/// Compares a record with the one that the store has, and overwrites that one if it may.
async fn replace(
    store: &Store,
    record: &ArchivedRecord,
    options: PutOptions,
    overwrite: bool,
) -> Result<Restored, StorageError> {
    let (backend, mut conflicts) = (store.backend(), 0);
    loop {
        let existing = match backend.get(&record.key).await {
            Ok(existing) => existing,
            // It was removed meanwhile.
            Err(StorageError::NotFound { .. }) => {
                Record::new(Vec::new(), Version::ABSENT, None, Default::default())
            }
            Err(error) => return Err(error),
        };
        let is_absent = existing.version == Version::ABSENT;
        if !is_absent && is_equal(store, record, &existing).await? {
            return Ok(Restored::Present);
        }
        if !is_absent && !overwrite {
            return Ok(Restored::Differs);
        }
        let mut options = options.clone();
        for name in existing.parts.keys() {
            options.parts.entry(name.clone()).or_insert(PartChange::Clear);
        }
        let data = record.data.clone().into();
        match backend.put_if_version(&record.key, data, options, existing.version).await {
            Ok(_) if is_absent => return Ok(Restored::Created),
            Ok(_) => return Ok(Restored::Overwritten),
            Err(StorageError::VersionConflict { .. } | StorageError::NotFound { .. })
                if conflicts < MAX_CONFLICTS =>
            {
                conflicts += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn is_equal(store: &Store, record: &ArchivedRecord, existing: &Record) -> Result<bool, StorageError> {
    let sizes = record.parts.iter().map(|(name, part)| (name, part.len()));
    if existing.data != record.data || !existing.parts.iter().map(|(name, size)| (name, *size)).eq(sizes) {
        return Ok(false);
    }
    for (name, part) in &record.parts {
        let stored = store.backend().part(&record.key, name).await?;
        if stored.is_none_or(|stored| stored.data != *part) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The timers that a task needs, so that servers find it.
enum Timers {
    None,
    /// The timer of a lease that a worker holds, or of a record that cannot be read as a task.
    Lease {
        duration: Duration,
        deadline: Option<DateTime<Utc>>,
    },
    /// The task waits for a worker.
    Work {
        queue: Option<Queue>,
        lease: Lease,
    },
    Dead,
}

impl Timers {
    fn of(record: &ArchivedRecord) -> Self {
        let Ok(task) = serde_json::from_slice::<Task>(&record.data) else {
            // A server that can read the record decides. An ended task needs no timer, and its first taker removes it.
            return Self::Lease { duration: UNKNOWN_LEASE, deadline: None };
        };
        match task.lease {
            _ if task.status.is_terminal() => {
                let now = task.last_updated_at;
                match TaskFilter::new().dead().matches_task(&record.key.owner, &task, now) {
                    true => Self::Dead,
                    false => Self::None,
                }
            }
            None => Self::None,
            Some(lease) if lease.holder.is_some() => {
                Self::Lease { duration: lease.duration(), deadline: Some(lease.deadline) }
            }
            Some(lease) => {
                let queue = task.operation.map(|operation| Queue::work(&operation, task.priority));
                Self::Work { queue: queue.and_then(Result::ok), lease }
            }
        }
    }

    /// Returns when the timer fires that is scheduled before the record is created: so late that a server that finds no record
    /// may remove it.
    fn lease_after(&self) -> Option<Duration> {
        let duration = match self {
            Self::None | Self::Dead => return None,
            Self::Lease { duration, .. } => *duration,
            Self::Work { lease, .. } => lease.duration(),
        };
        Some((duration + CREATE_LIMIT).min(Expiry::MAX))
    }

    /// Schedules the task for the time at which a server must look at it.
    async fn schedule(&self, store: &Store, key: &TaskKey) -> Result<(), StorageError> {
        let (backend, now) = (store.backend(), store.backend().now());
        let until = |at: DateTime<Utc>| (at - now).to_std().unwrap_or_default();
        match self {
            Self::None => Ok(()),
            Self::Dead => backend.schedule(&Queue::dead(), key, LOOK_AFTER_DEAD).await,
            // The keeper of a server that takes it finds out what the task needs.
            Self::Lease { duration, deadline } => {
                let after = deadline.map_or(Duration::ZERO, until).min(*duration);
                backend.schedule(&Queue::leases(), key, after).await
            }
            // A task without an operation, or with one that no worker can register, has no queue. The timer of its lease stays.
            Self::Work { queue: None, .. } => Ok(()),
            Self::Work { queue: Some(queue), lease } => {
                let longest = lease.delay_ms.map_or(Expiry::MAX, Duration::from_millis).min(Expiry::MAX);
                backend.schedule(queue, key, until(lease.deadline).min(longest)).await
            }
        }
    }
}
