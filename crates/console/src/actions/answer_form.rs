//! The fields of the form that answers a question, and what a visitor entered into them.

use maud::{Markup, html};
use mcp_task_store::Printable;
use serde_json::{Map, Value, json};

use super::Fields;
use super::answer::Mistake;
use crate::json;
use crate::operator::{Choice, Field, FieldKind, Question, complete, reply};
use crate::text;

/// A form with more fields, or a field with more values, is answered as JSON.
const MAX_FIELDS: usize = 100;
const MAX_CHOICES: usize = 500;

/// Returns whether the console shows a question as fields.
fn has_fields(question: &Question) -> bool {
    let is_short = |field: &Field| match &field.kind {
        FieldKind::Choice(choices) | FieldKind::Choices(choices) => choices.len() <= MAX_CHOICES,
        _ => true,
    };
    match question {
        Question::Form(fields) => fields.len() <= MAX_FIELDS && fields.iter().all(is_short),
        Question::Page { .. } | Question::Sampling => true,
        Question::Other => false,
    }
}

/// Returns the name of a field in the form. The names of the schema may be anything.
fn field_name(index: usize) -> String {
    format!("field-{index}")
}

/// Returns the form for a question, and the form for an answer as JSON.
pub(super) fn forms(
    question: &Question,
    request: &Value,
    action: &str,
    token: &Markup,
    given: &Fields,
    mistakes: &[Mistake],
) -> Markup {
    let is_json = !has_fields(question) || given.get("answer") == Some("json");
    html! {
        @if has_fields(question) {
            form.answer #answer method="post" action=(action) aria-label="Answer" {
                (token)
                @match question {
                    Question::Form(fields) => {
                        @for (index, field) in fields.iter().enumerate() {
                            @let mistake = mistakes.iter().find(|(name, _)| *name == field.name && !name.is_empty());
                            (self::field(index, field, given, mistake.map(|(_, mistake)| mistake.as_str())))
                        }
                        (accept_or_not())
                    }
                    Question::Page { url } => {
                        p { "The question asks to visit " code { (text::cut(url, 2_000)) } }
                        (accept_or_not())
                    }
                    _ => {
                        details { summary { "Conversation" } (json::tree(&request["params"]["messages"])) }
                        label for="reply" { "Text of the reply" }
                        textarea #reply name="reply" rows="6" required { (shown(given.get("reply").unwrap_or_default())) }
                        div.buttons { button #submit type="submit" name="answer" value="reply" { "Send the reply" } }
                    }
                }
            }
        }
        details.as-json #as-json open[is_json] {
            summary { "Answer as JSON" }
            @if !has_fields(question) || !request["params"].is_null() { details { summary { "Request" } (json::tree(request)) } }
            form method="post" action=(action) aria-label="Answer as JSON" {
                (token)
                label for="json" { "The answer as JSON" }
                textarea #json name="json" rows="6" required spellcheck="false" { (shown(given.get("json").unwrap_or_default())) }
                div.buttons { button #submit-json type="submit" name="answer" value="json" { "Send the JSON" } }
            }
        }
    }
}

fn accept_or_not() -> Markup {
    html! {
        div.buttons {
            button #submit type="submit" name="answer" value="accept" { "Accept" }
            " " button #decline type="submit" name="answer" value="decline" formnovalidate { "Decline" }
            " " button #dismiss type="submit" name="answer" value="cancel" formnovalidate { "Cancel without an answer" }
        }
    }
}

fn field(index: usize, field: &Field, given: &Fields, mistake: Option<&str>) -> Markup {
    let (name, is_given) = (field_name(index), given.get("answer").is_some());
    let (described_by, wrong_by) = (format!("{name}-description"), format!("{name}-mistake"));
    let entered = match given.get(&name) {
        Some(text) => shown(text).to_owned(),
        None if is_given => String::new(),
        None => field.default_text().unwrap_or_default(),
    };
    let label = html! {
        (text::field(&field.title))
        @if !field.is_required { span.more { " (optional)" } }
    };
    let chosen = |at: usize, choice: &Choice| match is_given {
        true => given.all(&name).any(|index| index == at.to_string()),
        false => {
            field.schema["default"] == choice.value
                || field.schema["default"].as_array().is_some_and(|all| all.contains(&choice.value))
        }
    };
    html! {
        div.field {
            @match &field.kind {
                FieldKind::Boolean => label {
                    input id=(name) type="checkbox" name=(name) value="true" checked[entered == "true"] aria-describedby=(described_by);
                    " " (label)
                },
                FieldKind::Choices(choices) => fieldset {
                    legend { (label) }
                    @for (at, choice) in choices.iter().enumerate() {
                        label { input type="checkbox" name=(name) value=(at) checked[chosen(at, choice)]; " " (text::field(&choice.title)) }
                    }
                },
                FieldKind::Choice(choices) => {
                    label for=(name) { (label) }
                    select id=(name) name=(name) required[field.is_required] aria-describedby=(described_by) {
                        option value="" { @if field.is_required { "choose" } @else { "none" } }
                        @for (at, choice) in choices.iter().enumerate() {
                            option value=(at) selected[chosen(at, choice)] { (text::field(&choice.title)) }
                        }
                    }
                }
                kind => {
                    label for=(name) { (label) }
                    input id=(name) type=(input_type(field)) step=[step(kind)] name=(name) value=(entered) required[field.is_required]
                        aria-describedby=(described_by) aria-invalid=[mistake.map(|_| "true")] aria-errormessage=[mistake.map(|_| &wrong_by)];
                }
            }
            @if let Some(mistake) = mistake { p.mistake id=(wrong_by) { (text::field(mistake)) } }
            p.more id=(described_by) { @if let Some(description) = &field.description { (text::cut(description, 2_000)) } }
        }
    }
}

