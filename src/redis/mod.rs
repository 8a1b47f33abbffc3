//! The Redis engine.

mod agenda;
mod builder;
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
mod master;
mod master_connection;
mod notifications;
mod pages;
mod probe;
mod replicas;
mod reply;
mod schema;
#[cfg(feature = "redis-sentinel")]
mod sentinel;
mod settings;
mod shared_connection;
mod subscriptions;
#[cfg(feature = "redis-tls")]
mod tls;
mod url;

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;
use redis::{Cmd, Value};
use tracing::{Instrument, Span, debug_span};

use agenda::Outages;
pub use builder::RedisBuilder;
use clock::{Clock, server_time};
use connection::Connection;
pub use dialer::Credentials;
use error::Context;
use reply::{CommandError, Unconfirmed};
use schema::{FIELDS, PART_FIELDS, Schema, Stored, StoredPart};
use subscriptions::Subscriptions;

use crate::backend::engine::{
    PageBounds, check_parts, check_size, expiry_millis, from_micros, watch_by_polling,
};
use crate::backend::{
    Expiry, OwnerId, Page, PageRequest, Part, PartName, PutOptions, Record, StorageBackend, StorageError,
    TaskKey, Version, Written,
};
use crate::scripts::{
    Arguments, CAS_PUT, CasPut, DELETE, Delete, ExpiryArgument, Kept, LIST, List, Listed, Notice, PUT, Put,
    Replaces, Reply, Script, Timed, UnexpectedReply,
};

/// Keeps records in Redis (6.2 or newer) or Valkey (7.2 or newer), for every instance of a server alike.
///
/// A task is a hash at `{prefix}:tasks:{owner}:{task}`, found again through one sorted set per owner. Every
/// write is one Lua script, atomic over both; a `get` is one `HMGET`; a page is one script for the ids
/// and one pipeline for their hashes. The server's clock alone decides what has expired, and the server
/// itself removes it.
///
/// Cheap to clone: all clones share two connections, one of them for pages and parts. The backend sends nothing twice: it
/// reports a write whose outcome is not known with [`outcome_unknown`](StorageError::outcome_unknown).
///
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
pub struct RedisBackend(Arc<Inner>);

struct Inner {
    connection: Box<dyn Connection>,
    /// For pages and parts, so that no small call waits behind megabytes.
    bulk_connection: Box<dyn Connection>,
    schema: Schema,
    clock: Arc<Clock>,
    address: String,
    /// The limit of each call.
    limit: Duration,
    max_value_bytes: usize,
    max_part_bytes: usize,
    /// How large the records of a page must be expected to be: as the largest of the last pages, which counts half as much
    /// with each page, and at first as the largest possible.
    largest_listed: AtomicUsize,
    /// Whether writes notify subscribers.
    publishes: bool,
    /// Whether the connections are those of the caller, over which the backend cannot subscribe.
    is_given: bool,
    /// `None`: watching is polling.
    subscriptions: Option<Arc<Subscriptions>>,
    /// Which shards of timers did not answer the last time.
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

impl RedisBackend {
    fn reads<'a>(&'a self, key: &'a str) -> Context<'a> {
        Context::reads(&self.0.address, key)
    }

    /// The connections that a call travels over.
    fn connection(&self, context: &Context<'_>) -> &dyn Connection {
        if context.is_bulk { &*self.0.bulk_connection } else { &*self.0.connection }
    }

    fn writes<'a>(&'a self, key: &'a str) -> Context<'a> {
        Context { writes: true, ..self.reads(key) }
    }

    /// Runs a whole call in its span and under one time limit.
    ///
    /// The call stays where it is pinned: a future that is handed on by value is held once more by each that
    /// hands it on, and every call would fill several times its size.
    async fn limited<T>(
        &self,
        span: Span,
        context: &Context<'_>,
        call: Pin<&mut (dyn Future<Output = Result<T, StorageError>> + Send)>,
    ) -> Result<T, StorageError> {
        let limit = self.0.limit;
        let in_time = tokio::time::timeout(limit, call.instrument(span)).await;
        in_time.unwrap_or_else(|_| {
            self.connection(context).timed_out(context.key);
            Err(match self.unconfirmed(context) {
                Some(few) if context.in_flight.is_set() => {
                    context.storage_error(CommandError::TooFewReplicas(few, None))
                }
                _ => context.timed_out(limit),
            })
        })
    }

