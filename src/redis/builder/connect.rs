//! The `connect` methods of [`RedisBuilder`].

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

#[cfg(feature = "redis-cluster")]
use redis::ConnectionAddr;
use redis::aio::ConnectionLike;
use tokio::time::{Instant, timeout, timeout_at};

use super::RedisBuilder;
use super::dialing::configuration_error;
#[cfg(feature = "redis-sentinel")]
use super::dialing::host;
#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
use super::dialing::join;
use crate::backend::StorageError;
use crate::printable::Chain;
use crate::redis::agenda::Outages;
use crate::redis::caller::CallerConnection;
use crate::redis::clock::Clock;
use crate::redis::connection::Connection;
use crate::redis::connector::Connector;
use crate::redis::diagnosis::diagnosed;
use crate::redis::dialer::Dialer;
use crate::redis::generation::Generation;
use crate::redis::group_commit::{GroupCommit, Transport};
use crate::redis::master::Master;
use crate::redis::master_connection::MasterConnection;
use crate::redis::notifications::PubsubProbe;
use crate::redis::replicas::ReplicatedConnection;
use crate::redis::schema::Schema;
#[cfg(feature = "redis-sentinel")]
use crate::redis::sentinel::Sentinels;
#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
use crate::redis::settings::invalid_setting;
use crate::redis::subscriptions::Subscriptions;
use crate::redis::{Deployment, RedisBackend};
use crate::spans;

/// The connections of a backend, and the properties of their servers.
struct Connections {
    calls: Arc<dyn Connection>,
    /// For pages and parts.
    bulk: Box<dyn Connection>,
    clock: Arc<Clock>,
    address: String,
    /// The index of the database; `None` if only the caller knows it.
    index: Option<i64>,
    /// Whether the servers can deliver messages over a connection that also carries replies.
    can_subscribe: bool,
    /// Whether the caller made the connections.
    are_of_caller: bool,
}

impl RedisBuilder {
    /// Connects to one server.
    ///
    /// The URL is `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS with the feature `redis-tls`. The
    /// backend uses RESP3 unless the URL says `?protocol=resp2`.
    ///
    /// All clones of the backend share its connections. The backend reconnects by itself. A call that detects a broken
    /// connection fails with a typed error and starts a reconnect. Later calls wait for it. Attempts are at most 250 ms apart.
    ///
    /// Before it returns, the method tries each command that calls need, and publishes and receives one message. If the server
    /// is in a temporary state, such as out of memory, the method succeeds. Calls that the state affects fail
    /// until it ends.
    ///
    /// # Errors
    /// * [`Unavailable`](StorageError::Unavailable): no server answers within the connect timeout.
    /// * [`Denied`](StorageError::Denied): the user, the password or a certificate is wrong, or the user lacks a
    ///   permission.
    /// * [`InvalidKey`](StorageError::InvalidKey): the prefix is invalid.
    /// * [`Backend`](StorageError::Backend): the server lacks a command, or the URL or a setting is invalid. Nothing was
    ///   sent for an invalid URL or setting.
    ///
    /// No error holds the password.
    ///
    /// # Cancellation safety
    /// Dropping the future closes the connection.
    pub async fn connect(self, url: &str) -> Result<RedisBackend, StorageError> {
        self.check()?;
        let info = self.read_url(url)?;
        let (server, limit) = (info.addr().clone(), self.connect_timeout);
        let address = server.to_string();
        let dialer = self.dialer(info, limit, &address)?;
        let connector =
            |dialer, clock, generation| Connector::to_address(server.clone(), dialer, clock, generation);
        diagnosed(&server, limit, self.connect_master(address, dialer, connector)).await
    }

