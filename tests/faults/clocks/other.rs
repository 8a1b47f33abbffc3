//! A second process with a wrong wall clock: this test program, started again under Debian's `faketime`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::process::{Call, Process};
use crate::support::clock::{library, set_clock};

const URL_VARIABLE: &str = "TASK_STORE_TEST_URL";
/// Precedes a reply, among the lines that the test harness prints.
const REPLY: &str = "reply: ";

/// Handles calls until the first process closes the pipe or ends.
pub async fn serve() {
    let Ok(url) = std::env::var(URL_VARIABLE) else { return };
    let process = Process::start(&url).await;
    for call in std::io::stdin().lines() {
        let reply = process.perform(serde_json::from_str(&call.unwrap()).unwrap()).await;
        println!("\n{REPLY}{reply}");
    }
}

/// A process with a wall clock of its own.
pub struct Other {
    process: Child,
    /// `None` once it is closed.
    calls: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    clock: TempDir,
}

impl Other {
    pub fn start(url: &str, offset: &str) -> Self {
        let clock = TempDir::new().unwrap();
        set_clock(clock.path(), offset);
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "clocks::the_other_process", "--ignored", "--nocapture"])
            .env(URL_VARIABLE, url)
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", clock.path().join("offset"))
            .env("FAKETIME_NO_CACHE", "1")
            // Only the wall clock is wrong.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env_remove("FAKETIME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (calls, replies) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, calls, replies, clock }
    }

    /// Sets the clock of the process.
    pub fn set_clock(&self, offset: &str) {
        set_clock(self.clock.path(), offset);
    }

    pub fn send(&mut self, call: &Call) {
        let mut line = serde_json::to_vec(call).unwrap();
        line.push(b'\n');
        self.calls.as_mut().unwrap().write_all(&line).unwrap();
    }

    pub fn reply(&mut self) -> Value {
        let mut output = String::new();
        block_in_place(|| {
            loop {
                let start = output.len();
                let read = self.replies.read_line(&mut output).unwrap();
                assert!(read > 0, "the other process has ended: {output}");
                if let Some(reply) = output[start..].strip_prefix(REPLY) {
                    return serde_json::from_str(reply).unwrap();
                }
            }
        })
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // The process exits when its input ends, so that `faketime` can remove its shared memory.
        self.calls = None;
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}
