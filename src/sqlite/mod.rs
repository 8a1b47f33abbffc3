//! The SQLite engine.

mod agenda;
mod builder;
mod busy;
mod changes;
mod clock;
mod error;
mod expired;
mod fields;
mod health;
mod identity;
mod index_check;
mod job;
mod log;
mod open;
mod pages;
mod readers;
mod records;
mod schema;
mod settings;
mod timers;
mod transaction;
mod wakeups;
mod watched;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;
use rusqlite::Connection;
use tokio::sync::oneshot;
use tracing::{Instrument, Span};

pub use builder::SqliteBuilder;
use clock::{now_ms, now_us};
use error::{Errors, Failure};
use open::File;
use readers::Readers;
pub use settings::Synchronous;
use transaction::{Subscribers, Transaction};
use writer::{Message, Writer};

use crate::backend::engine::{MaxSizes, PageBounds, WriteMode, from_micros, watch_by_notifications};
use crate::backend::{
    OwnerId, Page, PageRequest, Part, PartName, PutOptions, Record, StorageBackend, StorageError, TaskKey,
    Version, Written,
};
use crate::spans::{self, engine_span};

/// How many expired records one transaction of `cleanup_expired` removes. Other writes run between two transactions.
const CLEANED_AT_ONCE: usize = 256;

/// Keeps records in one file, with SQLite built in: for servers of one machine, without any other server.
///
/// A write returns once it is on the disk, so that a crash or a power loss loses no acknowledged write (see
/// [`Synchronous`]). Several processes may use one file at the same time. The file must be on a local disk, because the
/// processes share memory and the clock of the machine. The command `sqlite3` reads the file.
///
/// One thread writes. The writes that wait at the same moment share one transaction and one sync of the disk; each
/// caller keeps its own result, error and cancellation. Four threads read, and no read waits for a write. No call
/// blocks a thread of the runtime.
///
/// A clone is cheap: all clones share the threads, which end with the last clone.
///
/// # Errors
/// * `Unavailable` if another process keeps the file locked for the [`busy_timeout`](SqliteBuilder::busy_timeout), and
///   if the disk fails. If it fails during a commit, the error has [`outcome_unknown`](StorageError::outcome_unknown):
///   read the record before you write again.
/// * `CapacityExceeded` if no space is left.
/// * `Denied` if the file or its folder has become read-only.
/// * `Backend` if the file is damaged, or was deleted or replaced while it was open.
///
/// # Cancellation safety
/// If the future of a write is dropped before its transaction begins, nothing is written. Later, the write may be applied.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("tasks.db");
/// use mcp_task_store::{PutOptions, SqliteBackend, StorageBackend, TaskKey};
///
/// let backend = SqliteBackend::open(&path).await?;
/// let key = TaskKey::new("alice", "t1")?;
/// backend.put(&key, "hello".into(), PutOptions::default()).await?;
///
/// // Another process on the same file reads the record.
/// let other = SqliteBackend::open(&path).await?;
/// assert_eq!(other.get(&key).await?.data, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteBackend(Arc<Database>);

/// A file as this process uses it. All clones of a backend share it.
struct Database {
    writes: Sender<Message>,
    readers: Readers,
    subscribers: Arc<Subscribers>,
    errors: Errors,
    /// The file as the spans of calls describe it.
    described: spans::Database,
    max_sizes: MaxSizes,
}

impl fmt::Debug for SqliteBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBackend").field("path", &self.0.errors.address).finish_non_exhaustive()
    }
}

