//! `mcp-tasks watch TASK`

use std::io::{self, Write};
use std::time::Duration;

use futures_util::StreamExt;
use mcp_task_store::{StorageBackend, StoredTask, TaskError};
use tokio::time::{sleep, timeout};

use crate::args::WatchArgs;
use crate::engine::Store;
use crate::failure::{Failure, with_causes};
use crate::key;
use crate::output::{json, remark, tasks, text};

/// How often the task is read if no notification arrives: its TTL may elapse.
const LONGEST: Duration = Duration::from_secs(5);
/// How long the command waits after a failure of the store.
const PAUSE: Duration = Duration::from_secs(1);

/// Prints a line for each change of a task, until it ends.
pub async fn run(store: &Store, task: &str, args: &WatchArgs) -> Result<(), Failure> {
    if !args.filter.is_empty_but_owner() {
        return Err(Failure::usage("the command names a task and has filters; use one of the two"));
    }
    let key = key::parse(args.filter.owner.as_ref(), task)?;
    let mut shown = None;
    // The watch begins before the first read, so no change is missed between the two.
    let mut changes = store.backend().watch(&key);
    loop {
        match store.get(&key).await {
            Ok(stored) => {
                let line = line(&stored, store, args.form.json);
                // A renewal of the lease is a new version that looks the same.
                if shown.as_ref() != Some(&line) {
                    let mut out = io::stdout().lock();
                    writeln!(out, "{line}")?;
                    out.flush()?;
                    shown = Some(line);
                }
                if stored.task.status.is_terminal() {
                    return Ok(());
                }
            }
            Err(error @ TaskError::NotFound { .. }) if shown.is_none() => {
                return Err(Failure::of_task(&error, &key));
            }
            Err(TaskError::NotFound { .. }) => {
                return Err(Failure::failed(format!(
                    "task {} was deleted or has expired",
                    key::display(&key)
                )));
            }
            Err(TaskError::Storage(error)) if error.is_retryable() => {
                remark(
                    false,
                    format_args!(
                        "the store fails, and the command tries again: {}",
                        text::plain(&with_causes(&error))
                    ),
                );
                sleep(PAUSE).await;
            }
            Err(error) => return Err(Failure::of_task(&error, &key)),
        }
        if let Ok(None) = timeout(LONGEST, changes.next()).await {
            // The record is gone, or the watch has failed. The next read says which.
            changes = store.backend().watch(&key);
            sleep(PAUSE).await;
        }
    }
}

/// Returns the line that shows a task.
fn line(stored: &StoredTask, store: &Store, as_json: bool) -> String {
    let now = store.backend().now();
    if as_json {
        return json::line(&json::task(stored, now));
    }
    let (time, status) = (text::time(stored.task.last_updated_at), tasks::status(stored, now));
    let line = format!("{time}  {status}  {}", text::plain(&tasks::message(&stored.task)));
    line.trim_end().to_owned()
}
