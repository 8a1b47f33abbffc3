//! What every row needs: the server, the contenders, and the size of the run.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::contender::{Bare, Ours, Peer};
use crate::server::Server;

/// The size of a run.
#[derive(Clone, Copy)]
pub struct Form {
    pub rounds: usize,
    /// Divides the number of calls and records, for a quick check that everything runs.
    pub divisor: usize,
}

impl Form {
    /// Divides a number of calls or records. The result is at least 64, because 64 calls are in flight at a time.
    pub fn count(&self, whole: usize) -> usize {
        (whole / self.divisor).max(64)
    }
}

pub struct Bench {
    pub server: Server,
    pub ours: Ours,
    pub peer: Peer,
    pub bare: Bare,
    pub form: Form,
    progress: ProgressBar,
}

impl Bench {
    pub async fn start(form: Form, steps: usize) -> Result<Self> {
        let server = Server::start()?;
        let url = server.url();
        let client = redis::Client::open(url.as_str())?;
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?;
        Ok(Self {
            ours: Ours(mcp_task_store::RedisBackend::connect(&url).await?),
            // By default the peer uses the same prefix and the same keys as this crate.
            peer: Peer(pmcp_tasks::RedisBackend::new(&url).await?.with_prefix("peer")),
            bare: Bare(client.get_multiplexed_async_connection().await?),
            server,
            form,
            progress: ProgressBar::new(steps as u64).with_style(style),
        })
    }

    /// Reports the progress: a bar on a terminal, a line elsewhere.
    pub fn step(&self, what: &str) {
        self.progress.set_message(what.to_owned());
        self.progress.inc(1);
        match (self.progress.is_hidden(), self.progress.length()) {
            (true, Some(steps)) => eprintln!("[{}/{steps}] measuring {what}", self.progress.position()),
            _ => self.progress.tick(),
        }
    }

    pub fn done(&self) {
        self.progress.finish_and_clear();
    }
}
