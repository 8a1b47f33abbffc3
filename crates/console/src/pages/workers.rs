//! The workers that run tasks.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use mcp_task_store::{Cursor, StorageBackend, TaskError, WorkerPage, WorkerStatus};
use serde::Deserialize;

use super::{problem, unavailable};
use crate::frame::{Frame, query};
use crate::layout::{self, Section};
use crate::live::fragment;
use crate::router::Shared;
use crate::text;

/// How many tasks and operations the page names of one worker.
const NAMED: usize = 8;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Position {
    after: String,
}

pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    Query(position): Query<Position>,
) -> Response {
    let after = Some(position.after).filter(|after| !after.is_empty()).map(Cursor::from);
    let now = shared.store.backend().now();
    match shared.store.workers(after.as_ref()).await {
        Ok(page) => {
            let body = list(&frame, &page, after.is_some(), now);
            layout::page(&frame, Some(Section::Workers), "Workers", None, body).into_response()
        }
        Err(error @ TaskError::InvalidPage { .. }) => {
            problem(&frame, StatusCode::BAD_REQUEST, "Workers", &error.to_string())
        }
        Err(error) => unavailable(&frame, &error),
    }
}

fn list(frame: &Frame, page: &WorkerPage, is_later: bool, now: DateTime<Utc>) -> Markup {
    fragment(
        "workers",
        html! {
            div.scroll tabindex="0" role="region" aria-label="Workers" {
                table aria-label="Workers" {
                    thead { tr {
                        th { "Holder" } th { "State" } th { "Host" } th.number { "Process" } th { "Version" }
                        th.number { "Runs" } th { "Tasks" } th { "Operations" } th.number { "Started" } th.number { "Last seen" }
                    } }
                    tbody { @for worker in &page.workers { (row(frame, worker, now)) } }
                }
            }
            @if page.workers.is_empty() { p.empty { "No worker has announced itself." } }
            @if page.unreadable > 0 { p.more { (text::count(page.unreadable as u64, "record")) " cannot be read by this version." } }
            p.more {
                "Managers announce themselves, and so do workers and task servers. A lost worker has stopped without a shutdown, hangs, or "
                "does not reach the engine. It stays in the list for an hour."
            }
            nav.pager aria-label="Pages" {
                @if is_later { a href=(frame.base.link("/workers")) { "First page" } }
                @if let Some(next) = &page.next {
                    a href=(frame.base.link(&format!("/workers?{}", query(&[("after", next.as_str())])))) rel="next" { "Next" }
                }
            }
        },
    )
}

fn row(frame: &Frame, worker: &WorkerStatus, now: DateTime<Utc>) -> Markup {
    let more = worker.task_count.saturating_sub(worker.tasks.len().min(NAMED));
    html! {
        tr data-key=(text::field(&worker.holder)) {
            // The timeline of a task names a holder by these characters.
            th.id scope="row" title=(text::field(&worker.holder)) { (text::cut(&worker.holder, 8)) }
            td {
                @if worker.is_lost(now) { span.status.failed { "lost" } } @else { span.status.completed { "running" } }
            }
            td { (text::cut(&worker.host, 60)) }
            td.number { (worker.process_id) }
            td { (text::cut(&worker.version, 20)) }
            td.number { (text::with_commas(worker.task_count as u64)) " of " (text::with_commas(worker.capacity as u64)) }
            td {
                @for task in worker.tasks.iter().take(NAMED) {
                    a.id href=(frame.base.task(&task.key())) { (text::cut(task.task_id.as_str(), 8)) } " "
                }
                @if more > 0 { span.more { "and " (text::with_commas(more as u64)) " more" } }
            }
            td { (operations(worker)) }
            td.number { (layout::ago(worker.started_at, now)) }
            td.number { (layout::ago(worker.last_seen_at, now)) }
        }
    }
}

fn operations(worker: &WorkerStatus) -> String {
    let named: Vec<String> = worker.operations.iter().take(NAMED).map(|name| text::cut(name, 40)).collect();
    let more = worker.operation_count.saturating_sub(named.len());
    if more > 0 { format!("{} and {more} more", named.join(", ")) } else { named.join(", ") }
}
