//! Configures and opens a [`PostgresBackend`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadpool_postgres::{Hook, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures_util::StreamExt;
use tokio::time::timeout;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::database::{Access, Database};
use super::error::{Errors, Failed};
use super::listener::{Listener, Listening, Subscribers};
use super::names::{Names, Statements};
use super::settings::{ENGINE, check_connections, invalid_setting};
use super::{Engine, PostgresBackend, schema, tls};
use crate::backend::engine::MaxSizes;
use crate::backend::key::escape;
use crate::backend::server_clock::Clock;
use crate::backend::settings::{check_limit, check_size};
use crate::backend::{DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES, Queue, StorageError};
use crate::spans::{self, engine_span};

/// How long a notification may take that this process sends to itself.
const PROBE: Duration = Duration::from_secs(3);

/// Configures a [`PostgresBackend`] and opens its database.
///
/// [`PostgresBackend::builder`] returns a builder. Each setting has a default, and each method replaces one.
///
/// # Examples
/// ```no_run
/// # async fn example() -> Result<(), mcp_task_store::StorageError> {
/// use std::time::Duration;
/// use mcp_task_store::PostgresBackend;
///
/// let backend = PostgresBackend::builder()
///     .schema("tasks")
///     .response_timeout(Duration::from_secs(2))
///     .connect("postgres://tasks@db1,db2/mcp?target_session_attrs=read-write")
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct PostgresBuilder {
    schema: String,
    table_prefix: String,
    response_timeout: Duration,
    max_connections: usize,
    max_value_bytes: usize,
    max_part_bytes: usize,
    is_behind_pgbouncer: bool,
    listen_url: Option<String>,
    root_certificates: Option<Vec<u8>>,
}

impl fmt::Debug for PostgresBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("PostgresBuilder")
            .field("schema", &self.schema)
            .field("table_prefix", &self.table_prefix)
            .finish_non_exhaustive()
    }
}

impl PostgresBackend {
    /// Opens a database with the default settings of [`PostgresBuilder`].
    ///
    /// # Errors
    /// The errors of [`PostgresBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, StorageError> {
        Self::builder().connect(url).await
    }

    /// Returns a builder with the default settings.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder {
            schema: "mcp_tasks".to_owned(),
            table_prefix: String::new(),
            response_timeout: Duration::from_secs(5),
            max_connections: 10,
            max_value_bytes: DEFAULT_MAX_VALUE_BYTES,
            max_part_bytes: DEFAULT_MAX_PART_BYTES,
            is_behind_pgbouncer: false,
            listen_url: None,
            root_certificates: None,
        }
    }
}

/// A pool, and what is known of its server.
struct Opened {
    pool: Pool,
    errors: Errors,
    described: spans::Database,
    generation: Arc<AtomicU64>,
}

