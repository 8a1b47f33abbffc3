//! Writes that wait until replicas have confirmed them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use deadpool::managed::{self, Metrics, Pool, PoolError, RecycleError, RecycleResult};
use futures_core::future::BoxFuture;
use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, Pipeline, PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::runtime::Handle;

use super::connection::Connection;
use super::connector::OpenConnection;
use super::in_flight::InFlight;
use super::master::Master;
use super::master_connection::MasterConnection;
use super::reply::{
    CommandError, Unconfirmed, check_reply, is_from_replica, lacks_authentication, lacks_replicas,
    value_or_error,
};
use crate::scripts::Pubsub;

/// The limit of writes that wait at the same time.
const MAX_CONNECTIONS: usize = 32;

/// A connection to one master whose writes wait for replicas.
///
/// `WAIT` blocks its connection, so each write takes a connection of its own from a pool. Reads share another connection.
pub(super) struct ReplicatedConnection {
    reads: MasterConnection,
    pool: Pool<Pooled>,
    wanted: u32,
    within: Duration,
}

/// Opens the connections of the pool.
struct Pooled(Arc<Master>);

struct ExclusiveConnection {
    opened: OpenConnection,
    is_closed: Arc<AtomicBool>,
    /// A write is under way, or its caller dropped it before it ended. The server may still wait on this connection.
    is_busy: bool,
}

impl managed::Manager for Pooled {
    type Type = ExclusiveConnection;
    type Error = RedisError;

    async fn create(&self) -> RedisResult<ExclusiveConnection> {
        let is_closed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_closed);
        let on_push = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                flag.store(true, Ordering::Relaxed);
            }
        };
        let opened = Box::pin(self.0.open(None, on_push)).await?;
        Ok(ExclusiveConnection { opened, is_closed, is_busy: false })
    }

    async fn recycle(&self, idle: &mut ExclusiveConnection, _: &Metrics) -> RecycleResult<RedisError> {
        if idle.is_busy {
            return Err(RecycleError::message("busy"));
        }
        if idle.is_closed.load(Ordering::Relaxed) {
            self.0.epochs().report_broken(idle.opened.epoch);
            return Err(RecycleError::message("closed"));
        }
        if !self.0.epochs().is_current(idle.opened.epoch) {
            return Err(RecycleError::message("it may lead to another server"));
        }
        Ok(())
    }
}

impl ReplicatedConnection {
    /// Creates a connection on which each write waits for `wanted` replicas, for at most `within`.
    pub(super) fn new(master: Arc<Master>, wanted: u32, within: Duration) -> RedisResult<Self> {
        let pool = Pool::builder(Pooled(Arc::clone(&master))).max_size(MAX_CONNECTIONS).build();
        let pool = pool.map_err(|error| {
            (ErrorKind::InvalidClientConfig, "the connection pool cannot be created", error.to_string())
        })?;
        Ok(Self { reads: MasterConnection::new(master), pool, wanted, within })
    }

    /// Returns a connection that shares the pool for writes, and has a connection of its own for reads.
    pub(super) fn with_separate_reads(&self) -> Self {
        let reads = MasterConnection::new(Arc::clone(self.master()));
        Self { reads, pool: self.pool.clone(), ..*self }
    }

    fn master(&self) -> &Arc<Master> {
        self.reads.master()
    }

