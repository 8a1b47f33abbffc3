//! `mcp-tasks show`

use std::io::{self, Write};

use mcp_task_store::{
    PartName, Payload, PayloadKind, StorageBackend, StorageError, StoredTask, TaskError, TaskKey,
};
use serde_json::Value;

use crate::args::ShowArgs;
use crate::engine::Store;
use crate::failure::{Failure, task_error};
use crate::input_form::{method, question};
use crate::key;
use crate::output::{Target, json, tasks, text};

/// How many lines of a value the page of a task shows.
const MAX_LINES: usize = 40;
/// How many lines of a field the page shows.
const FIELD_LINES: usize = 8;
/// Where the value of a field begins.
const FIELD: usize = 19;
/// Where an event of the history begins, behind its time.
const EVENT: usize = 28;
/// How many columns of a line the page shows in a pipe.
const WIDEST_IN_A_PIPE: usize = 1_000;
/// A payload over this size is not loaded for the page.
const MAX_LOADED_BYTES: usize = 64 * 1024;

pub async fn run(store: &Store, args: &ShowArgs) -> Result<(), Failure> {
    let key = key::parse(args.task.owner.as_ref(), &args.task.task)?;
    if args.raw {
        return print_bytes(&record(store, &key).await?, "the record", "--raw");
    }
    if let Some(name) = &args.part {
        return print_part(store, &key, name).await;
    }
    let stored = store.get(&key).await.map_err(|error| Failure::of_task(&error, &key))?;
    if args.form.json {
        return print_json(store, &stored).await;
    }
    Page { store, stored: &stored, target: Target::of_stdout() }.print().await
}

/// Reads the stored JSON of a task.
async fn record(store: &Store, key: &TaskKey) -> Result<Vec<u8>, Failure> {
    let record = store.backend().get(key).await.map_err(|error| storage_failure(error, key))?;
    Ok(record.data.to_vec())
}

async fn print_part(store: &Store, key: &TaskKey, name: &PartName) -> Result<(), Failure> {
    let part = store.backend().part(key, name).await.map_err(|error| storage_failure(error, key))?;
    match part {
        Some(part) => print_bytes(&part.data, "the part", "--part"),
        None => Err(Failure::failed(format!(
            "task {} has no part {name}; parts hold payloads over 4 KiB, and `mcp-tasks show` prints smaller ones",
            key::display(key)
        ))),
    }
}

fn storage_failure(error: StorageError, key: &TaskKey) -> Failure {
    match error {
        StorageError::NotFound { .. } => {
            Failure::of_task(&TaskError::NotFound { task: key.task.clone() }, key)
        }
        error => error.into(),
    }
}

/// Prints bytes as they are in a pipe. On a terminal, characters that it would interpret are escaped.
fn print_bytes(bytes: &[u8], what: &str, option: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if !Target::of_stdout().is_terminal() {
        out.write_all(bytes)?;
        return Ok(out.flush()?);
    }
    let shown = std::str::from_utf8(bytes).map_err(|_| {
        Failure::failed(format!("{what} is not text; redirect the output of {option} to a file"))
    })?;
    for line in shown.lines() {
        writeln!(out, "{}", text::plain(line))?;
    }
    Ok(())
}

async fn print_json(store: &Store, stored: &StoredTask) -> Result<(), Failure> {
    let failure = |error| storage_failure(error, &stored.key);
    let record = store.backend().get(&stored.key).await.map_err(failure)?;
    let stored_json: Value = serde_json::from_slice(&record.data).map_err(|error| {
        Failure::failed(format!("the record of task {} is not JSON: {error}", key::display(&stored.key)))
    })?;
    let parts: serde_json::Map<String, Value> =
        record.parts.iter().map(|(name, bytes)| (name.to_string(), (*bytes).into())).collect();
    let mut task = json::task(stored, store.backend().now());
    if let Some(fields) = task.as_object_mut() {
        fields.insert("version".to_owned(), record.version.get().into());
        fields.insert("parts".to_owned(), parts.into());
        fields.insert("history".to_owned(), json::history(&stored.task));
        fields.insert("record".to_owned(), stored_json);
    }
    Ok(writeln!(io::stdout(), "{}", json::line(&task))?)
}

/// The page that describes a task to a person.
struct Page<'a> {
    store: &'a Store,
    stored: &'a StoredTask,
    target: Target,
}