/// Returns what a visitor has entered, to be shown again; nothing if it has characters that the visitor cannot see.
fn shown(entered: &str) -> &str {
    let is_hidden = |c: char| Printable::escapes(c) && !matches!(c, '\n' | '\r' | '\t');
    if entered.contains(is_hidden) { "" } else { entered }
}

fn step(kind: &FieldKind) -> Option<&'static str> {
    match kind {
        FieldKind::Integer => Some("1"),
        FieldKind::Number => Some("any"),
        _ => None,
    }
}

fn input_type(field: &Field) -> &'static str {
    match (&field.kind, field.schema["format"].as_str()) {
        (FieldKind::Integer | FieldKind::Number, _) => "number",
        (_, Some("email")) => "email",
        (_, Some("uri")) => "url",
        (_, Some("date")) => "date",
        _ => "text",
    }
}

/// Returns the answer that a visitor has entered.
pub(super) fn given(request: &Value, fields: &Fields) -> Result<Value, Vec<Mistake>> {
    let question = Question::of(request);
    let answer = match (fields.get("answer"), &question) {
        (Some("json"), _) => {
            let json = serde_json::from_str(fields.get("json").unwrap_or_default());
            complete(request, json.map_err(|error| whole(&format!("It is not JSON: {error}")))?)
        }
        (Some("reply"), Question::Sampling) => reply(fields.get("reply").unwrap_or_default()),
        (Some("accept"), Question::Form(form)) => {
            json!({ "action": "accept", "content": content(form, fields)? })
        }
        (Some("accept"), Question::Page { .. }) => json!({ "action": "accept" }),
        (Some(action @ ("decline" | "cancel")), Question::Form(_) | Question::Page { .. }) => {
            json!({ "action": action })
        }
        _ => return Err(whole("The form has no answer to this question")),
    };
    match question.mistakes(&answer) {
        mistakes if mistakes.is_empty() => Ok(answer),
        mistakes => Err(mistakes),
    }
}

fn whole(mistake: &str) -> Vec<Mistake> {
    vec![(String::new(), mistake.to_owned())]
}

fn content(form: &[Field], given: &Fields) -> Result<Map<String, Value>, Vec<Mistake>> {
    let (mut content, mut mistakes) = (Map::new(), Vec::new());
    for (index, field) in form.iter().enumerate() {
        match value(field, &field_name(index), given) {
            Ok(Some(value)) => drop(content.insert(field.name.clone(), value)),
            Ok(None) => {}
            Err(mistake) => mistakes.push((field.name.clone(), mistake)),
        }
    }
    if mistakes.is_empty() { Ok(content) } else { Err(mistakes) }
}

fn value(field: &Field, name: &str, given: &Fields) -> Result<Option<Value>, String> {
    let text = given.get(name).unwrap_or_default();
    let choice = |choices: &[Choice], index: &str| {
        let choice = index.parse().ok().and_then(|at: usize| choices.get(at));
        choice.map(|choice| choice.value.clone()).ok_or_else(|| "choose one of the values".to_owned())
    };
    match &field.kind {
        FieldKind::Boolean => Ok(Some((text == "true").into())),
        FieldKind::Choices(choices) => {
            let values =
                given.all(name).map(|index| choice(choices, index)).collect::<Result<Vec<_>, _>>()?;
            let is_left_out = values.is_empty() && !field.is_required;
            Ok((!is_left_out).then(|| values.into()))
        }
        _ if text.is_empty() && field.is_required => Err("an answer is required".to_owned()),
        _ if text.is_empty() => Ok(None),
        FieldKind::Choice(choices) => choice(choices, text).map(Some),
        _ => field.read(text).map(Some),
    }
}
