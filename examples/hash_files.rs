//! Hashes every file under a folder, one task a file, although the worker is killed half-way.
//!
//! `cargo run --example hash_files` does it in one process on the memory engine;
//! `cargo run --example hash_files --features redis -- --redis redis://127.0.0.1:6379` in several, on Redis.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use ignore::WalkBuilder;
use indicatif::{ProgressBar, ProgressStyle};
use mcp_task_store::{
    MAX_PAGE_LIMIT, MemoryBackend, NewTask, OwnerId, PageRequest, RpcError, StorageBackend, StoreConfig,
    StoredTask, TaskError, TaskId, TaskStatus, TaskStore,
};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// An error that ends the program with one line.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How the worker process gets the URL: it may hold a password, and everybody can read a command line.
const REDIS_VARIABLE: &str = "HASH_FILES_REDIS";
/// How many tasks are created, checked or deleted at once.
const AT_ONCE: usize = 8;

/// Hash (SHA-256) every file under a folder, one task a file, although the worker is killed half-way
///
/// The run stores a task for each file and starts a worker, which hashes several files at a time. When half of
/// the tasks are done, it kills the worker and starts a second one, which finds the unfinished tasks by
/// listing them and finishes them. A table shows for each file which worker finished it, how many claimed it,
/// how often it was done, and whether the digest is the one that `sha256sum` prints. The exit code is 1 if any
/// file could not be read, was done other than exactly once, or has another digest.
///
/// With --redis the tasks are in Redis and each worker is a process of its own, killed with SIGKILL. Without
/// it they are in memory, the workers are in this process, and no server is needed.
#[derive(Parser)]
#[command(name = "hash_files")]
struct Args {
    /// The folder; this repository unless given
    folder: Option<PathBuf>,
    /// Whose tasks they are
    #[arg(long, value_name = "NAME", default_value = "hash-files")]
    owner: String,
    /// How many files a worker hashes at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
    /// Keep the tasks in this Redis, such as redis://127.0.0.1:6379 (needs a build with `--features redis`)
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// How long a worker takes for a file at least, so that there is something to watch and to kill
    #[arg(long, value_name = "MS", default_value_t = 20)]
    pace: u64,
    /// Hash the files that git ignores, and git's own, too
    #[arg(long)]
    all: bool,
    /// Work on the tasks of this run, as the process that the run starts
    #[arg(long, value_name = "RUN", hide = true, requires = "number")]
    work: Option<String>,
    /// Which worker of the run this is
    #[arg(long, value_name = "N", hide = true, default_value_t = 1)]
    number: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.work {
        Some(run) => work_as_process(&args, run).await.map(|()| true),
        None => run(&args).await,
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

/// The whole run. Says whether all is well.
async fn run(args: &Args) -> Result<bool, Failure> {
    let folder = folder(args)?;
    let (files, all_read) = files_under(&folder, args.all);
    let checker = Checker::find().await?;
    let job = Job::open(args, args.redis.as_deref(), TaskId::random().as_str()).await?;
    let place = if args.redis.is_some() { "Redis" } else { "memory" };
    println!("{} files under {}, the tasks are in {place}", files.len(), shown(&folder));

    let outcome = run_tasks(args, &job, &folder, &files, &checker).await;
    // An owner's tasks of many runs would pile up until they expire.
    let removed = job.remove().await;
    let all_done = outcome?;
    removed?;
    Ok(all_read && all_done)
}

async fn run_tasks(
    args: &Args,
    job: &Job,
    folder: &Path,
    files: &[PathBuf],
    checker: &Checker,
) -> Result<bool, Failure> {
    job.submit(files).await?;
    drive(files.len(), |number| Worker::start(args, job, number)).await?;
    let mut tasks = HashMap::new();
    for task in job.tasks().await? {
        tasks.insert(path_of(&task)?, task);
    }
    let digests = checker.digests(tasks.values()).await?;
    Ok(show(folder, files, &tasks, &digests))
}

fn folder(args: &Args) -> Result<PathBuf, Failure> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = match &args.folder {
        Some(folder) => folder,
        None if repository.is_dir() => repository,
        None => Path::new("."),
    };
    match folder.canonicalize() {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(path) => Err(format!("{} is not a folder", shown(&path)).into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("no folder at {}", shown(folder)).into())
        }
        Err(error) => Err(format!("cannot read the folder {}: {error}", shown(folder)).into()),
    }
}

