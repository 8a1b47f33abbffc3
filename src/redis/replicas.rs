//! Writes that wait until replicas have them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use deadpool::managed::{self, Metrics, Pool, RecycleError, RecycleResult};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, ErrorKind, Pipeline, PushInfo, PushKind, RedisError, RedisResult, Value};

use super::connection::Connection;
use super::master::{Master, MasterConnection, Opened, has_lost_its_user, is_demoted, lacks_replicas};
use super::reply::{CommandError, InFlight, Unconfirmed, check_reply, value_or_error};
use crate::scripts::Pubsub;

/// How many writes may wait at a time.
const CONNECTIONS: usize = 32;

/// The way to a master whose writes wait for replicas. `WAIT` blocks its connection, so each write has one of
/// its own while it lasts; reads share another.
pub(super) struct ReplicatedConnection {
    master: Arc<MasterConnection>,
    pool: Pool<Exclusive>,
    wanted: u32,
    patience: Duration,
}

struct Exclusive(Arc<MasterConnection>);

struct ExclusiveConnection {
    opened: Opened,
    closed: Arc<AtomicBool>,
    /// A call is under way, or was dropped while it was: the server may still be waiting on this connection.
    busy: bool,
}

impl managed::Manager for Exclusive {
    type Type = ExclusiveConnection;
    type Error = RedisError;

    async fn create(&self) -> RedisResult<ExclusiveConnection> {
        let closed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&closed);
        let on_push = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                flag.store(true, Ordering::Relaxed);
            }
        };
        let opened = Box::pin(self.0.master().open(None, on_push)).await?;
        Ok(ExclusiveConnection { opened, closed, busy: false })
    }

    async fn recycle(&self, idle: &mut ExclusiveConnection, _: &Metrics) -> RecycleResult<RedisError> {
        if idle.busy {
            return Err(RecycleError::message("busy"));
        }
        if idle.closed.load(Ordering::Relaxed) {
            self.0.master().report_broken(idle.opened.epoch);
            return Err(RecycleError::message("closed"));
        }
        if !self.0.master().is_current(idle.opened.epoch) {
            return Err(RecycleError::message("it may lead to another server"));
        }
        Ok(())
    }
}

impl ReplicatedConnection {
    pub(super) fn new(master: MasterConnection, wanted: u32, patience: Duration) -> RedisResult<Self> {
        let master = Arc::new(master);
        let pool = Pool::builder(Exclusive(Arc::clone(&master))).max_size(CONNECTIONS).build();
        let pool = pool.map_err(|error| (ErrorKind::InvalidClientConfig, "the pool", error.to_string()))?;
        Ok(Self { master, pool, wanted, patience })
    }

    /// The same, whose reads share another connection.
    pub(super) fn reading_over(&self, master: MasterConnection) -> Self {
        Self { master: Arc::new(master), pool: self.pool.clone(), ..*self }
    }

    /// Waits until the replicas have what was written over this connection.
    async fn wait(&self, connection: &mut MultiplexedConnection) -> Result<(), CommandError> {
        let mut wait = redis::cmd("WAIT");
        wait.arg(self.wanted).arg(self.patience.as_millis() as u64);
        let reply = connection.req_packed_command(&wait).await;
        let acknowledged = match reply.and_then(value_or_error) {
            Ok(Value::Int(number)) => u32::try_from(number).unwrap_or(0),
            Ok(_) => 0,
            // The write itself was applied, and nobody knows how many have it.
            Err(error) => return Err(CommandError::TooFewReplicas(self.few(0), Some(error))),
        };
        if acknowledged < self.wanted {
            self.master.master().suspect();
            return Err(CommandError::TooFewReplicas(self.few(acknowledged), None));
        }
        Ok(())
    }

    fn few(&self, acknowledged: u32) -> Unconfirmed {
        Unconfirmed { wanted: self.wanted, acknowledged, within: self.patience }
    }
}

#[async_trait]
impl Connection for ReplicatedConnection {
    async fn send(&self, command: &Cmd, key: &str, in_flight: &InFlight) -> Result<Value, CommandError> {
        self.master.send(command, key, in_flight).await
    }

    async fn write(&self, command: &Cmd, _key: &str, in_flight: &InFlight) -> Result<Value, CommandError> {
        let mut connection = self.pool.get().await.map_err(|error| {
            CommandError::NotSent(match error {
                managed::PoolError::Backend(error) => error,
                other => (ErrorKind::Client, "no connection to wait on", other.to_string()).into(),
            })
        })?;
        connection.busy = true;
        in_flight.set();
        let reply = connection.opened.connection.req_packed_command(command).await;
        if reply.as_ref().map_or(true, is_demoted) {
            let master = self.master.master();
            if reply.is_ok() {
                master.void(connection.opened.epoch);
            } else {
                master.report_broken(connection.opened.epoch);
                self.master.probe();
            }
            return check_reply(reply);
        }
        // A connection whose user is forgotten is of no more use.
        connection.busy = reply.as_ref().is_ok_and(has_lost_its_user);
        if reply.as_ref().is_ok_and(lacks_replicas) {
            self.master.master().suspect();
        }
        let written = check_reply(reply)?;
        connection.busy = true;
        let waited = self.wait(&mut connection.opened.connection).await;
        connection.busy = matches!(waited, Err(CommandError::TooFewReplicas(_, Some(_))));
        waited.map(|()| written)
    }

    fn unconfirmed(&self) -> Option<Unconfirmed> {
        Some(self.few(0))
    }

    async fn read_all(
        &self,
        reads: &Pipeline,
        key: &str,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        self.master.read_all(reads, key).await
    }

    fn timed_out(&self, key: &str) {
        self.master.timed_out(key);
    }

    async fn master_of(&self, key: &str) -> RedisResult<Arc<Master>> {
        self.master.master_of(key).await
    }

    async fn pubsub(&self, key: &str) -> Result<Option<Pubsub>, CommandError> {
        self.master.pubsub(key).await
    }

    fn generation(&self) -> u64 {
        self.master.generation()
    }
}
