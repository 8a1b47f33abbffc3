//! How a [`RedisBackend`] is configured and connected.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

#[cfg(feature = "redis-cluster")]
use redis::ConnectionAddr;
use redis::ConnectionInfo;
use redis::aio::ConnectionLike;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use tokio::time::Instant;

use super::agenda::Outages;
use super::caller::CallerConnection;
use super::clock::Clock;
use super::connection::Connection;
use super::diagnosis::diagnosed;
use super::dialer::{Credentials, Dialer, Provider};
use super::error::Context;
use super::generation::Generation;
use super::master::{Master, MasterConnection, Place};
use super::notifications::Trials;
use super::replicas::ReplicatedConnection;
use super::reply::CommandError;
use super::schema::Schema;
#[cfg(feature = "redis-sentinel")]
use super::sentinel::Sentinels;
use super::settings::{check_limit, check_replicas, check_size};
use super::subscriptions::Subscriptions;
#[cfg(feature = "redis-tls")]
use super::tls::Certificates;
use super::{Deployment, RedisBackend, url};
use crate::backend::{BoxError, DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES, StorageError};
use crate::printable::Chain;

/// When an idle connection is first probed, so that one that a router forgot is found out.
const KEEPALIVE: Duration = Duration::from_secs(15);

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
    max_part_bytes: usize,
    replicas: Option<(u32, Duration)>,
    notifications: bool,
    provider: Option<Provider>,
    #[cfg(feature = "redis-tls")]
    certificates: Certificates,
}

impl Default for RedisBuilder {
    fn default() -> Self {
        Self {
            prefix: "pmcp".to_owned(),
            hash_tags: false,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(2),
            max_value_bytes: DEFAULT_MAX_VALUE_BYTES,
            max_part_bytes: DEFAULT_MAX_PART_BYTES,
            replicas: None,
            notifications: true,
            provider: None,
            #[cfg(feature = "redis-tls")]
            certificates: Certificates::default(),
        }
    }
}

impl RedisBackend {
    /// Connects to one server with the default settings of [`RedisBuilder`].
    ///
    /// Use [`builder`](Self::builder) for other settings, for Sentinel and for a cluster.
    ///
    /// # Errors
    /// The errors of [`RedisBuilder::connect`]. An unreachable server is reported within 2 s.
    pub async fn connect(url: &str) -> Result<Self, StorageError> {
        Self::builder().connect(url).await
    }

    /// Returns a builder with the default settings.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
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
    /// set, and always on in `connect_cluster`. Keys with and without tags are two different stores: set it
    /// on a single server whose keys are to move to a cluster one day.
    pub fn hash_tags(mut self, on: bool) -> Self {
        self.hash_tags = on;
        self
    }

    /// How long making a connection may take: 2 s unless set, from 1 ms to 1 h. It limits construction as a whole, however many
    /// servers are named, and each later attempt to reconnect.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long one call of the backend may take, waiting for a reconnect included; 2 s unless set, 1 ms to 1 h. A write
    /// that runs into it is [`TooFewReplicas`](StorageError::TooFewReplicas) with an unknown outcome.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// The largest value in bytes, 1 MiB unless set, at most 512 MiB. Larger ones are refused before anything is sent.
    pub fn max_value_bytes(mut self, max: usize) -> Self {
        self.max_value_bytes = max;
        self
    }

    /// The largest part of a record in bytes, 4 MiB unless set, at most 512 MiB. Larger ones are refused before anything is sent. A part
    /// that is written or read holds the server for about 3 ms a MiB, and with it all other calls.
    pub fn max_part_bytes(mut self, max: usize) -> Self {
        self.max_part_bytes = max;
        self
    }

    /// Makes every write wait until `count` replicas (at most 100) have it, for at most `within` (1 ms or more, and less
    /// than the response timeout); 0 replicas, the default, waits for none. For [`connect`](Self::connect) and
    /// `connect_sentinel`; the user needs `+wait`.
    ///
    /// A write that fewer replicas confirmed in time fails with [`TooFewReplicas`](StorageError::TooFewReplicas) and an
    /// unknown outcome: the master may have applied it, and a failover to a replica without it would lose it. A write
    /// without any reply counts as confirmed by none. [`TaskStore`](crate::TaskStore) reports this error, because it cannot
    /// resolve the outcome by reading.
    ///
    /// This makes the loss of an acknowledged write less likely, and does not rule it out: the sentinels may
    /// promote a replica that does not have it, and a replica confirms what it holds in memory
    /// (<https://redis.io/docs/latest/commands/wait/>). A read never waits, and may show a write that has not
    /// been confirmed.
    ///
    /// As `WAIT` holds up its connection, writes take one each out of a pool of up to 32.
    pub fn wait_for_replicas(mut self, count: u32, within: Duration) -> Self {
        self.replicas = (count > 0).then_some((count, within));
        self
    }

