//! The PostgreSQL engine.

mod agenda;
mod builder;
mod database;
mod error;
mod group_commit;
mod listener;
mod names;
mod pages;
mod puts;
mod rows;
mod schema;
mod settings;
mod timers;
mod tls;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;

pub use builder::PostgresBuilder;
use database::{Access, Database};
use group_commit::GroupCommit;
use listener::{Listener, Subscribers};
use puts::Put;
use rows::{Stored, column};
use timers::{Resolve, Schedule};

use crate::backend::engine::{
    MaxSizes, PageBounds, WriteMode, from_micros, watch_by_notifications, watch_by_polling,
};
use crate::backend::key::escape;
use crate::backend::{
    OwnerId, Page, PageRequest, Part, PartName, PutOptions, Record, StorageBackend, StorageError, TaskKey,
    Version, Written,
};
use crate::spans::engine_span;

/// How many expired records one statement of `cleanup_expired` removes. Other writes run between two statements.
const CLEANED_AT_ONCE: i32 = 256;

/// Keeps records in tables of a PostgreSQL database, version 13 to 17.
///
/// A write returns once PostgreSQL has committed it, by the `synchronous_commit` of the server. The writes that wait at the same moment
/// share one statement and one commit; each caller keeps its own outcome, error and cancellation. The clock of the server decides what
/// has expired. One more connection listens for changes.
///
/// Create the tables once, with [`PostgresBuilder::init`] or `mcp-tasks init`.
///
/// A clone is cheap: all clones share the connections.
///
/// # Errors
/// * `Unavailable` if the server does not answer in time, ends the connection, is read-only, or has no free connection. If a write was
///   sent before, the error has [`outcome_unknown`](StorageError::outcome_unknown): read the record before you write again.
/// * `CapacityExceeded` if the disk or the memory of the server is full.
/// * `Denied` if the user lacks a right.
/// * `Backend` if the tables do not fit this version of the crate.
///
/// # Cancellation safety
/// If the future of a write is dropped before the statement is sent, nothing is written. Later, the write may be applied.
///
/// # Examples
/// ```no_run
/// # async fn example() -> Result<(), mcp_task_store::StorageError> {
/// use mcp_task_store::{PostgresBackend, PutOptions, StorageBackend, TaskKey};
///
/// let backend = PostgresBackend::builder().init("postgres://tasks@localhost/mcp").await?;
/// let key = TaskKey::new("alice", "t1")?;
/// backend.put(&key, "hello".into(), PutOptions::default()).await?;
/// assert_eq!(backend.get(&key).await?.data, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresBackend(Arc<Engine>);

/// All clones of a backend share it.
struct Engine {
    database: Arc<Database>,
    puts: GroupCommit<Put>,
    schedules: GroupCommit<Schedule>,
    resolves: GroupCommit<Resolve>,
    subscribers: Arc<Subscribers>,
    /// `None` where nothing can listen.
    listener: Option<Listener>,
    max_sizes: MaxSizes,
}

impl Engine {
    fn new(
        database: Arc<Database>,
        subscribers: Arc<Subscribers>,
        listener: Option<Listener>,
        max_sizes: MaxSizes,
    ) -> Self {
        let (puts, schedules, resolves) = Default::default();
        Self { database, puts, schedules, resolves, subscribers, listener, max_sizes }
    }

    fn listens(&self) -> bool {
        self.listener.is_some()
    }
}

impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBackend")
            .field("address", &self.0.database.errors.address)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl StorageBackend for PostgresBackend {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        let span = engine_span!("get", owner = %key.owner.printable(), task = %key.task.printable());
        let (database, owner, task) =
            (&self.0.database, escape(key.owner.as_str()), escape(key.task.as_str()));
        let rows = database.call(span, &database.statements.get, &[&owner, &task], Access::Reads).await?;
        let fields = Stored::read_live(database, key, &rows)?;
        Ok(fields.into_record(column(database, &rows[0], "data")?))
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        let span = engine_span!("part", owner = %key.owner.printable(), task = %key.task.printable(), name = %name.as_str());
        let (database, owner, task) =
            (&self.0.database, escape(key.owner.as_str()), escape(key.task.as_str()));
        let parameters = &[&owner as _, &task as _, &name.as_str() as _];
        let rows = database.call(span, &database.statements.part, parameters, Access::Reads).await?;
        let fields = Stored::read_live(database, key, &rows)?;
        let data: Option<&[u8]> = column(database, &rows[0], "data")?;
        Ok(data.map(|data| Part::new(Bytes::copy_from_slice(data), fields.version)))
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        let span = engine_span!("put", owner = %key.owner.printable(), task = %key.task.printable());
        let put = self.0.max_sizes.check(key, data, options, WriteMode::Upsert)?;
        self.0.database.in_span(span, self.0.puts.write(&self.0.database, put.into())).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        let span =
            engine_span!("put_if_version", owner = %key.owner.printable(), task = %key.task.printable());
        let put = self.0.max_sizes.check(key, data, options, WriteMode::expecting(expected))?;
        self.0.database.in_span(span, self.0.puts.write(&self.0.database, put.into())).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        let span = engine_span!("delete", owner = %key.owner.printable(), task = %key.task.printable());
        let (database, owner, task) =
            (&self.0.database, escape(key.owner.as_str()), escape(key.task.as_str()));
        let rows = database.call(span, &database.statements.remove, &[&owner, &task], Access::Writes).await?;
        rows.first().map_or(Ok(false), |row| column(database, row, "was_live"))
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        pages::list(&self.0.database, owner, PageBounds::check(&page, owner)?).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        let (database, mut removed) = (&self.0.database, 0);
        loop {
            let span = engine_span!("cleanup_expired");
            let rows =
                database.call(span, &database.statements.purge, &[&CLEANED_AT_ONCE], Access::Writes).await?;
            let purged: i64 = rows.first().map_or(Ok(0), |row| column(database, row, "purge"))?;
            removed += purged.unsigned_abs();
            if purged < i64::from(CLEANED_AT_ONCE) {
                return Ok(removed);
            }
        }
    }

    async fn clock(&self, _key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        Ok(from_micros(self.0.database.read_clock().await?))
    }

    fn now(&self) -> DateTime<Utc> {
        from_micros(self.0.database.clock.now_us())
    }

    fn max_value_bytes(&self) -> usize {
        self.0.max_sizes.value
    }

    fn generation(&self) -> u64 {
        self.0.database.generation()
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        if !self.0.listens() {
            return watch_by_polling(self.clone(), key.clone());
        }
        let subscription = self.0.subscribers.watchers.subscribe(key.to_string());
        let is_live = self.0.subscribers.is_live();
        watch_by_notifications(self.clone(), key.clone(), subscription, is_live)
    }
}
