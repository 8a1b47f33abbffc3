//! The Redis engine.

mod agenda;
mod builder;
mod call;
mod caller;
mod clock;
#[cfg(feature = "redis-cluster")]
mod cluster;
mod connection;
mod connector;
mod diagnosis;
mod dialer;
#[cfg(feature = "redis-sentinel")]
mod election;
mod epochs;
mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod generation;
mod group_commit;
mod health;
mod in_flight;
mod index_check;
mod master;
mod master_connection;
mod notifications;
mod pages;
mod probe;
mod reap;
mod replicas;
mod reply;
mod schema;
#[cfg(feature = "redis-sentinel")]
mod sentinel;
mod server_report;
mod settings;
mod shared_connection;
mod subscriptions;
#[cfg(feature = "redis-tls")]
mod tls;
mod url;
mod write;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;
use redis::Cmd;

use agenda::Outages;
pub use builder::RedisBuilder;
use clock::Clock;
use connection::Connection;
pub use dialer::Credentials;
use error::Context;
use group_commit::GroupCommit;
use schema::{FIELDS, PART_FIELDS, Schema, StoredFields, StoredPart};
use subscriptions::Subscriptions;

use crate::backend::engine::{PageBounds, WriteMode, from_micros, watch_by_polling};
use crate::backend::{
    OwnerId, Page, PageRequest, Part, PartName, PutOptions, Record, StorageBackend, StorageError, TaskKey,
    Version, Written,
};
use crate::scripts::{CasPut, DELETE, Delete, Insert, LIST, List, Listed, UnexpectedReply};
use crate::spans::{self, engine_span};

/// Keeps records in Redis (6.2 or newer) or Valkey (7.2 or newer), shared by all instances of a server.
///
/// A record is a hash at `{prefix}:tasks:{owner}:{task}`. One sorted set for each owner lists the owner's records. A
/// write is one Lua script, atomic over both keys. A `get` is one `HMGET`. A page is one script for the ids and one
/// pipeline for their hashes. Only the server's clock decides what has expired, and the server removes expired records.
///
/// Writes that tasks of this process make at the same moment share a script: up to 32 records and 256 KiB, without parts. Each
/// caller keeps its own result, error, time limit and cancellation. A write that is alone is sent at once, and no write
/// waits for the reply to another one. The runtime in which the backend connected sends these scripts and receives all
/// replies, so keep it running.
///
/// A clone is cheap: all clones share two connections, one of them for pages and parts.
///
/// # Errors
/// The backend never sends a command twice. If a write gets no reply, its error has
/// [`outcome_unknown`](StorageError::outcome_unknown): read the record before you write again.
///
/// # Cancellation safety
/// If the future of a call is dropped, the command may have been sent, and the server may still apply it. A write that is
/// still queued is not sent.
///
/// # Examples
/// ```no_run
/// # async fn example() -> Result<(), mcp_task_store::StorageError> {
/// use mcp_task_store::{PutOptions, RedisBackend, StorageBackend, TaskKey};
///
/// let backend = RedisBackend::connect("redis://127.0.0.1:6379").await?;
/// let key = TaskKey::new("alice", "t1")?;
/// backend.put(&key, "hello".into(), PutOptions::default()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisBackend(Arc<Deployment>);

/// A deployment of Redis as this process uses it. All clones of a backend share it.
struct Deployment {
    connection: Arc<dyn Connection>,
    /// The compare-and-swaps that keep expiry and parts.
    swaps: GroupCommit<CasPut>,
    /// The creates of records that expire and have no parts.
    inserts: GroupCommit<Insert>,
    /// The connection for pages and parts. No small call waits behind their megabytes.
    bulk_connection: Box<dyn Connection>,
    schema: Schema,
    clock: Arc<Clock>,
    address: String,
    /// The database as the spans of calls describe it.
    database: spans::Database,
    /// The time limit of each call.
    limit: Duration,
    max_value_bytes: usize,
    max_part_bytes: usize,
    /// The record size that the next page expects: the size of the largest record of the latest page, but at least half
    /// of what that page expected. The first page expects records of the largest possible size.
    largest_listed: AtomicUsize,
    /// How many of the latest puts created their records, without one in between that replaced a record.
    puts_in_a_row_that_created: AtomicUsize,
    /// Whether writes notify subscribers.
    publishes: bool,
    /// Whether the caller made the connections. The backend cannot subscribe over them.
    is_given: bool,
    /// `None` if watches poll.
    subscriptions: Option<Arc<Subscriptions>>,
    /// The shards of timers that did not reply to the latest call.
    outages: Outages,
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("address", &self.0.address)
            .field("schema", &self.0.schema)
            .finish_non_exhaustive()
    }
}

