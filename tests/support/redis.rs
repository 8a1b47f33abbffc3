//! Redis for tests: a namespace of its own on the shared server, and servers of the test's own.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_task_store::{DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES, RedisBackend, RedisBuilder};
use redis::{Commands, Connection, FromRedisValue, ScanOptions, Value};
use tempfile::TempDir;

use super::{MAX_PART_BYTES, MAX_VALUE_BYTES, Store, page};

/// Returns the URL of the shared server: `REDIS_URL`, or the server that `make redis-up` starts. Several URLs, separated by
/// commas, are the nodes of a cluster.
///
/// Further variables run the tests against another form of Redis. Tests inspect the server with `REDIS_ADMIN_URL` if
/// the user of `REDIS_URL` lacks the permissions. With `REDIS_SENTINELS` the backend finds the master.
/// `REDIS_TLS_FOLDER` has `ca.pem`, `client.pem` and `client-key.pem`.
pub fn url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned())
}

fn is_cluster() -> bool {
    url().contains(',')
}

/// A key prefix that no other test uses. Dropping it deletes its keys.
pub struct Namespace {
    pub prefix: String,
    max_value_bytes: usize,
    max_part_bytes: usize,
    has_hash_tags: bool,
}

impl Namespace {
    pub fn new() -> Self {
        Self::with_limits(MAX_VALUE_BYTES, MAX_PART_BYTES)
    }

    /// Returns a namespace with the default limits.
    pub fn roomy() -> Self {
        Self::with_limits(DEFAULT_MAX_VALUE_BYTES, DEFAULT_MAX_PART_BYTES)
    }

    fn with_limits(max_value_bytes: usize, max_part_bytes: usize) -> Self {
        let prefix = format!("test-{}", uuid::Uuid::new_v4());
        Self { prefix, max_value_bytes, max_part_bytes, has_hash_tags: false }
    }

    pub fn builder(&self) -> RedisBuilder {
        let builder = RedisBackend::builder()
            .prefix(&self.prefix)
            .max_value_bytes(self.max_value_bytes)
            .max_part_bytes(self.max_part_bytes)
            .response_timeout(Duration::from_secs(20))
            .connect_timeout(Duration::from_secs(20));
        let builder = if self.has_hash_tags { builder.hash_tags(true) } else { builder };
        let Some(folder) = std::env::var_os("REDIS_TLS_FOLDER") else { return builder };
        let pem = |name| std::fs::read(std::path::Path::new(&folder).join(name)).unwrap();
        builder.root_certificates(pem("ca.pem")).client_certificate(pem("client.pem"), pem("client-key.pem"))
    }

    pub async fn backend(&self) -> RedisBackend {
        let connected = if let Ok(sentinels) = std::env::var("REDIS_SENTINELS") {
            self.builder().connect_sentinel(sentinels.split(','), &url()).await
        } else if is_cluster() {
            self.builder().connect_cluster(url().split(',')).await
        } else {
            self.builder().connect(&url()).await
        };
        connected.unwrap_or_else(|error| no_server(&error))
    }

    pub async fn store(self) -> Store {
        Store { backend: Arc::new(self.backend().await), sqlite: None, redis: Some(self) }
    }

    /// Opens a store with hash-tagged keys, as in a cluster.
    pub async fn sharded_store(mut self) -> Store {
        // The keys of a cluster have hash tags anyway.
        self.has_hash_tags = !is_cluster();
        self.store().await
    }

    /// Returns the URLs for inspecting the server. In a cluster, those of its masters.
    fn admin_urls(&self) -> Vec<String> {
        let url = std::env::var("REDIS_ADMIN_URL").unwrap_or_else(|_| url());
        if is_cluster() { masters(&url).into_values().collect() } else { vec![url] }
    }

    /// Opens a connection to the backend's server. In a cluster, to the node that stores the records of `alice`.
    pub fn connection(&self) -> Connection {
        connection(&self.url())
    }

    pub fn url(&self) -> String {
        let url = std::env::var("REDIS_ADMIN_URL").unwrap_or_else(|_| url());
        if is_cluster() { master_for(&url, "{alice}") } else { url }
    }

