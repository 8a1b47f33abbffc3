//! The audit log of all consoles of the test program.

use std::io::Write;
use std::sync::{Mutex, OnceLock};

use mcp_task_store::TaskKey;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static RECORDS: OnceLock<()> = OnceLock::new();

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Begins to record.
pub fn record() {
    RECORDS.get_or_init(|| {
        let target = Targets::new().with_target("mcp_task_console::audit", LevelFilter::INFO);
        let lines = fmt::layer().with_writer(|| Log).with_ansi(false);
        tracing_subscriber::registry().with(lines).with(target).init();
    });
}

/// Returns the lines about some tasks, in order.
pub fn lines(keys: &[&TaskKey]) -> Vec<String> {
    let tasks: Vec<String> = keys.iter().map(|key| format!("task=\"{}\"", key.task)).collect();
    lines_where(|line| tasks.iter().any(|task| line.contains(task)))
}

/// Returns the lines that have a text, in order.
pub fn lines_with(text: &str) -> Vec<String> {
    lines_where(|line| line.contains(text))
}

fn lines_where(is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let text = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    text.lines().filter(|line| is_wanted(line)).map(str::to_owned).collect()
}
