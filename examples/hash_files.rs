//! Hashes every file under a folder, one task a file: submitted in one process, worked on in another.
//!
//! Half-way the first worker is killed; a second one finds the unfinished tasks by listing and finishes them.
//! With `--redis` the workers are processes, the kill is a SIGKILL, and the tasks are in Redis. Without it the
//! same job runs on the memory engine in this one process.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use ignore::WalkBuilder;
use indicatif::{ProgressBar, ProgressStyle};
use mcp_task_store::{
    MemoryBackend, NewTask, OwnerId, PageRequest, RpcError, StorageBackend, StoreConfig, StoredTask,
    TaskError, TaskId, TaskStatus, TaskStore,
};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

type Store = TaskStore<Arc<dyn StorageBackend>>;
type Failure = Box<dyn Error + Send + Sync>;

/// Where a worker process finds the server: a URL may hold a password, which has no place in a command line.
const URL_VARIABLE: &str = "HASH_FILES_REDIS_URL";

/// Hash every file under a folder (SHA-256), one task a file.
///
/// The tasks are submitted in one process and worked on in another. Half-way the worker is killed; a second one
/// finds the unfinished tasks by listing and finishes them. The table at the end shows how often each file was
/// done, and whether its digest is the one that `sha256sum` gives.
///
/// Without --redis the same happens on the memory engine, in one process and with no server at all.
#[derive(Clone, Parser)]
#[command(name = "hash_files")]
struct Options {
    /// The folder; this repository unless given
    #[arg(default_value_os_t = repository())]
    folder: PathBuf,
    /// Whose tasks they are
    #[arg(long, default_value = "hash-files")]
    owner: OwnerId,
    /// How many files a worker hashes at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Least time for a file in milliseconds, so that there is something to watch and to kill half-way
    #[arg(long, value_name = "MS", default_value_t = 20)]
    pace: u64,
    /// Hash files that git ignores, too (the .git folder never is)
    #[arg(long)]
    all: bool,
    /// Keep the tasks in this Redis, and work in processes of their own
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Be worker NUMBER of the run RUN: what a run starts as its worker process
    #[arg(long, num_args = 2, value_names = ["NUMBER", "RUN"], hide = true)]
    work: Option<Vec<String>>,
}

