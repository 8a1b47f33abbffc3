//! Admits or refuses each request.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use maud::html;

use super::access::{AccessKind, is_secret};
use super::login;
use super::sessions::Sessions;
use crate::frame::Base;
use crate::layout;
use crate::router::Shared;

pub(crate) const COOKIE: &str = "mcp-tasks-console";

/// Who sent a request that was admitted.
#[derive(Clone, Default)]
pub(crate) struct Visitor {
    pub(crate) name: Option<String>,
    /// Whether the visitor can sign out.
    pub(crate) has_session: bool,
}

enum Refusal {
    /// The visitor must sign in.
    SignIn,
    ForeignHost,
    NoTrustedHeader,
}

pub(crate) async fn guard(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    match admit(&shared.access.0, &shared.sessions, &request) {
        Ok(visitor) => {
            request.extensions_mut().insert(visitor);
            next.run(request).await
        }
        Err(refusal) => refuse(&shared.access.0, refusal, &request),
    }
}

fn refuse(access: &AccessKind, refusal: Refusal, request: &Request) -> Response {
    let base = Base::of(request.extensions(), request.uri());
    let reason = match refusal {
        Refusal::SignIn => {
            let page = request.uri().path_and_query().filter(|_| request.method() == Method::GET);
            let to = base.link(page.map_or("/", |page| page.as_str()));
            let page = login::page(&base, access, &to, None);
            return (StatusCode::UNAUTHORIZED, page).into_response();
        }
        Refusal::ForeignHost => {
            "The name of this host is not that of a loopback address. Open the console as http://127.0.0.1 or \
             http://localhost, or set up a token, users or a trusted header."
        }
        Refusal::NoTrustedHeader => {
            "The request does not name a user in the trusted header. Open the console through its proxy."
        }
    };
    let page = layout::bare(&base, "Access denied", html! { p { (reason) } });
    (StatusCode::FORBIDDEN, page).into_response()
}

fn admit(access: &AccessKind, sessions: &Sessions, request: &Request) -> Result<Visitor, Refusal> {
    let headers = request.headers();
    match access {
        AccessKind::Unprotected => Ok(Visitor::default()),
        AccessKind::Loopback if is_loopback(host(headers, request.uri())) => Ok(Visitor::default()),
        AccessKind::Loopback => Err(Refusal::ForeignHost),
        AccessKind::TrustedHeader(name) => {
            let user = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            let user = user.filter(|user| !user.trim().is_empty()).ok_or(Refusal::NoTrustedHeader)?;
            Ok(Visitor { name: Some(user), has_session: false })
        }
        AccessKind::Token(token) if bearer(headers).is_some_and(|given| is_secret(token, given)) => {
            Ok(Visitor::default())
        }
        AccessKind::Token(_) | AccessKind::Users(_) => {
            let name = session_id(headers).and_then(|id| sessions.user(id)).ok_or(Refusal::SignIn)?;
            Ok(Visitor { name, has_session: true })
        }
    }
}

/// Returns the host that a request is for, with its port. HTTP/2 has it in the URI.
pub(crate) fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| uri.authority().map(|authority| authority.as_str()))
}

fn is_loopback(host: Option<&str>) -> bool {
    let Some(host) = host else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Returns the id of the session that the cookie names.
pub(crate) fn session_id(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, value)| (name == COOKIE).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_loopback_addresses_are_loopback() {
        for host in ["localhost", "LocalHost:8181", "127.0.0.1", "127.3.2.1:80", "[::1]", "[::1]:8181"] {
            assert!(is_loopback(Some(host)), "{host}");
        }
        for host in
            ["localhost.example.com", "127.0.0.1.nip.io", "192.168.1.1:80", "[::2]", "", "example.com"]
        {
            assert!(!is_loopback(Some(host)), "{host}");
        }
        assert!(!is_loopback(None));
    }
}
