//! The worker of the guide: this test program, started again.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, Attempt, Next, Payload, Priority, Queue, RpcError, SqliteBackend, StoreConfig, StoredTask,
    TaskStore,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::Store;

/// Short, so that a lost worker is soon detected.
pub const LEASE: Duration = Duration::from_secs(2);
/// The environment variable with the settings of a worker process.
const SETTINGS: &str = "OPERATING_WORKER";
/// What a worker process prints once it has opened the store.
const READY: &str = "worker> ready";

/// What the release of a worker does with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// Works until it is killed.
    Slow,
    Good,
    /// Fails each attempt.
    Broken,
}

#[derive(Serialize, Deserialize)]
struct Settings {
    url: String,
    prefix: Option<String>,
    release: Release,
}

/// A worker process. Dropping it kills the process.
pub struct Worker(Child);

impl Worker {
    pub async fn start(store: &Store, release: Release) -> Self {
        let settings = Settings { url: store.url.clone(), prefix: store.options.get(1).cloned(), release };
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "operating::worker_process", "--nocapture"])
            .env(SETTINGS, serde_json::to_string(&settings).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        while !lines.next_line().await.unwrap().expect("the worker starts").contains(READY) {}
        // A test harness that cannot print ends.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self(process)
    }

    /// Ends the process with SIGKILL.
    pub async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }
}

/// Runs in a worker process.
pub async fn serve() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let settings: Settings = serde_json::from_str(&settings).unwrap();
    let store = TaskStore::with_config(open(&settings).await, StoreConfig::new().lease(LEASE));
    println!("\n{READY}");
    let queues = [Queue::work("digest_folder", Priority::Normal).unwrap()];
    loop {
        let taken = store.backend().take_due(&queues, 1, Duration::from_secs(10)).await.unwrap();
        for due in &taken.due {
            if let Some((stored, attempt)) = store.claim(&due.key).await.unwrap() {
                run(&stored, &attempt, settings.release).await;
            }
            store.backend().resolve(due, Next::Remove).await.unwrap();
        }
        if taken.due.is_empty() {
            // A worker of the library waits for `wakeups` too.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn open(settings: &Settings) -> Arc<dyn Agenda> {
    if let Some(path) = settings.url.strip_prefix("sqlite:") {
        return Arc::new(SqliteBackend::open(path).await.unwrap());
    }
    let builder = mcp_task_store::RedisBackend::builder().prefix(settings.prefix.as_ref().unwrap());
    Arc::new(builder.connect(&settings.url).await.unwrap())
}

async fn run(stored: &StoredTask, attempt: &Attempt<Arc<dyn Agenda>>, release: Release) {
    let Payload::Inline(arguments) = &stored.task.arguments else { panic!("they are short") };
    let folder = arguments["folder"].as_str().unwrap();
    match release {
        Release::Slow => {
            attempt.set_status_message("hashed 812 of 1204 files").await.unwrap();
            std::future::pending::<()>().await;
        }
        Release::Good => {
            attempt.complete(digest(folder)).await.unwrap();
        }
        Release::Broken => {
            let message =
                format!("cannot open {folder}/manifest.json: No such file or directory (os error 2)");
            attempt.retry(RpcError::new(-32000, message)).await.unwrap();
        }
    }
}

/// Returns a result. It is the digest of the name, because there is no such folder.
fn digest(folder: &str) -> Value {
    let digest: String = Sha256::digest(folder).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "content": [{ "type": "text", "text": format!("sha256:{digest}") }] })
}
