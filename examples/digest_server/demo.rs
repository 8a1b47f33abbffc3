//! The demonstration. It fails if a step does not have the expected result.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mcp_task_store::{OwnerId, TaskId, TaskKey};
use rmcp::model::Task;
use tokio::time::Instant;

use crate::client::short;
use crate::engine::Engine;
use crate::instance::{Host, Instance};
use crate::operation::{Arguments, Digested, Progress};
use crate::server::stop_signal;
use crate::{Failure, LEASE, Options, Store, digest, with_config};

/// Runs the demonstration. Then deletes its tasks, also after an error.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let started = Instant::now();
    let (folder, files, expected) = digest_by_sha256sum(&options.folder).await?;
    let interrupted = stop_signal()?;
    let engine = Engine::of(options)?;
    let backend = engine.open().await?;
    let new_owner = || OwnerId::try_from(format!("digest-server-{}", TaskId::random()).as_str());
    let owner = options.owner.clone().map_or_else(new_owner, Ok)?;
    let host = match engine.is_shared() {
        true => Host::Processes { engine },
        false => Host::Runtimes { backend: Arc::clone(&backend) },
    };
    let pace = options.seconds.as_secs_f64() * 1000.0 / files as f64;
    let arguments = Arguments { pace, confirm: false, folder };
    let demo = Demo { started, files, expected, arguments, owner, host, tasks: RefCell::default() };
    let outcome = tokio::select! {
        outcome = demo.steps() => outcome,
        () = interrupted => Err("interrupted".into()),
    };
    let removed = demo.remove_tasks(&with_config(backend)).await;
    outcome?;
    removed
}

/// Returns the absolute path of a folder, the number of its files, and their digest by `sha256sum`.
async fn digest_by_sha256sum(folder: &Path) -> Result<(PathBuf, usize, String), Failure> {
    let files = digest::files(folder)?;
    if files.is_empty() {
        return Err(format!("there is no file to digest in {}", folder.display()).into());
    }
    let folder = folder.canonicalize()?;
    let bar = bar(files.len());
    let expected = digest::by_sha256sum(&folder, &files, || bar.inc(1)).await;
    bar.finish_and_clear();
    Ok((folder, files.len(), expected?))
}

struct Demo {
    started: Instant,
    files: usize,
    /// The digest by `sha256sum`.
    expected: String,
    arguments: Arguments,
    owner: OwnerId,
    host: Host,
    /// The ids of the started tasks.
    tasks: RefCell<Vec<String>>,
}

impl Demo {
    async fn steps(&self) -> Result<(), Failure> {
        let (files, folder) = (self.files, self.arguments.folder.display());
        self.print(format!("{files} files under {folder}"));
        let (first, second) = (self.start("1").await?, self.start("2").await?);
        self.answer_on_another(&first, &second).await?;
        self.cancel_on_another(&first, &second).await?;
        self.resume_after_a_kill(first, &second).await?;
        let third = self.start("3").await?;
        self.resume_after_a_shutdown(second, &third).await?;
        self.print(format!("server 3 {}", third.stop().await?));
        let expected = &self.expected;
        self.print(format!("each digest equals that of sha256sum over the {files} files: {expected}"));
        Ok(())
    }

    async fn answer_on_another(&self, first: &Instance, second: &Instance) -> Result<(), Failure> {
        let task = self.call(first, true).await?;
        let question = self.answer(second, &task).await?;
        let id = short(&task);
        self.print(format!("task {id} called on server 1, answered on server 2: {question} Yes."));
        self.finish(second, &task, "1", 1).await
    }

    async fn cancel_on_another(&self, first: &Instance, second: &Instance) -> Result<(), Failure> {
        let task = self.call(first, false).await?;
        let progress = second.client.progress(&task, has_done_a_third).await?;
        self.print(format!("task {} called on server 1, polled on server 2: {progress}", short(&task)));
        second.client.cancel(&task).await?;
        let stopped = second.client.cancelled(&task).await?;
        self.print(format!("task {} cancelled on server 2: {stopped}", short(&task)));
        Ok(())
    }

