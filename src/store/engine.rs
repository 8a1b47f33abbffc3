//! The store's calls of its engine. They count every answer, and decode records into tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use tokio::time::Instant;

use super::answers::Answers;
use super::error::TaskError;
use super::limits::check_key;
use crate::backend::{
    Agenda, Cursor, Due, Next, OwnerId, OwnerPage, Page, PageRequest, Part, PartName, PutOptions, Queue,
    Record, StorageError, TaskId, TaskKey, TimerPage, Version, Written,
};
use crate::task::snapshot::Origin;
use crate::task::{StoredTask, Task};
use crate::telemetry::{EngineCall, timed};

/// How many clients this process has created.
static CLIENTS: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub(super) struct EngineClient<B> {
    pub(super) backend: B,
    pub(super) answers: Arc<Answers>,
    /// Distinguishes the copies that this client has read from the copies of other clients.
    number: u64,
}

/// A timer that the engine schedules before it creates a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewTimer<'a> {
    pub(super) queue: &'a Queue,
    pub(super) after: Duration,
}

/// One page of an owner's tasks as the engine returned it.
pub(super) struct StoredPage {
    pub(super) tasks: Vec<StoredTask>,
    pub(super) unreadable: Vec<TaskId>,
    pub(super) next: Option<Cursor>,
}

impl<B: Agenda> EngineClient<B> {
    pub(super) fn new(backend: B, answers: Arc<Answers>) -> Self {
        Self { backend, answers, number: CLIENTS.fetch_add(1, Ordering::Relaxed) }
    }

