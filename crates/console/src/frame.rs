//! What every page needs to know of its request.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, OriginalUri};
use axum::http::request::Parts;
use axum::http::{Extensions, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::security::guard::Visitor;
use mcp_task_store::{TaskError, TaskKey};

/// Where the server has mounted the console: a path without a `/` at its end.
#[derive(Clone)]
pub(crate) struct Base(String);

impl Base {
    pub(crate) fn of(extensions: &Extensions, uri: &Uri) -> Self {
        let inner = uri.path();
        let outer = extensions.get::<OriginalUri>().map_or(inner, |original| original.0.path());
        Self(outer.strip_suffix(inner).unwrap_or(outer).trim_end_matches('/').to_owned())
    }

    /// Returns the link to a path of the console.
    pub(crate) fn link(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    /// Returns the link to the page of a task. The ids are in the query, because a browser resolves the path segment `..`.
    pub(crate) fn task(&self, key: &TaskKey) -> String {
        self.link(&format!("/task?{}", query(&[("owner", key.owner.as_str()), ("id", key.task.as_str())])))
    }

    pub(crate) fn cookie_path(&self) -> &str {
        if self.0.is_empty() { "/" } else { &self.0 }
    }

    /// Returns whether a link leads to a page of the console, and not to another site.
    pub(crate) fn is_page(&self, link: &str) -> bool {
        let path = link.strip_prefix(&self.0).and_then(|rest| rest.strip_prefix('/'));
        path.is_some_and(|rest| !rest.starts_with(['/', '\\']))
            && link.is_ascii()
            && !link.contains(char::is_control)
    }
}

/// Returns a query, percent-encoded.
pub(crate) fn query(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
        .collect();
    fields.join("&")
}

/// The base and the visitor of a request.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) base: Base,
    pub(crate) visitor: Visitor,
}

impl Frame {
    /// Returns why a call failed. An error of the engine names servers, which are no concern of a tenant.
    pub(crate) fn reason(&self, error: &TaskError) -> String {
        match (error, &self.visitor.owner) {
            (TaskError::Storage(_), Some(_)) => "the store does not answer; try again later".to_owned(),
            _ => error.to_string(),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Base {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions, &parts.uri))
    }
}

impl<S: Sync> FromRequestParts<S> for Frame {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let visitor = parts.extensions.get::<Visitor>().cloned().unwrap_or_default();
        Ok(Self { base: Base::of(&parts.extensions, &parts.uri), visitor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_another_site_is_no_page() {
        for (base, link, is_page) in [
            ("", "/", true),
            ("", "/tasks?id=%2F%2F", true),
            ("/console", "/console/tasks", true),
            ("", "//example.com", false),
            ("", "/\\example.com", false),
            ("", "https://example.com", false),
            ("/console", "/tasks", false),
            ("/console", "/console//example.com", false),
            ("", "/a\r\nSet-Cookie: x", false),
            ("", "", false),
        ] {
            assert_eq!(Base(base.to_owned()).is_page(link), is_page, "{base} {link}");
        }
    }
}
