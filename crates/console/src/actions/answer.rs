//! The form that answers a question of a task.

use axum::http::StatusCode;
use axum::response::Response;
use maud::html;
use mcp_task_store::StoredTask;
use serde_json::Value;

use super::answer_form::{forms, given};
use super::{ActionRequest, Fields, finish, link};
use crate::operator::Question;
use crate::text;

/// A mistake in an answer: the name of a field, or nothing for the answer as a whole, and what is wrong.
pub(super) type Mistake = (String, String);

pub(super) async fn ask(request: ActionRequest) -> Response {
    let stored = match request.task().await {
        Ok(stored) => stored,
        Err(response) => return response,
    };
    match request.question(&stored) {
        Some(question) => request.answer_page(StatusCode::OK, &stored, question, &Fields::default(), &[]),
        None => request.not_asked(&stored),
    }
}

pub(super) async fn deliver(request: ActionRequest, fields: Fields) -> Response {
    finish(attempt(request, fields)).await
}

async fn attempt(request: ActionRequest, fields: Fields) -> Response {
    let stored = match request.admitted(&fields).await {
        Ok(stored) => stored,
        Err(response) => return response,
    };
    let Some(question) = request.question(&stored) else { return request.not_asked(&stored) };
    let answer = match given(question, &fields) {
        Ok(answer) => answer,
        Err(mistakes) => {
            request.note("refused: the answer is not valid", true);
            return request.answer_page(
                StatusCode::UNPROCESSABLE_ENTITY,
                &stored,
                question,
                &fields,
                &mistakes,
            );
        }
    };
    let key = request.key();
    match request.shared.store.deliver_inputs(&stored, [(key, answer.clone())]).await {
        // The store ignores an answer to a question that was answered, or withdrawn, since the task was read.
        Ok(delivered) if delivered.task.input_responses.get(key) != Some(&answer) => {
            request.not_asked(&delivered)
        }
        Ok(delivered) => {
            request.note("answered", false);
            let left = delivered.task.input_requests.len() as u64;
            let sentence = html! {
                "The answer is stored."
                @if left > 0 { " " (text::count(left, "question")) " left open." }
            };
            request.outcome_page(StatusCode::OK, "Answered", sentence, &stored.key)
        }
        Err(error) => request.failed(&error, &stored.key),
    }
}

impl ActionRequest {
    fn key(&self) -> &str {
        &self.ids.key
    }

    fn question<'a>(&self, stored: &'a StoredTask) -> Option<&'a Value> {
        stored.task.input_requests.get(self.key())
    }

    fn not_asked(&self, stored: &StoredTask) -> Response {
        match stored.task.input_responses.contains_key(self.key()) {
            true => self.changed(stored, "The question has already been answered."),
            false => self.changed(stored, "The task does not ask this question."),
        }
    }

    fn answer_page(
        &self,
        status: StatusCode,
        stored: &StoredTask,
        request: &Value,
        fields: &Fields,
        mistakes: &[Mistake],
    ) -> Response {
        let key = self.key();
        let action = link(&self.frame, "answer", &stored.key, &[("key", key)]);
        let message = request["params"]["message"].as_str();
        self.form_page(status, "Answer a question", |token| {
            html! {
                section {
                    (self.summary(stored))
                    h2 { (text::cut(key, 80)) }
                    @if let Some(message) = message { p.question { (text::cut(message, 2_000)) } }
                    @if !mistakes.is_empty() {
                        div.problem #mistakes role="alert" {
                            p { "The answer was not sent:" }
                            ul {
                                @for (field, mistake) in mistakes {
                                    li { @if !field.is_empty() { (text::cut(field, 80)) ": " } (text::field(mistake)) }
                                }
                            }
                        }
                    }
                    (forms(&Question::of(request), request, &action, &token, fields, mistakes))
                    p { a href=(self.frame.base.task(&stored.key)) { "Back to the task" } }
                }
            }
        })
    }
}