    /// Returns the estimate of the engine's clock in whole milliseconds, the precision of times in records.
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.backend.now().trunc_subsecs(3)
    }

    /// Asks the engine for its clock. Call it before you end a task whose TTL or lease has elapsed.
    pub(super) async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, TaskError> {
        let now = self.answers.count(EngineCall::Clock, Some(&key.owner), self.backend.clock(key)).await;
        Ok(now.map_err(|error| TaskError::from_storage(error, &key.task))?.trunc_subsecs(3))
    }

    /// Returns the origin of a copy that the store is about to read or write.
    pub(super) fn origin(&self) -> Origin {
        Origin { client: self.number, generation: self.backend.generation(), at: Instant::now() }
    }

    pub(super) async fn get(&self, key: &TaskKey) -> Result<StoredTask, TaskError> {
        let origin = self.origin();
        decode(key, self.record(key).await?, origin)
    }

    /// Reads the task of a copy. Returns the copy if the task has not changed, and decodes the record otherwise.
    pub(super) async fn get_again(&self, copy: &StoredTask) -> Result<StoredTask, TaskError> {
        let origin = self.origin();
        let record = self.record(&copy.key).await?;
        if record.version == copy.version && copy.is_fresh(self.origin()) {
            return Ok(copy.clone());
        }
        decode(&copy.key, record, origin)
    }

    async fn record(&self, key: &TaskKey) -> Result<Record, TaskError> {
        check_key(key)?;
        let record = self.answers.count(EngineCall::Get, Some(&key.owner), self.backend.get(key)).await;
        record.map_err(|error| TaskError::from_storage(error, &key.task))
    }

    /// Reads a record of the runtime, which has a reserved owner.
    pub(super) async fn runtime_record(&self, key: &TaskKey) -> Result<Record, StorageError> {
        self.answers.count(EngineCall::Get, Some(&key.owner), self.backend.get(key)).await
    }

    /// Reads a page of records of the runtime, which have a reserved owner.
    pub(super) async fn runtime_page(
        &self,
        owner: &OwnerId,
        request: PageRequest,
    ) -> Result<Page, TaskError> {
        let page = self.backend.list(owner, request);
        self.answers.count_large(EngineCall::List, Some(owner), page).await.map_err(page_error)
    }

    pub(super) async fn page(&self, owner: &OwnerId, request: PageRequest) -> Result<StoredPage, TaskError> {
        let origin = self.origin();
        let page =
            self.answers.count_large(EngineCall::List, Some(owner), self.backend.list(owner, request)).await;
        let page = page.map_err(page_error)?;
        let mut unreadable: Vec<TaskId> = page.corrupt.into_iter().map(|corrupt| corrupt.task).collect();
        let mut tasks = Vec::with_capacity(page.records.len());
        for listed in page.records {
            let key = TaskKey { owner: owner.clone(), task: listed.task };
            let record = Record::new(listed.data, listed.version, listed.expires_at, listed.parts);
            match decode(&key, record, origin) {
                Ok(stored) => tasks.push(stored),
                Err(_) => unreadable.push(key.task),
            }
        }
        Ok(StoredPage { tasks, unreadable, next: page.next })
    }

    /// Lists owners. The answer does not count: an engine that cannot list owners has not failed.
    pub(super) async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, TaskError> {
        timed(EngineCall::Owners, self.backend.owners(after)).await.map_err(page_error)
    }

    /// Lists timers. The answer does not count: an engine that cannot list timers has not failed.
    pub(super) async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, TaskError> {
        timed(EngineCall::Timers, self.backend.timers(queue, after)).await.map_err(page_error)
    }

    pub(super) async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, TaskError> {
        let part =
            self.answers.count_large(EngineCall::Part, Some(&key.owner), self.backend.part(key, name)).await;
        part.map_err(|error| TaskError::from_storage(error, &key.task))
    }

    pub(super) async fn put(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        let put = self.backend.put_if_version(key, data, options, expected);
        self.answers.count_write(EngineCall::Put, Some(&key.owner), put).await
    }

    /// Schedules a timer, then creates a record.
    pub(super) async fn create_with_timer(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        timer: NewTimer<'_>,
    ) -> Result<Written, StorageError> {
        let create = self.backend.create_with_timer(key, data, options, timer.queue, timer.after);
        self.answers.count_write(EngineCall::Create, Some(&key.owner), create).await
    }

    pub(super) async fn delete(&self, key: &TaskKey) -> Result<bool, TaskError> {
        let removed =
            self.answers.count_write(EngineCall::Delete, Some(&key.owner), self.backend.delete(key)).await;
        removed.map_err(|error| TaskError::from_storage(error, &key.task))
    }

    pub(super) async fn cleanup(&self) -> Result<u64, TaskError> {
        self.answers
            .count(EngineCall::Cleanup, None, self.backend.cleanup_expired())
            .await
            .map_err(TaskError::Storage)
    }

    pub(super) async fn schedule(
        &self,
        queue: &Queue,
        key: &TaskKey,
        after: Duration,
    ) -> Result<(), TaskError> {
        let scheduled = self.backend.schedule(queue, key, after);
        self.answers
            .count_write(EngineCall::Schedule, Some(&key.owner), scheduled)
            .await
            .map_err(TaskError::Storage)
    }

    /// Resolves a timer. Returns whether its token was still valid.
    pub(super) async fn resolve(&self, due: &Due, next: Next) -> Result<bool, TaskError> {
        let resolved = self.backend.resolve(due, next);
        self.answers
            .count(EngineCall::Resolve, Some(&due.key.owner), resolved)
            .await
            .map_err(TaskError::Storage)
    }
}

fn page_error(error: StorageError) -> TaskError {
    match error {
        StorageError::InvalidPage { reason } => TaskError::InvalidPage { reason },
        other => TaskError::Storage(other),
    }
}

fn decode(key: &TaskKey, record: Record, origin: Origin) -> Result<StoredTask, TaskError> {
    let unreadable = |source| TaskError::Unreadable { task: key.task.clone(), source };
    let task = Task::from_json(&record.data).map_err(unreadable)?;
    Ok(StoredTask::new(key, task.with_parts(&record.parts), record.version, record.expires_at, origin))
}
