//! Redis for tests: a namespace of its own on the server that everybody uses, and servers of its own.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_task_store::{DEFAULT_MAX_PART_BYTES, DEFAULT_MAX_VALUE_BYTES, RedisBackend, RedisBuilder};
use redis::{Commands, Connection, FromRedisValue, Value};
use tempfile::TempDir;

use super::{MAX_PART_BYTES, MAX_VALUE_BYTES, Store, readme};

/// The server of the tests: `REDIS_URL`, or the one that `make redis-up` starts. Several URLs with commas in
/// between are the nodes of a cluster.
///
/// For a run of tests against another form of Redis there are besides: `REDIS_ADMIN_URL`, to look at the server
/// where `REDIS_URL` may not, `REDIS_SENTINELS`, by which the backend finds the master, and `REDIS_TLS_FOLDER`
/// with `ca.pem`, `client.pem` and `client-key.pem`.
pub fn url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned())
}

fn is_cluster() -> bool {
    url().contains(',')
}

/// A key prefix that nobody else uses. Its keys are deleted when it is dropped.
pub struct Namespace {
    pub prefix: String,
    max_value_bytes: usize,
    max_part_bytes: usize,
}

impl Namespace {
    pub fn new() -> Self {
        Self::with_limits(MAX_VALUE_BYTES, MAX_PART_BYTES)
    }

    /// The same with the default limits.
    pub fn roomy() -> Self {
        Self::with_limits(DEFAULT_MAX_VALUE_BYTES, DEFAULT_MAX_PART_BYTES)
    }

    fn with_limits(max_value_bytes: usize, max_part_bytes: usize) -> Self {
        Self { prefix: format!("test-{}", uuid::Uuid::new_v4()), max_value_bytes, max_part_bytes }
    }

    pub fn builder(&self) -> RedisBuilder {
        let builder = RedisBackend::builder()
            .prefix(&self.prefix)
            .max_value_bytes(self.max_value_bytes)
            .max_part_bytes(self.max_part_bytes)
            .response_timeout(Duration::from_secs(20))
            .connect_timeout(Duration::from_secs(20));
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
        Store { backend: Arc::new(self.backend().await), redis: Some(self) }
    }

    /// The same with hash tags, as in a cluster.
    pub async fn sharded_store(self) -> Store {
        if is_cluster() {
            return self.store().await;
        }
        let connected = if let Ok(sentinels) = std::env::var("REDIS_SENTINELS") {
            self.builder().hash_tags(true).connect_sentinel(sentinels.split(','), &url()).await
        } else {
            self.builder().hash_tags(true).connect(&url()).await
        };
        Store { backend: Arc::new(connected.unwrap_or_else(|error| no_server(&error))), redis: Some(self) }
    }

    /// Where to look at the server and do harm to it. In a cluster each of its masters.
    fn admin_urls(&self) -> Vec<String> {
        let url = std::env::var("REDIS_ADMIN_URL").unwrap_or_else(|_| url());
        if is_cluster() { masters(&url).into_values().collect() } else { vec![url] }
    }

    /// A connection beside the backend. In a cluster, to the node that keeps the owner `alice`.
    pub fn connection(&self) -> Connection {
        connection(&self.url())
    }

    pub fn url(&self) -> String {
        let url = std::env::var("REDIS_ADMIN_URL").unwrap_or_else(|_| url());
        if is_cluster() { keeper(&url, "{alice}") } else { url }
    }

