//! The owners that have tasks.

use std::sync::Arc;

use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;

use super::page_number;
use crate::frame::{Frame, query};
use crate::layout::{self, Section};
use crate::live::fragment;
use crate::router::Shared;
use crate::text;

const PER_PAGE: usize = 100;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Search {
    owner: String,
    page: String,
}

pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    Query(search): Query<Search>,
) -> Markup {
    let page = page_number(&search.page);
    let tasks = shared.snapshot.read();
    let owners = tasks.owners(frame.visitor.owner.as_ref(), &search.owner, page, PER_PAGE);
    let link = |page: usize| {
        frame.base.link(&format!(
            "/owners?{}",
            query(&[("owner", &search.owner), ("page", &(page + 1).to_string())])
        ))
    };
    let of = |owner: &str, field: &str, value: &str| {
        frame.base.link(&format!("/tasks?{}", query(&[("owner", owner), (field, value)])))
    };
    let body = html! {
        (fragment("failure", layout::failure(&frame, &tasks)))
        form.filters method="get" role="search" aria-label="Owners" action=(frame.base.link("/owners")) {
            div { label for="owner" { "Owner contains" } input #owner type="search" name="owner" value=(search.owner); }
            button type="submit" { "Search" }
        }
        (fragment("owners", html! {
        div.scroll tabindex="0" role="region" aria-label="Owners" {
            table aria-label="Owners" {
                thead { tr { th { "Owner" } @for title in ["Tasks", "Open", "Completed", "Failed", "Cancelled", "Stuck", "Dead"] { th.number { (title) } } } }
                tbody {
                    @for (owner, counts) in &owners.items {
                        tr data-key=(query(&[("owner", owner.as_str())])) {
                            th scope="row" { a href=(of(owner.as_str(), "", "")) { (text::cut(owner.as_str(), 80)) } }
                            td.number { (text::with_commas(counts.total())) }
                            td.number { a href=(of(owner.as_str(), "only", "open")) { (text::with_commas(counts.open())) } }
                            td.number { (text::with_commas(counts.completed)) }
                            td.number { a href=(of(owner.as_str(), "status", "failed")) { (text::with_commas(counts.failed)) } }
                            td.number { (text::with_commas(counts.cancelled)) }
                            td.number { (text::with_commas(counts.stuck)) }
                            td.number { (text::with_commas(counts.dead)) }
                        }
                    }
                }
            }
        }
        @if owners.items.is_empty() { p.empty { "No owner matches." } }
        (layout::pager(page, PER_PAGE, owners.total, link))
        }))
    };
    layout::page(&frame, Some(Section::Owners), "Owners", Some(layout::as_of(&frame, &tasks)), body)
}
