//! Admits or refuses each request.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use maud::html;
use mcp_task_store::{OwnerId, TaskKey};

use super::access::{AccessKind, is_secret};
use super::sessions::Sessions;
use super::{audit, login};
use crate::frame::{Base, Frame};
use crate::layout;
use crate::router::Shared;

pub(crate) const COOKIE: &str = "mcp-tasks-console";

/// How the ids of owners begin that only the library uses.
const RESERVED: &str = "\0mcp/";

/// What a visitor who sees only one owner may request. Everything else is about all owners.
const PATHS_OF_TENANTS: [&str; 5] = ["/", "/tasks", "/task", "/owners", "/events"];

/// Who sent a request that was admitted.
#[derive(Clone, Default)]
pub(crate) struct Visitor {
    pub(crate) name: Option<String>,
    /// The id of the session, if the visitor signed in.
    pub(crate) session: Option<String>,
    /// The only owner whose tasks the visitor sees; `None` sees all owners.
    pub(crate) owner: Option<OwnerId>,
    /// What admitted a visitor without a name.
    admitted_by: &'static str,
}

impl Visitor {
    fn unnamed(admitted_by: &'static str) -> Self {
        Self { admitted_by, ..Self::default() }
    }

    /// Returns whom the audit log names.
    pub(crate) fn who(&self) -> &str {
        self.name.as_deref().unwrap_or(self.admitted_by)
    }

    /// Returns the key of a task, if it is one that the visitor may see. Records of the server's runtime are no tasks.
    pub(crate) fn key(&self, owner: &str, task: &str) -> Option<TaskKey> {
        let key = TaskKey::new(owner, task).ok()?;
        let is_visible = self.owner.as_ref().is_none_or(|only| *only == key.owner);
        (is_visible && !key.owner.as_str().starts_with(RESERVED)).then_some(key)
    }

    /// Returns whether the visitor may request a path. A page that is about all owners does not exist for a tenant.
    pub(crate) fn may_request(&self, path: &str) -> bool {
        self.owner.is_none() || PATHS_OF_TENANTS.contains(&path) || audit::action_of(path).is_some()
    }
}

pub(crate) enum Refusal {
    /// The visitor must sign in.
    SignIn,
    ForeignHost,
    NoTrustedHeader,
    NoOwner,
}

pub(crate) async fn guard(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    match admit(&shared.access.0, &shared.sessions, request.headers(), request.uri()) {
        Ok(visitor) if visitor.may_request(request.uri().path()) => {
            request.extensions_mut().insert(visitor);
            next.run(request).await
        }
        Ok(visitor) => {
            let base = Base::of(request.extensions(), request.uri());
            crate::pages::not_found(Frame { base, visitor }).await
        }
        Err(refusal) => {
            if let Some(action) = audit::action_of(request.uri().path())
                && request.method() == Method::POST
            {
                let key = audit::key_of(request.uri());
                audit::note("(not admitted)", action, key.as_ref(), "refused: not admitted", true);
            }
            refuse(&shared.access.0, refusal, &request)
        }
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
            "The request does not name one user in the trusted header. Open the console through its proxy."
        }
        Refusal::NoOwner => {
            "The request does not name one owner in the header for the owner. Open the console through its proxy."
        }
    };
    let page = layout::bare(&base, "Access denied", html! { p { (reason) } });
    (StatusCode::FORBIDDEN, page).into_response()
}

/// Returns who sent a request.
pub(crate) fn admit(
    access: &AccessKind,
    sessions: &Sessions,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Visitor, Refusal> {
    match access {
        AccessKind::Unprotected => Ok(Visitor::unnamed("(unprotected)")),
        AccessKind::Loopback if is_loopback(host(headers, uri)) => Ok(Visitor::unnamed("(loopback)")),
        AccessKind::Loopback => Err(Refusal::ForeignHost),
        AccessKind::TrustedHeader(name) => named_by_proxy(headers, name),
        AccessKind::Tenants { user, owner } => {
            let owner = only_value(headers, owner).and_then(|owner| std::str::from_utf8(owner).ok());
            let owner = owner.and_then(|owner| OwnerId::try_from(owner).ok()).ok_or(Refusal::NoOwner)?;
            Ok(Visitor { owner: Some(owner), ..named_by_proxy(headers, user)? })
        }
        AccessKind::Token(token) if bearer(headers).is_some_and(|given| is_secret(token, given)) => {
            Ok(Visitor::unnamed("(token)"))
        }
        AccessKind::Token(_) | AccessKind::Users(_) => {
            let id = session_id(headers).ok_or(Refusal::SignIn)?;
            let name = sessions.user(id).ok_or(Refusal::SignIn)?;
            Ok(Visitor { name, session: Some(id.to_owned()), ..Visitor::unnamed("(token)") })
        }
    }
}

fn named_by_proxy(headers: &HeaderMap, name: &HeaderName) -> Result<Visitor, Refusal> {
    let user = only_value(headers, name).map(|value| String::from_utf8_lossy(value).into_owned());
    let user = user.filter(|user| !user.trim().is_empty()).ok_or(Refusal::NoTrustedHeader)?;
    Ok(Visitor { name: Some(user), ..Visitor::default() })
}

/// Returns the value of a header that a proxy sets. A second value may come from a client whose header the proxy has kept.
fn only_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none()).map(|value| value.as_bytes())
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
    cookie(headers, COOKIE)
}

pub(crate) fn cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, value)| (name == wanted).then_some(value))
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