    async fn send(&self, command: &Cmd, context: &Context<'_>) -> Result<Value, StorageError> {
        let reply = if context.writes {
            self.connection(context).write(command, context.key, &context.in_flight).await
        } else {
            self.connection(context).send(command, context.key, &context.in_flight).await
        };
        context.in_flight.clear();
        reply.map_err(|failure| {
            context.storage_error(match (failure, self.unconfirmed(context)) {
                (CommandError::NoReply(error), Some(few)) => CommandError::TooFewReplicas(few, Some(error)),
                (failure, _) => failure,
            })
        })
    }

    /// What is known of a write that was to be confirmed by replicas, and got no reply.
    fn unconfirmed(&self, context: &Context<'_>) -> Option<Unconfirmed> {
        self.0.connection.unconfirmed().filter(|_| context.writes)
    }

    /// Runs a script and takes the server's clock from its reply.
    async fn run<A, T>(
        &self,
        script: &Script<A, Timed<T>>,
        arguments: &A,
        context: &Context<'_>,
    ) -> Result<T, StorageError>
    where
        A: Arguments,
        Timed<T>: Reply,
    {
        let sent = self.0.clock.moment();
        let reply = self.send(&script.command(arguments), context).await?;
        let reply = script.decode(reply).map_err(|error| context.unexpected(error))?;
        self.0.clock.observe(reply.server_us, sent);
        Ok(reply.value)
    }

    /// The same without waiting for replicas, with the server's clock.
    async fn run_on_master<A, T>(
        &self,
        script: &Script<A, Timed<T>>,
        arguments: &A,
        context: &Context<'_>,
    ) -> Result<Timed<T>, StorageError>
    where
        A: Arguments,
        Timed<T>: Reply,
    {
        let sent = self.0.clock.moment();
        let reply = self.0.connection.send(&script.command(arguments), context.key, &context.in_flight).await;
        let reply = reply.map_err(|failure| context.storage_error(failure))?;
        let reply = script.decode(reply).map_err(|error| context.unexpected(error))?;
        self.0.clock.observe(reply.server_us, sent);
        Ok(reply)
    }

    /// Asks the server that keeps `key` for its clock, in microseconds.
    async fn read_clock(&self, key: &str) -> Result<u64, StorageError> {
        let context = self.reads(key);
        let sent = self.0.clock.moment();
        let time = self.send(&redis::cmd("TIME"), &context).await?;
        let server_us = server_time(&time).ok_or_else(|| context.unexpected(UnexpectedReply))?;
        self.0.clock.observe(server_us, sent);
        Ok(server_us)
    }

    /// Whether a record that the server returned has expired nevertheless. The server removes what has
    /// expired by itself, so a yes is rare (an expiry removed by hand, a clock set back), and is only given
    /// by the clock of the server that keeps it, just read.
    async fn has_expired(&self, key: &str, expires_at: Option<DateTime<Utc>>) -> Result<bool, StorageError> {
        let Some(at) = expires_at.filter(|at| *at <= self.now()) else {
            return Ok(false);
        };
        Ok(at <= from_micros(self.read_clock(key).await?))
    }

    /// How a write notifies the subscribers of this owner.
    fn channel(&self, owner: &OwnerId, notifies: bool) -> Option<String> {
        (self.0.publishes && notifies).then(|| self.0.schema.channel(owner))
    }

    /// How a script notifies the subscribers of this channel.
    async fn notice(
        &self,
        channel: Option<String>,
        context: &Context<'_>,
    ) -> Result<Option<Notice>, StorageError> {
        let Some(channel) = channel else { return Ok(None) };
        let pubsub = self.0.connection.pubsub(context.key).await;
        let pubsub = pubsub.map_err(|failure| context.storage_error(failure))?;
        Ok(pubsub.map(|pubsub| Notice { channel, pubsub }))
    }

