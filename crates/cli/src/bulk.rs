//! Changes tasks: those that the command line names, or all that match its filters.

use std::io::{self, IsTerminal, Write};

use dialoguer::Confirm;
use futures_util::{StreamExt, stream};
use mcp_task_console::operator::{Action, Outcome};
use mcp_task_store::{OwnerId, StoredTask, TaskError, TaskKey};

use crate::action::{outcome_json, past_tense, sentence};
use crate::engine::Store;
use crate::failure::{Failure, task_error};
use crate::interrupt::Interrupt;
use crate::key;
use crate::output::tasks::TaskPrinter;
use crate::output::{json, progress, remark, text};
use crate::selection::Wanted;

/// How many tasks are changed at the same time.
const CONCURRENT: usize = 16;

/// How a command changes tasks.
pub struct Change {
    pub action: Action,
    pub yes: bool,
    pub dry_run: bool,
    pub json: bool,
    pub quiet: bool,
}

impl Change {
    /// Changes the tasks that the command line names.
    pub async fn named(
        &self,
        store: &Store,
        owner: Option<&OwnerId>,
        tasks: &[String],
    ) -> Result<(), Failure> {
        let keys = tasks.iter().map(|task| key::parse(owner, task)).collect::<Result<Vec<_>, _>>()?;
        let (mut failures, mut printer) = (0, TaskPrinter::new(self.json));
        for key in &keys {
            let stored = match store.get(key).await {
                Ok(stored) => stored,
                Err(TaskError::Unreadable { .. })
                    if self.action == (Action::Delete { force: true }) && !self.dry_run =>
                {
                    let deleted = store.delete(key).await.map(|()| Outcome::Deleted);
                    failures += self.report(key, deleted.map_err(|error| task_error(&error, key)))?;
                    continue;
                }
                Err(error) => {
                    failures += self.report(key, Err(task_error(&error, key)))?;
                    continue;
                }
            };
            if self.dry_run {
                printer.print(&[stored], store.backend().now())?;
                continue;
            }
            failures += self.report(key, self.apply_to_named(store, &stored).await)?;
        }
        printer.finish()?;
        if failures > 0 { Err(Failure::Reported) } else { Ok(()) }
    }

    async fn apply_to_named(&self, store: &Store, stored: &StoredTask) -> Result<Outcome, String> {
        let is_open = !stored.task.status.is_terminal();
        if is_open && self.action == (Action::Delete { force: false }) {
            return Err(format!(
                "task {} is {} and was not deleted; cancel it first, or pass --force",
                key::display(&stored.key),
                stored.task.status
            ));
        }
        self.action.apply(store, stored).await.map_err(|error| task_error(&error, &stored.key))
    }

    /// Changes all tasks that match.
    pub async fn matching(&self, store: &Store, wanted: &Wanted) -> Result<(), Failure> {
        let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
        if !self.yes && !self.dry_run && !can_ask {
            return Err(Failure::usage(format!(
                "there is no terminal to ask on; pass --yes to {0} all tasks that match, or --dry-run to list them",
                self.action.verb()
            )));
        }
        wanted.announce();
        let matching = self.count(store, wanted).await?;
        let verb = self.action.verb();
        if self.dry_run {
            let tasks = text::count(matching, "task");
            remark(self.quiet, format_args!("would {verb} {tasks}; without --dry-run, the command does it"));
            return Ok(());
        }
        if matching == 0 {
            remark(self.quiet, format_args!("no task to {verb}"));
            return Ok(());
        }
        if !self.yes && !confirm(format!("{} {}?", capitalized(verb), text::count(matching, "task"))).await? {
            remark(self.quiet, "nothing was changed");
            return Ok(());
        }
        self.apply_to_matching(store, wanted, matching).await
    }

