//! What every row needs: the server, the contenders, and the size of the run.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use redis::AsyncConnectionConfig;

use crate::contender::{Bare, Ours, Peer};
use crate::server::Server;

/// The size of a run.
#[derive(Clone, Copy, Args)]
pub struct Form {
    #[arg(long, default_value_t = 15)]
    pub rounds: usize,
    /// Divides the number of calls and records, for a quick check that everything runs
    #[arg(long, default_value_t = 1)]
    pub divisor: usize,
}

impl Form {
    /// Divides a number of calls or records. The result is at least 64, because 64 calls are in flight at a time.
    pub fn count(&self, whole: usize) -> usize {
        (whole / self.divisor).max(64)
    }

    /// Returns the number of rounds of rows without a target.
    pub fn few_rounds(&self) -> usize {
        self.rounds.div_ceil(3)
    }

    /// Returns how many steps the run has. A check has fewer.
    fn steps(&self) -> u64 {
        if self.is_check() { 53 } else { 60 }
    }

    /// Whether the run only checks that everything runs.
    pub fn is_check(&self) -> bool {
        self.divisor > 1
    }
}

pub struct Contenders {
    pub ours: Ours,
    pub peer: Peer,
    pub bare: Bare,
}

impl Contenders {
    /// Connects each over connections that belong to the current runtime.
    pub async fn connect(url: &str) -> Result<Self> {
        // On a busy machine, and under callgrind, a call can take longer than the clients allow by default.
        const LIMIT: Duration = Duration::from_secs(30);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(LIMIT))
            .set_response_timeout(Some(LIMIT));
        let client = redis::Client::open(url)?;
        let connect = || client.get_multiplexed_async_connection_with_config(&config);
        let ours = mcp_task_store::RedisBackend::builder().connect_timeout(LIMIT).response_timeout(LIMIT);
        Ok(Self {
            ours: Ours(ours.connect(url).await?),
            // By default the peer uses the same prefix and the same keys as this crate.
            peer: Peer(pmcp_tasks::RedisBackend::with_connection(connect().await?).with_prefix("peer")),
            bare: Bare(connect().await?),
        })
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
    pub async fn start(form: Form) -> Result<Self> {
        let server = Server::start()?;
        let Contenders { ours, peer, bare } = Contenders::connect(&server.url()).await?;
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?;
        let progress = ProgressBar::new(form.steps()).with_style(style);
        Ok(Self { server, ours, peer, bare, form, progress })
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

    /// Ends the progress. A run of all rows makes all steps.
    pub fn done(&self, has_all: bool) -> Result<()> {
        let (made, expected) = (self.progress.position(), self.progress.length());
        self.progress.finish_and_clear();
        anyhow::ensure!(!has_all || Some(made) == expected, "the run had {made} steps; correct Form::steps");
        Ok(())
    }
}
