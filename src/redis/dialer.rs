//! Opens connections to servers.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, PushInfo, RedisConnectionInfo,
    RedisError, RedisResult,
};

use super::reply::without_arguments;
#[cfg(feature = "redis-tls")]
use super::tls::Certificates;
use crate::backend::BoxError;
use crate::printable::Chain;

/// A user name and a password for Redis.
///
/// The callback of [`RedisBuilder::credentials`](crate::RedisBuilder::credentials) returns them for each connection. `Debug`
/// does not print the password.
///
/// # Examples
/// ```
/// use mcp_task_store::Credentials;
///
/// let credentials = Credentials::user("tasks", "secret");
/// assert!(!format!("{credentials:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct Credentials {
    username: Option<String>,
    password: String,
}

impl Credentials {
    /// Creates credentials of the default user. The backend ignores the user of the URL.
    pub fn password(password: impl Into<String>) -> Self {
        Self { username: None, password: password.into() }
    }

    /// Creates credentials of a user in the server's access control list. `password` may be a token.
    pub fn user(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: Some(username.into()), password: password.into() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The callback that returns the credentials for each connection.
#[derive(Clone)]
pub(super) struct CredentialsCallback(
    Arc<dyn Fn() -> BoxFuture<'static, Result<Credentials, BoxError>> + Send + Sync>,
);

impl CredentialsCallback {
    pub(super) fn new<F, R, E>(provide: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Arc::new(move || {
            let provided = provide();
            Box::pin(async move { provided.await.map_err(Into::into) })
        }))
    }
}

impl fmt::Debug for CredentialsCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialsCallback")
    }
}

/// Connects to the servers of one deployment, with the same settings.
#[derive(Clone)]
pub(super) struct Dialer {
    /// The settings of every connection. Of the address in them, the dialer uses only whether it uses TLS.
    pub(super) settings: ConnectionInfo,
    #[cfg(feature = "redis-tls")]
    pub(super) certificates: Certificates,
    pub(super) callback: Option<CredentialsCallback>,
    /// The time limit for one connection, from the lookup of the address to the first reply.
    pub(super) limit: Duration,
}

impl Dialer {
    /// Returns the address of another server. It uses TLS if the configured address does.
    #[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
    pub(super) fn address(&self, host: &str, port: u16) -> ConnectionAddr {
        let mut address = self.settings.addr().clone();
        match &mut address {
            ConnectionAddr::Tcp(its_host, its_port)
            | ConnectionAddr::TcpTls { host: its_host, port: its_port, .. } => {
                host.clone_into(its_host);
                *its_port = port;
                address
            }
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        }
    }

    /// Returns the index of the database.
    pub(super) fn database(&self) -> i64 {
        self.settings.redis_settings().db()
    }

    /// Returns whether the servers can deliver messages over a connection that also carries replies.
    pub(super) fn speaks_resp3(&self) -> bool {
        self.settings.redis_settings().protocol().supports_resp3()
    }

    /// Checks the settings without connecting.
    pub(super) fn check(&self) -> RedisResult<()> {
        self.client(self.settings.clone()).map(drop)
    }

    /// Connects. The caller sets the time limit. With RESP3, `on_push` receives the push messages of the server, and a message
    /// when the connection closes.
    pub(super) async fn dial(
        &self,
        address: &ConnectionAddr,
        response_timeout: Option<Duration>,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<MultiplexedConnection> {
        let mut info = self.settings.clone().set_addr(address.clone());
        if let Some(CredentialsCallback(provide)) = &self.callback {
            let Credentials { username, password } = provide().await.map_err(callback_error)?;
            let given = info.redis_settings();
            // Without the user of the URL, because the password belongs to another user.
            let mut settings = RedisConnectionInfo::default()
                .set_db(given.db())
                .set_protocol(given.protocol())
                .set_password(password);
            if let Some(username) = username {
                settings = settings.set_username(username);
            }
            info = info.set_redis_settings(settings);
        }
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.limit))
            .set_response_timeout(response_timeout);
        if self.speaks_resp3() {
            config = config.set_push_sender(move |push: PushInfo| {
                on_push(push);
                Ok::<(), Infallible>(())
            });
        }
        let connection = self.client(info)?.get_multiplexed_async_connection_with_config(&config).await;
        connection.map_err(without_arguments)
    }

    fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        #[cfg(feature = "redis-tls")]
        if let Some(certificates) = self.certificates.configured() {
            return Client::build_with_tls(info, certificates);
        }
        Client::open(info)
    }
}

const CALLBACK_FAILED: &str = "the credentials callback failed";

fn callback_error(error: BoxError) -> RedisError {
    (ErrorKind::Client, CALLBACK_FAILED, Chain(&*error).to_string()).into()
}

/// Returns whether the credentials callback failed, so that no connection was opened. The detail of the error is the
/// cause.
pub(super) fn is_callback_error(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Client && error.to_string().starts_with(CALLBACK_FAILED)
}