fn hmget(key: &str) -> Cmd {
    let mut command = Cmd::with_capacity(2 + FIELDS.len(), key.len() + 40);
    command.arg("HMGET").arg(key).arg(&FIELDS);
    command
}

fn hmget_part(key: &str, name: &PartName) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(key).arg(&PART_FIELDS).arg(format!("part:{name}"));
    command
}

#[async_trait]
impl StorageBackend for RedisBackend {
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        let span = engine_span!("get", owner = %key.owner.printable(), task = %key.task.printable());
        let redis_key = self.0.schema.task(&key.owner, &key.task);
        let context = self.reads(&redis_key).of(key);
        let read = pin!(async {
            let reply = self.send(&hmget(&redis_key), &context).await?;
            let stored = StoredFields::read(reply).ok_or_else(|| context.unexpected(UnexpectedReply))?;
            if self.has_expired(&redis_key, stored.expires_at()).await? {
                return Err(context.not_found());
            }
            match stored {
                StoredFields::Absent => Err(context.not_found()),
                StoredFields::Record(record) => Ok(record),
                StoredFields::Corrupt { reason, .. } => Err(context.corrupt(reason, None)),
            }
        });
        self.limited(span, &context, read).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        let span = engine_span!("part", owner = %key.owner.printable(), task = %key.task.printable(), name = %name.as_str());
        let redis_key = self.0.schema.task(&key.owner, &key.task);
        let context = Context { is_bulk: true, ..self.reads(&redis_key).of(key) };
        let read = pin!(async {
            let reply = self.send(&hmget_part(&redis_key, name), &context).await?;
            let stored = StoredPart::read(reply, name).ok_or_else(|| context.unexpected(UnexpectedReply))?;
            match stored {
                StoredPart::Absent => Err(context.not_found()),
                StoredPart::Found { expires_at, .. } | StoredPart::Corrupt { expires_at, .. }
                    if self.has_expired(&redis_key, expires_at).await? =>
                {
                    Err(context.not_found())
                }
                StoredPart::Found { part, .. } => Ok(part),
                StoredPart::Corrupt { reason, .. } => Err(context.corrupt(reason, None)),
            }
        });
        self.limited(span, &context, read).await
    }

    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        let span = engine_span!("put", owner = %key.owner.printable(), task = %key.task.printable());
        self.write(span, key, data, options, WriteMode::Upsert).await
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
        self.write(span, key, data, options, WriteMode::expecting(expected)).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        let span = engine_span!("delete", owner = %key.owner.printable(), task = %key.task.printable());
        let channel = self.channel(&key.owner, true);
        let keys = self.0.schema.keys(key);
        let task = keys.task.clone();
        let context = self.writes(&task).of(key);
        let write = pin!(async {
            let notice = self.notice(channel, &context).await?;
            self.run(&DELETE, &Delete { keys, id: key.task.clone(), notice }, &context).await
        });
        let removed = self.limited(span, &context, write).await?;
        Ok(removed.0 > 0)
    }

    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        let span = engine_span!("list", owner = %owner.printable());
        let bounds = PageBounds::check(&page, owner)?;
        let idx = self.0.schema.idx(owner);
        let context = Context { is_bulk: true, ..self.reads(&idx) };
        let read = pin!(async {
            let list = List { idx: idx.clone(), below: bounds.below, limit: bounds.limit };
            let Listed(members) = self.run(&LIST, &list, &context).await?;
            self.read_members(owner, members, bounds, &context).await
        });
        let listed = self.limited(span, &context, read).await;
        if listed.is_err() {
            // The page may have been too large for the time limit, so the next call must read less.
            self.0.largest_listed.store(self.0.max_value_bytes, Ordering::Relaxed);
        }
        listed
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        Ok(0)
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        let span = engine_span!("clock", owner = %key.owner.printable(), task = %key.task.printable());
        let redis_key = self.0.schema.task(&key.owner, &key.task);
        let context = self.reads(&redis_key);
        let read = pin!(self.read_clock(&redis_key));
        self.limited(span, &context, read).await.map(from_micros)
    }

    fn now(&self) -> DateTime<Utc> {
        from_micros(self.0.clock.now_us())
    }

    fn max_value_bytes(&self) -> usize {
        self.0.max_value_bytes
    }

    fn generation(&self) -> u64 {
        self.0.connection.generation().wrapping_add(self.0.bulk_connection.generation())
    }

    fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
        match self.0.subscriptions.clone() {
            Some(subscriptions) => self.subscribe(&subscriptions, key),
            None => watch_by_polling(self.clone(), key.clone()),
        }
    }
}
