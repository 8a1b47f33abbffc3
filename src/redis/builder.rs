//! How a [`RedisBackend`] is configured and connected.

use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::{Client, IntoConnectionInfo, ProtocolVersion};

use super::clock::Clock;
use super::error::Context;
use super::schema::Schema;
use super::{Inner, RedisBackend};
use crate::backend::DEFAULT_MAX_VALUE_BYTES;
use crate::{StorageError, Version};

/// The delay between two attempts to reconnect grows from the first to the second of these.
const RECONNECT_DELAYS: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];
/// Attempts to reconnect before the calls that wait are told what is wrong; the next call tries again.
const RECONNECT_RETRIES: usize = 3;

/// Configures a [`RedisBackend`]. Every value has a default; each method replaces one.
///
/// ```no_run
/// # async fn example() -> Result<(), mcp_task_store::StorageError> {
/// use std::time::Duration;
/// use mcp_task_store::RedisBackend;
///
/// let backend = RedisBackend::builder()
///     .prefix("my-server")
///     .response_timeout(Duration::from_millis(500))
///     .connect("redis://user:secret@redis.internal:6379/2")
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisBuilder {
    prefix: String,
    hash_tags: bool,
    connect_timeout: Duration,
    response_timeout: Duration,
    max_value_bytes: usize,
}

impl Default for RedisBuilder {
    fn default() -> Self {
        Self {
            prefix: "pmcp".to_owned(),
            hash_tags: false,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(2),
            max_value_bytes: DEFAULT_MAX_VALUE_BYTES,
        }
    }
}

impl RedisBuilder {
    /// The first part of every key, `pmcp` unless set: 1 to 64 of `A-Z`, `a-z`, `0-9`, `.`, `_`, `-`.
    /// Backends with different prefixes are different stores on one server.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Writes the owner inside a literal hash tag (`pmcp:tasks:{alice}:t1`), so that all keys of one owner
    /// fall in one slot of a Redis Cluster
    /// (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>). Off unless
    /// set. Keys with and without tags are two different stores.
    pub fn hash_tags(mut self, on: bool) -> Self {
        self.hash_tags = on;
        self
    }

    /// How long making a connection may take, 2 s unless set: the first one at construction as a whole,
    /// and each attempt to reconnect later.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long one call of the backend may take, waiting for a reconnect included; 2 s unless set. A write
    /// that runs into it is [`Unavailable`](StorageError::Unavailable) with an unknown outcome.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// The largest value in bytes, 1 MiB unless set. Larger ones are refused before anything is sent.
    pub fn max_value_bytes(mut self, max: usize) -> Self {
        self.max_value_bytes = max;
        self
    }

    /// Connects to one server: `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS with
    /// the feature `redis-tls`. RESP3 is spoken unless the URL says `?protocol=resp2`.
    ///
    /// The connection is shared by all clones of the backend and heals by itself: a call that finds it
    /// broken fails with a typed error, and starts a reconnect that later calls wait for.
    ///
    /// # Errors
    /// `Unavailable` within the connect timeout when nobody answers, `Denied` for a wrong user or password,
    /// `InvalidKey` for an illegal prefix, `Backend` for a URL that cannot be read. None holds the password.
    ///
    /// # Cancellation safety
    /// Dropping the future drops the connection.
    pub async fn connect(self, url: &str) -> Result<RedisBackend, StorageError> {
        let schema = Schema::new(&self.prefix, self.hash_tags)?;
        let unreadable = |error| connecting("Redis").storage_error(error);
        let mut info = url.into_connection_info().map_err(unreadable)?;
        if !url.contains("protocol=") {
            // With RESP3 a connection notices at once that it was closed, not at the next call.
            let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            info = info.set_redis_settings(settings);
        }
        let address = info.addr().to_string();
        let client = Client::open(info).map_err(|error| connecting(&address).storage_error(error))?;
        let [min_delay, max_delay] = RECONNECT_DELAYS;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // Each call has one time limit, set around the whole of it.
            .set_response_timeout(None)
            .set_min_delay(min_delay)
            .set_max_delay(max_delay)
            .set_number_of_retries(RECONNECT_RETRIES);
        let connection = ConnectionManager::new_lazy_with_config(client, config)
            .map_err(|error| connecting(&address).storage_error(error))?;
        self.start(connection, schema, address).await
    }

    /// Works over a connection that the caller has: any cloneable async connection of the `redis` crate, be
    /// it a `MultiplexedConnection`, a `ConnectionManager` or a cluster connection.
    ///
    /// How it reconnects is the connection's own affair; the connect timeout is the limit of the first call. A
    /// connection that sends by itself again, as cluster connections do unless they are configured with no
    /// retries, may turn a write that was applied into a conflict.
    ///
    /// # Errors
    /// `InvalidKey` for an illegal prefix, and whatever the first call over the connection says.
    pub async fn over<C>(self, connection: C) -> Result<RedisBackend<C>, StorageError>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        let schema = Schema::new(&self.prefix, self.hash_tags)?;
        self.start(connection, schema, "the given Redis connection".to_owned()).await
    }

    /// Asks the server for its clock, which also shows that it answers.
    async fn start<C>(
        self,
        connection: C,
        schema: Schema,
        address: String,
    ) -> Result<RedisBackend<C>, StorageError>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        let backend = RedisBackend(std::sync::Arc::new(Inner {
            connection,
            schema,
            clock: Clock::new(),
            address,
            response_timeout: self.response_timeout,
            max_value_bytes: self.max_value_bytes,
        }));
        let first = backend.read_clock();
        match tokio::time::timeout(self.connect_timeout, first).await {
            Ok(answered) => answered?,
            Err(_) => {
                return Err(StorageError::Unavailable {
                    address: backend.0.address.clone(),
                    reason: format!(
                        "no answer within {:?}; check the address and that no firewall is in between",
                        self.connect_timeout
                    ),
                    outcome_unknown: false,
                    source: None,
                });
            }
        }
        Ok(backend)
    }
}

fn connecting(address: &str) -> Context<'_> {
    Context { address, key: "", writes: false, expected: Version::ABSENT, quota: None }
}