    /// Sends a command over an exclusive connection, and then waits for the replicas.
    async fn write_and_wait(&self, command: &Cmd, in_flight: &dyn InFlight) -> Result<Value, CommandError> {
        let mut connection = self.pool.get().await.map_err(|error| {
            CommandError::NotSent(match error {
                PoolError::Backend(error) => error,
                other => (ErrorKind::Client, "the connection pool returned no connection", other.to_string())
                    .into(),
            })
        })?;
        if !in_flight.set() {
            return Err(CommandError::given_up());
        }
        connection.is_busy = true;
        let reply = connection.opened.connection.req_packed_command(command).await;
        if reply.as_ref().map_or(true, is_from_replica) {
            self.discard(&connection, &reply);
            return check_reply(reply);
        }
        // The pool drops a connection whose user the server no longer knows.
        connection.is_busy = reply.as_ref().is_ok_and(lacks_authentication);
        if reply.as_ref().is_ok_and(lacks_replicas) {
            self.master().connector().suspect();
        }
        let written = check_reply(reply)?;
        connection.is_busy = true;
        match self.wait(&mut connection).await {
            Err(CommandError::TooFewReplicas { replicas, cause, .. }) => {
                connection.is_busy = cause.is_some();
                Err(CommandError::TooFewReplicas { replicas, reply: Some(written), cause })
            }
            waited => {
                connection.is_busy = false;
                waited.map(|()| written)
            }
        }
    }

    /// Waits until the replicas have confirmed what was written over this connection.
    async fn wait(&self, connection: &mut ExclusiveConnection) -> Result<(), CommandError> {
        let mut wait = redis::cmd("WAIT");
        wait.arg(self.wanted).arg(self.within.as_millis() as u64);
        let reply = connection.opened.connection.req_packed_command(&wait).await;
        let acknowledged = match reply.and_then(value_or_error) {
            Ok(Value::Int(number)) => u32::try_from(number).unwrap_or(0),
            Ok(_) => 0,
            // The master applied the write, and the number of replicas that have it is unknown.
            Err(error) => return Err(self.too_few(0, Some(error))),
        };
        if acknowledged < self.wanted {
            self.master().connector().suspect();
            return Err(self.too_few(acknowledged, None));
        }
        Ok(())
    }

    fn too_few(&self, acknowledged: u32, cause: Option<RedisError>) -> CommandError {
        CommandError::TooFewReplicas { replicas: self.replicas(acknowledged), reply: None, cause }
    }

    fn replicas(&self, acknowledged: u32) -> Unconfirmed {
        Unconfirmed { wanted: self.wanted, acknowledged, within: self.within }
    }

    /// Handles a missing reply or the reply of a replica. The connection cannot be used again.
    fn discard(&self, connection: &ExclusiveConnection, reply: &RedisResult<Value>) {
        let epoch = connection.opened.epoch;
        if reply.is_ok() {
            self.master().epochs().end(epoch);
        } else {
            self.master().epochs().report_broken(epoch);
            self.reads.probe();
        }
    }
}

#[async_trait]
impl Connection for ReplicatedConnection {
    async fn send(&self, command: &Cmd, key: &str, in_flight: &dyn InFlight) -> Result<Value, CommandError> {
        self.reads.send(command, key, in_flight).await
    }

    fn write<'a>(
        &'a self,
        command: &'a Cmd,
        _key: &'a str,
        in_flight: &'a dyn InFlight,
    ) -> BoxFuture<'a, Result<Value, CommandError>> {
        Box::pin(self.write_and_wait(command, in_flight))
    }

    fn unconfirmed(&self) -> Option<Unconfirmed> {
        Some(self.replicas(0))
    }

    async fn read_all(
        &self,
        reads: &Pipeline,
        key: &str,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        self.reads.read_all(reads, key).await
    }

    fn runtime(&self) -> Option<Handle> {
        self.reads.runtime()
    }

    fn timed_out(&self, key: &str) {
        self.reads.timed_out(key);
    }

    async fn master_of(&self, key: &str) -> RedisResult<Arc<Master>> {
        self.reads.master_of(key).await
    }

    async fn detect_pubsub(&self, key: &str) -> Result<Option<Pubsub>, CommandError> {
        self.reads.detect_pubsub(key).await
    }

    fn known_pubsub(&self, key: &str) -> Option<Option<Pubsub>> {
        self.reads.known_pubsub(key)
    }

    fn generation(&self) -> u64 {
        self.reads.generation()
    }
}
