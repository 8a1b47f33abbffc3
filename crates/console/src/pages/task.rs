//! One task.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use mcp_task_store::{Lease, PayloadKind, Progress, StorageBackend, StoredTask, TaskError, TaskKey};
use serde::Deserialize;
use serde_json::Value;

use super::{no_such_task, payloads, timeline, unavailable};
use crate::actions;
use crate::frame::{Frame, query};
use crate::json;
use crate::layout::{self, Section};
use crate::live::fragment;
use crate::router::Shared;
use crate::text;

/// The task of a page.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ids {
    pub(crate) owner: String,
    pub(crate) id: String,
    /// The key of a question of the task.
    pub(crate) key: String,
}

pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    Query(ids): Query<Ids>,
) -> Response {
    let Some(key) = frame.visitor.key(&ids.owner, &ids.id) else { return no_such_task(&frame) };
    match shared.store.get(&key).await {
        Ok(stored) => page(&shared, &frame, &stored).await.into_response(),
        Err(TaskError::NotFound { .. }) => no_such_task(&frame),
        Err(error) if error.is_retryable() => unavailable(&frame, &error),
        Err(error) => unreadable(&shared, &frame, &key, &error).await,
    }
}

/// The record is there, and is not a task that this version can read.
async fn unreadable(shared: &Shared, frame: &Frame, key: &TaskKey, error: &TaskError) -> Response {
    let body = html! {
        p.problem role="alert" { (text::field(&frame.reason(error))) }
        (payloads::record(frame, &shared.store, key).await)
    };
    let page = layout::page(frame, Some(Section::Tasks), "This task cannot be read", None, body);
    (StatusCode::BAD_GATEWAY, page).into_response()
}

async fn page(shared: &Shared, frame: &Frame, stored: &StoredTask) -> Markup {
    let (task, store, now) = (&stored.task, &shared.store, shared.store.backend().now());
    let title = format!("Task {}", text::cut(stored.key.task.as_str(), 80));
    let lead = html! {
        p.lead {
            (layout::status(stored, now))
            @if let Some(progress) = &task.progress { " " (self::progress(progress)) }
            @if let Some(message) = &task.status_message { " " (text::field(message)) }
        }
        (actions::offered(shared, frame, stored))
        @if let Some(error) = &task.error {
            section.problem aria-label="Error" {
                strong { "Error " (error.code) ": " } (text::cut(&error.message, 2_000))
                @if let Some(data) = &error.data { (json::tree(data)) }
            }
        }
    };
    let lease =
        html! { @if let Some(lease) = &task.lease { section { h2 { "Lease" } (self::lease(lease, now)) } } };
    let variables = html! {
        @if !task.variables.is_empty() {
            section { h2 { "Variables" } (json::tree(&task.variables.clone().into_iter().collect())) }
        }
    };
    let body = html! {
        (fragment("lead", lead))
        div.columns {
            section { h2 { "Facts" } (fragment("facts", facts(frame, stored, now))) }
            section { h2 { "Timeline" } (fragment("timeline", timeline::show(task))) }
        }
        (fragment("lease", lease))
        (fragment("inputs", inputs(stored, |question| actions::answer_link(shared, frame, stored, question))))
        (fragment("arguments", payloads::payload(frame, store, stored, PayloadKind::Input, "Arguments").await))
        (fragment("checkpoint", payloads::payload(frame, store, stored, PayloadKind::Checkpoint, "Checkpoint").await))
        (fragment("result", payloads::payload(frame, store, stored, PayloadKind::Output, "Result").await))
        (fragment("variables", variables))
        (fragment("record", payloads::record(frame, store, &stored.key).await))
    };
    layout::page(frame, Some(Section::Tasks), &title, None, body)
}

