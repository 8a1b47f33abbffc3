//! Live pages: a stream of server-sent events for the page that a visitor has open, and the script that reads it.
//!
//! A page marks its parts with [`fragment`]. The stream renders the page again when its tasks have changed, and sends the parts that
//! differ. It renders the page through the same router as a request, so it shows what the visitor may see at that moment.

mod page;
mod streams;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, OriginalUri, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::{Markup, PreEscaped, html};
use serde::Deserialize;

use crate::frame::Frame;
use crate::router::Shared;
use crate::security::login::is_same_origin;
use page::{Page, Rendered};
pub(crate) use streams::Streams;
use watching::Watching;

/// How often an idle stream sends a comment, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What begins and ends a fragment in a page. No text of a page contains a `<`, so none can pass for a mark.
const BEGIN: &str = "<!--live:";
const END: &str = "<!--/live-->";

/// Marks a part of a page that is live. Its id is unique in the page, and the part is there even while it is empty.
pub(crate) fn fragment(id: &str, part: Markup) -> Markup {
    html! {
        (PreEscaped(BEGIN)) (id) (PreEscaped("-->"))
        div id={ "live-" (id) } data-live=(id) { (part) }
        (PreEscaped(END))
    }
}

/// Returns the route of the streams. `pages` answers requests for the pages that can be live, and has no other route.
pub(crate) fn routes(pages: Router) -> Router<Arc<Shared>> {
    Router::new().route("/events", get(events).layer(Extension(pages)))
}

pub(crate) async fn script() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("live.js"))
}

#[derive(Deserialize)]
struct Watched {
    /// The path and the query of the page.
    page: String,
}

async fn events(
    State(shared): State<Arc<Shared>>,
    Extension(pages): Extension<Router>,
    frame: Frame,
    headers: HeaderMap,
    uri: Uri,
    Query(Watched { page }): Query<Watched>,
) -> Response {
    // Another site cannot read the stream, but it must not be able to use up the streams either.
    if !is_same_origin(&headers, &uri) {
        return (StatusCode::FORBIDDEN, "the request was sent by another site").into_response();
    }
    let Some(inner) = page.parse::<Uri>().ok().filter(|page| page.authority().is_none()) else {
        return (StatusCode::NOT_FOUND, "there is no live page at this address").into_response();
    };
    let Some(slot) = shared.streams.open(&frame.visitor) else {
        let retry = [(header::RETRY_AFTER, "10")];
        return (StatusCode::SERVICE_UNAVAILABLE, retry, "too many pages are open").into_response();
    };
    let Ok(outer) = frame.base.link(&page_link(&inner)).parse::<Uri>() else {
        return (StatusCode::NOT_FOUND, "there is no live page at this address").into_response();
    };
    let page = Page { pages, headers, uri: inner, original: OriginalUri(outer) };
    let first = page.render().await;
    if let Rendered::Other(status) = first {
        return (status, "the page cannot be shown").into_response();
    }
    let stream = Watching::new(shared, page, frame, slot, first).events();
    // Proxies must not collect events before they forward them.
    let unbuffered = [(HeaderName::from_static("x-accel-buffering"), "no")];
    (unbuffered, Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))).into_response()
}

fn page_link(uri: &Uri) -> String {
    uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string)
}