    /// Runs one command. `{}` in an argument stands for the prefix. In a cluster, the owner after it gets a hash tag.
    pub fn run<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let mut raw = redis::cmd(command[0]);
        for argument in &command[1..] {
            raw.arg(self.key(argument));
        }
        raw.query(&mut self.connection()).unwrap()
    }

    /// Returns the key with the prefix in place of `{}`, as in `{}:idx:alice`.
    pub fn key(&self, argument: &str) -> String {
        let parts: Vec<&str> = argument.splitn(4, ':').collect();
        match parts[..] {
            ["{}", kind, owner] if is_cluster() => format!("{}:{kind}:{{{owner}}}", self.prefix),
            ["{}", kind, owner, task] if is_cluster() => format!("{}:{kind}:{{{owner}}}:{task}", self.prefix),
            _ => argument.replace("{}", &self.prefix),
        }
    }

    /// Returns all keys below the prefix, sorted, without the prefix and, in a cluster, without the hash tag.
    pub fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        for url in self.admin_urls() {
            for key in keys_below(&mut connection(&url), &self.prefix) {
                let key = key.strip_prefix(&format!("{}:", self.prefix)).unwrap();
                keys.push(if is_cluster() { key.replace(['{', '}'], "") } else { key.to_owned() });
            }
        }
        keys.sort();
        keys.dedup();
        keys
    }

    fn delete_all(&self) {
        for url in self.admin_urls() {
            let mut connection = connection(&url);
            for key in keys_below(&mut connection, &self.prefix) {
                // The key may have expired since the test listed it.
                let _: i64 = connection.del(key).unwrap();
            }
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failed test reports its own failure, and a server that has stopped has no keys to delete.
        if !std::thread::panicking() {
            // What the test has dropped may still write: a lease that is released, for example.
            let begun = Instant::now();
            loop {
                self.delete_all();
                if self.keys().is_empty() {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(30), "a test leaves no key behind");
            }
        }
    }
}

/// Returns all keys below a prefix. The server may have many keys of other tests, so each step looks at many of them.
fn keys_below(connection: &mut Connection, prefix: &str) -> Vec<String> {
    let options = ScanOptions::default().with_pattern(format!("{prefix}:*")).with_count(5000);
    connection.scan_options::<String>(options).unwrap().map(Result::unwrap).collect()
}

pub fn connection(url: &str) -> Connection {
    let client = redis::Client::open(url).unwrap();
    client.get_connection().unwrap_or_else(|error| no_server(&error))
}

/// Runs one command.
pub fn command<'a, T: FromRedisValue>(
    connection: &mut Connection,
    words: impl IntoIterator<Item = &'a str>,
) -> T {
    let mut words = words.into_iter();
    let mut command = redis::cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    command.query(connection).unwrap()
}

/// Returns the ACL rule of docs/operations.md for a user with the permissions that the backend needs.
pub fn acl_rule() -> String {
    page("docs/operations.md").lines().find(|line| line.starts_with("ACL SETUSER ")).unwrap().to_owned()
}

/// Returns whether the server has sharded channels, as Redis 7.0 and later have.
pub fn can_shard_publishing(connection: &mut Connection) -> bool {
    let known: [Value; 1] = command(connection, ["COMMAND", "INFO", "SPUBLISH"]);
    known != [Value::Nil]
}

/// Returns the ACL rule in the form that this server accepts.
pub fn rule_for(connection: &mut Connection) -> String {
    let rule = acl_rule();
    if can_shard_publishing(connection) {
        return rule;
    }
    let plain = page("docs/operations.md")
        .lines()
        .find_map(|line| line.strip_suffix("    # on Redis 6.2"))
        .unwrap()
        .to_owned();
    let words = plain.split_whitespace().skip(3).collect::<Vec<_>>().join(" ");
    rule.replace(" +spublish +ssubscribe +sunsubscribe", &format!(" {words}"))
}

/// Connects to the first of these nodes that answers.
pub fn any_node(nodes: &str) -> Connection {
    let connect =
        |url| redis::Client::open(url).and_then(|client: redis::Client| client.get_connection()).ok();
    nodes.split(',').find_map(connect).unwrap_or_else(|| panic!("no node of the cluster answers: {nodes}"))
}

/// Returns the masters of a cluster, by the first slot of each of their ranges.
pub fn masters(nodes: &str) -> BTreeMap<u16, String> {
    let ranges: Vec<Vec<Value>> = command(&mut any_node(nodes), ["CLUSTER", "SLOTS"]);
    let master = |range: Vec<Value>| {
        let first = redis::from_redis_value(range[0].clone()).unwrap();
        let master: Vec<Value> = redis::from_redis_value(range[2].clone()).unwrap();
        let port: u16 = redis::from_redis_value(master[1].clone()).unwrap();
        (first, format!("redis://127.0.0.1:{port}"))
    };
    ranges.into_iter().map(master).collect()
}

/// Returns the URL of the node that stores a key.
pub fn master_for(nodes: &str, key: &str) -> String {
    let slot: u16 = command(&mut any_node(nodes), ["CLUSTER", "KEYSLOT", key]);
    masters(nodes).range(..=slot).next_back().unwrap().1.clone()
}

fn no_server(error: &dyn std::fmt::Display) -> ! {
    panic!(
        "no connection to the server of the tests: {error}; start it with `make redis-up`, or set REDIS_URL"
    )
}