    /// Connects to the master that these sentinels elect
    /// (<https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/>), and to the new master after a failover.
    ///
    /// `sentinels` are URLs such as `redis://host:26379`. If the sentinels require a user and a password, all URLs must
    /// have the same user and password. `master` is the URL of the master with its name in place of the host, such as
    /// `redis://user:password@mymaster/2`. The Redis user also needs `+role`.
    ///
    /// The backend asks all sentinels at the same time, each second and for each connection. It prefers the server of the
    /// latest failover, then the server that most sentinels report.
    ///
    /// Redis replicates asynchronously, so a failover can lose acknowledged writes; see
    /// [`wait_for_replicas`](Self::wait_for_replicas).
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect), and [`Unavailable`](StorageError::Unavailable) if no sentinel answers
    /// or no sentinel knows the master.
    ///
    /// # Cancellation safety
    /// Dropping the future closes the connections.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), mcp_task_store::StorageError> {
    /// use mcp_task_store::RedisBackend;
    ///
    /// let sentinels = ["redis://sentinel-1:26379", "redis://sentinel-2:26379", "redis://sentinel-3:26379"];
    /// let backend = RedisBackend::builder()
    ///     .connect_sentinel(sentinels, "redis://tasks:secret@mymaster")
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "redis-sentinel")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-sentinel")))]
    pub async fn connect_sentinel<S: AsRef<str>>(
        self,
        sentinels: impl IntoIterator<Item = S>,
        master: &str,
    ) -> Result<RedisBackend, StorageError> {
        self.check()?;
        let info = self.read_url(master)?;
        let sentinels = self.read_urls(sentinels, "sentinel")?;
        let (addresses, name) = (join(&sentinels), host(&info).to_owned());
        let address = format!("{name} (by the sentinels {addresses})");
        let Some(first) = sentinels.first().map(|sentinel| sentinel.addr().clone()) else {
            let reason = "connect_sentinel received no URL of a sentinel; pass the URLs of all sentinels";
            return Err(invalid_setting(reason.to_owned()));
        };
        let limit = self.connect_timeout;
        let dialers = sentinels.into_iter().map(|sentinel| self.sentinel_dialer(sentinel, &address));
        let sentinels = Sentinels::new(dialers.collect::<Result<_, _>>()?, name);
        let dialer = self.dialer(info, limit, &address)?;
        let connector =
            |dialer, clock, generation| Connector::to_elected_master(sentinels, dialer, clock, generation);
        diagnosed(&first, limit, self.connect_master(address, dialer, connector)).await
    }

    /// Connects to the Redis Cluster that these nodes belong to. Keys are [hash-tagged](Self::hash_tags): all keys of one
    /// owner are in one slot, on one master.
    ///
    /// Pass the URLs of a few nodes. The backend finds the others. All URLs must have the same user and password.
    ///
    /// While the slot of an owner is being migrated, a call whose keys are on two nodes fails with
    /// [`Unavailable`](StorageError::Unavailable), and nothing is written. A [watch](crate::StorageBackend::watch) receives
    /// notifications from the new node once the slot is assigned to it.
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect), and [`Unavailable`](StorageError::Unavailable) if none of the nodes answers.
    ///
    /// # Cancellation safety
    /// Dropping the future closes the connections.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), mcp_task_store::StorageError> {
    /// use mcp_task_store::RedisBackend;
    ///
    /// let nodes = ["redis://tasks:secret@node-1:6379", "redis://tasks:secret@node-2:6379"];
    /// let backend = RedisBackend::builder().connect_cluster(nodes).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "redis-cluster")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-cluster")))]
    pub async fn connect_cluster<S: AsRef<str>>(
        self,
        nodes: impl IntoIterator<Item = S>,
    ) -> Result<RedisBackend, StorageError> {
        self.check()?;
        let schema = Schema::new(&self.prefix, true)?;
        let nodes = self.read_urls(nodes, "node")?;
        let address = format!("the cluster of {}", join(&nodes));
        self.reject_replicas(&address)?;
        let Some(first) = nodes.first().cloned() else {
            let reason = "connect_cluster received no URL of a node; pass the URL of at least one node";
            return Err(invalid_setting(reason.to_owned()));
        };
        let (server, mut seeds) = (first.addr().clone(), Vec::new());
        for node in &nodes {
            match node.addr() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                    seeds.push((host.clone(), *port));
                }
                other => {
                    let reason =
                        format!("{other} is not the address of a cluster node; pass a host and a port");
                    return Err(configuration_error(address, reason));
                }
            }
        }
        let dialer = self.dialer(first, self.connect_timeout, &address)?;
        let (can_subscribe, clock) = (dialer.speaks_resp3(), Arc::new(Clock::new()));
        let generation = Arc::new(Generation::of_own_connections());
        let probe = self.pubsub_probe(&schema, can_subscribe);
        let deadline = Instant::now() + self.connect_timeout;
        let connecting = async {
            let connections =
                crate::redis::cluster::connect(seeds, dialer, Arc::clone(&clock), generation, probe);
            let timed_out = |_| Err(self.connect_timed_out(&address));
            timeout_at(deadline, connections).await.unwrap_or_else(timed_out)
        };
        let (calls, bulk) = diagnosed(&server, self.connect_timeout, connecting).await?;
        let (calls, bulk) = (Arc::new(calls), Box::new(bulk));
        // A cluster has one database.
        let index = Some(0);
        let connections =
            Connections { calls, bulk, clock, address, index, can_subscribe, are_of_caller: false };
        self.finish(connections, schema, deadline).await
    }

    /// Uses a connection of your own: any cloneable async connection of the `redis` crate. Use it if your program has a
    /// connection already, or a topology that this crate does not know.
    ///
    /// Your connection decides how it reconnects. The connect timeout limits the first call. Note these differences:
    ///
    /// * A connection that repeats commands by itself can turn a write that was applied into a version conflict. Cluster
    ///   connections of the `redis` crate do so unless you configure no retries.
    /// * The `redis` crate leaves Nagle's algorithm on. The end of a burst of writes then waits for a round trip. Turn it off with
    ///   `TcpSettings::set_nodelay(true)`, as the backend does for its own connections.
    /// * The backend cannot subscribe over your connection, so a [watch](crate::StorageBackend::watch) polls.
    /// * Pages and parts share the connection with all other calls, which wait behind them.
    ///   [`over_two`](Self::over_two) takes a second connection for them.
    /// * The backend cannot detect that the connection reconnects, so the store reads a task before each write,
    ///   even if you pass a [copy of the task](crate::Snapshot).
    ///
    /// # Errors
    /// [`InvalidKey`](StorageError::InvalidKey) for an invalid prefix, and any error of the first call over the connection.
    pub async fn over<C>(self, connection: C) -> Result<RedisBackend, StorageError>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        self.over_two(connection.clone(), connection).await
    }

    /// Uses two connections of your own to the same server: the second one carries pages and parts, so that no other call
    /// waits behind megabytes. Otherwise it is the same as [`over`](Self::over).
    ///
    /// # Errors
    /// The errors of [`over`](Self::over).
    pub async fn over_two<C, D>(self, connection: C, bulk: D) -> Result<RedisBackend, StorageError>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
        D: ConnectionLike + Clone + Send + Sync + 'static,
    {
        self.check()?;
        let schema = Schema::new(&self.prefix, self.hash_tags)?;
        let address = "the given Redis connection".to_owned();
        self.reject_replicas(&address)?;
        let deadline = Instant::now() + self.connect_timeout;
        let probe = self.pubsub_probe(&schema, false);
        let connections = Connections {
            calls: Arc::new(CallerConnection::new(connection, probe)),
            bulk: Box::new(CallerConnection::new(bulk, None)),
            clock: Arc::new(Clock::new()),
            address,
            index: None,
            can_subscribe: false,
            are_of_caller: true,
        };
        self.finish(connections, schema, deadline).await
    }

    async fn connect_master(
        self,
        address: String,
        dialer: Dialer,
        connector: impl FnOnce(Dialer, Arc<Clock>, Arc<Generation>) -> Connector,
    ) -> Result<RedisBackend, StorageError> {
        let (can_subscribe, clock) = (dialer.speaks_resp3(), Arc::new(Clock::new()));
        let index = Some(dialer.database());
        let generation = Arc::new(Generation::of_own_connections());
        let connector = connector(dialer, Arc::clone(&clock), generation);
        let schema = Schema::new(&self.prefix, self.hash_tags)?;
        let master = Arc::new(Master::new(connector, self.pubsub_probe(&schema, can_subscribe)));
        let connection = || MasterConnection::new(Arc::clone(&master));
        let (calls, bulk): (Arc<dyn Connection>, Box<dyn Connection>) = match self.replicas {
            None => (Arc::new(connection()), Box::new(connection())),
            Some((count, within)) => {
                let calls = ReplicatedConnection::new(Arc::clone(&master), count, within)
                    .map_err(|error| super::dialing::not_sent(&address, error))?;
                let bulk = calls.with_separate_reads();
                (Arc::new(calls), Box::new(bulk))
            }
        };
        let deadline = Instant::now() + self.connect_timeout;
        let connections =
            Connections { calls, bulk, clock, address, index, can_subscribe, are_of_caller: false };
        self.finish(connections, schema, deadline).await
    }

    /// Reads the server's clock, which also shows that the server answers, and tries what calls need.
    async fn finish(
        self,
        connections: Connections,
        schema: Schema,
        deadline: Instant,
    ) -> Result<RedisBackend, StorageError> {
        let Connections { calls, bulk, clock, address, index, can_subscribe, are_of_caller } = connections;
        let subscribes = self.notifications && can_subscribe;
        let transport = Arc::new(Transport {
            connection: Arc::clone(&calls),
            clock: Arc::clone(&clock),
            limit: self.response_timeout,
            has_one_owner: schema.has_hash_tags(),
        });
        let backend = RedisBackend(Arc::new(Deployment {
            connection: calls,
            swaps: GroupCommit::new(Arc::clone(&transport)),
            inserts: GroupCommit::new(transport),
            bulk_connection: bulk,
            schema,
            clock,
            database: spans::Database::redis(&address, index),
            address,
            limit: self.response_timeout,
            max_value_bytes: self.max_value_bytes,
            max_part_bytes: self.max_part_bytes,
            largest_listed: AtomicUsize::new(self.max_value_bytes),
            puts_in_a_row_that_created: AtomicUsize::new(0),
            publishes: self.notifications,
            is_given: are_of_caller,
            subscriptions: subscribes.then(|| Arc::new(Subscriptions::new(self.connect_timeout))),
            outages: Outages::default(),
        }));
        match timeout_at(deadline, self.try_calls(&backend)).await {
            Ok(tried) => tried.map(|()| backend),
            Err(_) => Err(self.connect_timed_out(&backend.0.address)),
        }
    }

    async fn try_calls(&self, backend: &RedisBackend) -> Result<(), StorageError> {
        backend.read_clock("").await?;
        if !backend.0.connection.has_several_masters() {
            return backend.probe().await;
        }
        // In a cluster, the master of the probe's key may be lost while the others serve their owners.
        match timeout(self.connect_timeout / 2, backend.probe()).await {
            Ok(Err(error @ StorageError::Unavailable { .. })) => {
                tracing::debug!(error = %Chain(&error), "the master of the probe's key is unavailable; connecting without a probe");
                Ok(())
            }
            Ok(tried) => tried,
            Err(_) => {
                tracing::debug!("the master of the probe's key does not answer; connecting without a probe");
                Ok(())
            }
        }
    }

    /// Returns how to probe the Pub/Sub commands; `None` if notifications are off.
    fn pubsub_probe(&self, schema: &Schema, subscribes: bool) -> Option<PubsubProbe> {
        self.notifications.then(|| PubsubProbe { channel: schema.probe_channel(), subscribes })
    }

    fn connect_timed_out(&self, address: &str) -> StorageError {
        let callback = match self.callback {
            Some(_) => ", and that the credentials callback returns",
            None => "",
        };
        StorageError::Unavailable {
            address: address.to_owned(),
            reason: format!(
                "connecting timed out after {:?}; check the address, and that no firewall blocks the port{callback}",
                self.connect_timeout
            ),
            outcome_unknown: false,
            source: None,
        }
    }

    fn reject_replicas(&self, address: &str) -> Result<(), StorageError> {
        if self.replicas.is_none() {
            return Ok(());
        }
        let reason = "wait_for_replicas works only with connect and connect_sentinel; remove it";
        Err(configuration_error(address.to_owned(), reason.to_owned()))
    }
}
