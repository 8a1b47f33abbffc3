//! The login page, and the ends of sessions.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::access::{AccessKind, is_secret};
use super::csrf::set_cookie;
use super::guard::{COOKIE, host, session_id};
use super::sessions::LIFETIME;
use crate::frame::Base;
use crate::layout;
use crate::router::Shared;

/// How long a login waits for others. One password is verified at a time, because each takes much memory and processor time.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Credentials {
    user: String,
    secret: String,
    /// The page to show next.
    to: String,
}

/// Returns the page with the form.
pub(crate) fn page(base: &Base, access: &AccessKind, to: &str, problem: Option<&str>) -> Markup {
    let is_token = matches!(access, AccessKind::Token(_));
    let body = html! {
        @if let Some(problem) = problem { p.problem role="alert" { (problem) } }
        form.login method="post" action=(base.link("/login")) aria-label="Sign in" {
            input type="hidden" name="to" value=(to);
            @if !is_token {
                label for="user" { "User" }
                input #user name="user" autocomplete="username" required autofocus;
            }
            label for="secret" { @if is_token { "Token" } @else { "Password" } }
            input #secret type="password" name="secret" autocomplete="current-password" required autofocus[is_token];
            button type="submit" { "Sign in" }
        }
    };
    layout::bare(base, "Sign in", body)
}

/// Each page shows the form to visitors who must sign in.
pub(crate) async fn redirect(base: Base) -> Redirect {
    Redirect::to(&base.link("/"))
}

pub(crate) async fn sign_in(
    State(shared): State<Arc<Shared>>,
    base: Base,
    headers: HeaderMap,
    uri: Uri,
    Form(given): Form<Credentials>,
) -> Response {
    let access = &shared.access.0;
    let refuse = |status: StatusCode, problem: &str| {
        (status, page(&base, access, &given.to, Some(problem))).into_response()
    };
    if !is_same_origin(&headers, &uri) {
        return refuse(StatusCode::FORBIDDEN, "The form was sent by another site. Sign in here.");
    }
    let user = match verify(&shared, access, &given).await {
        Verdict::Right(user) => user,
        Verdict::Wrong => return refuse(StatusCode::UNAUTHORIZED, "These credentials are not valid."),
        Verdict::Busy => {
            return refuse(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many logins at once. Try again in a few seconds.",
            );
        }
    };
    let id = shared.sessions.begin(user);
    let cookie = format!("{}; Max-Age={}", set_cookie(COOKIE, &id, &base, &headers), LIFETIME.as_secs());
    let to = if base.is_page(&given.to) { given.to.clone() } else { base.link("/") };
    ([(header::SET_COOKIE, cookie)], Redirect::to(&to)).into_response()
}

pub(crate) async fn sign_out(
    State(shared): State<Arc<Shared>>,
    base: Base,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    // Browsers send the cookie with forms of another port of this host, or of a sibling domain.
    if !is_same_origin(&headers, &uri) {
        let page = layout::bare(
            &base,
            "Refused",
            html! { p.problem role="alert" { "The form was sent by another site." } },
        );
        return (StatusCode::FORBIDDEN, page).into_response();
    }
    if let Some(id) = session_id(&headers) {
        shared.sessions.end(id);
    }
    let cookie = format!("{}; Max-Age=0", set_cookie(COOKIE, "", &base, &headers));
    ([(header::SET_COOKIE, cookie)], Redirect::to(&base.link("/"))).into_response()
}

enum Verdict {
    Right(Option<String>),
    Wrong,
    Busy,
}

async fn verify(shared: &Shared, access: &AccessKind, given: &Credentials) -> Verdict {
    match access {
        AccessKind::Token(token) if is_secret(token, given.secret.trim()) => Verdict::Right(None),
        AccessKind::Users(users) => {
            let Ok(Ok(turn)) = timeout(LONGEST_WAIT, Arc::clone(&shared.logins).acquire_owned()).await else {
                return Verdict::Busy;
            };
            let (users, user, secret) = (users.clone(), given.user.clone(), given.secret.clone());
            let verified = spawn_blocking(move || {
                let is_right = users.verify(&user, &secret);
                drop(turn);
                is_right.then_some(user)
            });
            match verified.await {
                Ok(Some(user)) => Verdict::Right(Some(user)),
                Ok(None) | Err(_) => Verdict::Wrong,
            }
        }
        _ => Verdict::Wrong,
    }
}

/// Returns whether a form was sent by a page of the console. Browsers that send neither header are older than both, or no browsers.
pub(crate) fn is_same_origin(headers: &HeaderMap, uri: &Uri) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin" || site == "none";
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let sender = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    sender.is_some() && sender == host(headers, uri)
}
