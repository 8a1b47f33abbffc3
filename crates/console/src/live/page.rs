//! A page as a visitor would receive it now, cut into its live parts.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::OriginalUri;
use axum::http::{HeaderMap, Request, StatusCode, Uri};
use tower::ServiceExt;

use super::{BEGIN, END};

/// No page is longer. Each cuts what it shows.
const MAX_BYTES: usize = 16 << 20;

/// A page that a visitor has open.
pub(super) struct Page {
    pub(super) pages: Router,
    /// The headers of the visitor, which say who it is.
    pub(super) headers: HeaderMap,
    pub(super) uri: Uri,
    pub(super) original: OriginalUri,
}

pub(super) enum Rendered {
    /// The live parts of the page, each with its id.
    Parts(Vec<(String, String)>),
    /// The page cannot be shown.
    Other(StatusCode),
}

impl Page {
    pub(super) async fn render(&self) -> Rendered {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request.extensions_mut().insert(self.original.clone());
        let answer = match self.pages.clone().oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        if answer.status() != StatusCode::OK {
            return Rendered::Other(answer.status());
        }
        let body = to_bytes(answer.into_body(), MAX_BYTES).await;
        match body.ok().and_then(|body| String::from_utf8(body.into()).ok()) {
            Some(page) => Rendered::Parts(parts(&page)),
            None => Rendered::Other(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// Returns the live parts of a page. Parts are not nested.
fn parts(page: &str) -> Vec<(String, String)> {
    let begun = page.split(BEGIN).skip(1);
    let part = |begun: &str| {
        let (id, rest) = begun.split_once("-->")?;
        let (part, _) = rest.split_once(END)?;
        Some((id.to_owned(), part.to_owned()))
    };
    begun.filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use maud::html;

    use super::super::fragment;
    use super::*;

    #[test]
    fn a_page_is_cut_into_its_parts_and_no_text_passes_for_one() {
        let forged = format!("{END}{BEGIN}forged--><b>");
        let page = html! { p { "static" } (fragment("one", html! { (forged) })) (fragment("two", html! {})) };
        let parts = parts(&page.into_string());
        let [(one, shown), (two, empty)] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!((one.as_str(), two.as_str()), ("one", "two"));
        assert!(shown.starts_with("<div id=\"live-one\" data-live=\"one\">&lt;!--/live--&gt;"), "{shown}");
        assert_eq!(empty, "<div id=\"live-two\" data-live=\"two\"></div>");
    }
}
