//! An engine that passes every call through hooks, which count, delay, change or refuse it before another engine answers.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use mcp_task_store::{
    Agenda, Cursor, Due, Next, OwnerId, OwnerPage, Page, PageRequest, Part, PartName, PutOptions, Queue,
    Record, StorageBackend, StorageError, Taken, TaskKey, TimerPage, Version, Written,
};

/// An asynchronous call of an engine, with its arguments.
#[derive(Clone, Debug)]
pub enum Call {
    Get { key: TaskKey },
    Part { key: TaskKey, name: PartName },
    Put { key: TaskKey, data: Bytes, options: PutOptions },
    PutIfVersion { key: TaskKey, data: Bytes, options: PutOptions, expected: Version },
    Delete { key: TaskKey },
    List { owner: OwnerId, page: PageRequest },
    CleanupExpired,
    Clock { key: TaskKey },
    Schedule { queue: Queue, key: TaskKey, after: Duration },
    TakeDue { queues: Vec<Queue>, limit: usize, hide_for: Duration },
    Resolve { due: Due, next: Next },
    Owners { after: Option<Cursor> },
    Timers { queue: Queue, after: Option<Cursor> },
}

/// What an engine returns for a [`Call`].
#[derive(Debug)]
pub enum Reply {
    Record(Record),
    Part(Option<Part>),
    Written(Written),
    Deleted(bool),
    Page(Page),
    Cleaned(u64),
    Clock(DateTime<Utc>),
    Scheduled(()),
    Taken(Taken),
    Resolved(bool),
    Owners(OwnerPage),
    Timers(TimerPage),
}

impl Call {
    pub async fn send(self, engine: &dyn Agenda) -> Result<Reply, StorageError> {
        Ok(match self {
            Self::Get { key } => Reply::Record(engine.get(&key).await?),
            Self::Part { key, name } => Reply::Part(engine.part(&key, &name).await?),
            Self::Put { key, data, options } => Reply::Written(engine.put(&key, data, options).await?),
            Self::PutIfVersion { key, data, options, expected } => {
                Reply::Written(engine.put_if_version(&key, data, options, expected).await?)
            }
            Self::Delete { key } => Reply::Deleted(engine.delete(&key).await?),
            Self::List { owner, page } => Reply::Page(engine.list(&owner, page).await?),
            Self::CleanupExpired => Reply::Cleaned(engine.cleanup_expired().await?),
            Self::Clock { key } => Reply::Clock(engine.clock(&key).await?),
            Self::Schedule { queue, key, after } => {
                Reply::Scheduled(engine.schedule(&queue, &key, after).await?)
            }
            Self::TakeDue { queues, limit, hide_for } => {
                Reply::Taken(engine.take_due(&queues, limit, hide_for).await?)
            }
            Self::Resolve { due, next } => Reply::Resolved(engine.resolve(&due, next).await?),
            Self::Owners { after } => Reply::Owners(engine.owners(after.as_ref()).await?),
            Self::Timers { queue, after } => Reply::Timers(engine.timers(&queue, after.as_ref()).await?),
        })
    }

    /// Returns whether the call writes or deletes a record.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::PutIfVersion { .. } | Self::Delete { .. })
    }
}

/// What an [`Intercept`] does with the calls that it receives. The provided methods forward everything.
#[async_trait]
pub trait Hooks: Send + Sync + 'static {
    /// Returns the engine that answers.
    fn engine(&self) -> Arc<dyn Agenda>;

    /// Handles every call except those of the methods below.
    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        call.send(&*self.engine()).await
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.engine().watch(key)
    }

    fn now(&self) -> DateTime<Utc> {
        self.engine().now()
    }

    fn generation(&self) -> u64 {
        self.engine().generation()
    }
}

/// The engine in front of another. It dereferences to its hooks, so a test reads counters and sets faults on it.
pub struct Intercept<H>(H);

impl<H: Hooks> Intercept<H> {
    pub fn new(hooks: H) -> Arc<Self> {
        Arc::new(Self(hooks))
    }

    /// Returns the same engine as a trait object.
    pub fn agenda(self: &Arc<Self>) -> Arc<dyn Agenda> {
        Arc::<Self>::clone(self)
    }
}

impl<H> Deref for Intercept<H> {
    type Target = H;

    fn deref(&self) -> &H {
        &self.0
    }
}

/// Passes a call to the hooks, and takes the value out of their reply.
macro_rules! reply {
    ($intercept:ident, $call:expr, $reply:ident) => {
        match $intercept.0.call($call).await? {
            Reply::$reply(value) => Ok(value),
            other => panic!("the hooks replied {other:?} instead of {}", stringify!($reply)),
        }
    };
}

#[async_trait]
impl<H: Hooks> StorageBackend for Intercept<H> {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        reply!(self, Call::Get { key: key.clone() }, Record)
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        reply!(self, Call::Part { key: key.clone(), name: name.clone() }, Part)
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        reply!(self, Call::Put { key: key.clone(), data, options }, Written)
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        reply!(self, Call::PutIfVersion { key: key.clone(), data, options, expected }, Written)
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        reply!(self, Call::Delete { key: key.clone() }, Deleted)
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        reply!(self, Call::List { owner: owner.clone(), page }, Page)
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        reply!(self, Call::CleanupExpired, Cleaned)
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        reply!(self, Call::Clock { key: key.clone() }, Clock)
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.now()
    }

    fn max_value_bytes(&self) -> usize {
        self.0.engine().max_value_bytes()
    }

    fn generation(&self) -> u64 {
        self.0.generation()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        self.0.watch(key)
    }
}

#[async_trait]
impl<H: Hooks> Agenda for Intercept<H> {
    async fn schedule(&self, queue: &Queue, key: &TaskKey, after: Duration) -> Result<(), StorageError> {
        reply!(self, Call::Schedule { queue: queue.clone(), key: key.clone(), after }, Scheduled)
    }

    async fn take_due(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_for: Duration,
    ) -> Result<Taken, StorageError> {
        reply!(self, Call::TakeDue { queues: queues.to_vec(), limit, hide_for }, Taken)
    }

    async fn resolve(&self, due: &Due, next: Next) -> Result<bool, StorageError> {
        reply!(self, Call::Resolve { due: due.clone(), next }, Resolved)
    }

    fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.0.engine().wakeups(queues)
    }

    async fn owners(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        reply!(self, Call::Owners { after: after.cloned() }, Owners)
    }

    async fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        reply!(self, Call::Timers { queue: queue.clone(), after: after.cloned() }, Timers)
    }
}

/// Returns an error of a server that cannot be reached.
pub fn unavailable(reason: &str, outcome_unknown: bool) -> StorageError {
    StorageError::Unavailable {
        address: "the intercepted engine".to_owned(),
        reason: reason.to_owned(),
        outcome_unknown,
        source: None,
    }
}
