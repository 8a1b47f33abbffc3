//! Cancel, requeue, delete.

use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};
use mcp_task_store::StoredTask;

use super::{ActionRequest, Fields, finish, link};
use crate::operator::{Action, Outcome};
use crate::text;

pub(super) async fn confirm(request: ActionRequest) -> Response {
    let stored = match request.task().await {
        Ok(stored) => stored,
        Err(response) => return response,
    };
    if !request.action(false).selects(&stored) {
        return request.changed(&stored, request.unsuitable());
    }
    let title = match request.action {
        "cancel" => "Cancel this task?",
        "requeue" => "Requeue this task?",
        _ => "Delete this task?",
    };
    request.form_page(StatusCode::OK, title, |token| {
        let action = link(&request.frame, request.action, &stored.key, &[]);
        html! {
            section {
                (request.summary(&stored))
                form.confirm #confirm method="post" action=(action) aria-label=(request.verb()) {
                    (token)
                    (request.consequence(&stored))
                    div.buttons {
                        button.danger #submit type="submit" { (request.verb()) }
                        " " a href=(request.frame.base.task(&stored.key)) { "Back to the task" }
                    }
                }
            }
        }
    })
}

pub(super) async fn apply(request: ActionRequest, fields: Fields) -> Response {
    finish(attempt(request, fields)).await
}

async fn attempt(request: ActionRequest, fields: Fields) -> Response {
    let stored = match request.admitted(&fields).await {
        Ok(stored) => stored,
        Err(response) => return response,
    };
    let action = request.action(fields.get("how") == Some("request"));
    if !action.selects(&stored) {
        return request.changed(&stored, request.unsuitable());
    }
    // A cancel is a compare-and-swap, and a task that has ended does not change any more. So nothing that has happened since the
    // read is lost.
    match action.apply(&request.shared.store, &stored).await {
        Ok(outcome) => request.report(&stored, &outcome).await,
        Err(error) => request.failed(&error, &stored.key),
    }
}

impl ActionRequest {
    fn action(&self, is_request_only: bool) -> Action {
        match self.action {
            "cancel" if is_request_only => Action::RequestCancel,
            "cancel" => Action::CancelNow,
            "requeue" => Action::Requeue,
            _ => Action::Delete { force: false },
        }
    }

    fn verb(&self) -> &'static str {
        match self.action {
            "cancel" => "Cancel the task",
            "requeue" => "Requeue the task",
            _ => "Delete the task",
        }
    }

    /// Returns which tasks the action is for.
    fn unsuitable(&self) -> &'static str {
        match self.action {
            "cancel" => "Only a task that has not ended can be cancelled, and a cancel is requested once.",
            "requeue" => {
                "Only a task that has ended, with an operation that a worker can run, can be requeued."
            }
            _ => "Only a task that has ended can be deleted: cancel it first.",
        }
    }

    /// Returns what the action will do, and its choices.
    fn consequence(&self, stored: &StoredTask) -> Markup {
        let can_request = Action::RequestCancel.selects(stored);
        match self.action {
            "cancel" => html! {
                fieldset {
                    legend { "How" }
                    @if can_request {
                        label { input #how-request type="radio" name="how" value="request" checked; " Request it: the worker decides how the task ends. A task that waits for a worker is cancelled at once." }
                    } @else {
                        p { "A cancel was already requested. The worker has not ended the task yet." }
                    }
                    label { input #how-now type="radio" name="how" value="now" checked[!can_request]; " Now: the task is cancelled at once, even while a worker works on it. The writes of the worker are then rejected." }
                }
            },
            "requeue" => html! {
                p { "A new task with the same owner, tool and arguments waits for a worker. This task stays as it is. A task is requeued only once: a second time leads to the same new task." }
            },
            _ => {
                html! { p { "The record, with its arguments and its result, is removed. This cannot be undone." } }
            }
        }
    }

    async fn report(&self, stored: &StoredTask, outcome: &Outcome) -> Response {
        let (title, sentence) = match outcome {
            Outcome::CancelRequested => (
                "Cancel requested",
                html! { "The cancel is requested. The worker decides how the task ends." },
            ),
            Outcome::Cancelled => ("Cancelled", html! { "The task is cancelled." }),
            Outcome::Deleted => ("Deleted", html! { "The task is deleted." }),
            Outcome::Requeued(new) => {
                let title = text::cut(new.key.task.as_str(), 80);
                (
                    "Requeued",
                    html! { "The task is requeued as " a #requeued href=(self.frame.base.task(&new.key)) { (title) } "." },
                )
            }
            Outcome::AlreadyEnded | Outcome::Gone => return self.overtaken(stored).await,
        };
        match outcome {
            Outcome::Requeued(new) => self.note(&format!("requeued as {}", new.key.task), false),
            outcome => self.note(outcome.name(), false),
        }
        self.outcome_page(StatusCode::OK, title, sentence, &stored.key)
    }

    /// Something else has happened to the task after it was read.
    async fn overtaken(&self, stored: &StoredTask) -> Response {
        match self.read().await {
            Ok(ended) => self.changed(&ended, "The task has changed meanwhile."),
            Err((response, outcome)) => {
                tracing::debug!(task = %stored.key, "a task changed while an action was applied");
                self.note(&outcome, true);
                response
            }
        }
    }
}
