//! The list of tasks, with filters.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};
use mcp_task_store::{StorageBackend, StoredTask, TaskKey, TaskStatus};
use serde::Deserialize;

use super::{page_number, problem};
use crate::frame::{Frame, query};
use crate::layout::{self, Section};
use crate::live::fragment;
use crate::router::Shared;
use crate::snapshot::keeper::read_again;
use crate::snapshot::query::{Only, Wanted};
use crate::text;

const PER_PAGE: usize = 50;

const STATUSES: [TaskStatus; 5] = [
    TaskStatus::Working,
    TaskStatus::InputRequired,
    TaskStatus::Completed,
    TaskStatus::Failed,
    TaskStatus::Cancelled,
];
const ONLY: [(&str, &str, Only); 3] =
    [("open", "open", Only::Open), ("stuck", "stuck", Only::Stuck), ("dead", "dead", Only::Dead)];
const AGES: [(&str, &str, TimeDelta); 4] = [
    ("5m", "5 minutes", TimeDelta::minutes(5)),
    ("1h", "1 hour", TimeDelta::hours(1)),
    ("1d", "1 day", TimeDelta::days(1)),
    ("7d", "7 days", TimeDelta::days(7)),
];

/// The fields of the form, as the query has them.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Filters {
    owner: String,
    id: String,
    status: String,
    tool: String,
    only: String,
    older: String,
    page: String,
}

pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    Query(filters): Query<Filters>,
) -> Response {
    let wanted = match filters.wanted() {
        Ok(wanted) => wanted,
        Err(reason) => return problem(&frame, StatusCode::BAD_REQUEST, "Tasks", &reason),
    };
    let page = page_number(&filters.page);
    let (only, now) = (frame.visitor.owner.as_ref(), shared.store.backend().now());
    let listed = shared.snapshot.read().list(only, &wanted, page, PER_PAGE, now);
    let rows = read_again(&shared.store, &shared.snapshot, &listed.items).await;
    let now = shared.store.backend().now();
    let tasks = shared.snapshot.read();
    let body = html! {
        (fragment("failure", layout::failure(&frame, &tasks)))
        (filters.form(&frame))
        (fragment("tasks", html! {
        div.scroll tabindex="0" role="region" aria-label="Tasks" {
            table.tasks aria-label="Tasks" {
                thead { tr { th { "Task" } th { "Status" } th { "Tool" } th { "Owner" } th.number { "Created" } th.number { "Changed" } th { "Message" } } }
                tbody {
                    @for (key, read) in listed.items.iter().zip(&rows) {
                        @match read {
                            Ok(Some(stored)) => (row(&frame, stored, now)),
                            Ok(None) => (placeholder(&frame, key, "gone or unreadable")),
                            Err(error) => (placeholder(&frame, key, &frame.reason(error))),
                        }
                    }
                }
            }
        }
        @if listed.items.is_empty() { p.empty { "No task matches." } }
        (layout::pager(page, PER_PAGE, listed.total, |page| filters.link(&frame, page)))
        }))
    };
    layout::page(&frame, Some(Section::Tasks), "Tasks", Some(layout::as_of(&frame, &tasks)), body)
        .into_response()
}

fn row(frame: &Frame, stored: &StoredTask, now: DateTime<Utc>) -> Markup {
    let task = &stored.task;
    let message = task.status_message.as_deref().or_else(|| Some(task.error.as_ref()?.message.as_str()));
    let owner = stored.key.owner.as_str();
    html! {
        tr data-key=(frame.base.task(&stored.key)) {
            th scope="row" { a.id href=(frame.base.task(&stored.key)) { (text::cut(stored.key.task.as_str(), 60)) } }
            td { (layout::status(stored, now)) }
            td { (text::cut(task.tool().unwrap_or("–"), 60)) }
            td { a href=(frame.base.link(&format!("/tasks?{}", query(&[("owner", owner)])))) { (text::cut(owner, 60)) } }
            td.number { (layout::ago(task.created_at, now)) }
            td.number { (layout::ago(task.last_updated_at, now)) }
            td.message {
                @if let Some(progress) = task.progress.as_ref().filter(|_| !task.status.is_terminal()) {
                    (super::task::progress(progress)) " "
                }
                (text::cut(message.unwrap_or_default(), 120))
            }
        }
    }
}

fn placeholder(frame: &Frame, key: &TaskKey, reason: &str) -> Markup {
    html! {
        tr data-key=(frame.base.task(key)) {
            th scope="row" { a.id href=(frame.base.task(key)) { (text::cut(key.task.as_str(), 60)) } }
            td colspan="6" { span.more { (text::field(reason)) } }
        }
    }
}

impl Filters {
    fn wanted(&self) -> Result<Wanted, String> {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Ok(Wanted {
            owner: given(&self.owner),
            id: given(self.id.trim()),
            tool: given(&self.tool),
            status: chosen(&self.status, "status", STATUSES.map(|status| (status.as_str(), status)))?,
            only: chosen(&self.only, "condition", ONLY.map(|(name, _, only)| (name, only)))?,
            older_than: chosen(&self.older, "age", AGES.map(|(name, _, age)| (name, age)))?,
        })
    }

    fn link(&self, frame: &Frame, page: usize) -> String {
        let Self { owner, id, status, tool, only, older, page: _ } = self;
        let page = (page + 1).to_string();
        let fields = [
            ("owner", owner),
            ("id", id),
            ("status", status),
            ("tool", tool),
            ("only", only),
            ("older", older),
            ("page", &page),
        ];
        frame.base.link(&format!("/tasks?{}", query(&fields.map(|(name, value)| (name, value.as_str())))))
    }

    fn form(&self, frame: &Frame) -> Markup {
        html! {
            form.filters method="get" role="search" aria-label="Filters" action=(frame.base.link("/tasks")) {
                div { label for="id" { "Id contains" } input #id type="search" name="id" value=(self.id); }
                div { label for="f-owner" { "Owner" } input #f-owner name="owner" value=(self.owner); }
                div { label for="tool" { "Tool" } input #tool name="tool" value=(self.tool); }
                (select("status", "Status", &self.status, &STATUSES.map(|status| (status.as_str(), layout::status_name(status)))))
                (select("only", "Only", &self.only, &ONLY.map(|(name, shown, _)| (name, shown))))
                (select("older", "Older than", &self.older, &AGES.map(|(name, shown, _)| (name, shown))))
                button type="submit" { "Filter" }
                a.reset href=(frame.base.link("/tasks")) { "Reset" }
            }
        }
    }
}

fn select(name: &str, label: &str, chosen: &str, options: &[(&str, &str)]) -> Markup {
    html! {
        div {
            label for=(name) { (label) }
            select id=(name) name=(name) {
                option value="" { "any" }
                @for (value, shown) in options { option value=(value) selected[*value == chosen] { (shown) } }
            }
        }
    }
}

fn chosen<T: Copy, const N: usize>(
    name: &str,
    what: &str,
    options: [(&str, T); N],
) -> Result<Option<T>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    match options.iter().find(|(option, _)| *option == name) {
        Some((_, value)) => Ok(Some(*value)),
        None => {
            Err(format!("There is no {what} {name:?}. Use {}.", options.map(|(option, _)| option).join(", ")))
        }
    }
}
