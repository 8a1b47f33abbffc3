//! The frame of every page, and what several pages show.

use chrono::{DateTime, Utc};
use maud::{DOCTYPE, Markup, html};
use mcp_task_store::{StoredTask, TaskFilter, TaskStatus};

use crate::frame::{Base, Frame};
use crate::live;
use crate::snapshot::Tasks;
use crate::text;

/// The entries of the navigation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Overview,
    Tasks,
    Owners,
    Workers,
}

const SECTIONS: [(Section, &str, &str); 4] = [
    (Section::Overview, "/", "Overview"),
    (Section::Tasks, "/tasks", "Tasks"),
    (Section::Owners, "/owners", "Owners"),
    (Section::Workers, "/workers", "Workers"),
];

/// Returns a page. Its title is the heading too.
pub(crate) fn page(
    frame: &Frame,
    section: Option<Section>,
    title: &str,
    as_of: Option<Markup>,
    body: Markup,
) -> Markup {
    let base = &frame.base;
    document(
        base,
        title,
        html! {
            a.skip href="#main" { "Skip to the content" }
            header {
                span.brand { "MCP tasks" }
                nav aria-label="Console" {
                    @for (entry, path, name) in SECTIONS.iter().filter(|(_, path, _)| frame.visitor.may_request(path)) {
                        a href=(base.link(path)) aria-current=[(section == Some(*entry)).then_some("page")] { (name) }
                    }
                }
                span #live role="status" {}
                @if let Some(name) = &frame.visitor.name { span.visitor { (text::cut(name, 60)) } }
                @if frame.visitor.session.is_some() {
                    form method="post" action=(base.link("/logout")) aria-label="Session" { button type="submit" { "Sign out" } }
                }
            }
            main #main {
                h1 { (title) }
                (body)
            }
            footer {
                @if let Some(as_of) = as_of { (live::fragment("as-of", as_of)) " " }
                span.once { "The tasks on the page were read when it was requested." }
            }
            script src=(base.link("/live.js")) defer {}
        },
    )
}

/// Returns a page without navigation, for visitors who were not admitted.
pub(crate) fn bare(base: &Base, title: &str, body: Markup) -> Markup {
    document(base, title, html! { main.bare #main { h1 { (title) } (body) } })
}

fn document(base: &Base, title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · MCP tasks" }
                link rel="stylesheet" href=(base.link("/style.css"));
                link rel="icon" href=(base.link("/icon.svg")) type="image/svg+xml";
            }
            body { (body) }
        }
    }
}

/// Returns as of when the snapshot counts, and what it lacks.
pub(crate) fn as_of(frame: &Frame, tasks: &Tasks) -> Markup {
    // The numbers are about the tasks of all owners.
    let sees_all = frame.visitor.owner.is_none();
    html! {
        @match tasks.as_of {
            Some(as_of) => {
                "Counts and lists as of " time datetime=(text::time(as_of)) { (text::clock(as_of)) }
                ", open tasks a few seconds later."
            }
            None => {
                strong { "The first pass over the store is under way: " }
                @if sees_all { (text::count(tasks.entries.len() as u64, "task")) " read so far." } @else { "counts and lists are not complete." }
            }
        }
        @if sees_all && tasks.left_out.last_pass > 0 {
            " " strong { (text::count(tasks.left_out.last_pass, "task")) " more found no place in memory." }
            " Counts and lists leave them out."
        }
        @if sees_all && tasks.unreadable.last_pass > 0 {
            " " (text::count(tasks.unreadable.last_pass, "record")) " cannot be read as tasks by this version."
        }
    }
}

/// Returns a warning if the console cannot read the store.
pub(crate) fn failure(frame: &Frame, tasks: &Tasks) -> Markup {
    html! {
        @if let Some(failure) = &tasks.failure {
            p.problem role="alert" {
                "The store cannot be read"
                // The reason names servers, and may name the task of another owner.
                @if frame.visitor.owner.is_none() { ": " (text::field(failure)) } @else { "." }
            }
        }
    }
}

/// Returns the status of a task, with what an operator must know of it.
pub(crate) fn status(stored: &StoredTask, now: DateTime<Utc>) -> Markup {
    let status = stored.task.status;
    let notes = [
        (TaskFilter::new().stuck().matches(stored, now), "stuck"),
        (TaskFilter::new().dead().matches(stored, now), "dead"),
        (!status.is_terminal() && stored.task.cancel_requested, "cancel requested"),
    ];
    html! {
        span class={ "status " (status.as_str()) } { (status_name(status)) }
        @for (_, note) in notes.iter().filter(|(holds, _)| *holds) { " " span.note { (note) } }
    }
}

/// Returns the status in words.
pub(crate) fn status_name(status: TaskStatus) -> &'static str {
    match status {
        TaskStatus::InputRequired => "input required",
        status => status.as_str(),
    }
}

/// Returns how long ago a time was, with the time itself.
pub(crate) fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    html! { time datetime=(text::time(at)) title=(text::time(at)) { (text::age(at, now)) " ago" } }
}

/// Returns the links to the pages of a list. `link` returns the link to a page, counted from 0.
pub(crate) fn pager(page: usize, per_page: usize, total: usize, link: impl Fn(usize) -> String) -> Markup {
    let begin = page.saturating_mul(per_page);
    let end = begin.saturating_add(per_page).min(total);
    html! {
        nav.pager aria-label="Pages" {
            @if page > 0 { a href=(link(page - 1)) rel="prev" { "Previous" } }
            span {
                @if begin < end {
                    (text::with_commas(begin as u64 + 1)) "–" (text::with_commas(end as u64)) " of " (text::with_commas(total as u64))
                } @else {
                    "none of " (text::with_commas(total as u64))
                }
            }
            @if end < total && begin < end { a href=(link(page + 1)) rel="next" { "Next" } }
        }
    }
}
