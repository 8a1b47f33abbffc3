//! The settings of a [`RedisBackend`].

mod connect;
mod dialing;

use std::future::Future;
use std::time::Duration;

use super::RedisBackend;
use super::dialer::{Credentials, CredentialsCallback};
use super::settings::{ENGINE, check_replicas};
#[cfg(feature = "redis-tls")]
use super::tls::Certificates;
use crate::backend::settings::{check_limit, check_size};
use crate::backend::{BoxError, DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES, StorageError};

/// Configures a [`RedisBackend`] and connects it.
///
/// [`RedisBackend::builder`] returns a builder. Each setting has a default, and each method replaces one. Then connect:
///
/// | method | connects to |
/// |---|---|
/// | [`connect`](Self::connect) | one server |
/// | `connect_sentinel` (feature `redis-sentinel`) | the master that sentinels elect |
/// | `connect_cluster` (feature `redis-cluster`) | a Redis Cluster |
/// | [`over`](Self::over), [`over_two`](Self::over_two) | the server or cluster that your own connections reach |
///
/// # Examples
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
    callback: Option<CredentialsCallback>,
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
            callback: None,
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
    /// The errors of [`RedisBuilder::connect`]. If the server cannot be reached, the call fails within 2 s.
    pub async fn connect(url: &str) -> Result<Self, StorageError> {
        Self::builder().connect(url).await
    }

    /// Returns a builder with the default settings.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }
}

impl RedisBuilder {
    /// Sets the first part of every key. The default is `pmcp`.
    ///
    /// A prefix has 1 to 64 characters of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`. Backends with different prefixes are
    /// different stores on one server.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Writes the owner inside a literal hash tag (`pmcp:tasks:{alice}:t1`), so that all keys of one owner are in one slot of
    /// a Redis Cluster (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>).
    ///
    /// The default is off; `connect_cluster` always turns it on. Keys with and without hash tags are two different stores.
    /// Turn it on for a single server whose keys you will move to a cluster.
    pub fn hash_tags(mut self, on: bool) -> Self {
        self.hash_tags = on;
        self
    }

    /// Sets the time limit for a connection: 1 ms to 1 h. The default is 2 s.
    ///
    /// The limit applies to each `connect` method as a whole, for any number of servers, and to each later attempt to
    /// reconnect.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sets the time limit for one call of the backend: 1 ms to 1 h. The default is 2 s.
    ///
    /// The limit includes the time to reconnect. A write that exceeds it fails with
    /// [`Unavailable`](StorageError::Unavailable) and an [unknown outcome](StorageError::outcome_unknown).
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// Sets the maximum size of a record's data in bytes: 1 byte to 512 MiB. The default is 1 MiB.
    ///
    /// A call with more data fails, and nothing is sent.
    pub fn max_value_bytes(mut self, max: usize) -> Self {
        self.max_value_bytes = max;
        self
    }

    /// Sets the maximum size of a part in bytes: 1 byte to 512 MiB. The default is 4 MiB.
    ///
    /// A call with a larger part fails, and nothing is sent. Writing or reading a part occupies the server for about 3 ms
    /// per MiB, and all other calls wait during that time.
    pub fn max_part_bytes(mut self, max: usize) -> Self {
        self.max_part_bytes = max;
        self
    }

    /// Makes every write wait until `count` replicas (at most 100) have confirmed it, for at most `within`. The default is 0:
    /// writes wait for no replica.
    ///
    /// `within` is at least 1 ms and less than the [response timeout](Self::response_timeout). The setting works with
    /// [`connect`](Self::connect) and `connect_sentinel`. The Redis user needs `+wait`.
    ///
    /// A write that too few replicas confirm in time fails with [`TooFewReplicas`](StorageError::TooFewReplicas), which says
    /// how many replicas confirmed; if the write got no reply, that number is 0. The outcome is unknown: the master may have
    /// applied the write, and a failover to a replica without it would lose it. [`TaskStore`](crate::TaskStore) reports this
    /// error, because it cannot resolve the outcome by reading.
    ///
    /// A failover can still lose a confirmed write, but rarely. The sentinels may promote a replica that does not have the
    /// write, and a replica confirms a write that it holds only in memory
    /// (<https://redis.io/docs/latest/commands/wait/>). A read never waits, and may return a write that is not confirmed.
    ///
    /// `WAIT` blocks its connection, so each write takes a connection from a pool of up to 32.
    pub fn wait_for_replicas(mut self, count: u32, within: Duration) -> Self {
        self.replicas = (count > 0).then_some((count, within));
        self
    }

    /// Turns notifications on or off. The default is on: each write publishes a message to the subscribers of its owner, and
    /// a [`watch`](crate::StorageBackend::watch) receives it.
    ///
    /// All instances on one store must use the same setting, because an instance that does not publish notifies no
    /// subscriber. The Redis user needs the permissions for the channels that docs/operations.md lists.
    ///
    /// There is one channel for each owner, `{prefix}:watch:{owner}`, sharded since Redis 7
    /// (<https://redis.io/docs/latest/develop/pubsub/#sharded-pubsub>). All databases of a server share the channels of a
    /// prefix, so a watch may yield items without a change.
    ///
    /// Whenever an instance connects, it publishes a message and receives it, to detect the commands that the server supports.
    /// If no message arrives, watches poll and the backend logs a warning. Watches also poll if notifications are off, over a
    /// connection [of your own](Self::over), and with `?protocol=resp2`. In the last two cases, writes still publish.
    pub fn notifications(mut self, on: bool) -> Self {
        self.notifications = on;
        self
    }

    /// Calls `provide` for the user and the password each time that the backend opens a connection. Use it for passwords that
    /// are rotated and for tokens that expire.
    ///
    /// The backend ignores the user and the password of the URL. To a sentinel, it still sends those of the sentinel's
    /// URL.
    ///
    /// The [connect timeout](Self::connect_timeout) includes the time that `provide` takes. If `provide` fails, the
    /// call that waits for the connection fails with [`Unavailable`](StorageError::Unavailable), and a later call runs
    /// `provide` again. Errors and log lines contain the messages of its error and of that error's causes. Put no secret
    /// into these messages.
    ///
    /// # Examples
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
        self.callback = Some(CredentialsCallback::new(provide));
        self
    }

    /// Trusts the certificate authorities in this PEM text, instead of those of the operating system. Use it with `rediss://`.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.set_root(pem.into());
        self
    }

    /// Presents this certificate to the server. Use it with `rediss://`. Both arguments are PEM; the key is never printed.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificates.set_client(certificate.into(), key.into());
        self
    }

    /// Checks the settings that do not depend on a URL.
    fn check(&self) -> Result<(), StorageError> {
        check_limit(ENGINE, "connect_timeout", self.connect_timeout)?;
        check_limit(ENGINE, "response_timeout", self.response_timeout)?;
        check_size(ENGINE, "max_value_bytes", self.max_value_bytes)?;
        check_size(ENGINE, "max_part_bytes", self.max_part_bytes)?;
        if let Some((count, within)) = self.replicas {
            check_replicas(count, within, self.response_timeout)?;
        }
        #[cfg(feature = "redis-tls")]
        self.certificates.check()?;
        Ok(())
    }
}
