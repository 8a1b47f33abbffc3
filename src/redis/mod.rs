//! The Redis engine.

mod builder;
mod clock;
mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod schema;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use redis::aio::{ConnectionLike, ConnectionManager};
use redis::{Cmd, Pipeline, Value};

pub use builder::RedisBuilder;
use clock::Clock;
use error::Context;
use schema::{FIELDS, Schema, Stored};

use crate::backend::{check_size, from_micros};
use crate::page::MAX_PAGE_LIMIT;
use crate::scripts::{
    Arguments, CAS_PUT, CasPut, DELETE, Delete, ExpiryArgument, LIST, List, Listed, PUT, Put, REAP, Reap,
    Replaces, Reply, Script, Timed, UnexpectedReply, micros,
};
use crate::{
    CorruptRecord, Cursor, Expiry, ListedRecord, OwnerId, Page, PageRequest, PutOptions, Record,
    StorageBackend, StorageError, TaskId, TaskKey, Version, Written,
};

/// How many index members one `reap.lua` looks at, so that no script holds the server long.
const REAPED_AT_ONCE: usize = 64;

/// Keeps records in Redis (6.2 or newer) or Valkey (7.2 or newer), for every instance of a server alike.
///
/// A task is a hash at `{prefix}:tasks:{owner}:{task}`, found again through two sorted sets per owner. Every
/// write is one Lua script, atomic over all three; a `get` is one `HMGET`; a page is one script for the ids
/// and one pipeline for their hashes. The server's clock alone decides what has expired, and the server
/// itself removes it.
///
/// Cheap to clone: all clones share one connection. The backend sends nothing twice: a write whose outcome is
/// not known is reported with [`outcome_unknown`](StorageError::outcome_unknown).
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
pub struct RedisBackend<C = ConnectionManager>(Arc<Inner<C>>);

struct Inner<C> {
    connection: C,
    schema: Schema,
    clock: Clock,
    address: String,
    response_timeout: Duration,
    max_value_bytes: usize,
}

impl RedisBackend {
    /// Connects with the defaults of [`RedisBuilder`].
    ///
    /// # Errors
    /// As [`RedisBuilder::connect`]: within 2 s when no server answers.
    pub async fn connect(url: &str) -> Result<Self, StorageError> {
        Self::builder().connect(url).await
    }

    /// Starts from the defaults.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }
}