/// A server of the test's own on a free port of loopback. Dropping it kills the process.
pub struct Server {
    pub port: u16,
    process: Child,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    folder: TempDir,
}

impl Server {
    /// Starts a server without persistence on a free port, with further settings. `REDIS_SERVER` names another program than
    /// `redis-server`.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(settings, &[])
    }

    /// Starts a server with these variables in its environment.
    pub fn start_in(settings: &[&str], environment: &[(&str, &str)]) -> Self {
        (0..5)
            .find_map(|_| Self::start_at(free_port(), settings, environment))
            .unwrap_or_else(|| panic!("the server does not start with {settings:?}"))
    }

    /// Starts a server on this port. Returns `None` if it exits at once, for instance because the port is taken.
    pub fn start_at(port: u16, settings: &[&str], environment: &[(&str, &str)]) -> Option<Self> {
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<(String, String)> = environment.iter().map(owned).collect();
        let folder = TempDir::new().unwrap();
        let process = launch(port, &folder, &settings, &environment);
        let mut server = Self { port, process, settings, environment, folder };
        server.answers().then_some(server)
    }

    /// Starts a sentinel, which keeps its configuration in a file.
    pub fn start_sentinel_at(port: u16, configuration: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, format!("port {port}\nbind 127.0.0.1\n{configuration}")).unwrap();
        let process = program().arg(&file).arg("--sentinel").stdout(Stdio::null()).spawn().unwrap();
        let mut server = Self { port, process, settings: Vec::new(), environment: Vec::new(), folder };
        server.answers().then_some(server)
    }

    /// Kills the server, which saves nothing.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Shuts the server down, and waits until it has exited.
    pub fn shut_down(&mut self) {
        if let Ok(mut connection) = redis::Client::open(self.url()).unwrap().get_connection() {
            // The server closes the connection instead of a reply.
            let _ = redis::cmd("SHUTDOWN").arg("NOSAVE").query::<()>(&mut connection);
            self.process.wait().unwrap();
        }
    }

    /// Restarts a killed server, on the same port and with the same data.
    pub fn start_again(&mut self) {
        self.launch_again_with(&[]);
        assert!(self.answers(), "the server does not restart");
    }

    /// Restarts a killed server with further settings, and does not wait until it answers.
    pub fn launch_again_with(&mut self, more: &[&str]) {
        let more = more.iter().map(|&setting| setting.to_owned());
        let settings: Vec<String> = self.settings.iter().cloned().chain(more).collect();
        self.process = launch(self.port, &self.folder, &settings, &self.environment);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn connection(&self) -> Connection {
        connection(&self.url())
    }

    /// Waits until a replica confirms writes. A replica confirms no write until some time after it has copied the data.
    pub fn is_replicated(&self) {
        let mut connection = self.connection();
        let _: () = command(&mut connection, ["SET", "first", "write"]);
        while command::<u64>(&mut connection, ["WAIT", "1", "100"]) == 0 {}
        let _: () = command(&mut connection, ["DEL", "first"]);
        while command::<u64>(&mut connection, ["WAIT", "1", "100"]) == 0 {}
    }

    /// Returns the id of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns the folder of its data.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Sends a signal, for instance `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Returns whether this server answers, and not another one that took the port first.
    fn is_at(&self, mut connection: Connection) -> bool {
        match redis::cmd("INFO").arg("server").query::<String>(&mut connection) {
            Ok(info) => info.contains(&format!("process_id:{}\r\n", self.process.id())),
            Err(_) => true,
        }
    }

    /// Waits until the server replies. Returns `false` if it exits before, for instance because the port is taken.
    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            let client = redis::Client::open(self.url()).unwrap();
            // An error reply such as NOAUTH is a reply too.
            match client.get_connection() {
                Err(error) if error.is_io_error() => std::thread::sleep(Duration::from_millis(5)),
                Ok(connection) => return self.is_at(connection),
                Err(_) => return true,
            }
        }
        false
    }
}

fn launch(port: u16, folder: &TempDir, settings: &[String], environment: &[(String, String)]) -> Child {
    let mut server = program();
    server
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        // By default, a master waits some seconds for more replicas before it copies its data.
        .args(["--repl-diskless-sync-delay", "0", "--dir"])
        .arg(folder.path())
        .args(settings)
        .envs(environment.iter().cloned())
        .stdout(Stdio::null());
    server.spawn().unwrap_or_else(|error| panic!("{server:?}: {error}; REDIS_SERVER names another program"))
}

fn program() -> Command {
    Command::new(std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned()))
}

impl Drop for Server {
    fn drop(&mut self) {
        // The test may have killed the process.
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
