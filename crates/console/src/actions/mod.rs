//! What a visitor can do with a task: cancel, requeue, delete, answer. Each has a page that says what happens and asks, and works
//! without a script.

mod answer;
mod answer_form;
mod change;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Form, FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::{Markup, html};
use mcp_task_store::{StorageBackend, StoredTask, TaskError, TaskKey, TaskStatus};
use tracing::Instrument;

use crate::frame::{Frame, query};
use crate::layout::{self, Section};
use crate::operator::Action;
use crate::pages::task::Ids;
use crate::pages::{no_such_task, problem, unavailable};
use crate::router::Shared;
use crate::security::audit;
use crate::security::login::is_same_origin;
use crate::text;

/// The name of the field with the CSRF token.
const TOKEN: &str = "csrf";

/// Returns the routes of the actions. Without permission for actions, they refuse and audit each attempt.
pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/task/cancel", get(change::confirm).post(change::apply))
        .route("/task/requeue", get(change::confirm).post(change::apply))
        .route("/task/delete", get(change::confirm).post(change::apply))
        .route("/task/answer", get(answer::ask).post(answer::deliver))
}

/// Returns the links to the actions that suit a task.
pub(crate) fn offered(shared: &Shared, frame: &Frame, stored: &StoredTask) -> Markup {
    let suits = [
        ("cancel", "Cancel…", Action::CancelNow.selects(stored)),
        ("requeue", "Requeue…", Action::Requeue.selects(stored)),
        ("delete", "Delete…", Action::Delete { force: false }.selects(stored)),
    ];
    html! {
        @if shared.allows_actions {
            p.actions #actions {
                @for (action, name, _) in suits.iter().filter(|(_, _, suits)| *suits) {
                    a.action id={ "action-" (action) } href=(link(frame, action, &stored.key, &[])) { (name) } " "
                }
            }
        }
    }
}

/// Returns the link to the form that answers a question of a task.
pub(crate) fn answer_link(shared: &Shared, frame: &Frame, stored: &StoredTask, question: &str) -> Markup {
    html! {
        @if shared.allows_actions {
            a.action.answer href=(link(frame, "answer", &stored.key, &[("key", question)])) { "Answer…" }
        }
    }
}

fn link(frame: &Frame, action: &str, key: &TaskKey, more: &[(&str, &str)]) -> String {
    let ids = [("owner", key.owner.as_str()), ("id", key.task.as_str())];
    frame.base.link(&format!("/task/{action}?{}", query(&[&ids, more].concat())))
}

/// The fields of a form, in its order.
#[derive(Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

/// A form that cannot be read has no fields, so no token: it is refused and audited like any other without one.
impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Infallible> {
        let fields = Form::<Vec<(String, String)>>::from_request(request, state).await;
        Ok(fields.map(|Form(fields)| Self(fields)).unwrap_or_default())
    }
}