impl PostgresBuilder {
    /// Sets the schema of the tables: 1 to 30 characters of a-z, 0-9 and `_`. The default is `mcp_tasks`.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Sets what the name of each table and function begins with: 0 to 20 characters of a-z, 0-9 and `_`. The default is nothing.
    pub fn table_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.table_prefix = prefix.into();
        self
    }

    /// Sets how long a call may take, with the wait for a connection: 1 ms to 1 h. The default is 5 s.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// Sets how many connections this process opens at most, 1 to 1,000, without the one that listens. The default is 10.
    ///
    /// A pool that is passed to [`with_pool`](Self::with_pool) has its own maximum.
    pub fn max_connections(mut self, max: usize) -> Self {
        self.max_connections = max;
        self
    }

    /// Sets the maximum size of a record's data in bytes: 1 byte to 512 MiB. The default is 1 MiB.
    pub fn max_value_bytes(mut self, max: usize) -> Self {
        self.max_value_bytes = max;
        self
    }

    /// Sets the maximum size of a part in bytes: 1 byte to 512 MiB. The default is 4 MiB.
    pub fn max_part_bytes(mut self, max: usize) -> Self {
        self.max_part_bytes = max;
        self
    }

    /// States that the URL is that of pgbouncer in transaction mode, or of a similar pooler. The engine then prepares no statements,
    /// keeps no state in a session, and polls for changes unless it has a [`listen_url`](Self::listen_url).
    pub fn pgbouncer(mut self) -> Self {
        self.is_behind_pgbouncer = true;
        self
    }

    /// Sets the URL of the server itself, for the one connection that listens for changes. The default is the URL of
    /// [`connect`](Self::connect). A backend behind pgbouncer or on a given pool polls without it.
    pub fn listen_url(mut self, url: impl Into<String>) -> Self {
        self.listen_url = Some(url.into());
        self
    }

    /// Sets the certificates, in PEM, of the authorities that may sign the certificate of the server. The default is those that the
    /// operating system trusts.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificates = Some(pem.into());
        self
    }

    /// Opens a database whose tables exist.
    ///
    /// The URL is that of libpq: `postgres://USER:PASSWORD@HOST[:PORT][,HOST…]/DATABASE?OPTION=VALUE`. With several hosts, add
    /// `target_session_attrs=read-write`. `sslmode=require` checks the certificate and the name of the server; `prefer`, the default,
    /// encrypts without a check if the server can.
    ///
    /// # Errors
    /// * `Backend` for an invalid URL or setting, for a database without the tables of this version: see [`init`](Self::init);
    /// * `Denied` if the server refuses the user, or if the user may not read the tables;
    /// * `Unavailable` if the server does not answer in time.
    pub async fn connect(self, url: &str) -> Result<PostgresBackend, StorageError> {
        self.open(url, false).await
    }

    /// Creates the tables and functions, or migrates them to this version, and opens the database. Several processes may call it at
    /// the same time. A server whose user may not create tables calls [`connect`](Self::connect), and its operator runs
    /// `mcp-tasks init` once.
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect). A migration that fails has changed nothing.
    pub async fn init(self, url: &str) -> Result<PostgresBackend, StorageError> {
        self.open(url, true).await
    }

    async fn open(self, url: &str, creates: bool) -> Result<PostgresBackend, StorageError> {
        check_connections(self.max_connections)?;
        let (config, tls) = self.config(url)?;
        let errors = Errors { address: address(&config), limit: self.response_timeout };
        let described = spans::Database::postgres(&servers(&config), config.get_dbname());
        let generation = Arc::new(AtomicU64::new(0));
        let connected = Arc::clone(&generation);
        let count = Hook::sync_fn(move |_, _| {
            connected.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let pool = Pool::builder(Manager::from_config(config, tls, manager))
            .max_size(self.max_connections)
            .runtime(Runtime::Tokio1)
            .post_create(count)
            .build()
            .map_err(|error| errors.unavailable("the pool cannot be created", false, Some(error.into())))?;
        let listens_at = match (&self.listen_url, self.is_behind_pgbouncer) {
            (Some(listen_url), _) => Some(listen_url.clone()),
            (None, false) => Some(url.to_owned()),
            (None, true) => None,
        };
        let opened = Opened { pool, errors, described, generation };
        self.start(opened, listens_at, creates).await
    }

    /// Opens a database by the connections of this pool, whose tables exist. The engine polls for changes unless it has a
    /// [`listen_url`](Self::listen_url).
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect).
    pub async fn with_pool(self, pool: Pool) -> Result<PostgresBackend, StorageError> {
        let errors = Errors { address: "PostgreSQL (a pool)".to_owned(), limit: self.response_timeout };
        let listens_at = self.listen_url.clone();
        let described = spans::Database::postgres(&[], None);
        let opened = Opened { pool, errors, described, generation: Arc::default() };
        self.start(opened, listens_at, false).await
    }

    async fn start(
        self,
        opened: Opened,
        listens_at: Option<String>,
        creates: bool,
    ) -> Result<PostgresBackend, StorageError> {
        let Opened { pool, errors, described, generation } = opened;
        check_limit(ENGINE, "response_timeout", self.response_timeout)?;
        check_size(ENGINE, "max_value_bytes", self.max_value_bytes)?;
        check_size(ENGINE, "max_part_bytes", self.max_part_bytes)?;
        let names = Names::new(&self.schema, &self.table_prefix)?;
        let mut connection = pool.get().await.map_err(|error| errors.of(Failed::Connect(Arc::new(error))))?;
        if creates {
            schema::migrate(&mut connection, &names, &errors).await?;
        }
        schema::check(&connection, &names, &errors).await?;
        drop(connection);
        let database = Arc::new(Database {
            pool,
            statements: Statements::new(&names),
            clock: Clock::new(),
            errors,
            prepares: !self.is_behind_pgbouncer,
            described,
            generation,
        });
        // The estimate of the clock starts with the first reply.
        database.read_clock().await?;
        let subscribers = Arc::new(Subscribers::default());
        let listener = match listens_at {
            Some(url) => {
                let (config, tls) = self.config(&url)?;
                let listening =
                    Listening { config, tls, errors: database.errors.clone(), names: names.clone() };
                listen(listening, &database, &names, &subscribers).await?
            }
            None => {
                tracing::warn!(
                    server = %database.errors.address,
                    "nothing listens for changes, so watches poll: set listen_url to the address of the server itself"
                );
                None
            }
        };
        Ok(PostgresBackend(Arc::new(Engine::new(
            database,
            subscribers,
            listener,
            MaxSizes { value: self.max_value_bytes, part: self.max_part_bytes },
        ))))
    }

    fn config(&self, url: &str) -> Result<(Config, MakeRustlsConnect), StorageError> {
        let mut config: Config = url
            .parse()
            .map_err(|error| invalid_setting(format!("the URL is not one of PostgreSQL: {error}")))?;
        let limit = self.response_timeout;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(limit);
        }
        if config.get_application_name().is_none() {
            config.application_name("mcp-task-store");
        }
        // The operating system notices a lost server within 20 s, instead of two hours.
        config
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3);
        if !self.is_behind_pgbouncer {
            // The server gives up when the caller does. What the URL sets comes last, and wins.
            let given = config.get_options().unwrap_or_default().to_owned();
            config.options(format!("-c statement_timeout={} {given}", limit.as_millis()));
        }
        let tls = tls::connector(config.get_ssl_mode(), self.root_certificates.as_deref())?;
        if self.root_certificates.is_some() && config.get_ssl_mode() == SslMode::Disable {
            return Err(invalid_setting(
                "root_certificates is set, but the URL says sslmode=disable".to_owned(),
            ));
        }
        Ok((config, tls))
    }
}

