//! What is done with the servers, and what has to come out of it. A step that does not come out is an error.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mcp_task_store::{OwnerId, TaskId, TaskKey};
use rmcp::model::Task;
use tokio::time::Instant;

use crate::client::short;
use crate::instance::{Instance, Place};
use crate::server::{Arguments, Digested, Progress, told_to_stop};
use crate::{Failure, LEASE, Options, Store, digest, open, with_config};

/// Tells the story, and leaves none of its tasks behind.
pub async fn tell(options: &Options) -> Result<(), Failure> {
    let started = Instant::now();
    let folder = &options.folder;
    let files = digest::files(folder)?;
    if files.is_empty() {
        return Err(format!("there is no file to digest in {}", folder.display()).into());
    }
    let folder = folder.canonicalize()?;
    let bar = bar(files.len());
    let expected = digest::by_sha256sum(&folder, &files, || bar.inc(1)).await;
    bar.finish_and_clear();

    let interrupted = told_to_stop()?;
    let backend = open(options.redis.as_deref()).await?;
    let new_owner = || OwnerId::try_from(format!("digest-server-{}", TaskId::random()).as_str());
    let owner = options.owner.clone().map_or_else(new_owner, Ok)?;
    let place = match &options.redis {
        Some(url) => Place::Processes { redis: url.clone() },
        None => Place::Runtimes { backend: Arc::clone(&backend) },
    };
    let story = Story {
        started,
        files: files.len(),
        expected: expected?,
        arguments: Arguments {
            pace: options.seconds.as_secs_f64() * 1000.0 / files.len() as f64,
            confirm: false,
            folder,
        },
        owner,
        place,
        tasks: RefCell::default(),
    };
    let outcome = tokio::select! {
        outcome = story.steps() => outcome,
        () = interrupted => Err("interrupted".into()),
    };
    let removed = story.remove_tasks(&with_config(backend)).await;
    outcome?;
    removed
}

struct Story {
    started: Instant,
    files: usize,
    /// The digest by `sha256sum`.
    expected: String,
    arguments: Arguments,
    owner: OwnerId,
    place: Place,
    /// The ids of the tasks that were begun.
    tasks: RefCell<Vec<String>>,
}

impl Story {
    async fn steps(&self) -> Result<(), Failure> {
        self.say(format!("{} files under {}", self.files, self.arguments.folder.display()));
        let (first, second) = (self.start("1").await?, self.start("2").await?);

        let task = self.call(&first, true).await?;
        let question = self.answer(&second, &task).await?;
        self.say(format!("task {} called on server 1, answered on server 2: {question} Yes.", short(&task)));
        self.finish(&second, &task, "1", 1).await?;

        let task = self.call(&first, false).await?;
        let progress = second.client.progress(&task, is_a_third).await?;
        self.say(format!("task {} called on server 1, polled on server 2: {progress}", short(&task)));
        second.client.cancel(&task).await?;
        let stopped = second.client.cancelled(&task).await?;
        self.say(format!("task {} cancelled on server 2: {stopped}", short(&task)));

        let task = self.call(&first, true).await?;
        self.answer(&second, &task).await?;
        let progress = second.client.progress(&task, is_a_third).await?;
        self.say(format!("task {} called on server 1, answered on server 2: {progress}", short(&task)));
        let killed = first.kill().await?;
        let lease = LEASE.as_secs();
        self.say(format!("server 1 {killed}, with a lease of {lease} s on task {}", short(&task)));
        self.taken_up(&second, &task).await?;
        self.finish(&second, &task, "2", 2).await?;

        let third = self.start("3").await?;
        let task = self.call(&second, false).await?;
        let progress = third.client.progress(&task, is_a_third).await?;
        self.say(format!("task {} called on server 2, polled on server 3: {progress}", short(&task)));
        self.say(format!("server 2 {}: its lease is released", second.stop().await?));
        let took = self.taken_up(&third, &task).await?;
        if took > LEASE - Duration::from_secs(1) {
            return Err(format!("the lease was not released: taken up after {took:.1?} only").into());
        }
        self.finish(&third, &task, "3", 2).await?;
        self.say(format!("server 3 {}", third.stop().await?));
        let (files, expected) = (self.files, &self.expected);
        self.say(format!("each digest is the one that sha256sum gives over the {files} files: {expected}"));
        Ok(())
    }

    fn say(&self, what: impl AsRef<str>) {
        println!("{:5.1} s  {}", self.started.elapsed().as_secs_f64(), what.as_ref());
    }

    async fn start(&self, name: &'static str) -> Result<Instance, Failure> {
        let instance = Instance::start(name, &self.owner, &self.place).await?;
        self.say(instance.description());
        Ok(instance)
    }

    /// Calls the tool there.
    async fn call(&self, on: &Instance, confirm: bool) -> Result<Task, Failure> {
        let arguments = Arguments { confirm, ..self.arguments.clone() };
        let task = on.client.digest_folder(&arguments).await?;
        self.tasks.borrow_mut().push(task.task_id.clone());
        Ok(task)
    }

    /// Polls there until the task asks, and answers there.
    async fn answer(&self, on: &Instance, task: &Task) -> Result<String, Failure> {
        let (key, question) = on.client.question(task).await?;
        on.client.accept(task, key).await?;
        Ok(question)
    }

    /// Polls there until a second attempt has begun there, and says how long that took.
    async fn taken_up(&self, by: &Instance, task: &Task) -> Result<Duration, Failure> {
        let lost = Instant::now();
        let progress = by.client.progress(task, |progress| progress.attempt > 1).await?;
        let took = lost.elapsed();
        self.say(format!("task {} taken up {:.1} s later: {progress}", short(task), took.as_secs_f64()));
        Ok(took)
    }

    /// Polls there until the task is completed. Another digest than `sha256sum` gives, or one by another server or
    /// attempt, is an error.
    async fn finish(&self, on: &Instance, task: &Task, server: &str, attempt: u32) -> Result<(), Failure> {
        let digested = on.client.digested(task).await?;
        let Digested { sha256, files, .. } = &digested;
        let by = format!("server {}, attempt {}", digested.server, digested.attempt);
        if (digested.server.as_str(), digested.attempt) != (server, attempt) {
            return Err(format!("task {} was completed by {by}", short(task)).into());
        }
        if *sha256 != self.expected {
            let expected = &self.expected;
            return Err(format!("the tool gives {sha256}, sha256sum {expected}; was a file changed?").into());
        }
        let (id, on, start) = (short(task), on.name, sha256.get(..16).unwrap_or(sha256));
        self.say(format!("task {id} polled on server {on}: completed by {by}: {files} files, {start}…"));
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

/// Far enough that something is lost, and not so far that the end comes first.
fn is_a_third(progress: &Progress) -> bool {
    progress.done >= progress.files / 3
}

fn bar(files: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("         {prefix} {bar:40} {pos} of {len} files");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(files as u64), ProgressDrawTarget::stdout());
    bar.with_prefix("sha256sum").with_style(style)
}
