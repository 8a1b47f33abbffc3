//! The pages, one a file.

pub(crate) mod overview;
pub(crate) mod owners;
mod payloads;
pub(crate) mod task;
pub(crate) mod tasks;
mod timeline;
pub(crate) mod workers;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;
use mcp_task_store::TaskError;

use crate::frame::Frame;
use crate::layout;
use crate::text;

pub(crate) async fn not_found(frame: Frame) -> Response {
    problem(&frame, StatusCode::NOT_FOUND, "No such page", "The console has no page at this address.")
}

/// Returns the page for a request that cannot be answered.
pub(crate) fn problem(frame: &Frame, status: StatusCode, title: &str, text: &str) -> Response {
    let body = html! { p.problem role="alert" { (text::field(text)) } };
    (status, layout::page(frame, None, title, None, body)).into_response()
}

/// Returns the page for a task that does not exist for the visitor.
pub(crate) fn no_such_task(frame: &Frame) -> Response {
    let text = "The task does not exist: it has expired, was deleted, or never existed.";
    problem(frame, StatusCode::NOT_FOUND, "No such task", text)
}

/// Returns the page for a store that does not answer.
pub(crate) fn unavailable(frame: &Frame, error: &TaskError) -> Response {
    let status = if error.is_retryable() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_GATEWAY };
    problem(frame, status, "The store cannot be read", &frame.reason(error))
}

/// Reads the number of a page in a query, counted from 1. Returns it counted from 0.
fn page_number(text: &str) -> usize {
    text.parse().unwrap_or(1_usize).max(1) - 1
}