impl<C> Clone for RedisBackend<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> fmt::Debug for RedisBackend<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("address", &self.0.address)
            .field("schema", &self.0.schema)
            .finish_non_exhaustive()
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisBackend<C> {
    fn reads<'a>(&'a self, key: &'a str) -> Context<'a> {
        Context { address: &self.0.address, key, writes: false, expected: Version::ABSENT, quota: None }
    }

    fn writes<'a>(&'a self, key: &'a str) -> Context<'a> {
        Context { writes: true, ..self.reads(key) }
    }

    /// Puts one time limit around a whole call.
    async fn limited<T>(
        &self,
        context: &Context<'_>,
        call: impl Future<Output = Result<T, StorageError>> + Send,
    ) -> Result<T, StorageError> {
        let limit = self.0.response_timeout;
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(context.timed_out(limit)))
    }

    async fn send(&self, command: &Cmd, context: &Context<'_>) -> Result<Value, StorageError> {
        let mut connection = self.0.connection.clone();
        let reply = connection.req_packed_command(command).await;
        reply.and_then(Value::extract_error).map_err(|error| context.storage_error(error))
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

    async fn read_clock(&self) -> Result<(), StorageError> {
        let context = self.reads("");
        let sent = self.0.clock.moment();
        let time = self.send(&redis::cmd("TIME"), &context).await?;
        let server_us = match &time {
            Value::Array(parts) if parts.len() == 2 => micros(&parts[0], &parts[1]),
            _ => None,
        };
        self.0.clock.observe(server_us.ok_or_else(|| context.unexpected(UnexpectedReply))?, sent);
        Ok(())
    }

    /// Whether a record that the server returned has expired nevertheless. The server removes what has
    /// expired by itself, so a yes is rare (an expiry removed by hand, a clock set back), and is only given
    /// by a clock that was just read.
    async fn has_expired(&self, expires_at: Option<DateTime<Utc>>) -> Result<bool, StorageError> {
        let Some(at) = expires_at.filter(|at| *at <= self.now()) else {
            return Ok(false);
        };
        self.read_clock().await?;
        Ok(at <= self.now())
    }

    /// Drops all index members of the owner whose hash is gone. Says whether there were some.
    async fn reap_all(&self, owner: &OwnerId, context: &Context<'_>) -> Result<bool, StorageError> {
        let (mut below, mut removed) = (None, 0);
        loop {
            let page = List { idx: self.0.schema.idx(owner), below, limit: MAX_PAGE_LIMIT };
            let Listed(members) = self.run(&LIST, &page, context).await?;
            below = members.last().map(|(_, oldest)| *oldest);
            let is_last = members.len() < MAX_PAGE_LIMIT;
            let tasks = self.hash_keys(owner, members);
            if !tasks.is_empty() {
                let mut exists = redis::cmd("EXISTS");
                tasks.iter().for_each(|(_, key)| {
                    exists.arg(key);
                });
                if self.send(&exists, context).await? != Value::Int(tasks.len() as i64) {
                    removed += self.reap(owner, tasks, context).await?;
                }
            }
            if is_last {
                return Ok(removed > 0);
            }
        }
    }

    /// Drops those of these index members whose hash is gone. Says how many.
    async fn reap(
        &self,
        owner: &OwnerId,
        tasks: Vec<(TaskId, String)>,
        context: &Context<'_>,
    ) -> Result<u64, StorageError> {
        let mut removed = 0;
        for tasks in tasks.chunks(REAPED_AT_ONCE) {
            let idx = self.0.schema.idx(owner);
            let arguments = Reap { idx, exp: self.0.schema.exp(owner), tasks: tasks.to_vec() };
            removed += self.run(&REAP, &arguments, context).await?.0;
        }
        Ok(removed)
    }

    /// The keys of the hashes behind index members. A member that is no task id was not written by this
    /// crate, and leads nowhere.
    fn hash_keys(&self, owner: &OwnerId, members: Vec<(Vec<u8>, u64)>) -> Vec<(TaskId, String)> {
        let ids = members.into_iter().filter_map(|(id, _)| task_id(id));
        ids.map(|id| (id.clone(), self.0.schema.task(owner, &id))).collect()
    }

    async fn put_record(
        &self,
        put: Put,
        owner: &OwnerId,
        expected: Version,
    ) -> Result<Written, StorageError> {
        let context = Context { expected, quota: put.quota, ..self.writes(&put.keys.task) };
        let write = async {
            match self.run(&PUT, &put, &context).await {
                // The quota counts by the index. Members whose hash was evicted or deleted by hand must not
                // stand in the way; the write that was refused wrote nothing, so it may be sent again.
                Err(full @ StorageError::CapacityExceeded { quota: Some(_), .. }) => {
                    if self.reap_all(owner, &context).await? {
                        self.run(&PUT, &put, &context).await
                    } else {
                        Err(full)
                    }
                }
                other => other,
            }
        };
        self.limited(&context, write).await
    }
}

fn task_id(member: Vec<u8>) -> Option<TaskId> {
    let id = String::from_utf8(member).ok().and_then(|id| TaskId::try_from(id).ok());
    if id.is_none() {
        tracing::warn!("an index holds a member that is no task id");
    }
    id
}

fn argument(expiry: Expiry) -> Result<ExpiryArgument, StorageError> {
    Ok(match (expiry, expiry.millis()?) {
        (_, Some(millis)) => ExpiryArgument::AfterMillis(millis),
        (Expiry::Never, None) => ExpiryArgument::Never,
        (_, None) => ExpiryArgument::Keep,
    })
}

fn hmget(key: &str) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(key).arg(&FIELDS);
    command
}

