//! An engine as another process reaches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use mcp_task_store::{
    Agenda, Cursor, Due, Next, OwnerId, OwnerPage, Page, PageRequest, Part, PartName, PutOptions, Queue,
    Record, StorageBackend, StorageError, Taken, TaskKey, TimerPage, Version, Written,
};

/// What stands before the name of a holder in a record. Within a string, its quotes would be escaped.
const HOLDER: &str = r#""holder":""#;
const OTHER: &str = r#""holder":"another's "#;

/// Makes the stores above it those of another process: in the records, their leases have holders that no store of this
/// process is.
struct Elsewhere {
    engine: Arc<dyn Agenda>,
    own: String,
}

/// The same engine, for the stores of a process of their own.
pub fn elsewhere(engine: &Arc<dyn Agenda>) -> Arc<dyn Agenda> {
    static PROCESSES: AtomicUsize = AtomicUsize::new(0);
    let own = format!("{HOLDER}process {} ", PROCESSES.fetch_add(1, Ordering::Relaxed));
    Arc::new(Elsewhere { engine: Arc::clone(engine), own })
}

/// Never in JSON as such.
const MARK: &str = "\u{1}";

impl Elsewhere {
    /// What the stores above see: their own holders as they wrote them, and all others as those of others.
    fn read(&self, data: Bytes) -> Bytes {
        replaced(data, [(&*self.own, MARK), (HOLDER, OTHER), (MARK, HOLDER)])
    }

    fn written(&self, data: Bytes) -> Bytes {
        replaced(data, [(OTHER, MARK), (HOLDER, &*self.own), (MARK, HOLDER)])
    }
}

fn replaced(data: Bytes, replacements: [(&str, &str); 3]) -> Bytes {
    match std::str::from_utf8(&data) {
        Ok(text) if text.contains(HOLDER) => {
            let replace = |text: String, (from, to)| text.replace(from, to);
            replacements.into_iter().fold(text.to_owned(), replace).into()
        }
        // What is not text is no record of a task.
        _ => data,
    }
}

#[async_trait]
impl StorageBackend for Elsewhere {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        let mut record = self.engine.get(key).await?;
        record.data = self.read(record.data);
        Ok(record)
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        self.engine.part(key, name).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        self.engine.put(key, self.written(data), options).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        self.engine.put_if_version(key, self.written(data), options, expected).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        self.engine.delete(key).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        let mut page = self.engine.list(owner, page).await?;
        for record in &mut page.records {
            record.data = self.read(std::mem::take(&mut record.data));
        }
        Ok(page)
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        self.engine.cleanup_expired().await
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        self.engine.clock(key).await
    }

    fn now(&self) -> DateTime<Utc> {
        self.engine.now()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.engine.watch(key)
    }
}

#[async_trait]
impl Agenda for Elsewhere {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        self.engine.schedule(queue, key, after).await
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        self.engine.take_due(queues, limit, hide_for).await
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        self.engine.resolve(due, next).await
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.engine.wakeups(queues)
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        self.engine.owners(after).await
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        self.engine.timers(queue, after).await
    }
}
