//! Redis: keys below a prefix on the server of the tests, and servers of a test's own.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mcp_task_store::RedisBackend;
use tempfile::TempDir;

/// Returns the URL of the shared server: `REDIS_URL`, or the server that `make redis-up` starts.
pub fn url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned())
}

/// The keys below a prefix that no other test has. Dropping it removes them.
pub struct Keys {
    pub prefix: String,
}

impl Keys {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
        Self { prefix: format!("cli-{}-{at}-{number}", std::process::id()) }
    }

    pub async fn backend(&self) -> RedisBackend {
        let connected = RedisBackend::builder().prefix(&self.prefix).connect(&url()).await;
        connected.unwrap_or_else(|error| panic!("{error}; start it with `make redis-up`, or set REDIS_URL"))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let mut connection = redis::Client::open(url()).unwrap().get_connection().unwrap();
        let pattern = format!("{}:*", self.prefix);
        let mut cursor = 0;
        loop {
            let scan =
                redis::cmd("SCAN").arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000).to_owned();
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query(&mut connection).unwrap();
            if !keys.is_empty() {
                let _: usize = redis::cmd("DEL").arg(keys).query(&mut connection).unwrap();
            }
            cursor = next;
            if cursor == 0 {
                return;
            }
        }
    }
}

/// A server of the test's own on a free port of loopback. Dropping it kills the process.
pub struct Server {
    child: Child,
    pub port: u16,
    _folder: TempDir,
}

impl Server {
    pub fn with_password(password: &str) -> Self {
        Self::start(&["--requirepass", password])
    }

    /// Starts a cluster of one node, which has all slots.
    pub fn cluster() -> Self {
        let server = Self::start(&["--cluster-enabled", "yes"]);
        let mut connection = server.connection();
        let slots: Vec<u32> = (0..16_384).collect();
        let _: () = redis::cmd("CLUSTER").arg("ADDSLOTS").arg(slots).query(&mut connection).unwrap();
        until("the cluster is up", || {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut connection).unwrap();
            info.contains("cluster_state:ok")
        });
        server
    }

    /// Starts a sentinel that knows this server as `mymaster`.
    pub fn sentinel(master: &Self) -> Self {
        let monitored = format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", master.port);
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, monitored).unwrap();
        Self::run(folder, &[file.to_str().unwrap(), "--sentinel"])
    }

    pub fn start(args: &[&str]) -> Self {
        Self::run(TempDir::new().unwrap(), &[args, &["--save", "", "--appendonly", "no"]].concat())
    }

    /// Starts a server with the settings that docs/operations.md recommends, and then these.
    pub fn recommended(args: &[&str]) -> Self {
        let recommended =
            ["--appendonly", "yes", "--maxmemory-policy", "noeviction", "--lazyfree-lazy-expire", "yes"];
        Self::run(TempDir::new().unwrap(), &[&recommended, args].concat())
    }

    /// Starts a server whose clock is ahead by this many seconds.
    pub fn with_clock_ahead(seconds: u32) -> Self {
        let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
        let found = folders
            .chain(["/usr/lib".into(), "/usr/local/lib".into()])
            .map(|folder| folder.join("faketime/libfaketime.so.1"))
            .find(|library| library.exists());
        let library = found.expect("libfaketime.so.1 is missing: apt-get install faketime");
        // The C library provides the memory, because jemalloc and faketime deadlock at the start.
        let preloaded = format!("{}:libc.so.6", library.display());
        let environment = [
            ("LD_PRELOAD", preloaded),
            ("FAKETIME", format!("+{seconds}s")),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        Self::run_in(TempDir::new().unwrap(), &["--appendonly", "yes"], &environment)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs a command on the server.
    pub fn send<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut sent = redis::cmd(command[0]);
        sent.arg(&command[1..]).query(&mut self.connection()).unwrap()
    }

    fn run(folder: TempDir, args: &[&str]) -> Self {
        Self::run_in(folder, args, &[])
    }

    fn run_in(folder: TempDir, args: &[&str], environment: &[(&str, String)]) -> Self {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let mut command = Command::new(program);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.args(args).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        command.arg("--dir").arg(folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("a redis-server");
        let server = Self { child, port, _folder: folder };
        until("the server of the test is up", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    /// Returns how many keys the server holds.
    pub fn keys(&self) -> u64 {
        redis::cmd("DBSIZE").query(&mut self.connection()).unwrap()
    }

    /// Stops answering for a time.
    pub fn pause(&self, time: Duration) {
        let pause = redis::cmd("CLIENT").arg("PAUSE").arg(time.as_millis() as u64).arg("ALL").to_owned();
        let _: () = pause.query(&mut self.connection()).unwrap();
    }

    fn connection(&self) -> redis::Connection {
        redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap().get_connection().unwrap()
    }
}

pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
