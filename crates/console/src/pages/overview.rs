//! The overview: counts, the last hour, and what needs an operator.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};
use mcp_task_store::{StorageBackend, StorageError};

use crate::frame::{Frame, query};
use crate::health;
use crate::layout::{self, Section};
use crate::live::fragment;
use crate::router::Shared;
use crate::snapshot::Workers;
use crate::snapshot::activity::{MINUTES, Minute};
use crate::snapshot::query::{Counts, MAX_TOOLS, Totals};
use crate::text;

pub(crate) async fn show(State(shared): State<Arc<Shared>>, frame: Frame) -> Markup {
    let health = health::read(&shared.store).await;
    let now = shared.store.backend().now();
    let minutes = shared.snapshot.write().activity.until(now);
    let tasks = shared.snapshot.read();
    let totals = tasks.totals(frame.visitor.owner.as_ref(), now);
    // The engine and the chart are about the tasks of all owners.
    let sees_all = frame.visitor.owner.is_none();
    let body = html! {
        (fragment("failure", layout::failure(&frame, &tasks)))
        (fragment("statuses", statuses(&frame, &totals.all)))
        div.columns {
            section { h2 { "Needs attention" } (fragment("attention", attention(&frame, &totals, tasks.workers, now))) }
            @if sees_all { section { h2 { "Engine" } (fragment("engine", engine(&health))) } }
        }
        @if sees_all { section { h2 { "The last hour" } (fragment("last-hour", activity(&minutes, tasks.since, now))) } }
        section { h2 { "Tools" } (fragment("tools", tools(&frame, &totals))) }
    };
    layout::page(&frame, Some(Section::Overview), "Overview", Some(layout::as_of(&frame, &tasks)), body)
}

fn statuses(frame: &Frame, counts: &Counts) -> Markup {
    let tiles = [
        ("working", "Working", counts.working),
        ("input_required", "Input required", counts.input_required),
        ("completed", "Completed", counts.completed),
        ("failed", "Failed", counts.failed),
        ("cancelled", "Cancelled", counts.cancelled),
    ];
    html! {
        ul.tiles aria-label="Tasks by status" {
            @for (status, name, count) in tiles {
                li class=(status) {
                    a href=(frame.base.link(&format!("/tasks?{}", query(&[("status", status)])))) {
                        strong { (text::with_commas(count)) } " " span { (name) }
                    }
                }
            }
        }
    }
}

fn attention(frame: &Frame, totals: &Totals, workers: Option<Workers>, now: DateTime<Utc>) -> Markup {
    let link = |only: &str| frame.base.link(&format!("/tasks?only={only}"));
    html! {
        dl {
            div { dt { "Dead tasks" } dd { a href=(link("dead")) { (text::with_commas(totals.all.dead)) } " whose attempts are used up" } }
            div { dt { "Stuck tasks" } dd { a href=(link("stuck")) { (text::with_commas(totals.all.stuck)) } " that nobody works on" } }
            // Workers run the tasks of all owners.
            @if frame.visitor.owner.is_none() { div { dt { "Workers" } dd {
                a href=(frame.base.link("/workers")) {
                    @match workers {
                        Some(workers) => { (text::with_commas(workers.running)) " running, " (text::with_commas(workers.lost)) " lost" }
                        None => "not counted yet",
                    }
                }
            } } }
            div { dt { "Lost workers" } dd { (text::count(totals.lost, "task")) " lost a worker in the last hour" } }
            div { dt { "Oldest open task" } dd {
                @match &totals.oldest_open {
                    Some((key, at)) => { a.id href=(frame.base.task(key)) { (text::cut(key.task.as_str(), 60)) } ", created " (layout::ago(*at, now)) }
                    None => "none",
                }
            } }
        }
    }
}

fn engine(health: &Result<Duration, StorageError>) -> Markup {
    html! {
        @match health {
            Ok(took) => p { span.status.completed { "answers" } " a read in " (format!("{:.2}", took.as_secs_f64() * 1_000.0)) " ms" },
            Err(error) => p.problem role="alert" { "The engine does not answer: " (text::field(&error.to_string())) },
        }
    }
}

/// The height and the width of a chart, in the units of its view box.
const HEIGHT: u64 = 40;
const BAR: usize = 4;

fn activity(minutes: &[Minute], since: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    let counts = |of: fn(&Minute) -> u64| minutes.iter().map(of).collect::<Vec<_>>();
    html! {
        div.charts {
            (chart("created", "Created", &counts(|minute| minute.created), now))
            (chart("started", "Started", &counts(|minute| minute.started), now))
            (chart("completed", "Completed", &counts(|minute| minute.completed), now))
            (chart("failed", "Failed", &counts(|minute| minute.failed), now))
        }
        p.more {
            "Tasks per minute, from the records that the console has read since "
            time datetime=(text::time(since)) { (text::clock(since)) } ". Tasks whose record was gone by then are not counted."
        }
    }
}

fn chart(class: &str, name: &str, counts: &[u64], now: DateTime<Utc>) -> Markup {
    let highest = counts.iter().copied().max().unwrap_or_default();
    let total: u64 = counts.iter().sum();
    let label = format!("{name}: {} in the last hour, at most {highest} a minute", text::with_commas(total));
    html! {
        figure class=(class) {
            figcaption { strong { (text::with_commas(total)) } " " (name.to_lowercase()) span.more { " · max " (text::with_commas(highest)) "/min" } }
            svg viewBox={ "0 0 " (MINUTES * BAR) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
                @for (at, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                    @let height = (count * HEIGHT).div_ceil(highest.max(1)).min(HEIGHT);
                    @let begun = now - TimeDelta::minutes((counts.len() - 1 - at) as i64);
                    rect x=(at * BAR) y=(HEIGHT - height) width=(BAR - 1) height=(height) {
                        title { (begun.format("%H:%M")) ": " (count) }
                    }
                }
            }
        }
    }
}

fn tools(frame: &Frame, totals: &Totals) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Tools" {
            table aria-label="Tools" {
                thead { tr { th { "Tool" } @for title in ["Tasks", "Open", "Completed", "Failed", "Cancelled", "Stuck", "Dead"] { th.number { (title) } } } }
                tbody {
                    @for (tool, counts) in &totals.tools {
                        tr {
                            th scope="row" {
                                @match tool {
                                    Some(tool) => a href=(frame.base.link(&format!("/tasks?{}", query(&[("tool", tool)])))) { (text::cut(tool, 60)) },
                                    None => "–",
                                }
                            }
                            @for count in [counts.total(), counts.open(), counts.completed, counts.failed, counts.cancelled, counts.stuck, counts.dead] {
                                td.number { (text::with_commas(count)) }
                            }
                        }
                    }
                }
            }
        }
        @if totals.tools.is_empty() { p.empty { "There are no tasks." } }
        @if totals.all_tools > MAX_TOOLS { p.more { (totals.all_tools - MAX_TOOLS) " more tools have fewer tasks." } }
    }
}