#[async_trait]
impl<C: ConnectionLike + Clone + Send + Sync + 'static> StorageBackend for RedisBackend<C> {
    #[tracing::instrument(level = "debug", skip_all, fields(owner = %key.owner, task = %key.task))]
    async fn get(&self, key: &TaskKey) -> Result<Record, StorageError> {
        let redis_key = self.0.schema.task(&key.owner, &key.task);
        let context = self.reads(&redis_key);
        let read = async {
            let reply = self.send(&hmget(&redis_key), &context).await?;
            let stored = Stored::read(reply).ok_or_else(|| context.unexpected(UnexpectedReply))?;
            match stored {
                Stored::Nothing => Err(context.not_found()),
                Stored::Record(Record { expires_at, .. }) | Stored::Corrupt { expires_at, .. }
                    if self.has_expired(expires_at).await? =>
                {
                    Err(context.not_found())
                }
                Stored::Record(record) => Ok(record),
                Stored::Corrupt { reason, .. } => Err(context.corrupt(reason, None)),
            }
        };
        self.limited(&context, read).await
    }

    #[tracing::instrument(level = "debug", skip_all, fields(owner = %key.owner, task = %key.task))]
    async fn put(&self, key: &TaskKey, data: Bytes, options: PutOptions) -> Result<Written, StorageError> {
        check_size(&data, self.0.max_value_bytes)?;
        let put = Put {
            keys: self.0.schema.keys(key),
            id: key.task.clone(),
            data,
            expiry: argument(options.expiry)?,
            quota: options.quota,
            replaces: Replaces::Any,
        };
        self.put_record(put, &key.owner, Version::ABSENT).await
    }

    #[tracing::instrument(level = "debug", skip_all, fields(owner = %key.owner, task = %key.task))]
    async fn put_if_version(
        &self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        expected: Version,
    ) -> Result<Written, StorageError> {
        check_size(&data, self.0.max_value_bytes)?;
        let expiry = argument(options.expiry)?;
        if expected != Version::ABSENT && options.expiry == Expiry::Keep {
            let task = self.0.schema.task(&key.owner, &key.task);
            let cas_put = CasPut { task, data, expected };
            let context = Context { expected, ..self.writes(&cas_put.task) };
            return self.limited(&context, self.run(&CAS_PUT, &cas_put, &context)).await;
        }
        let put = Put {
            keys: self.0.schema.keys(key),
            id: key.task.clone(),
            data,
            expiry,
            quota: options.quota,
            replaces: if expected == Version::ABSENT { Replaces::None } else { Replaces::Version(expected) },
        };
        self.put_record(put, &key.owner, expected).await
    }

    #[tracing::instrument(level = "debug", skip_all, fields(owner = %key.owner, task = %key.task))]
    async fn delete(&self, key: &TaskKey) -> Result<bool, StorageError> {
        let delete = Delete { keys: self.0.schema.keys(key), id: key.task.clone() };
        let context = self.writes(&delete.keys.task);
        let removed = self.limited(&context, self.run(&DELETE, &delete, &context)).await?;
        Ok(removed.0 > 0)
    }

    #[tracing::instrument(level = "debug", skip_all, fields(%owner))]
    async fn list(&self, owner: &OwnerId, page: PageRequest) -> Result<Page, StorageError> {
        let (limit, below) = page.check(owner)?;
        let idx = self.0.schema.idx(owner);
        let context = self.reads(&idx);
        let read = async {
            let list = List { idx: idx.clone(), below, limit };
            let Listed(members) = self.run(&LIST, &list, &context).await?;
            self.read_members(owner, members, limit, &context).await
        };
        self.limited(&context, read).await
    }

    async fn cleanup_expired(&self) -> Result<u64, StorageError> {
        Ok(0)
    }

    fn now(&self) -> DateTime<Utc> {
        from_micros(self.0.clock.now_us())
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisBackend<C> {
    /// The page that these index members make, newest first.
    async fn read_members(
        &self,
        owner: &OwnerId,
        members: Vec<(Vec<u8>, u64)>,
        limit: usize,
        context: &Context<'_>,
    ) -> Result<Page, StorageError> {
        let mut page = Page::default();
        // A page that is not full is the last one.
        if let Some((_, oldest)) = members.last().filter(|_| members.len() == limit) {
            page.next = Some(Cursor::new(owner, *oldest));
        }
        let keyed = |(id, created_at)| {
            let id = task_id(id)?;
            let key = self.0.schema.task(owner, &id);
            Some((id, key, created_at))
        };
        let members: Vec<(TaskId, String, u64)> = members.into_iter().filter_map(keyed).collect();
        if members.is_empty() {
            return Ok(page);
        }
        let mut hashes = Pipeline::with_capacity(members.len());
        for (_, key, _) in &members {
            hashes.add_command(hmget(key));
        }
        let mut connection = self.0.connection.clone();
        let replies = connection.req_packed_commands(&hashes, 0, members.len()).await;
        let replies = replies.map_err(|error| context.storage_error(error))?;
        if replies.len() != members.len() {
            return Err(context.unexpected(UnexpectedReply));
        }
        let mut gone = Vec::new();
        for ((id, key, created_at), reply) in members.into_iter().zip(replies) {
            let stored = match reply.extract_error() {
                Ok(reply) => Stored::read(reply).ok_or_else(|| context.unexpected(UnexpectedReply))?,
                Err(error) => match self.reads(&key).storage_error(error) {
                    StorageError::Corrupt { reason, .. } => {
                        page.corrupt.push(CorruptRecord::new(id, reason));
                        continue;
                    }
                    other => return Err(other),
                },
            };
            match stored {
                Stored::Nothing => gone.push((id, key)),
                Stored::Record(Record { expires_at, .. }) | Stored::Corrupt { expires_at, .. }
                    if self.has_expired(expires_at).await? => {}
                Stored::Record(record) => {
                    page.records.push(ListedRecord::new(id, record, from_micros(created_at)));
                }
                Stored::Corrupt { reason, .. } => {
                    page.corrupt.push(CorruptRecord::new(id, reason.to_owned()))
                }
            }
        }
        // The page stands whether or not the index can be tidied: the caller may be one that only reads.
        if !gone.is_empty()
            && let Err(error) = self.reap(owner, gone, context).await
        {
            tracing::warn!(%error, "index members without a record were not removed");
        }
        Ok(page)
    }
}