    async fn put_record(
        &self,
        span: Span,
        mut put: Put,
        channel: Option<String>,
        key: &TaskKey,
        expected: Option<Version>,
    ) -> Result<Written, StorageError> {
        let is_bulk = !put.parts.is_empty();
        let task = put.keys.task.clone();
        let context = Context { expected, quota: put.quota, is_bulk, ..self.writes(&task).of(key) };
        let write = pin!(async {
            put.notice = self.notice(channel, &context).await?;
            match self.run(&PUT, &put, &context).await {
                // The quota counts by the index. Members whose hash was evicted or deleted by hand must not
                // stand in the way; the write that was refused wrote nothing, so it may be sent again.
                Err(full @ StorageError::CapacityExceeded { quota: Some(_), .. }) => {
                    if Box::pin(self.reap_all(&key.owner, &self.reads(context.key))).await? {
                        self.run(&PUT, &put, &context).await
                    } else {
                        Err(full)
                    }
                }
                other => other,
            }
        });
        self.limited(span, &context, write).await
    }
}

fn argument(expiry: Expiry) -> Result<ExpiryArgument, StorageError> {
    Ok(match (expiry, expiry_millis(expiry)?) {
        (_, Some(millis)) => ExpiryArgument::AfterMillis(millis),
        (Expiry::Never, None) => ExpiryArgument::Never,
        (_, None) => ExpiryArgument::Keep,
    })
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
        let span = debug_span!("get", owner = %key.owner.printable(), task = %key.task.printable());
        let redis_key = self.0.schema.task(&key.owner, &key.task);
        let context = self.reads(&redis_key).of(key);
        let read = pin!(async {
            let reply = self.send(&hmget(&redis_key), &context).await?;
            let stored = Stored::read(reply).ok_or_else(|| context.unexpected(UnexpectedReply))?;
            match stored {
                Stored::Nothing => Err(context.not_found()),
                Stored::Record(Record { expires_at, .. }) | Stored::Corrupt { expires_at, .. }
                    if self.has_expired(&redis_key, expires_at).await? =>
                {
                    Err(context.not_found())
                }
                Stored::Record(record) => Ok(record),
                Stored::Corrupt { reason, .. } => Err(context.corrupt(reason, None)),
            }
        });
        self.limited(span, &context, read).await
    }

    async fn part(&self, key: &TaskKey, name: &PartName) -> Result<Option<Part>, StorageError> {
        let span = debug_span!("part", owner = %key.owner.printable(), task = %key.task.printable(), name = %name.as_str());
        let redis_key = self.0.schema.task(&key.owner, &key.task);
        let context = Context { is_bulk: true, ..self.reads(&redis_key).of(key) };
        let read = pin!(async {
            let reply = self.send(&hmget_part(&redis_key, name), &context).await?;
            let stored = StoredPart::read(reply, name).ok_or_else(|| context.unexpected(UnexpectedReply))?;
            match stored {
                StoredPart::Nothing => Err(context.not_found()),
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
        let span = debug_span!("put", owner = %key.owner.printable(), task = %key.task.printable());
        check_size(&data, self.0.max_value_bytes)?;
        check_parts(&options.parts, self.0.max_part_bytes)?;
        let channel = self.channel(&key.owner, options.notifies());
        let put = Put {
            keys: self.0.schema.keys(key),
            id: key.task.clone(),
            data,
            expiry: argument(options.expiry)?,
            quota: options.quota,
            replaces: Replaces::Any,
            notice: None,
            parts: options.parts,
        };
        self.put_record(span, put, channel, key, None).await
    }

    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        let span =
            debug_span!("put_if_version", owner = %key.owner.printable(), task = %key.task.printable());
        check_size(&data, self.0.max_value_bytes)?;
        check_parts(&options.parts, self.0.max_part_bytes)?;
        let expiry = argument(options.expiry)?;
        let channel = self.channel(&key.owner, options.notifies());
        let keeps = options.expiry == Expiry::Keep && options.parts.is_empty();
        if let (1.., Some(next), true) = (expected.get(), expected.next(), keeps) {
            let task = self.0.schema.task(&key.owner, &key.task);
            let context = Context { expected: Some(expected), ..self.writes(&task).of(key) };
            let write = pin!(async {
                let notice = self.notice(channel, &context).await?;
                let cas_put = CasPut { task: task.clone(), data, expected, next, notice };
                let Kept(expires_at) = self.run(&CAS_PUT, &cas_put, &context).await?;
                Ok(Written { version: next, expires_at })
            });
            return self.limited(span, &context, write).await;
        }
        let put = Put {
            keys: self.0.schema.keys(key),
            id: key.task.clone(),
            data,
            expiry,
            quota: options.quota,
            replaces: if expected == Version::ABSENT { Replaces::None } else { Replaces::Version(expected) },
            notice: None,
            parts: options.parts,
        };
        self.put_record(span, put, channel, key, Some(expected)).await
    }

    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        let span = debug_span!("delete", owner = %key.owner.printable(), task = %key.task.printable());
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
        let span = debug_span!("list", owner = %owner.printable());
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
            // It may have been too much at once: the same call again must not ask for as much.
            self.0.largest_listed.store(self.0.max_value_bytes, Ordering::Relaxed);
        }
        listed
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        Ok(0)
    }

    async fn clock(&self, key: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
        let span = debug_span!("clock", owner = %key.owner.printable(), task = %key.task.printable());
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