impl SqliteBackend {
    /// Opens the file, and starts the threads.
    async fn start(file: File, max_sizes: MaxSizes) -> Result<Self, StorageError> {
        let (writes, queue) = channel();
        let subscribers = Arc::<Subscribers>::default();
        let (opened, opening) = oneshot::channel();
        let (errors, of_the_writer) = (file.errors.clone(), Arc::clone(&subscribers));
        let described = spans::Database::sqlite(&file.path);
        let thread = std::thread::Builder::new().name("sqlite-writer".to_owned());
        let started = thread.spawn(move || {
            // The tables must exist before a reader opens the file.
            let open = || Ok((file.open_writer()?, Readers::start(&file)?));
            match open() {
                Ok((session, readers)) => {
                    let writer = Writer::new(session, queue, of_the_writer, &file);
                    // If the caller has dropped the call, the queue has no sender, and the thread ends at once.
                    let _ = opened.send(Ok(readers));
                    writer.run();
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        });
        started.map_err(|error| {
            errors.unavailable("the system starts no thread for writes", false, Some(error.into()))
        })?;
        let readers = opening.await.unwrap_or_else(|_| Err(errors.stopped()))?;
        let database = Database { writes, readers, subscribers, errors, described, max_sizes };
        Ok(Self(Arc::new(database)))
    }

    /// Runs a call that reads on one of the threads that read.
    async fn read<T: Send + 'static>(
        &self,
        span: Span,
        run: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (answer, receiver) = oneshot::channel();
        let read = Box::new(move |connection: &Connection| {
            if !answer.is_closed() {
                // A caller that drops the call needs no result.
                let _ = answer.send(run(connection));
            }
        });
        let read = async {
            self.0.readers.run(read);
            let result = receiver.await.map_err(|_| self.0.errors.stopped())?;
            result.map_err(|failure| self.0.errors.of(failure))
        };
        self.in_span(span, read).await
    }

    /// Runs a call that writes on the thread that writes, in one transaction with others.
    async fn write<T: Send + 'static>(
        &self,
        span: Span,
        run: impl FnMut(&mut Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (write, receiver) = job::write(run);
        let write = async {
            self.0.writes.send(Message::Write(write)).map_err(|_| self.0.errors.stopped())?;
            receiver.await.map_err(|_| self.0.errors.stopped())?
        };
        self.in_span(span, write).await
    }

    async fn in_span<T>(
        &self,
        span: Span,
        call: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        spans::engine_call(&span, &self.0.described);
        let answer = call.instrument(span.clone()).await;
        spans::engine_answered(&span, &answer);
        answer
    }

    /// Makes the thread that writes look for the changes of other processes.
    fn look_for_changes(&self) {
        // If the thread has ended, the reads of the subscriber fail.
        let _ = self.0.writes.send(Message::Watch);
    }
}

#[async_trait]
impl StorageBackend for SqliteBackend {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        let span = engine_span!("get", owner = %key.owner.printable(), task = %key.task.printable());
        let key = key.clone();
        self.read(span, move |connection| records::get(connection, &key)).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        let span = engine_span!("part", owner = %key.owner.printable(), task = %key.task.printable(), name = %name.as_str());
        let (key, name) = (key.clone(), name.clone());
        self.read(span, move |connection| records::part(connection, &key, &name)).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        let span = engine_span!("put", owner = %key.owner.printable(), task = %key.task.printable());
        let put = self.0.max_sizes.check(key, data, options, WriteMode::Upsert)?;
        self.write(span, move |transaction| put.run(transaction)).await
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
        self.write(span, move |transaction| put.run(transaction)).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        let span = engine_span!("delete", owner = %key.owner.printable(), task = %key.task.printable());
        let key = key.clone();
        self.write(span, move |transaction| records::delete(transaction, &key)).await
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        let span = engine_span!("list", owner = %owner.printable());
        let (bounds, owner) = (PageBounds::check(&page, owner)?, owner.clone());
        self.read(span, move |connection| pages::list(connection, &owner, bounds)).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        let (now_ms, mut removed) = (now_ms(), 0);
        loop {
            let span = engine_span!("cleanup_expired");
            let dropped = self
                .write(span, move |transaction| {
                    Ok(expired::drop_expired(transaction.connection, now_ms, CLEANED_AT_ONCE)?)
                })
                .await?;
            removed += dropped as u64;
            if dropped < CLEANED_AT_ONCE {
                return Ok(removed);
            }
        }
    }

    async fn clock(&self, _key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        Ok(self.now())
    }

    fn now(&self) -> DateTime<Utc> {
        from_micros(now_us())
    }

    fn max_value_bytes(&self) -> usize {
        self.0.max_sizes.value
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        let subscription = self.0.subscribers.watched.subscribe(key);
        self.look_for_changes();
        watch_by_notifications(self.clone(), key.clone(), subscription, true)
    }
}
