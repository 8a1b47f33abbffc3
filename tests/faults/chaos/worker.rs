//! A worker process: this test binary, run again. It does what the lines of its input say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mcp_task_store::RedisBackend;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing_subscriber::filter::LevelFilter;

use super::log::Log;
use super::operation::{self, Plan};
use crate::support::deployment::Way;

/// The variable with what a worker process must know.
const SETTINGS: &str = "CHAOS_WORKER";
/// Begins what a worker says, among what the test harness prints.
const SAYS: &str = "worker> ";
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Settings {
    way: Way,
    run: String,
    folder: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
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

/// The log of the events of a run.
pub fn log_of(folder: &Path) -> PathBuf {
    folder.join("events")
}

/// The life of a worker process.
pub async fn serve() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let Settings { way, run, folder } = serde_json::from_str(&settings).unwrap();
    let told = std::fs::File::create(folder.join(format!("{run}.trace"))).unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_max_level(LevelFilter::INFO);
    subscriber.with_writer(Mutex::new(told)).init();
    let log = Arc::new(Log::open(&log_of(&folder)));
    let backend = loop {
        match way.connect(RedisBackend::builder()).await {
            Ok(backend) => break backend,
            Err(error) => tracing::info!(%error, "no connection yet"),
        }
        sleep(Duration::from_millis(50)).await;
    };
    let manager = operation::manager(backend, Arc::clone(&log), run.clone());
    println!("\n{SAYS}{}", json!("ready"));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let Numbered { number, what } = serde_json::from_str(&line).unwrap();
        let (manager, log, run) = (manager.clone(), Arc::clone(&log), run.clone());
        tokio::spawn(async move {
            let is_last = matches!(what, Order::Shutdown);
            let done = match what {
                Order::Spawn { plan } => operation::spawn(&manager, plan, &log, &run).await.map(Value::from),
                Order::Status { owner, task } => operation::status(&manager, &owner, &task).await,
                Order::Answer { owner, task, answer } => {
                    operation::answer(&manager, &owner, &task, answer).await.map(Value::from)
                }
                Order::Cancel { owner, task } => {
                    operation::cancel(&manager, &owner, &task).await.map(Value::from)
                }
                Order::Shutdown => {
                    manager.shutdown().await;
                    Ok(Value::Null)
                }
            };
            let what = done.map_err(|error| error.to_string());
            println!("{SAYS}{}", serde_json::to_string(&Numbered { number, what }).unwrap());
            if is_last {
                std::process::exit(0);
            }
        });
    }
    // Whoever started this process is gone.
    std::process::exit(0);
}

type Answer = Result<Value, String>;

/// A worker process that was started. It is killed and reaped when it is dropped.
pub struct Worker {
    pub run: String,
    pub id: u32,
    process: Mutex<Child>,
    orders: tokio::sync::Mutex<ChildStdin>,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>,
    number: AtomicU64,
    is_ready: Arc<AtomicBool>,
}

impl Worker {
    /// Starts a process, which takes orders when it [is ready](Self::is_ready).
    pub fn start(way: &Way, run: String, folder: &Path) -> Self {
        let settings = Settings { way: way.clone(), run: run.clone(), folder: folder.to_owned() };
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "chaos::worker_process", "--nocapture", "--test-threads", "1"])
            .env(SETTINGS, serde_json::to_string(&settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (orders, said) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let waiting = Arc::<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>::default();
        let is_ready = Arc::new(AtomicBool::new(false));
        let (answers, ready) = (Arc::clone(&waiting), Arc::clone(&is_ready));
        tokio::spawn(async move {
            let mut lines = BufReader::new(said).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Some((_, said)) = line.split_once(SAYS) else { continue };
                if let Ok(Numbered { number, what }) = serde_json::from_str::<Numbered<Answer>>(said) {
                    // A client may have given up.
                    if let Some(waiting) = answers.lock().unwrap().remove(&number) {
                        let _ = waiting.send(what);
                    }
                } else {
                    ready.store(true, SeqCst);
                }
            }
            ready.store(false, SeqCst);
            answers.lock().unwrap().clear();
        });
        Self {
            run,
            id: process.id().unwrap(),
            process: Mutex::new(process),
            orders: tokio::sync::Mutex::new(orders),
            waiting,
            number: AtomicU64::new(0),
            is_ready,
        }
    }

    pub fn is_ready(&self) -> bool {
        self.is_ready.load(SeqCst)
    }

    /// Gives an order and waits for the answer; an error if there is none. The order may then have been obeyed.
    pub async fn order(&self, what: Order) -> Answer {
        let number = self.number.fetch_add(1, SeqCst);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap().insert(number, answer);
        let line = format!("{}\n", serde_json::to_string(&Numbered { number, what }).unwrap());
        let asking = async {
            let written = self.orders.lock().await.write_all(line.as_bytes()).await;
            written.map_err(|error| error.to_string())?;
            answered.await.unwrap_or_else(|_| Err("the process is gone".to_owned()))
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err("no answer".to_owned()))
    }

    pub fn signal(&self, name: &str) {
        let sent =
            std::process::Command::new("kill").args(["-s", name, &self.id.to_string()]).status().unwrap();
        assert!(sent.success(), "SIG{name} for {}", self.run);
    }

    /// `SIGKILL`. It is gone when this returns.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended by itself.
        let _ = process.start_kill();
        let since = Instant::now();
        while !matches!(process.try_wait(), Ok(Some(_))) {
            assert!(since.elapsed() < Duration::from_secs(30), "{} does not die", self.run);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether it ends by itself within this time.
    pub async fn exits_within(&self, limit: Duration) -> bool {
        let exits = async {
            while !matches!(self.process.lock().unwrap().try_wait(), Ok(Some(_))) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(limit, exits).await.is_ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}