impl Page<'_> {
    async fn print(&self) -> Result<(), Failure> {
        let task = &self.stored.task;
        self.print_state()?;
        self.print_lease()?;
        self.print_questions()?;
        self.print_history()?;
        let arguments = Some(&task.arguments).filter(|arguments| **arguments != Payload::Inline(Value::Null));
        self.print_payload("Arguments", PayloadKind::Input, "input", arguments).await?;
        self.print_payload("Checkpoint", PayloadKind::Checkpoint, "checkpoint", task.checkpoint.as_ref())
            .await?;
        self.print_payload("Result", PayloadKind::Output, "output", task.result.as_ref()).await?;
        if let Some(error) = &task.error {
            self.title("Error")?;
            self.field("code", error.code)?;
            self.field("message", &error.message)?;
            if let Some(data) = &error.data {
                self.value(data)?;
            }
        }
        Ok(())
    }

    fn print_state(&self) -> Result<(), Failure> {
        let (stored, now) = (self.stored, self.store.backend().now());
        let task = &stored.task;
        let style = if self.target.is_terminal() { tasks::style(stored, now) } else { Default::default() };
        let (shown, status) = (key::display(&stored.key), tasks::status(stored, now));
        writeln!(anstream::stdout(), "{style}{shown}  {status}{style:#}")?;
        let ago = |at| format!("{} ({} ago)", text::time(at), text::age(at, now));
        self.field("tool", task.tool().unwrap_or("-"))?;
        self.field("method", &task.method)?;
        self.field("created", ago(task.created_at))?;
        self.field("changed", ago(task.last_updated_at))?;
        self.field("TTL", task.ttl_ms.map_or("unlimited".to_owned(), millis))?;
        self.field("record expires", stored.expires_at.map_or("never".to_owned(), text::time))?;
        if let Some(progress) = &task.progress {
            self.field("progress", tasks::progress(progress))?;
        }
        if let Some(message) = &task.status_message {
            self.field("message", message)?;
        }
        if let Some(attempts) = task.gave_up_after {
            self.field("gave up after", text::count(attempts.into(), "attempt"))?;
        }
        if let Some(ended) = &task.requeued_from {
            self.field("requeued from", ended)?;
        }
        if let Some(traceparent) = &task.traceparent {
            self.field("traceparent", traceparent)?;
        }
        Ok(())
    }

    fn print_lease(&self) -> Result<(), Failure> {
        let Some(lease) = &self.stored.task.lease else { return Ok(()) };
        self.title("Lease")?;
        self.field("holder", lease.holder.as_deref().unwrap_or("none: the task waits for a worker"))?;
        self.field("attempt", lease.attempt)?;
        self.field("lost or retried", lease.losses)?;
        self.field("renewals", lease.renewals)?;
        self.field("duration", millis(lease.duration_ms))?;
        let deadline = if lease.holder.is_some() { "lapses" } else { "earliest start" };
        self.field(deadline, text::time(lease.deadline))
    }

    fn print_questions(&self) -> Result<(), Failure> {
        let task = &self.stored.task;
        if !task.input_requests.is_empty() {
            self.title("Open questions (`mcp-tasks answer` answers them)")?;
            for (key, request) in &task.input_requests {
                self.field(key, question(request).unwrap_or_else(|| method(request)))?;
            }
        }
        if !task.input_responses.is_empty() {
            self.title("Answers")?;
            for (key, answer) in &task.input_responses {
                if let Some(request) = task.answered_requests.get(key).and_then(question) {
                    self.field(&format!("{key} asks"), request)?;
                }
                self.field(key, answer)?;
            }
        }
        Ok(())
    }

    fn print_history(&self) -> Result<(), Failure> {
        let history = &self.stored.task.history;
        if history.is_empty() {
            return Ok(());
        }
        self.title("History")?;
        let mut out = io::stdout().lock();
        for event in history {
            let by = event.attempt.map(|attempt| match &event.holder {
                Some(holder) => format!("  attempt {attempt} of {holder}"),
                None => format!("  attempt {attempt}"),
            });
            let detail = event.detail.as_ref().map(|detail| format!("  {detail}"));
            let kind = event.kind.as_str().replace('_', " ");
            let line = format!("{kind}{}{}", by.unwrap_or_default(), detail.unwrap_or_default());
            let line = text::cut(&line, self.width(EVENT));
            writeln!(out, "  {}  {line}", text::time(event.at))?;
        }
        Ok(())
    }

    async fn print_payload(
        &self,
        title: &str,
        kind: PayloadKind,
        part: &str,
        payload: Option<&Payload>,
    ) -> Result<(), Failure> {
        match payload {
            None => Ok(()),
            Some(Payload::Stored { bytes }) if *bytes > MAX_LOADED_BYTES => self.title(&format!(
                "{title}: {} (--part {part} prints them)",
                text::count(*bytes as u64, "byte")
            )),
            Some(_) => {
                let loaded = self.store.payload(self.stored, kind).await;
                let value = loaded.map_err(|error| Failure::failed(task_error(&error, &self.stored.key)))?;
                self.title(title)?;
                self.value(&value.unwrap_or_default())
            }
        }
    }

    fn title(&self, title: &str) -> Result<(), Failure> {
        let style = if self.target.is_terminal() { anstyle::Style::new().bold() } else { Default::default() };
        Ok(writeln!(anstream::stdout(), "\n{style}{}{style:#}", text::plain(title))?)
    }

    fn field(&self, name: &str, value: impl ToString) -> Result<(), Failure> {
        let (mut name, mut out) = (text::cut(&format!("{name}:"), 40), io::stdout().lock());
        for line in text::wrap(&value.to_string(), self.width(FIELD), FIELD_LINES) {
            writeln!(out, "  {name:<16} {line}")?;
            name.clear();
        }
        Ok(())
    }

    fn value(&self, value: &Value) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        for line in text::cut_lines(&text::pretty(value), MAX_LINES, self.width(2)) {
            writeln!(out, "  {line}")?;
        }
        Ok(())
    }

    /// Returns how many columns are left behind an indentation.
    fn width(&self, indentation: usize) -> usize {
        match self.target {
            Target::Terminal { width } => width.saturating_sub(indentation).max(10),
            Target::Pipe => WIDEST_IN_A_PIPE,
        }
    }
}

fn millis(millis: u64) -> String {
    humantime::format_duration(std::time::Duration::from_millis(millis)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_for_people() {
        assert_eq!([500, 30_000, 5_400_000].map(millis), ["500ms", "30s", "1h 30m"]);
    }
}