/// The files under a folder in order, and whether the whole folder could be read.
fn files_under(folder: &Path, all: bool) -> (Vec<PathBuf>, bool) {
    let mut walk = WalkBuilder::new(folder);
    walk.standard_filters(!all).hidden(false).ignore(false).sort_by_file_path(Path::cmp);
    walk.filter_entry(move |entry| all || entry.file_name() != ".git");
    let (mut files, mut all_read) = (Vec::new(), true);
    for entry in walk.build() {
        match entry {
            Ok(entry) if is_file(&entry) => files.push(entry.into_path()),
            Ok(_) => {}
            Err(error) => {
                eprintln!("hash_files: cannot read {error}");
                all_read = false;
            }
        }
    }
    (files, all_read)
}

/// A link counts as what it leads to, and as a file that cannot be read when it leads nowhere. Pipes and
/// devices are left out: they may never end.
fn is_file(entry: &ignore::DirEntry) -> bool {
    match entry.file_type() {
        Some(kind) if kind.is_symlink() => entry.path().metadata().map_or(true, |target| target.is_file()),
        Some(kind) => kind.is_file(),
        None => false,
    }
}

/// The tasks of one run. An owner may have those of other runs beside them.
#[derive(Clone)]
struct Job {
    store: TaskStore<Arc<dyn StorageBackend>>,
    owner: OwnerId,
    run: String,
}

impl Job {
    async fn open(args: &Args, redis: Option<&str>, run: &str) -> Result<Self, Failure> {
        let owner = OwnerId::try_from(args.owner.as_str())?;
        let backend: Arc<dyn StorageBackend> = match redis {
            Some(url) => redis_backend(url).await?,
            None => Arc::new(MemoryBackend::new()),
        };
        let config = StoreConfig::new().max_tasks_per_owner(None);
        Ok(Self { store: TaskStore::with_config(backend, config), owner, run: run.to_owned() })
    }

    async fn submit(&self, files: &[PathBuf]) -> Result<(), Failure> {
        let bar = progress("submit", files.len())?;
        let create = |path: PathBuf| {
            let job = self.clone();
            async move {
                let arguments = json!({ "path": path_to_json(&path), "run": job.run });
                let new = NewTask::new("hash/file").arguments(arguments).ttl(Duration::from_secs(3600));
                Ok(job.store.create(&job.owner, new).await?)
            }
        };
        each(AT_ONCE, files.iter().cloned(), create, |_| Ok(bar.inc(1))).await?;
        bar.finish();
        Ok(())
    }

    /// All tasks of the run, oldest first.
    async fn tasks(&self) -> Result<Vec<StoredTask>, Failure> {
        let mut tasks = Vec::new();
        let mut request = PageRequest::new(MAX_PAGE_LIMIT);
        loop {
            let page = self.store.list(&self.owner, request).await?;
            tasks.extend(page.tasks.into_iter().filter(|stored| stored.task.arguments["run"] == self.run));
            match page.next {
                Some(cursor) => request = PageRequest::new(MAX_PAGE_LIMIT).after(cursor),
                None => break,
            }
        }
        tasks.reverse();
        Ok(tasks)
    }

    /// Finishes every task that is unfinished, and reports each.
    async fn work(
        self,
        number: u32,
        args: &Args,
        done: impl FnMut(TaskId) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let pace = Duration::from_millis(args.pace);
        let tasks = self.tasks().await?.into_iter().filter(|stored| !stored.task.status.is_terminal());
        let hash = |stored: StoredTask| {
            let job = self.clone();
            async move {
                match job.hash(&stored, number, pace).await {
                    // A write that the killed worker had sent has ended the task after it was listed.
                    Ok(()) | Err(TaskError::InvalidTransition { .. }) => Ok(stored.key.task),
                    Err(error) => Err(error.into()),
                }
            }
        };
        each(args.workers.into(), tasks, hash, done).await
    }

