//! A Redis server for the benchmark, on loopback and without persistence.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use redis::FromRedisValue;
use tempfile::TempDir;

/// A server that stops when this is dropped.
pub struct Server {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl Server {
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let process = Command::new(&program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let server = Self { process, port, _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.try_run::<String>(&["PING"]).is_err() {
            if Instant::now() > deadline {
                bail!("{program} does not answer on port {port} within 10 s");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> (&'static str, u16) {
        ("127.0.0.1", self.port)
    }

    fn try_run<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut connection = redis::Client::open(self.url())?.get_connection()?;
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
    }

    /// Runs one command over a new connection.
    pub fn run<T: FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        self.try_run(words).with_context(|| format!("{} failed", words.join(" ")))
    }

    pub fn clear(&self) -> Result<()> {
        self.run(&["FLUSHALL", "SYNC"])
    }

    /// Reads one field of `INFO`.
    pub fn info_text(&self, section: &str, field: &str) -> Result<String> {
        let info: String = self.run(&["INFO", section])?;
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.map(str::to_owned).with_context(|| format!("INFO {section} has no {field}"))
    }

    /// Reads one field of `INFO` as a number.
    pub fn info(&self, section: &str, field: &str) -> Result<f64> {
        let value = self.info_text(section, field)?;
        value.parse().with_context(|| format!("{field} of INFO {section} is not a number: {value}"))
    }

    /// Returns the processor time that the server has used, in microseconds.
    pub fn processor_micros(&self) -> Result<f64> {
        Ok((self.info("cpu", "used_cpu_user")? + self.info("cpu", "used_cpu_sys")?) * 1e6)
    }

    /// Returns how often a command ran, and its total microseconds.
    pub fn command_stats(&self, command: &str) -> Result<(f64, f64)> {
        let info: String = self.run(&["INFO", "commandstats"])?;
        let prefix = format!("cmdstat_{command}:");
        let Some(line) = info.lines().find_map(|line| line.strip_prefix(&prefix)) else {
            return Ok((0.0, 0.0));
        };
        let field =
            |name: &str| line.split(',').find_map(|part| part.strip_prefix(name)?.parse::<f64>().ok());
        field("calls=").zip(field("usec=")).context("INFO commandstats has no calls or usec")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The server may have stopped already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
