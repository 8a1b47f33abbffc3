//! The JSON of a task: arguments, checkpoint, result, and the record itself.

use maud::{Markup, html};
use mcp_task_store::{Payload, PayloadKind, StorageBackend, StoredTask, TaskError, TaskKey};
use serde_json::Value;

use crate::frame::Frame;
use crate::json;
use crate::router::Store;
use crate::text;

/// A payload over this size is not loaded for the page.
const MAX_LOADED_BYTES: usize = 64 * 1024;
/// How many characters of a record the page shows.
const MAX_RECORD_CHARS: usize = 64 * 1024;

/// Returns a section with a payload; nothing if the task has none.
pub(super) async fn payload(
    frame: &Frame,
    store: &Store,
    stored: &StoredTask,
    kind: PayloadKind,
    title: &str,
) -> Markup {
    let content = match stored.task.payload(kind) {
        None => return html! {},
        Some(Payload::Stored { bytes }) if *bytes > MAX_LOADED_BYTES => html! {
            p.more {
                (text::count(*bytes as u64, "byte")) ", not loaded. "
                code { "mcp-tasks show --part " (kind.part()) } " prints them."
            }
        },
        Some(_) => match store.payload(stored, kind).await {
            Ok(value) => json::tree(&value.unwrap_or_default()),
            Err(error) => html! { p.problem role="alert" { (text::field(&frame.reason(&error))) } },
        },
    };
    html! { section { h2 { (title) } (content) } }
}

/// Returns a section with the stored JSON of a task, folded.
pub(super) async fn record(frame: &Frame, store: &Store, key: &TaskKey) -> Markup {
    let content = match store.backend().get(key).await {
        Ok(record) => html! {
            p.more {
                "Version " (record.version.get()) ", " (text::count(record.data.len() as u64, "byte"))
                @for (name, bytes) in record.parts.iter() { ", part " (name) ": " (text::count(*bytes as u64, "byte")) }
            }
            pre tabindex="0" { (text::lines(&without_secret(&record.data), MAX_RECORD_CHARS)) }
        },
        Err(error) => {
            html! { p.problem role="alert" { (text::field(&frame.reason(&TaskError::Storage(error)))) } }
        }
    };
    html! { section { details.record { summary { h2 { "Raw record" } } (content) } } }
}

/// Returns the JSON of a record without the key that seals the states of its clients. A record that is not JSON ends where the key may be.
fn without_secret(data: &[u8]) -> String {
    let Ok(mut record) = serde_json::from_slice::<Value>(data) else {
        let text = String::from_utf8_lossy(data);
        return match text.split_once("\"secret\"") {
            Some((before, _)) => format!("{before}\"secret\": (the rest is hidden)"),
            None => text.into_owned(),
        };
    };
    if let Some(secret) = record.pointer_mut("/adapter/secret") {
        *secret = Value::from("(hidden)");
    }
    serde_json::to_string_pretty(&record).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_shown_without_its_secret_also_if_it_is_not_json() {
        let record = r#"{"status":"working","adapter":{"secret":"s3cret"}}"#;
        let deep = format!(
            r#"{{"status":"working","adapter":{{"secret":"s3cret"}},"result":{}{}}}"#,
            "[".repeat(200),
            "]".repeat(200)
        );
        for data in [record, &record[..record.len() - 1], &deep] {
            let shown = without_secret(data.as_bytes());
            assert!(
                shown.contains("working") && shown.contains("hidden") && !shown.contains("s3cret"),
                "{shown}"
            );
        }
        assert_eq!(without_secret(b"no task"), "no task");
    }
}