/// Starts to listen, and sends itself a notification. Returns `None` if it does not arrive, because a pooler swallows it.
async fn listen(
    listening: Listening,
    database: &Database,
    names: &Names,
    subscribers: &Arc<Subscribers>,
) -> Result<Option<Listener>, StorageError> {
    let listener = listening.start(Arc::clone(subscribers)).await?;
    let probe = Queue::try_from(format!("probe/{}", uuid::Uuid::new_v4()).as_str())?;
    let mut wakeups = subscribers.wakers().subscribe(std::slice::from_ref(&probe));
    let (channel, payload) = (names.in_sql("{c}timers"), escape(probe.as_str()));
    let span = engine_span!("probe");
    database.call(span, &database.statements.notify, &[&channel, &payload], Access::Reads).await?;
    if timeout(PROBE, wakeups.next()).await.is_ok() {
        return Ok(Some(listener));
    }
    tracing::warn!(
        server = %database.errors.address,
        "notifications do not arrive, so watches poll: a pooler may be in between; set listen_url to the address of the server itself"
    );
    Ok(None)
}

/// Returns the hosts and the database, without the user and the password.
fn address(config: &Config) -> String {
    let servers: Vec<_> = servers(config).into_iter().map(|(host, port)| format!("{host}:{port}")).collect();
    format!("PostgreSQL at {}/{}", servers.join(","), config.get_dbname().unwrap_or_default())
}

/// Returns the hosts and their ports.
fn servers(config: &Config) -> Vec<(String, u16)> {
    let ports = config.get_ports();
    let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
    let host = |host: &Host| match host {
        Host::Tcp(host) => host.clone(),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    };
    config.get_hosts().iter().enumerate().map(|(at, named)| (host(named), port(at))).collect()
}