/// Runs an attempt to its end, also if the visitor leaves meanwhile: it may have changed the task, and the audit log must say so.
async fn finish(attempt: impl Future<Output = Response> + Send + 'static) -> Response {
    match tokio::spawn(attempt.in_current_span()).await {
        Ok(response) => response,
        // The attempt has panicked, or the runtime ends.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A request for an action: for the page that asks, or with the form of that page.
pub(crate) struct ActionRequest {
    pub(crate) shared: Arc<Shared>,
    pub(crate) frame: Frame,
    headers: HeaderMap,
    uri: Uri,
    action: &'static str,
    ids: Ids,
}

impl FromRequestParts<Arc<Shared>> for ActionRequest {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Infallible> {
        let frame = Frame::from_request_parts(parts, shared).await?;
        // Without ids, there is no such task.
        let ids = Query::try_from_uri(&parts.uri).map(|Query(ids)| ids).unwrap_or_default();
        Ok(Self {
            shared: Arc::clone(shared),
            frame,
            headers: parts.headers.clone(),
            uri: parts.uri.clone(),
            action: audit::action_of(parts.uri.path()).unwrap_or_default(),
            ids,
        })
    }
}

impl ActionRequest {
    /// Returns the task that the page is about.
    pub(crate) async fn task(&self) -> Result<StoredTask, Response> {
        if !self.shared.allows_actions {
            return Err(crate::pages::not_found(self.frame.clone()).await);
        }
        self.read().await.map_err(|(response, _)| response)
    }

    /// Returns the task that the form is about, if the visitor may send it.
    pub(crate) async fn admitted(&self, fields: &Fields) -> Result<StoredTask, Response> {
        let token = fields.get(TOKEN).unwrap_or_default();
        let (text, outcome) = if !self.shared.allows_actions {
            (
                "This console only shows tasks. Start it with --allow-actions.",
                "refused: actions are not allowed",
            )
        } else if !is_same_origin(&self.headers, &self.uri) {
            ("The form was sent by another site.", "refused: sent by another site")
        } else if !self.shared.csrf.is_valid(token, &self.frame.visitor, &self.headers) {
            (
                "The form is not valid: it was not made for you, or the console was restarted since. Open the task and try again.",
                "refused: no valid CSRF token",
            )
        } else {
            return match self.read().await {
                Ok(stored) => Ok(stored),
                Err((response, outcome)) => {
                    self.note(&outcome, true);
                    Err(response)
                }
            };
        };
        self.note(outcome, true);
        Err(problem(&self.frame, StatusCode::FORBIDDEN, "Refused", text))
    }

    async fn read(&self) -> Result<StoredTask, (Response, String)> {
        let not_found = || (no_such_task(&self.frame), "refused: no such task".to_owned());
        let key = self.frame.visitor.key(&self.ids.owner, &self.ids.id).ok_or_else(not_found)?;
        self.shared.store.get(&key).await.map_err(|error| match error {
            TaskError::NotFound { .. } => not_found(),
            error => (unavailable(&self.frame, &error), format!("failed: {error}")),
        })
    }

    /// Writes a line to the audit log.
    pub(crate) fn note(&self, outcome: &str, is_refused: bool) {
        // A foreign task is named too: somebody has tried to reach it.
        let key = TaskKey::new(&self.ids.owner, &self.ids.id).ok();
        audit::note(self.frame.visitor.who(), self.action, key.as_ref(), outcome, is_refused);
    }

    /// Returns a page with a form. `form` receives the hidden field with the token.
    pub(crate) fn form_page(
        &self,
        status: StatusCode,
        title: &str,
        form: impl FnOnce(Markup) -> Markup,
    ) -> Response {
        let token = self.shared.csrf.token(&self.frame, &self.headers);
        let hidden = html! { input type="hidden" name=(TOKEN) value=(token.token); };
        let page = layout::page(&self.frame, Some(Section::Tasks), title, None, form(hidden));
        let mut response = (status, page).into_response();
        if let Some(cookie) = token.cookie.and_then(|cookie| cookie.parse().ok()) {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
        response
    }

    /// Returns the page that says what an action did.
    pub(crate) fn outcome_page(
        &self,
        status: StatusCode,
        title: &str,
        sentence: Markup,
        key: &TaskKey,
    ) -> Response {
        let class = if status.is_success() { "done" } else { "problem" };
        let body = html! {
            p #outcome class=(class) role="status" { (sentence) }
            p { a href=(self.frame.base.task(key)) { "Task " (text::cut(key.task.as_str(), 80)) } }
        };
        (status, layout::page(&self.frame, Some(Section::Tasks), title, None, body)).into_response()
    }

    /// Returns the page for a task that has changed since the visitor saw it. Nothing was done.
    pub(crate) fn changed(&self, stored: &StoredTask, why: &str) -> Response {
        self.note(&format!("nothing done: the task {}", now(stored)), true);
        let sentence = html! { (why) " The task " (now(stored)) ". Nothing was changed." };
        self.outcome_page(StatusCode::CONFLICT, "Nothing was changed", sentence, &stored.key)
    }

    /// Returns the page for an action that the store has refused, or that failed.
    pub(crate) fn failed(&self, error: &TaskError, key: &TaskKey) -> Response {
        let failed = if error.outcome_unknown() { "failed, and may have been applied" } else { "failed" };
        self.note(&format!("{failed}: {error}"), true);
        let status = match error {
            error if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            TaskError::Storage(_) => StatusCode::BAD_GATEWAY,
            _ => StatusCode::CONFLICT,
        };
        let doubt = if error.outcome_unknown() {
            " It may have been applied nevertheless: look at the task."
        } else {
            ""
        };
        let sentence = html! { (text::field(&self.frame.reason(error))) "." (doubt) };
        self.outcome_page(status, "The action failed", sentence, key)
    }

    /// Returns a summary of the task that the visitor is about to change.
    pub(crate) fn summary(&self, stored: &StoredTask) -> Markup {
        let now = self.shared.store.backend().now();
        html! {
            dl.short {
                div { dt { "Task" } dd { a href=(self.frame.base.task(&stored.key)) { code { (text::field(stored.key.task.as_str())) } } } }
                div { dt { "Owner" } dd { (text::field(stored.key.owner.as_str())) } }
                div { dt { "Tool" } dd { (text::field(stored.task.tool().unwrap_or("–"))) } }
                div { dt { "Status" } dd { (layout::status(stored, now)) } }
            }
        }
    }
}

/// Returns what a task is now, as the end of a sentence.
fn now(stored: &StoredTask) -> String {
    let task = &stored.task;
    match task.status {
        status if status.is_terminal() => format!("has ended as {status}"),
        TaskStatus::InputRequired => {
            format!("waits for input on {}", text::count(task.input_requests.len() as u64, "question"))
        }
        status => format!("is {}", layout::status_name(status)),
    }
}
