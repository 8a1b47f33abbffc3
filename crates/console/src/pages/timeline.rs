//! What has happened to a task, from its history.

use maud::{Markup, html};
use mcp_task_store::{EventKind, Task, TaskEvent};

use crate::text;

/// Returns the timeline. A task of an earlier version has no history.
pub(super) fn show(task: &Task) -> Markup {
    let begun = task.history.first().map(|event| event.at);
    html! {
        @if task.history.is_empty() {
            p.empty { "The record of this task has no history." }
        } @else {
            ol.timeline {
                @for event in &task.history {
                    li class=(tone(&event.kind)) {
                        time datetime=(text::time(event.at)) { (text::time(event.at)) }
                        @if let Some(begun) = begun.filter(|begun| *begun != event.at) {
                            " " span.more { "+" (text::duration((event.at - begun).num_milliseconds().unsigned_abs())) }
                        }
                        strong { (sentence(event)) }
                        @if let Some(detail) = &event.detail { " " span.detail { (text::field(detail)) } }
                        @if let Some(holder) = &event.holder { " " span.more { "by " (text::cut(holder, 40)) } }
                    }
                }
            }
        }
    }
}

fn sentence(event: &TaskEvent) -> String {
    let attempt = event.attempt.unwrap_or_default();
    match &event.kind {
        EventKind::Created => "Created".to_owned(),
        EventKind::Enqueued => "Waits for a worker".to_owned(),
        EventKind::Requeued => "Requeued: waits for a worker".to_owned(),
        EventKind::Started => "Started".to_owned(),
        EventKind::Resumed => format!("Attempt {attempt} started"),
        EventKind::InputRequested => "Asked the client".to_owned(),
        EventKind::InputAnswered => "The client answered".to_owned(),
        EventKind::CancelRequested => "The client requested a cancel".to_owned(),
        EventKind::Released => "The worker released the task".to_owned(),
        EventKind::LeaseLost => format!("The worker of attempt {attempt} was lost"),
        EventKind::AttemptFailed => format!("Attempt {attempt} failed"),
        EventKind::Completed => "Completed".to_owned(),
        EventKind::Failed => "Failed".to_owned(),
        EventKind::Cancelled => "Cancelled".to_owned(),
        later => text::cut(later.as_str(), 40),
    }
}

fn tone(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::LeaseLost | EventKind::AttemptFailed | EventKind::Failed => "bad",
        EventKind::InputRequested | EventKind::CancelRequested | EventKind::Released => "notable",
        EventKind::Completed => "good",
        _ => "plain",
    }
}
