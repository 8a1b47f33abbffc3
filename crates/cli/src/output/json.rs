//! JSON for scripts: one object a line. docs/guide/cli.md documents the fields, and they stay as they are.

use std::fmt::Write;

use mcp_task_store::{Printable, StoredTask, Task, TaskEvent, TaskFilter};
use serde_json::{Value, json};

use super::text::time;
use chrono::{DateTime, Utc};

/// Returns the fields that every command prints of a task.
pub fn task(stored: &StoredTask, now: DateTime<Utc>) -> Value {
    let task = &stored.task;
    let lease = task.lease.as_ref();
    json!({
        "owner": stored.key.owner,
        "taskId": stored.key.task,
        "status": task.status,
        "statusMessage": task.status_message,
        "tool": task.tool(),
        "method": task.method,
        "progress": task.progress,
        "createdAt": time(task.created_at),
        "lastUpdatedAt": time(task.last_updated_at),
        "expiresAt": stored.expires_at.map(time),
        "attempt": lease.map(|lease| lease.attempt),
        "holder": lease.and_then(|lease| lease.holder.as_deref()),
        "cancelRequested": task.cancel_requested,
        "stuck": TaskFilter::new().stuck().matches(stored, now),
        "dead": TaskFilter::new().dead().matches(stored, now),
    })
}

/// Returns the events in the history of a task.
pub fn history(task: &Task) -> Value {
    let event = |event: &TaskEvent| {
        json!({
            "at": time(event.at),
            "kind": event.kind.as_str(),
            "attempt": event.attempt,
            "holder": event.holder,
            "detail": event.detail,
        })
    };
    task.history.iter().map(event).collect()
}

/// Returns JSON on one line. Characters that a terminal would interpret are escaped, so the value stays the same.
pub fn line(value: &Value) -> String {
    let json = value.to_string();
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        if Printable::escapes(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(line, "\\u{unit:04x}");
            }
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_the_same_value_without_characters_that_a_terminal_interprets() {
        let value = json!({ "a\u{9b}": "x\u{202e}\n\u{1b}[2K\u{e0001}\\u{41}", "ю": "🦀" });
        let line = line(&value);
        assert!(!line.contains(Printable::escapes), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
    }
}