    /// Runs one command; `{}` in an argument stands for the prefix, and the owner after it is hash-tagged in a
    /// cluster.
    pub fn run<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let mut raw = redis::cmd(command[0]);
        for argument in &command[1..] {
            raw.arg(self.key(argument));
        }
        raw.query(&mut self.connection()).unwrap()
    }

    /// The key of which this is the part after the prefix, as in `{}:idx:alice`.
    pub fn key(&self, argument: &str) -> String {
        let parts: Vec<&str> = argument.splitn(4, ':').collect();
        match parts[..] {
            ["{}", kind, owner] if is_cluster() => format!("{}:{kind}:{{{owner}}}", self.prefix),
            ["{}", kind, owner, task] if is_cluster() => format!("{}:{kind}:{{{owner}}}:{task}", self.prefix),
            _ => argument.replace("{}", &self.prefix),
        }
    }

    /// All keys below the prefix, sorted, without the prefix and, in a cluster, the hash tag.
    pub fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        for url in self.admin_urls() {
            let mut connection = connection(&url);
            let found = connection.scan_match::<_, String>(format!("{}:*", self.prefix)).unwrap();
            for key in found.map(Result::unwrap) {
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
            let found = connection.scan_match::<_, String>(format!("{}:*", self.prefix)).unwrap();
            let keys: Vec<String> = found.map(Result::unwrap).collect();
            for key in keys {
                // The key may have expired in between.
                let _: i64 = connection.del(key).unwrap();
            }
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test that failed has its own words, and a server that is gone has no keys to delete.
        if !std::thread::panicking() {
            self.delete_all();
            assert!(self.keys().is_empty(), "a test leaves no key behind");
        }
    }
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

/// The rule of the README for a user that may do all that the backend does.
pub fn rule_of_the_readme() -> String {
    let readme = readme();
    readme.lines().find(|line| line.starts_with("ACL SETUSER ")).unwrap().to_owned()
}

/// Whether publishing can be sharded, as from Redis 7 on.
pub fn can_shard_publishing(connection: &mut Connection) -> bool {
    let known: [Value; 1] = command(connection, ["COMMAND", "INFO", "SPUBLISH"]);
    known != [Value::Nil]
}

/// The same as this server takes it.
pub fn rule_for(connection: &mut Connection) -> String {
    let rule = rule_of_the_readme();
    if can_shard_publishing(connection) {
        return rule;
    }
    let plain = readme().lines().find_map(|line| line.strip_suffix("    # on Redis 6.2")).unwrap().to_owned();
    let words = plain.split_whitespace().skip(3).collect::<Vec<_>>().join(" ");
    rule.replace(" +spublish +ssubscribe +sunsubscribe", &format!(" {words}"))
}

/// A connection to one of these nodes that are up.
pub fn any_node(nodes: &str) -> Connection {
    let connect =
        |url| redis::Client::open(url).and_then(|client: redis::Client| client.get_connection()).ok();
    nodes.split(',').find_map(connect).unwrap_or_else(|| panic!("no node of the cluster answers: {nodes}"))
}

/// The masters of a cluster by the first slot of each range that they keep.
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

/// The URL of the cluster's node that keeps a key.
pub fn keeper(nodes: &str, key: &str) -> String {
    let slot: u16 = command(&mut any_node(nodes), ["CLUSTER", "KEYSLOT", key]);
    masters(nodes).range(..=slot).next_back().unwrap().1.clone()
}

fn no_server(error: &dyn std::fmt::Display) -> ! {
    panic!("`make redis-up` starts the server of the tests, REDIS_URL names another: {error}")
}

/// A server of the test's own on a free port of loopback, stopped when it is dropped.
pub struct Server {
    pub port: u16,
    process: Child,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    folder: TempDir,
}

impl Server {
    /// Starts a server without persistence on a free port, with these further settings. The program is
    /// `redis-server`, or what `REDIS_SERVER` names.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(settings, &[])
    }

    /// The same, with these variables in its environment.
    pub fn start_in(settings: &[&str], environment: &[(&str, &str)]) -> Self {
        (0..5)
            .find_map(|_| Self::start_at(free_port(), settings, environment))
            .unwrap_or_else(|| panic!("the server does not start with {settings:?}"))
    }

    /// The same on this port; `None` if the server ends at once, as when the port is taken.
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

    /// Kills the server: it has no time to save or to say good-bye.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Ends the server in good order, and waits until it has gone.
    pub fn shut_down(&mut self) {
        if let Ok(mut connection) = redis::Client::open(self.url()).unwrap().get_connection() {
            // The reply is that the connection closes.
            let _ = redis::cmd("SHUTDOWN").arg("NOSAVE").query::<()>(&mut connection);
            self.process.wait().unwrap();
        }
    }

    /// Starts a killed server again, on the same port and over the same data.
    pub fn start_again(&mut self) {
        self.launch_again_with(&[]);
        assert!(self.answers(), "the server does not start again");
    }

    /// The same with more settings, and without waiting until it answers.
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

    /// Waits until a replica confirms what this server writes, which takes it a while after it has copied the data.
    pub fn is_replicated(&self) {
        let mut connection = self.connection();
        let _: () = command(&mut connection, ["SET", "first", "write"]);
        while command::<u64>(&mut connection, ["WAIT", "1", "100"]) == 0 {}
        let _: () = command(&mut connection, ["DEL", "first"]);
        while command::<u64>(&mut connection, ["WAIT", "1", "100"]) == 0 {}
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The folder of its data.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Sends a signal, `STOP` or `CONT` for instance.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Whether it is this server that answers, and not another one that was faster to take the port.
    fn is_at(&self, mut connection: Connection) -> bool {
        match redis::cmd("INFO").arg("server").query::<String>(&mut connection) {
            Ok(told) => told.contains(&format!("process_id:{}\r\n", self.process.id())),
            Err(_) => true,
        }
    }

    /// Waits until the server replies anything; `false` if it ends before, as when the port was taken.
    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            let client = redis::Client::open(self.url()).unwrap();
            // An error in reply, such as NOAUTH, is an answer too.
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
        // A master waits some seconds for more replicas before it begins to copy its data, unless it is told not to.
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
        // One that was killed by the test is gone already.
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