    /// Whether each write is published to those who [`watch`](crate::StorageBackend::watch) the record, and watching
    /// is listening; on unless set. All instances on one store must agree: subscribers receive no notification of a write
    /// by an instance that does not publish.
    ///
    /// There is one channel per owner, `{prefix}:watch:{owner}`, sharded from Redis 7 on
    /// (<https://redis.io/docs/latest/develop/pubsub/#sharded-pubsub>), and the user needs the rights to it that the
    /// README names. Databases of one server share the channels of a prefix, which costs a watch items without a change.
    /// Whenever an instance connects, it publishes a message and receives it, to find the commands that the server knows. If no
    /// message arrives, watches poll, and the log has a warning.
    /// Watches also poll if notifications are off, over a connection of the [caller's own](Self::over), and with
    /// `?protocol=resp2`. In the last two cases writes are still published.
    pub fn notifications(mut self, on: bool) -> Self {
        self.notifications = on;
        self
    }

    /// Calls `provide` for the user and the password each time that the backend makes a connection, those for subscriptions
    /// included. Use it for passwords that are rotated and for tokens that expire. The user and password of the URL are not
    /// used. Sentinels still receive those of their own URLs.
    ///
    /// The time that `provide` takes counts towards the [connect timeout](Self::connect_timeout). If it fails, the call that
    /// waits for the connection is [`Unavailable`](StorageError::Unavailable), and a later call asks again. Errors and the log
    /// repeat the messages of its error and of the causes, so these must hold no secret.
    ///
    /// ```no_run
    /// # async fn token() -> Result<String, std::io::Error> { Ok(String::new()) }
    /// # async fn example() -> Result<(), mcp_task_store::StorageError> {
    /// use mcp_task_store::{Credentials, RedisBackend};
    ///
    /// let backend = RedisBackend::builder()
    ///     .credentials(|| async { token().await.map(|token| Credentials::user("tasks", token)) })
    ///     .connect("rediss://redis.internal")
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn credentials<F, R, E>(mut self, provide: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.provider = Some(Provider::new(provide));
        self
    }