    /// Counts the tasks that match, and lists them for a dry run.
    async fn count(&self, store: &Store, wanted: &Wanted) -> Result<u64, Failure> {
        let (mut matching, mut left_out, mut printer) = (0, 0, TaskPrinter::new(self.json));
        let mut selection = wanted.select(store);
        while let Some(mut page) = selection.next_page().await? {
            let found = page.len();
            page.retain(|stored| self.action.selects(stored));
            matching += page.len() as u64;
            left_out += (found - page.len()) as u64;
            if self.dry_run {
                selection.print(|| printer.print(&page, store.backend().now()))?;
            }
        }
        selection.mention_unreadable(self.quiet);
        printer.finish()?;
        if left_out > 0 {
            let (tasks, why) = (text::count(left_out, "task"), self.left_out());
            remark(self.quiet, format_args!("leaves out {tasks}: {why}"));
        }
        Ok(matching)
    }

    /// Returns why the action leaves out a task that matches.
    fn left_out(&self) -> &'static str {
        match self.action {
            Action::RequestCancel => "ended, or a cancel was requested before",
            Action::CancelNow => "ended",
            Action::Requeue => "not ended, or without an operation that a worker can run",
            Action::Delete { .. } => "not ended",
        }
    }

    async fn apply_to_matching(&self, store: &Store, wanted: &Wanted, matching: u64) -> Result<(), Failure> {
        let interrupt = Interrupt::listen();
        let bar = progress::bar(matching, self.quiet);
        let (mut done, mut failures) = (0_u64, 0_u64);
        let mut selection = wanted.silent().select(store);
        loop {
            let page = tokio::select! {
                page = selection.next_page() => page?,
                () = interrupt.pressed() => break,
            };
            let Some(mut page) = page else { break };
            page.retain(|stored| self.action.selects(stored));
            let mut applied = stream::iter(page)
                .take_while(|_| std::future::ready(!interrupt.is_set()))
                .map(|stored| async move { (self.action.apply(store, &stored).await, stored.key) })
                .buffer_unordered(CONCURRENT);
            while let Some((outcome, key)) = applied.next().await {
                let is_outage = matches!(&outcome, Err(TaskError::Storage(error)) if error.is_retryable());
                let outcome = outcome.map_err(|error| task_error(&error, &key));
                bar.inc(1);
                match &outcome {
                    Ok(_) => done += 1,
                    Err(_) => failures += 1,
                }
                bar.suspend(|| self.report_one_of_many(&key, outcome))?;
                if is_outage {
                    bar.finish_and_clear();
                    return Err(self.stopped("the store fails", done, matching));
                }
            }
        }
        bar.finish_and_clear();
        if interrupt.is_set() && done + failures < matching {
            return Err(self.stopped("interrupted", done, matching));
        }
        remark(self.quiet, format_args!("{} {}", past_tense(self.action), text::count(done, "task")));
        match failures {
            0 => Ok(()),
            failures => {
                Err(Failure::failed(format!("{} could not be changed", text::count(failures, "task"))))
            }
        }
    }

    fn stopped(&self, why: &str, done: u64, matching: u64) -> Failure {
        let command = shell_words::join(std::env::args());
        Failure::failed(format!(
            "{why}: {} {} of {}; to continue, run the command again: {command}",
            past_tense(self.action),
            text::with_commas(done),
            text::count(matching, "task")
        ))
    }

    /// Prints the outcome of one of the tasks that match: for people only failures.
    fn report_one_of_many(&self, key: &TaskKey, outcome: Result<Outcome, String>) -> Result<(), Failure> {
        if self.json || outcome.is_err() {
            self.report(key, outcome)?;
        }
        Ok(())
    }

    /// Prints the outcome of one task. Returns how many failed.
    fn report(&self, key: &TaskKey, outcome: Result<Outcome, String>) -> Result<u64, Failure> {
        let failures = u64::from(outcome.is_err());
        if self.json {
            writeln!(io::stdout(), "{}", json::line(&outcome_json(self.action, key, &outcome)))?;
        }
        match outcome {
            Ok(outcome) if !self.json => writeln!(io::stdout(), "{}", sentence(&outcome, key))?,
            Ok(_) => {}
            Err(error) => {
                Failure::failed(error).report();
            }
        }
        Ok(failures)
    }
}

/// Asks a question on the terminal. The answer is no unless the user types y.
async fn confirm(question: String) -> Result<bool, Failure> {
    let ask = move || Confirm::new().with_prompt(question).default(false).interact();
    Ok(tokio::task::block_in_place(ask)?)
}

fn capitalized(verb: &str) -> String {
    let mut letters = verb.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}
