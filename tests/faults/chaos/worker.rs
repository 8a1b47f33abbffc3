//! A worker process: this test program, started again. It handles one request for each line of its input.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing_subscriber::filter::LevelFilter;

use super::log::Log;
use super::operation::{self, Plan};
use crate::support::place::Place;

/// The environment variable with the settings of a worker process.
const SETTINGS: &str = "CHAOS_WORKER";
/// Precedes a reply, among the lines that the test harness prints.
const REPLY: &str = "worker> ";
/// How long a client waits for a reply.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Settings {
    place: Place,
    run: String,
    folder: PathBuf,
    role: Role,
}

/// Which tasks a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Those that it creates, and those that it resumes.
    Instance,
    /// None. It enqueues the tasks that it creates.
    Server,
    /// Those that it claims. It enqueues the tasks that it creates.
    Worker,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    Spawn { plan: Plan },
    Status { owner: String, task: String },
    Answer { owner: String, task: String, answer: Value },
    Cancel { owner: String, task: String },
    Shutdown,
}

#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    number: u64,
    what: T,
}

/// Returns the path of the log of a run.
pub fn log_of(folder: &Path) -> PathBuf {
    folder.join("events")
}

/// Runs in a worker process.
pub async fn serve() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let Settings { place, run, folder, role } = serde_json::from_str(&settings).unwrap();
    let trace = std::fs::File::create(folder.join(format!("{run}.trace"))).unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_max_level(LevelFilter::INFO);
    subscriber.with_writer(Mutex::new(trace)).init();
    let log = Arc::new(Log::open(&log_of(&folder)));
    let backend = loop {
        match place.open().await {
            Ok(backend) => break backend,
            Err(error) => tracing::info!(%error, "no connection yet"),
        }
        sleep(Duration::from_millis(50)).await;
    };
    let manager = operation::manager(backend, Arc::clone(&log), run.clone(), role);
    println!("\n{REPLY}{}", json!("ready"));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let Numbered { number, what } = serde_json::from_str(&line).unwrap();
        let (manager, log, run) = (manager.clone(), Arc::clone(&log), run.clone());
        tokio::spawn(async move {
            let is_last = matches!(what, Request::Shutdown);
            let what = handle(what, &manager, &log, &run, role).await;
            println!("{REPLY}{}", serde_json::to_string(&Numbered { number, what }).unwrap());
            if is_last {
                std::process::exit(0);
            }
        });
    }
    // The process that started this one has ended.
    std::process::exit(0);
}

async fn handle(
    request: Request,
    manager: &operation::Manager,
    log: &Arc<Log>,
    run: &str,
    role: Role,
) -> Reply {
    let done = match request {
        Request::Spawn { plan } if role == Role::Instance => {
            operation::spawn(manager, plan, log, run).await.map(Value::from)
        }
        Request::Spawn { plan } => operation::enqueue(manager, &plan).await.map(Value::from),
        Request::Status { owner, task } => operation::status(manager, &owner, &task).await,
        Request::Answer { owner, task, answer } => {
            operation::answer(manager, &owner, &task, answer).await.map(Value::from)
        }
        Request::Cancel { owner, task } => operation::cancel(manager, &owner, &task).await.map(Value::from),
        Request::Shutdown => {
            manager.shutdown().await;
            Ok(Value::Null)
        }
    };
    done.map_err(|error| error.to_string())
}

type Reply = Result<Value, String>;

/// The callers that wait for replies, by request.
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Reply>>>>;

/// A running worker process. Dropping it kills and reaps the process.
pub struct Worker {
    pub run: String,
    pub id: u32,
    process: Mutex<Child>,
    requests: tokio::sync::Mutex<ChildStdin>,
    waiting: Waiting,
    number: AtomicU64,
    is_ready: Arc<AtomicBool>,
}

impl Worker {
    /// Starts a process, which accepts requests when it [is ready](Self::is_ready).
    pub fn start(place: &Place, run: String, folder: &Path, role: Role) -> Self {
        let settings = Settings { place: place.clone(), run: run.clone(), folder: folder.to_owned(), role };
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "chaos::worker_process", "--nocapture", "--test-threads", "1"])
            .env(SETTINGS, serde_json::to_string(&settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (requests, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let waiting = Waiting::default();
        let is_ready = Arc::new(AtomicBool::new(false));
        tokio::spawn(read(output, Arc::clone(&waiting), Arc::clone(&is_ready)));
        Self {
            run,
            id: process.id().unwrap(),
            process: Mutex::new(process),
            requests: tokio::sync::Mutex::new(requests),
            waiting,
            number: AtomicU64::new(0),
            is_ready,
        }
    }

    pub fn is_ready(&self) -> bool {
        self.is_ready.load(SeqCst)
    }

    /// Sends a request and waits for the reply. The process may have handled a request that fails.
    pub async fn call(&self, what: Request) -> Reply {
        let number = self.number.fetch_add(1, SeqCst);
        let (reply, replied) = oneshot::channel();
        self.waiting.lock().unwrap().insert(number, reply);
        let line = format!("{}\n", serde_json::to_string(&Numbered { number, what }).unwrap());
        let call = async {
            let written = self.requests.lock().await.write_all(line.as_bytes()).await;
            written.map_err(|error| error.to_string())?;
            replied.await.unwrap_or_else(|_| Err("the process has ended".to_owned()))
        };
        timeout(PATIENCE, call).await.unwrap_or_else(|_| Err("no reply".to_owned()))
    }

    pub fn signal(&self, name: &str) {
        let sent =
            std::process::Command::new("kill").args(["-s", name, &self.id.to_string()]).status().unwrap();
        assert!(sent.success(), "SIG{name} for {}", self.run);
    }

    /// Kills the process, which has ended when this returns.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        // The process may have exited.
        let _ = process.start_kill();
        let since = Instant::now();
        while !matches!(process.try_wait(), Ok(Some(_))) {
            assert!(since.elapsed() < Duration::from_secs(30), "{} does not die", self.run);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns whether the process exits within this time.
    pub async fn exits_within(&self, limit: Duration) -> bool {
        let exits = async {
            while !matches!(self.process.lock().unwrap().try_wait(), Ok(Some(_))) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(limit, exits).await.is_ok()
    }
}

/// Passes the replies of a process on, until it ends.
async fn read(output: ChildStdout, waiting: Waiting, is_ready: Arc<AtomicBool>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Some((_, reply)) = line.split_once(REPLY) else { continue };
        let Ok(Numbered { number, what }) = serde_json::from_str::<Numbered<Reply>>(reply) else {
            is_ready.store(true, SeqCst);
            continue;
        };
        // The client may have given up.
        if let Some(waiting) = waiting.lock().unwrap().remove(&number) {
            let _ = waiting.send(what);
        }
    }
    is_ready.store(false, SeqCst);
    waiting.lock().unwrap().clear();
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}