fn facts(frame: &Frame, stored: &StoredTask, now: DateTime<Utc>) -> Markup {
    let (task, owner) = (&stored.task, stored.key.owner.as_str());
    let at = |time: DateTime<Utc>| html! { (text::time(time)) " (" (text::age(time, now)) " ago)" };
    html! {
        dl {
            (fact("Tool", html! { (text::field(task.tool().unwrap_or("–"))) }))
            (fact("Owner", html! { a href=(frame.base.link(&format!("/tasks?{}", query(&[("owner", owner)])))) { (text::field(owner)) } }))
            (fact("Id", html! { code { (text::field(stored.key.task.as_str())) } }))
            (fact("Method", html! { (text::field(&task.method)) }))
            (fact("Created", at(task.created_at)))
            (fact("Changed", at(task.last_updated_at)))
            (fact("TTL", html! { (task.ttl_ms.map_or("unlimited".to_owned(), text::duration)) }))
            (fact("Record expires", html! { (stored.expires_at.map_or("never".to_owned(), text::time)) }))
            @if let Some(attempts) = task.gave_up_after {
                (fact("Gave up after", html! { (text::count(attempts.into(), "attempt")) }))
            }
            @if let Some(from) = &task.requeued_from {
                @let ended = TaskKey { owner: stored.key.owner.clone(), task: from.clone() };
                (fact("Requeued from", html! { a href=(frame.base.task(&ended)) { (text::field(from.as_str())) } }))
            }
            @if let Some(traceparent) = &task.traceparent {
                (fact("Trace", html! { code { (text::field(traceparent)) } }))
            }
        }
    }
}

fn fact(name: &str, value: Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn lease(lease: &Lease, now: DateTime<Utc>) -> Markup {
    let holder = lease.holder.as_deref().unwrap_or("none: the task waits for a worker");
    let deadline = match (&lease.holder, lease.is_live(now)) {
        (None, _) => "Earliest start",
        (Some(_), true) => "Lapses",
        (Some(_), false) => "Has lapsed",
    };
    html! {
        dl.short {
            (fact("Holder", html! { (text::field(holder)) }))
            (fact("Attempt", html! { (lease.attempt) }))
            (fact("Lost or retried", html! { (lease.losses) }))
            (fact("Renewals", html! { (lease.renewals) }))
            (fact("Duration", html! { (text::duration(lease.duration_ms)) }))
            (fact(deadline, html! { (text::time(lease.deadline)) }))
        }
    }
}

/// Returns the open requests to the client, and its answers.
fn inputs(stored: &StoredTask, answer_link: impl Fn(&str) -> Markup) -> Markup {
    let task = &stored.task;
    let empty = Value::Null;
    html! {
        @if !task.input_requests.is_empty() {
            section { h2 { "Open questions" }
                @for (key, request) in task.input_requests.iter().take(MAX_INPUTS) { (input(key, request, answer_link(key))) }
                (rest(task.input_requests.len()))
            }
        }
        @if !task.input_responses.is_empty() {
            section { h2 { "Answers" }
                @for (key, answer) in task.input_responses.iter().take(MAX_INPUTS) {
                    (input(key, task.answered_requests.get(key).unwrap_or(&empty), json::tree(answer)))
                }
                (rest(task.input_responses.len()))
            }
        }
    }
}

/// How many questions, and how many answers a page shows.
const MAX_INPUTS: usize = 20;

fn rest(inputs: usize) -> Markup {
    html! {
        @if inputs > MAX_INPUTS { p.more { (inputs - MAX_INPUTS) " more, not shown" } }
    }
}

fn input(key: &str, request: &Value, answer: Markup) -> Markup {
    let message = request.pointer("/params/message").and_then(Value::as_str);
    html! {
        article.input {
            h3 { (text::cut(key, 80)) }
            @if let Some(message) = message { p { (text::cut(message, 2_000)) } }
            @if !request.is_null() { details { summary { "Request" } (json::tree(request)) } }
            (answer)
        }
    }
}

/// Returns how much is done, as a bar and in numbers.
pub(super) fn progress(progress: &Progress) -> Markup {
    html! {
        @match progress.total {
            Some(total) => span.progress {
                progress value=(progress.done.min(total)) max=(total.max(1)) aria-label="Progress" {}
                " " (text::with_commas(progress.done)) "/" (text::with_commas(total))
            },
            None => span.progress { (text::with_commas(progress.done)) " done" },
        }
    }
}