    /// Trusts the certificate authorities in this PEM text in place of those of the operating system, for
    /// `rediss://`.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.set_root(pem.into());
        self
    }

    /// Shows the server this certificate, for `rediss://`. Both in PEM; the key is never printed.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificates.set_client(certificate.into(), key.into());
        self
    }

    /// Connects to one server: `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS with
    /// the feature `redis-tls`. RESP3 is spoken unless the URL says `?protocol=resp2`.
    ///
    /// The connection is shared by all clones of the backend and heals by itself: a call that finds it
    /// broken fails with a typed error, and starts a reconnect that later calls wait for, 250 ms after the
    /// attempt before at the most.
    ///
    /// Connecting tries out everything that calls will need: each command, and a message that is published and received. It
    /// succeeds while the server is in a temporary state, such as out of memory. Calls report that.
    ///
    /// # Errors
    /// `Unavailable` within the connect timeout when nobody answers, `Denied` for a wrong user, password or
    /// certificate and for a right that the user lacks, `InvalidKey` for an illegal prefix, `Backend` for a command that the
    /// server lacks, for a URL that cannot be read and for settings that cannot be used; nothing was sent then. None holds the
    /// password.
    ///
    /// # Cancellation safety
    /// Dropping the future drops the connection.
    pub async fn connect(self, url: &str) -> Result<RedisBackend, StorageError> {
        self.check()?;
        let info = self.read_url(url)?;
        let (at, limit) = (info.addr().clone(), self.connect_timeout);
        let (place, address) = (Place::At(at.clone()), at.to_string());
        let dialer = self.dialer(info, limit, &address)?;
        diagnosed(&at, limit, self.connect_master(place, dialer, address)).await
    }

    /// Connects to the master that these sentinels know
    /// (<https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/>), and again to the one that
    /// they name after a failover. `sentinels` are URLs such as `redis://host:26379`, all with the same user and password, if
    /// sentinels have any. The backend asks all of them at the same time, each second and for each connection. It prefers the
    /// server of the latest failover, then the one that most of them name. `master` is the URL of the master with the name that the sentinels have for it in place of the host, such as
    /// `redis://user:password@mymaster/2`. The user needs `+role` as well.
    ///
    /// Redis replicates asynchronously, so a failover can lose writes that were acknowledged; see
    /// [`wait_for_replicas`](Self::wait_for_replicas).
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Unavailable` if no sentinel answers or none knows the master.
    ///
    /// # Cancellation safety
    /// Dropping the future drops the connection.
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
        let Some(at) = sentinels.first().map(|sentinel| sentinel.addr().clone()) else {
            let reason = "connect_sentinel was given no sentinel; name all of them";
            return Err(super::settings::refused(reason.to_owned()));
        };
        let limit = self.connect_timeout;
        let dialers = sentinels.into_iter().map(|sentinel| self.sentinel_dialer(sentinel, &address));
        let sentinels = Sentinels::new(dialers.collect::<Result<_, _>>()?, name);
        let dialer = self.dialer(info, self.connect_timeout, &address)?;
        let place = Place::KnownTo(sentinels);
        diagnosed(&at, limit, self.connect_master(place, dialer, address)).await
    }

    /// Connects to a Redis Cluster of which these are nodes, with keys that are [hash-tagged](Self::hash_tags):
    /// one owner is one slot, on one node. All URLs have the same user and password.
    ///
    /// While an owner's slot is being migrated, calls whose keys are partly on the other node already are
    /// `Unavailable` with nothing written, and a [watch](crate::StorageBackend::watch) receives notifications of
    /// writes on that node only once the slot is assigned.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Unavailable` if none of the nodes answers.
    ///
    /// # Cancellation safety
    /// Dropping the future drops the connections.
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
        self.refuse_replicas(&address)?;
        let Some(node) = nodes.first().cloned() else {
            let reason = "connect_cluster was given no node; name some of them";
            return Err(super::settings::refused(reason.to_owned()));
        };
        let (at, mut seeds) = (node.addr().clone(), Vec::new());
        for info in &nodes {
            match info.addr() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                    seeds.push((host.clone(), *port));
                }
                other => return Err(wrong_settings(address, format!("{other} is no node of a cluster"))),
            }
        }
        let dialer = self.dialer(node, self.connect_timeout, &address)?;
        let can_publish = dialer.speaks_resp3();
        let trials = self.trials(&schema, can_publish);
        let (clock, generation) = (Arc::new(Clock::new()), Arc::new(Generation::of_own_connections()));
        let deadline = Instant::now() + self.connect_timeout;
        let connecting = async {
            let links = super::cluster::connect(seeds, dialer, Arc::clone(&clock), generation, trials);
            let no_answer = |_| Err(self.no_answer(&address));
            tokio::time::timeout_at(deadline, links).await.unwrap_or_else(no_answer)
        };
        let (link, bulk) = diagnosed(&at, self.connect_timeout, connecting).await?;
        let (link, bulk): (Box<dyn Connection>, Box<dyn Connection>) = (Box::new(link), Box::new(bulk));
        let way = Way { link, bulk, clock, address, can_publish, is_given: false };
        self.start(way, schema, deadline).await
    }

    /// Works over a connection that the caller has: any cloneable async connection of the `redis` crate.
    ///
    /// How it reconnects is the connection's own affair; the connect timeout is the limit of the first call. A
    /// connection that sends by itself again, as cluster connections do unless they are configured with no
    /// retries, may turn a write that was applied into a conflict. It cannot be listened on, so
    /// [watching](crate::StorageBackend::watch) over it is polling. Pages and parts share it with all other calls, which
    /// wait behind them: [`over_two`](Self::over_two) takes a second connection for them. The backend cannot see when the
    /// connection reconnects, so a copy of a task [never saves a read](crate::Snapshot).
    ///
    /// # Errors
    /// `InvalidKey` for an illegal prefix, and whatever the first call over the connection says.
    pub async fn over<C>(self, connection: C) -> Result<RedisBackend, StorageError>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        self.over_two(connection.clone(), connection).await
    }

    /// Works as [`over`](Self::over) does, and sends pages and parts over a connection of their own to the same server,
    /// so that no other call waits behind megabytes.
    ///
    /// # Errors
    /// As [`over`](Self::over).
    pub async fn over_two<C, D>(self, connection: C, bulk: D) -> Result<RedisBackend, StorageError>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
        D: ConnectionLike + Clone + Send + Sync + 'static,
    {
        self.check()?;
        let schema = Schema::new(&self.prefix, self.hash_tags)?;
        let address = "the given Redis connection".to_owned();
        self.refuse_replicas(&address)?;
        let deadline = Instant::now() + self.connect_timeout;
        let (link, bulk): (Box<dyn Connection>, Box<dyn Connection>) = (
            Box::new(CallerConnection::new(connection, self.trials(&schema, false))),
            Box::new(CallerConnection::new(bulk, None)),
        );
        let clock = Arc::new(Clock::new());
        let way = Way { link, bulk, clock, address, can_publish: false, is_given: true };
        self.start(way, schema, deadline).await
    }

    async fn connect_master(
        self,
        place: Place,
        dialer: Dialer,
        address: String,
    ) -> Result<RedisBackend, StorageError> {
        let schema = Schema::new(&self.prefix, self.hash_tags)?;
        let can_publish = dialer.speaks_resp3();
        let (clock, generation) = (Arc::new(Clock::new()), Arc::new(Generation::of_own_connections()));
        let trials = self.trials(&schema, can_publish);
        let master = Arc::new(Master::new(place, dialer, Arc::clone(&clock), generation, trials));
        let connection = || MasterConnection::new(Arc::clone(&master));
        let (link, bulk): (Box<dyn Connection>, Box<dyn Connection>) = match self.replicas {
            None => (Box::new(connection()), Box::new(connection())),
            Some((count, within)) => {
                let link = ReplicatedConnection::new(connection(), count, within);
                let link = link.map_err(|error| refused(&address, error))?;
                let bulk = link.reading_over(connection());
                (Box::new(link), Box::new(bulk))
            }
        };
        let deadline = Instant::now() + self.connect_timeout;
        let way = Way { link, bulk, clock, address, can_publish, is_given: false };
        self.start(way, schema, deadline).await
    }

    /// Asks the server for its clock, which also shows that it answers, and tries out what calls will need.
    async fn start(self, way: Way, schema: Schema, deadline: Instant) -> Result<RedisBackend, StorageError> {
        let Way { link, bulk, clock, address, can_publish, is_given } = way;
        let listens = self.notifications && can_publish;
        let backend = RedisBackend(Arc::new(Deployment {
            connection: link,
            bulk_connection: bulk,
            schema,
            clock,
            address,
            limit: self.response_timeout,
            max_value_bytes: self.max_value_bytes,
            max_part_bytes: self.max_part_bytes,
            largest_listed: AtomicUsize::new(self.max_value_bytes),
            publishes: self.notifications,
            is_given,
            subscriptions: listens.then(|| Arc::new(Subscriptions::new(self.connect_timeout))),
            outages: Outages::default(),
        }));
        let connecting = async {
            backend.read_clock("").await?;
            if !backend.0.connection.has_several_masters() {
                return backend.probe().await;
            }
            match tokio::time::timeout(self.connect_timeout / 2, backend.probe()).await {
                Ok(Err(error @ StorageError::Unavailable { .. })) => {
                    tracing::debug!(error = %Chain(&error), "what calls need could not be tried out");
                    Ok(())
                }
                Ok(tried) => tried,
                Err(_) => {
                    tracing::debug!("what calls need could not be tried out in time");
                    Ok(())
                }
            }
        };
        match tokio::time::timeout_at(deadline, connecting).await {
            Ok(connected) => connected.map(|()| backend),
            Err(_) => Err(self.no_answer(&backend.0.address)),
        }
    }

    /// Checks the settings that need no URL.
    fn check(&self) -> Result<(), StorageError> {
        check_limit("connect_timeout", self.connect_timeout)?;
        check_limit("response_timeout", self.response_timeout)?;
        check_size("max_value_bytes", self.max_value_bytes)?;
        check_size("max_part_bytes", self.max_part_bytes)?;
        if let Some((count, within)) = self.replicas {
            check_replicas(count, within, self.response_timeout)?;
        }
        #[cfg(feature = "redis-tls")]
        self.certificates.check()?;
        Ok(())
    }

    fn read_url(&self, url: &str) -> Result<ConnectionInfo, StorageError> {
        Ok(url::read(url, "the URL")?.set_tcp_settings(self.tcp_settings()))
    }

    #[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
    fn read_urls<S: AsRef<str>>(
        &self,
        urls: impl IntoIterator<Item = S>,
        what: &str,
    ) -> Result<Vec<ConnectionInfo>, StorageError> {
        let servers = url::read_all(urls, what)?;
        Ok(servers.into_iter().map(|server| server.set_tcp_settings(self.tcp_settings())).collect())
    }

    /// A connection whose other end is gone without a word must not swallow one call after the other.
    fn tcp_settings(&self) -> TcpSettings {
        let settings =
            TcpSettings::default().set_nodelay(true).set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE));
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        let settings = settings.set_user_timeout(self.response_timeout);
        settings
    }

    /// How connections are made with the settings of this URL, each within `limit`.
    fn dialer(
        &self,
        settings: ConnectionInfo,
        limit: Duration,
        address: &str,
    ) -> Result<Dialer, StorageError> {
        #[cfg(feature = "redis-tls")]
        if self.certificates.given().is_some()
            && !matches!(settings.addr(), redis::ConnectionAddr::TcpTls { .. })
        {
            let reason = "certificates are set, and the URL says redis://; use rediss:// to connect over TLS";
            return Err(super::settings::refused(reason.to_owned()));
        }
        let dialer = Dialer {
            settings,
            #[cfg(feature = "redis-tls")]
            certificates: self.certificates.clone(),
            provider: self.provider.clone(),
            limit,
        };
        dialer.check().map_err(|error| refused(address, error))?;
        Ok(dialer)
    }

    /// How connections to a sentinel are made. Sentinels have users and passwords of their own.
    #[cfg(feature = "redis-sentinel")]
    fn sentinel_dialer(&self, sentinel: ConnectionInfo, address: &str) -> Result<Dialer, StorageError> {
        // They publish nothing to this connection.
        let settings = sentinel.redis_settings().clone().set_protocol(redis::ProtocolVersion::RESP2);
        let settings = sentinel.set_redis_settings(settings);
        let mut own = self.clone();
        own.provider = None;
        #[cfg(feature = "redis-tls")]
        if !matches!(settings.addr(), redis::ConnectionAddr::TcpTls { .. }) {
            own.certificates = Certificates::default();
        }
        own.dialer(settings, own.connect_timeout, address)
    }

    /// Where to try out how messages travel; `None` if notifications are off.
    fn trials(&self, schema: &Schema, can_publish: bool) -> Option<Trials> {
        let trials = Trials { channel: schema.probe_channel(), listens: can_publish };
        self.notifications.then_some(trials)
    }

    fn no_answer(&self, address: &str) -> StorageError {
        let also = if self.provider.is_some() { ", and that the credentials callback returns" } else { "" };
        let limit = self.connect_timeout;
        StorageError::Unavailable {
            address: address.to_owned(),
            reason: format!(
                "no answer within {limit:?}; check the address, and that no firewall is in between{also}"
            ),
            outcome_unknown: false,
            source: None,
        }
    }

    fn refuse_replicas(&self, address: &str) -> Result<(), StorageError> {
        if self.replicas.is_none() {
            return Ok(());
        }
        let reason = "wait_for_replicas works only with connect and connect_sentinel; leave it out";
        Err(wrong_settings(address.to_owned(), reason.to_owned()))
    }
}

/// A way to the servers, and what is known of it.
struct Way {
    link: Box<dyn Connection>,
    /// Over other connections.
    bulk: Box<dyn Connection>,
    clock: Arc<Clock>,
    address: String,
    /// Whether the servers can publish over a connection beside their replies.
    can_publish: bool,
    /// Whether the connections are the caller's.
    is_given: bool,
}

/// What went wrong before there was a connection.
fn refused(address: &str, error: redis::RedisError) -> StorageError {
    let context = Context::reads(address, "");
    context.storage_error(CommandError::NotSent(error))
}

fn wrong_settings(address: String, reason: String) -> StorageError {
    StorageError::Backend { address, reason, outcome_unknown: false, source: None }
}

#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
fn join(servers: &[ConnectionInfo]) -> String {
    let addresses: Vec<String> = servers.iter().map(|server| server.addr().to_string()).collect();
    addresses.join(", ")
}

#[cfg(feature = "redis-sentinel")]
fn host(info: &ConnectionInfo) -> &str {
    match info.addr() {
        redis::ConnectionAddr::Tcp(host, _) | redis::ConnectionAddr::TcpTls { host, .. } => host,
        _ => "",
    }
}