    async fn hash(&self, stored: &StoredTask, number: u32, pace: Duration) -> Result<(), TaskError> {
        // Each worker sets a variable of its own: merged, none overwrites the claim of another.
        let claim = [(format!("claimed by worker {number}"), json!(true))];
        let claimed = self.store.set_variables(stored, claim).await?;
        let path = path_of(&claimed);
        let hashing = tokio::task::spawn_blocking(move || sha256(&path?));
        let (hashed, ()) = tokio::join!(hashing, tokio::time::sleep(pace));
        match hashed.unwrap_or_else(|error| Err(error.into())) {
            Ok((sha256, bytes)) => {
                let result = json!({ "sha256": sha256, "bytes": bytes, "worker": number });
                self.store.complete(&claimed, result).await?
            }
            Err(error) => self.store.fail(&claimed, RpcError::new(-32603, error.to_string())).await?,
        };
        Ok(())
    }

    async fn remove(&self) -> Result<(), Failure> {
        let delete = |stored: StoredTask| {
            let job = self.clone();
            async move {
                match job.store.delete(&stored.key).await {
                    Ok(()) | Err(TaskError::NotFound { .. }) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
        };
        each(AT_ONCE, self.tasks().await?, delete, Ok).await
    }
}

#[cfg(feature = "redis")]
async fn redis_backend(url: &str) -> Result<Arc<dyn StorageBackend>, Failure> {
    Ok(Arc::new(mcp_task_store::RedisBackend::builder().connect(url).await?))
}

#[cfg(not(feature = "redis"))]
async fn redis_backend(_: &str) -> Result<Arc<dyn StorageBackend>, Failure> {
    Err("this build has no Redis engine: build with `--features redis`".into())
}

/// Does `work` on every item, on at most `limit` at a time, and hands over what comes of it. The first failure
/// ends it, and so does dropping the future.
async fn each<T, O, F>(
    limit: usize,
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> F,
    mut done: impl FnMut(O) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    O: Send + 'static,
    F: Future<Output = Result<O, Failure>> + Send + 'static,
{
    let mut running = JoinSet::new();
    for item in items {
        if running.len() >= limit
            && let Some(ended) = running.join_next().await
        {
            done(ended??)?;
        }
        running.spawn(work(item));
    }
    while let Some(ended) = running.join_next().await {
        done(ended??)?;
    }
    Ok(())
}

fn sha256(path: &Path) -> Result<(String, u64), Failure> {
    let mut hasher = Sha256::new();
    let bytes = File::open(path)
        .and_then(|mut file| std::io::copy(&mut file, &mut hasher))
        .map_err(|error| format!("cannot read {}: {error}", shown(path)))?;
    Ok((format!("{:x}", hasher.finalize()), bytes))
}

/// A name on Unix need not be UTF-8.
fn path_to_json(path: &Path) -> Value {
    path.to_str().map_or_else(|| json!(path.as_os_str()), Value::from)
}

fn path_of(stored: &StoredTask) -> Result<PathBuf, Failure> {
    let path = &stored.task.arguments["path"];
    match path.as_str() {
        Some(path) => Ok(path.into()),
        None => Ok(OsString::deserialize(path)?.into()),
    }
}

/// A worker as the run sees it: a part of this process, or a process.
enum Worker {
    Here { task: JoinHandle<Result<(), Failure>>, done: mpsc::UnboundedReceiver<TaskId> },
    Process { child: Child, done: Lines<BufReader<ChildStdout>> },
}

impl Worker {
    fn start(args: &Args, job: &Job, number: u32) -> Result<Self, Failure> {
        let Some(url) = &args.redis else {
            let (report, done) = mpsc::unbounded_channel();
            let (job, args) = (job.clone(), Args { folder: None, redis: None, work: None, owner: String::new(), ..*args });
            let work = async move { job.work(number, &args, |id| Ok(report.send(id)?)).await };
            return Ok(Self::Here { task: tokio::spawn(work), done });
        };
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--work", &job.run, "--number", &number.to_string(), "--owner", &args.owner])
            .args(["--workers", &args.workers.to_string(), "--pace", &args.pace.to_string()])
            .env(REDIS_VARIABLE, url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start a worker process: {error}"))?;
        let stdout = child.stdout.take().ok_or("the worker process has no output")?;
        Ok(Self::Process { child, done: BufReader::new(stdout).lines() })
    }

    /// Waits for the next task to be done; `false` when the worker has ended.
    async fn next(&mut self) -> Result<bool, Failure> {
        match self {
            Self::Here { done, .. } => Ok(done.recv().await.is_some()),
            Self::Process { done, .. } => Ok(done.next_line().await?.is_some()),
        }
    }

    /// Kills the worker and waits until it is gone. What it has reported can still be read.
    async fn kill(&mut self) -> Result<(), Failure> {
        match self {
            Self::Here { task, .. } => {
                task.abort();
                while !task.is_finished() {
                    tokio::task::yield_now().await;
                }
            }
            Self::Process { child, .. } => child.kill().await?,
        }
        Ok(())
    }

    /// Waits until a worker that has no more to report ends by itself.
    async fn end(self, number: u32) -> Result<(), Failure> {
        match self {
            Self::Here { task, .. } => task.await?,
            Self::Process { mut child, .. } => {
                let mut said = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    stderr.read_to_string(&mut said).await?;
                }
                let status = child.wait().await?;
                let said = said.trim().replace('\n', "; ");
                let said = said.strip_prefix("hash_files: ").unwrap_or(&said);
                if status.success() { Ok(()) } else { Err(format!("worker {number} died ({status}): {said}").into()) }
            }
        }
    }
}

/// The process that [`Worker::start`] starts. It writes a line for each task that is done.
async fn work_as_process(args: &Args, run: &str) -> Result<(), Failure> {
    let url = std::env::var(REDIS_VARIABLE).map_err(|_| format!("--work needs {REDIS_VARIABLE}"))?;
    let job = Job::open(args, Some(&url), run).await?;
    job.work(args.number, args, |id| Ok(writeln!(std::io::stdout(), "done {id}")?)).await
}

/// Has the first worker do half of the tasks, kills it, and has the second one do the rest.
async fn drive(total: usize, start: impl Fn(u32) -> Result<Worker, Failure>) -> Result<(), Failure> {
    let bar = progress("hash", total)?;
    let mut worker = start(1)?;
    let mut number = 1;
    if total < 2 {
        bar.suspend(|| println!("too few files to kill a worker half-way"));
    } else {
        let mut done = 0;
        while done < total / 2 {
            if !worker.next().await? {
                worker.end(1).await?;
                return Err(format!("worker 1 ended when {done} of {total} tasks were done").into());
            }
            done += 1;
            bar.inc(1);
        }
        worker.kill().await?;
        while worker.next().await? {
            bar.inc(1);
        }
        let done = bar.position();
        bar.suspend(|| println!("killed worker 1 when {done} of {total} tasks were done; worker 2 takes over"));
        number = 2;
        worker = start(number)?;
    }
    while worker.next().await? {
        bar.inc(1);
    }
    bar.finish();
    worker.end(number).await
}

/// The program that says what the digests have to be.
struct Checker(&'static [&'static str]);

impl Checker {
    async fn find() -> Result<Self, Failure> {
        let candidates: [&[&str]; 2] = [&["sha256sum"], &["shasum", "-a", "256"]];
        for command in candidates {
            let mut version = Command::new(command[0]);
            version.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if version.status().await.is_ok() {
                return Ok(Self(command));
            }
        }
        Err("neither sha256sum nor shasum is installed, so the digests cannot be checked".into())
    }

    /// What the program prints for the file of each completed task, by path.
    async fn digests(
        &self,
        tasks: impl Iterator<Item = &StoredTask>,
    ) -> Result<HashMap<PathBuf, String>, Failure> {
        let paths = tasks.filter(|stored| stored.task.status == TaskStatus::Completed).map(path_of);
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        let bar = progress("check", paths.len())?;
        let command = self.0;
        let check = |path: PathBuf| async move {
            // It reads standard input: the name of a file may look like an option or hold a newline.
            let file = File::open(&path).map_err(|error| format!("cannot read {}: {error}", shown(&path)))?;
            let output = Command::new(command[0]).args(&command[1..]).stdin(file).output().await?;
            let printed = String::from_utf8_lossy(&output.stdout);
            let digest = printed.split_whitespace().next().unwrap_or_default().to_owned();
            Ok((path, digest))
        };
        let mut digests = HashMap::new();
        let keep = |(path, digest)| {
            bar.inc(1);
            digests.insert(path, digest);
            Ok(())
        };
        each(AT_ONCE, paths, check, keep).await?;
        bar.finish();
        Ok(digests)
    }
}

/// The result of a task.
#[derive(Deserialize)]
struct Hashed {
    sha256: String,
    bytes: u64,
    worker: usize,
}

/// Prints the table and the summary. Says whether every file is done exactly once with the right digest.
fn show(
    folder: &Path,
    files: &[PathBuf],
    tasks: &HashMap<PathBuf, StoredTask>,
    digests: &HashMap<PathBuf, String>,
) -> bool {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["file", "bytes", "worker", "claims", "done", "sha256", "sha256sum"]);
    for column in table.column_iter_mut().skip(1).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let (mut bytes, mut finished, mut interrupted) = (0, [0_usize; 3], 0);
    let mut wrong = Vec::new();
    for path in files {
        let name = shown(path.strip_prefix(folder).unwrap_or(path));
        let Some(stored) = tasks.get(path) else {
            wrong.push(format!("the task of {name} is missing"));
            table.add_row([&name, "-", "-", "-", "0", "missing", "-"]);
            continue;
        };
        let task = &stored.task;
        let claims = task.variables.len();
        interrupted += usize::from(claims > 1);
        let hashed = task.result.as_ref().and_then(|result| Hashed::deserialize(result).ok());
        let Some(hashed) = hashed else {
            let reason = task.error.as_ref().map(|error| error.message.clone());
            wrong.push(reason.unwrap_or_else(|| format!("the task of {name} is still {}", task.status)));
            table.add_row([&name, "-", "-", &claims.to_string(), "0", task.status.as_str(), "-"]);
            continue;
        };
        // Every write counts the version up: one created the task, one made each claim, the rest ended it.
        let done = stored.version.get().saturating_sub(1 + claims as u64);
        if done != 1 {
            wrong.push(format!("{name} was done {done} times"));
        }
        let same = digests.get(path) == Some(&hashed.sha256);
        if !same {
            wrong.push(format!("the digest of {name} differs from sha256sum's"));
        }
        bytes += hashed.bytes;
        if let Some(count) = finished.get_mut(hashed.worker) {
            *count += 1;
        }
        table.add_row([
            name,
            hashed.bytes.to_string(),
            hashed.worker.to_string(),
            claims.to_string(),
            done.to_string(),
            hashed.sha256.chars().take(16).collect(),
            if same { "same" } else { "DIFFERENT" }.to_owned(),
        ]);
    }
    println!("{}", table.trim_fmt());
    let [_, first, second] = finished;
    println!(
        "{} files, {bytes} bytes: worker 1 finished {first}, worker 2 finished {second}, {interrupted} of them \
         begun by both",
        files.len()
    );
    for reason in &wrong {
        eprintln!("hash_files: {reason}");
    }
    match wrong.len() {
        0 => println!("every file is done exactly once, and every digest is that of sha256sum"),
        problems => println!("{problems} of {} files are NOT done as they should be", files.len()),
    }
    wrong.is_empty()
}

/// A path in one line, whatever its name holds.
fn shown(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

/// A progress bar on standard error, which hides where that is not a terminal.
fn progress(what: &'static str, total: usize) -> Result<ProgressBar, Failure> {
    let style = ProgressStyle::with_template("{prefix:>6} [{bar:40}] {pos}/{len} {elapsed}")?;
    Ok(ProgressBar::new(total as u64).with_style(style.progress_chars("=> ")).with_prefix(what))
}
