//! Redis for tests: a namespace of its own on the server that everybody uses, and servers of its own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_task_store::{RedisBackend, RedisBuilder};
use redis::{Commands, Connection, FromRedisValue};
use tempfile::TempDir;

use super::{MAX_VALUE_BYTES, Store};

/// The server of the tests: `REDIS_URL`, or the one that `make redis-up` starts.
pub fn url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned())
}

/// A key prefix that nobody else uses. Its keys are deleted when it is dropped.
pub struct Namespace {
    pub url: String,
    pub prefix: String,
}

impl Namespace {
    pub fn new() -> Self {
        Self::on(&url())
    }

    pub fn on(url: &str) -> Self {
        Self { url: url.to_owned(), prefix: format!("test-{}", uuid::Uuid::new_v4()) }
    }

    pub fn builder(&self) -> RedisBuilder {
        RedisBackend::builder()
            .prefix(&self.prefix)
            .max_value_bytes(MAX_VALUE_BYTES)
            .response_timeout(Duration::from_secs(20))
            .connect_timeout(Duration::from_secs(20))
    }

    pub async fn backend(&self) -> RedisBackend {
        self.builder().connect(&self.url).await.unwrap_or_else(|error| no_server(&error))
    }

    pub async fn store(self) -> Store {
        Store { backend: Arc::new(self.backend().await), redis: Some(self) }
    }

    /// A connection beside the backend, to look at the server and to do harm.
    pub fn connection(&self) -> Connection {
        connection(&self.url)
    }

    pub async fn connection_async(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(&*self.url).unwrap();
        client.get_multiplexed_async_connection().await.unwrap_or_else(|error| no_server(&error))
    }

    /// Runs one command; `{}` in an argument stands for the prefix.
    pub fn run<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let mut raw = redis::cmd(command[0]);
        for argument in &command[1..] {
            raw.arg(argument.replace("{}", &self.prefix));
        }
        raw.query(&mut self.connection()).unwrap()
    }

    /// All keys below the prefix, sorted, without the prefix.
    pub fn keys(&self) -> Vec<String> {
        let mut connection = self.connection();
        let found = connection.scan_match::<_, String>(format!("{}:*", self.prefix)).unwrap();
        let mut keys: Vec<String> = found
            .map(|key| key.unwrap().strip_prefix(&format!("{}:", self.prefix)).unwrap().to_owned())
            .collect();
        keys.sort();
        keys.dedup();
        keys
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let Ok(mut connection) = redis::Client::open(&*self.url).and_then(|client| client.get_connection())
        else {
            return; // A server that is gone has no keys to delete.
        };
        for key in self.keys() {
            let _: Result<(), _> = connection.del(format!("{}:{key}", self.prefix));
        }
        if !std::thread::panicking() {
            assert!(self.keys().is_empty(), "a test leaves no key behind");
        }
    }
}

pub fn connection(url: &str) -> Connection {
    let client = redis::Client::open(url).unwrap();
    client.get_connection().unwrap_or_else(|error| no_server(&error))
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
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<(String, String)> = environment.iter().map(owned).collect();
        for _ in 0..5 {
            let (port, folder) = (free_port(), TempDir::new().unwrap());
            let process = launch(port, &folder, &settings, &environment);
            let settings = settings.clone();
            let mut server = Self { port, process, settings, environment: environment.clone(), folder };
            if server.answers() {
                return server;
            }
        }
        panic!("the server does not start with {settings:?}");
    }

    /// Kills the server: it has no time to save or to say good-bye.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts a killed server again, on the same port and over the same data.
    pub fn start_again(&mut self) {
        self.launch_again();
        assert!(self.answers(), "the server does not start again");
    }

    /// The same, without waiting until it answers.
    pub fn launch_again(&mut self) {
        self.process = launch(self.port, &self.folder, &self.settings, &self.environment);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn connection(&self) -> Connection {
        connection(&self.url())
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
                _ => return true,
            }
        }
        false
    }
}

fn launch(port: u16, folder: &TempDir, settings: &[String], environment: &[(String, String)]) -> Child {
    let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    Command::new(&program)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(folder.path())
        .args(settings)
        .envs(environment.iter().cloned())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; REDIS_SERVER names another program"))
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