    async fn resume_after_a_kill(&self, first: Instance, second: &Instance) -> Result<(), Failure> {
        let task = self.call(&first, true).await?;
        self.answer(second, &task).await?;
        let progress = second.client.progress(&task, has_done_a_third).await?;
        self.print(format!("task {} called on server 1, answered on server 2: {progress}", short(&task)));
        let (killed, lease) = (first.kill().await?, LEASE.as_secs());
        self.print(format!("server 1 {killed}, with a lease of {lease} s on task {}", short(&task)));
        self.wait_until_resumed(second, &task).await?;
        self.finish(second, &task, "2", 2).await
    }

    async fn resume_after_a_shutdown(&self, second: Instance, third: &Instance) -> Result<(), Failure> {
        let task = self.call(&second, false).await?;
        let progress = third.client.progress(&task, has_done_a_third).await?;
        self.print(format!("task {} called on server 2, polled on server 3: {progress}", short(&task)));
        self.print(format!("server 2 {}: its lease is released", second.stop().await?));
        let took = self.wait_until_resumed(third, &task).await?;
        if took > LEASE - Duration::from_secs(1) {
            let reason = format!("the lease was not released: the task was resumed only after {took:.1?}");
            return Err(reason.into());
        }
        self.finish(third, &task, "3", 2).await
    }

    fn print(&self, line: impl AsRef<str>) {
        println!("{:5.1} s  {}", self.started.elapsed().as_secs_f64(), line.as_ref());
    }

    async fn start(&self, name: &'static str) -> Result<Instance, Failure> {
        let instance = Instance::start(name, &self.owner, &self.host).await?;
        self.print(instance.description());
        Ok(instance)
    }

    /// Calls the tool on an instance.
    async fn call(&self, on: &Instance, confirm: bool) -> Result<Task, Failure> {
        let arguments = Arguments { confirm, ..self.arguments.clone() };
        let task = on.client.digest_folder(&arguments).await?;
        self.tasks.borrow_mut().push(task.task_id.clone());
        Ok(task)
    }

    /// Polls on an instance until the task has an open request, and accepts it there. Returns its message.
    async fn answer(&self, on: &Instance, task: &Task) -> Result<String, Failure> {
        let (key, question) = on.client.question(task).await?;
        on.client.accept(task, key).await?;
        Ok(question)
    }

    /// Polls on an instance until the second attempt has begun. Returns how long that took.
    async fn wait_until_resumed(&self, by: &Instance, task: &Task) -> Result<Duration, Failure> {
        let lost = Instant::now();
        let progress = by.client.progress(task, |progress| progress.attempt > 1).await?;
        let took = lost.elapsed();
        self.print(format!("task {} resumed {:.1} s later: {progress}", short(task), took.as_secs_f64()));
        Ok(took)
    }

    /// Polls on an instance until the task is completed. It is an error if the digest differs from that of `sha256sum`, or if
    /// another server or another attempt computed it.
    async fn finish(&self, on: &Instance, task: &Task, server: &str, attempt: u32) -> Result<(), Failure> {
        let digested = on.client.digested(task).await?;
        let Digested { sha256, files, .. } = &digested;
        let by = format!("server {}, attempt {}", digested.server, digested.attempt);
        if (digested.server.as_str(), digested.attempt) != (server, attempt) {
            return Err(format!(
                "task {} was completed by {by}, not by server {server}, attempt {attempt}",
                short(task)
            )
            .into());
        }
        if *sha256 != self.expected {
            let expected = &self.expected;
            return Err(
                format!("the tool returned {sha256}, sha256sum {expected}; was a file changed?").into()
            );
        }
        let (id, on, start) = (short(task), on.name, sha256.get(..16).unwrap_or(sha256));
        self.print(format!("task {id} polled on server {on}: completed by {by}: {files} files, {start}…"));
        Ok(())
    }

    async fn remove_tasks(&self, store: &Store) -> Result<(), Failure> {
        for id in self.tasks.take() {
            store
                .delete(&TaskKey { owner: self.owner.clone(), task: TaskId::try_from(id.as_str())? })
                .await?;
        }
        Ok(())
    }
}

/// A third is enough progress to lose some, and leaves time to stop the server before the operation ends.
fn has_done_a_third(progress: &Progress) -> bool {
    progress.done >= progress.files / 3
}

fn bar(files: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("         {prefix} {bar:40} {pos} of {len} files");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(files as u64), ProgressDrawTarget::stdout());
    bar.with_prefix("sha256sum").with_style(style)
}