fn repository() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    if built_in.is_dir() { built_in.to_owned() } else { PathBuf::from(".") }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.work {
        Some(work) => be_worker(&options, &work[0], &work[1]).await.map(|()| true),
        None => run(&options).await,
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hash_files: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the job and leaves none of its tasks behind. Says whether all is as it should be.
async fn run(options: &Options) -> Result<bool, Failure> {
    let files = files(options)?;
    let store = open(options.redis.as_deref()).await?;
    let run = TaskId::random().to_string();
    let outcome = job(&store, options, &run, &files).await;
    let removed = remove(&store, options, &run).await;
    let all_well = outcome?;
    removed?;
    Ok(all_well)
}

/// Submits, lets two workers do the work, and checks what they did.
async fn job(store: &Store, options: &Options, run: &str, files: &[PathBuf]) -> Result<bool, Failure> {
    submit(store, options, run, files).await?;
    let bar = bar("hashing", files.len());
    let half = files.len() / 2;
    if half > 0 {
        let done = work(store, options, "1", run, &bar, Some(half)).await?;
        bar.suspend(|| println!("worker 1 was killed after {done} of {} files", files.len()));
    }
    work(store, options, "2", run, &bar, None).await?;
    bar.finish_and_clear();
    report(options, files, &tasks_of(store, &options.owner, run).await?).await
}

/// The files under the folder, as paths relative to it.
fn files(options: &Options) -> Result<Vec<PathBuf>, Failure> {
    let folder = &options.folder;
    if !folder.is_dir() {
        let folder_name = folder.display();
        return Err(match folder.exists() {
            true => format!("{folder_name} is not a folder").into(),
            false => format!("there is no folder at {folder_name}").into(),
        });
    }
    let mut files = Vec::new();
    let ours = !options.all;
    let walk = WalkBuilder::new(folder)
        .standard_filters(false)
        .git_ignore(ours)
        .git_exclude(ours)
        .parents(ours)
        .filter_entry(|entry| entry.file_name() != ".git")
        .build();
    for entry in walk {
        let entry = entry?;
        // A link counts as what it leads to, or as a file that cannot be read; folders behind links are not
        // walked. Pipes and devices have no content to hash.
        if entry.path().metadata().is_ok_and(|behind| !behind.is_file()) {
            continue;
        }
        files.push(entry.path().strip_prefix(folder)?.to_owned());
    }
    files.sort();
    Ok(files)
}

#[cfg(feature = "redis")]
async fn open(redis: Option<&str>) -> Result<Store, Failure> {
    let backend: Arc<dyn StorageBackend> = match redis {
        Some(url) => Arc::new(mcp_task_store::RedisBackend::connect(url).await?),
        None => Arc::new(MemoryBackend::new()),
    };
    Ok(with_config(backend))
}

#[cfg(not(feature = "redis"))]
async fn open(redis: Option<&str>) -> Result<Store, Failure> {
    if redis.is_some() {
        return Err("--redis needs a build with --features redis".into());
    }
    Ok(with_config(Arc::new(MemoryBackend::new())))
}

fn with_config(backend: Arc<dyn StorageBackend>) -> Store {
    TaskStore::with_config(backend, StoreConfig::new().max_tasks_per_owner(None))
}

async fn submit(store: &Store, options: &Options, run: &str, files: &[PathBuf]) -> Result<(), Failure> {
    let bar = bar("submitting", files.len());
    for path in files {
        // Not as text: a file's name need not be UTF-8.
        let new = NewTask::new("hash/file").arguments(json!({ "path": path.as_os_str(), "run": run }));
        store.create(&options.owner, new).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

async fn remove(store: &Store, options: &Options, run: &str) -> Result<(), Failure> {
    for task in tasks_of(store, &options.owner, run).await? {
        store.delete(&task.key).await?;
    }
    Ok(())
}

fn path_of(stored: &StoredTask) -> Result<PathBuf, Failure> {
    Ok(OsString::deserialize(&stored.task.arguments["path"])?.into())
}

/// All tasks of a run, finished or not. An owner may have others.
async fn tasks_of(store: &Store, owner: &OwnerId, run: &str) -> Result<Vec<StoredTask>, Failure> {
    let (mut tasks, mut request) = (Vec::new(), PageRequest::new(256));
    loop {
        let page = store.list(owner, request).await?;
        tasks.extend(page.tasks.into_iter().filter(|stored| stored.task.arguments["run"] == run));
        let Some(next) = page.next else { return Ok(tasks) };
        request = PageRequest::new(256).after(next);
    }
}

/// Lets one worker work until all is done, or until `kill_after` files are. Says how many it finished.
async fn work(
    store: &Store,
    options: &Options,
    number: &str,
    run: &str,
    bar: &ProgressBar,
    kill_after: Option<usize>,
) -> Result<usize, Failure> {
    match &options.redis {
        Some(url) => work_in_a_process(options, url, number, run, bar, kill_after).await,
        None => {
            let (finished, mut progress) = mpsc::unbounded_channel();
            let (store, options) = (store.clone(), options.clone());
            let (number, run) = (number.to_owned(), run.to_owned());
            let worker = tokio::spawn(async move { pool(&store, &options, &number, &run, finished).await });
            let mut done = 0;
            while kill_after.is_none_or(|most| done < most) && progress.recv().await.is_some() {
                done += 1;
                bar.inc(1);
            }
            if kill_after.is_some() {
                worker.abort();
                // What it was busy with is dropped when it has ended.
                worker.await.ok();
                return Ok(done);
            }
            worker.await??;
            Ok(done)
        }
    }
}

async fn work_in_a_process(
    options: &Options,
    url: &str,
    number: &str,
    run: &str,
    bar: &ProgressBar,
    kill_after: Option<usize>,
) -> Result<usize, Failure> {
    let mut worker = Command::new(std::env::current_exe()?)
        .arg(&options.folder)
        .args(["--owner", options.owner.as_str(), "--work", number, run])
        .args(["--workers", &options.workers.to_string(), "--pace", &options.pace.to_string()])
        .env(URL_VARIABLE, url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (Some(stdout), Some(mut stderr)) = (worker.stdout.take(), worker.stderr.take()) else {
        return Err("the worker process has no output to read".into());
    };
    let mut lines = BufReader::new(stdout).lines();
    let mut done = 0;
    // The worker prints a line for each file that is finished.
    while kill_after.is_none_or(|most| done < most) && lines.next_line().await?.is_some() {
        done += 1;
        bar.inc(1);
    }
    if kill_after == Some(done) {
        worker.kill().await?;
        return Ok(done);
    }
    let mut said = String::new();
    stderr.read_to_string(&mut said).await?;
    if !worker.wait().await?.success() {
        return Err(format!("worker {number} failed: {}", said.trim()).into());
    }
    Ok(done)
}

async fn be_worker(options: &Options, number: &str, run: &str) -> Result<(), Failure> {
    let url = std::env::var(URL_VARIABLE).map_err(|_| format!("a worker needs {URL_VARIABLE}"))?;
    let store = open(Some(&url)).await?;
    let (finished, mut progress) = mpsc::unbounded_channel();
    let reporting = tokio::spawn(async move {
        while progress.recv().await.is_some() {
            println!("finished");
        }
    });
    pool(&store, options, number, run, finished).await?;
    Ok(reporting.await?)
}

/// A worker: finds the unfinished tasks of the run by listing, and finishes them, a few at a time.
async fn pool(
    store: &Store,
    options: &Options,
    number: &str,
    run: &str,
    finished: mpsc::UnboundedSender<()>,
) -> Result<(), Failure> {
    let at_once = Arc::new(Semaphore::new(options.workers.into()));
    let mut working = JoinSet::new();
    for task in tasks_of(store, &options.owner, run).await? {
        if task.task.status.is_terminal() {
            continue;
        }
        let turn = Arc::clone(&at_once).acquire_owned().await?;
        let (store, options, finished) = (store.clone(), options.clone(), finished.clone());
        let number = number.to_owned();
        working.spawn(async move {
            let outcome = hash_task(&store, &options, &number, task).await;
            drop(turn);
            finished.send(()).ok();
            outcome
        });
    }
    drop(finished);
    while let Some(outcome) = working.join_next().await {
        outcome??;
    }
    Ok(())
}

async fn hash_task(store: &Store, options: &Options, number: &str, task: StoredTask) -> Result<(), Failure> {
    let started = tokio::time::Instant::now();
    // One variable for each worker that began: they merge, whoever writes last.
    let claimed = store.set_variables(&task, [(number, json!("began"))]).await;
    let claimed = match claimed {
        // What the killed worker had sent has arrived after the tasks were listed.
        Err(TaskError::InvalidTransition { from: TaskStatus::Completed, .. }) => return Ok(()),
        other => other?,
    };
    let relative = path_of(&claimed)?;
    let path = options.folder.join(&relative);
    let hashed = tokio::task::spawn_blocking(move || hash(&path)).await?;
    tokio::time::sleep_until(started + Duration::from_millis(options.pace)).await;
    let ended = match hashed {
        Ok((digest, bytes)) => {
            let result = json!({ "sha256": digest, "bytes": bytes, "worker": number });
            store.complete(&claimed, result).await
        }
        Err(error) => {
            let message = format!("cannot read {}: {error}", relative.display());
            store.fail(&claimed, RpcError::new(-32000, message)).await
        }
    };
    match ended {
        Err(TaskError::InvalidTransition { from: TaskStatus::Completed, .. }) => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

fn hash(path: &Path) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok((format!("{:x}", hasher.finalize()), bytes))
}

/// Prints the table, and a line for each thing that is not as it should be. Says whether there was none.
async fn report(options: &Options, files: &[PathBuf], tasks: &[StoredTask]) -> Result<bool, Failure> {
    let mut by_path: BTreeMap<PathBuf, Vec<&StoredTask>> = BTreeMap::new();
    for task in tasks {
        by_path.entry(path_of(task)?).or_default().push(task);
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["file", "bytes", "worker", "begun", "done", "sha256", "sha256sum"]);
    for column in 1..=4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let bar = bar("checking", files.len());
    let (mut wrong, mut bytes, mut again) = (Vec::new(), 0, 0);
    let mut finished_by: BTreeMap<String, usize> = BTreeMap::new();
    for path in files {
        let row = Row::of(path, by_path.get(path).map_or(&[], Vec::as_slice));
        let sum = match &row.digest {
            Ok(digest) if sha256sum(&options.folder.join(path)).await? == *digest => "same",
            Ok(_) => {
                wrong.push(format!("{}: sha256sum gives another digest; was it changed?", path.display()));
                "DIFFERENT"
            }
            Err(error) => {
                wrong.push(error.clone());
                "failed"
            }
        };
        if row.digest.is_ok() && row.done != 1 {
            wrong.push(format!("{} was done {} times", path.display(), row.done));
        }
        bytes += row.bytes;
        again += usize::from(row.begun > 1);
        let digest = row.digest.as_deref().ok().and_then(|digest| digest.get(..16)).unwrap_or_default();
        table.add_row([
            path.to_string_lossy().escape_debug().to_string(),
            row.bytes.to_string(),
            row.worker.clone(),
            row.begun.to_string(),
            row.done.to_string(),
            digest.to_owned(),
            sum.to_owned(),
        ]);
        *finished_by.entry(row.worker).or_default() += row.done;
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{table}");
    let shares = finished_by.iter().filter(|(_, done)| **done > 0);
    let shares: Vec<_> = shares.map(|(worker, done)| format!("worker {worker} finished {done}")).collect();
    println!("{} files, {bytes} bytes; {}; {again} were begun twice", files.len(), shares.join(", "));
    match wrong.len() {
        0 => println!("every file was done exactly once, with the digest that sha256sum gives"),
        _ => wrong.iter().for_each(|line| eprintln!("hash_files: {line}")),
    }
    Ok(wrong.is_empty())
}

/// What became of a file.
struct Row {
    bytes: u64,
    /// The worker that finished it.
    worker: String,
    /// How many workers began with it.
    begun: usize,
    /// How often it was done.
    done: usize,
    digest: Result<String, String>,
}

impl Row {
    fn of(path: &Path, tasks: &[&StoredTask]) -> Self {
        // Each version but the first is a worker that began, or an end. Counted so, a second end would show.
        let begun = |stored: &StoredTask| stored.task.variables.len();
        let ends = |stored: &&StoredTask| stored.version.get() as usize - 1 - begun(stored);
        let result = tasks.iter().find_map(|stored| stored.task.result.as_ref());
        let error = tasks.iter().find_map(|stored| stored.task.error.as_ref());
        let text =
            |name: &str| result.and_then(|result| result[name].as_str()).unwrap_or_default().to_owned();
        let undone = || {
            error.map_or_else(|| format!("{} was not done", path.display()), |error| error.message.clone())
        };
        Self {
            bytes: result.and_then(|result| result["bytes"].as_u64()).unwrap_or(0),
            worker: text("worker"),
            begun: tasks.iter().map(|stored| begun(stored)).sum(),
            done: if result.is_some() { tasks.iter().map(ends).sum() } else { 0 },
            digest: result.map(|_| text("sha256")).ok_or_else(undone),
        }
    }
}

/// The digest by the system's own program, fed through standard input so that no name is in its way.
async fn sha256sum(path: &Path) -> Result<String, Failure> {
    let programs: [(&str, &[&str]); 2] = [("sha256sum", &[]), ("shasum", &["-a", "256"])];
    for (program, arguments) in programs {
        let file = File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let arguments = arguments.iter().map(OsString::from);
        match Command::new(program).args(arguments).stdin(file).output().await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot run {program}: {error}").into()),
            Ok(output) => {
                let digest = String::from_utf8_lossy(&output.stdout);
                return Ok(digest.split_whitespace().next().unwrap_or_default().to_owned());
            }
        }
    }
    Err("neither sha256sum nor shasum is installed to check the digests".into())
}

fn bar(what: &'static str, length: usize) -> ProgressBar {
    let template = "{prefix:10} {bar:40} {pos}/{len}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_prefix(what).with_style(style)
}
