//! How a person answers the questions of a task on a terminal.

use dialoguer::{Confirm, Input, MultiSelect, Select};
use mcp_task_console::operator::{Choice, Field, FieldKind, Question, reply};
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::output::text;

/// How many lines of a question the terminal shows.
const MAX_LINES: usize = 40;
/// How many columns of a line of a question the terminal shows.
const MAX_COLUMNS: usize = 400;

/// Returns the method of a request.
pub fn method(request: &Value) -> String {
    request["method"].as_str().unwrap_or("a request without a method").to_owned()
}

/// Returns the question of a form or a page, if the request has one.
pub fn question(request: &Value) -> Option<String> {
    request["params"]["message"].as_str().map(str::to_owned)
}

/// Asks a question on the terminal. Returns `None` if the person leaves it open.
pub fn ask(key: &str, request: &Value) -> Result<Option<Value>, Failure> {
    anstream::eprintln!("\n{}: {}", text::cut(key, MAX_COLUMNS), text::cut(&method(request), MAX_COLUMNS));
    if let Some(question) = question(request) {
        show(&question);
    }
    match Question::of(request) {
        Question::Page { url } => {
            show(&url);
            ask_action(|| Ok(None))
        }
        Question::Form(fields) => ask_action(|| ask_fields(&fields).map(Some)),
        Question::Sampling => {
            show(&text::pretty(&request["params"]["messages"]));
            let text: String = Input::new().with_prompt("Text of the answer").interact_text()?;
            Ok(Some(reply(&text)))
        }
        Question::Other => {
            show(&text::pretty(&request["params"]));
            ask_json("The answer as JSON").map(Some)
        }
    }
}

fn show(text: &str) {
    for line in text::cut_lines(text, MAX_LINES, MAX_COLUMNS) {
        anstream::eprintln!("  {line}");
    }
}

/// Asks whether to accept, and then for the content.
fn ask_action(content: impl FnOnce() -> Result<Option<Value>, Failure>) -> Result<Option<Value>, Failure> {
    const ACTIONS: [&str; 4] = ["accept", "decline", "cancel", "leave open"];
    let chosen = Select::new().with_prompt("Your answer").items(ACTIONS).default(0).interact()?;
    match ACTIONS[chosen] {
        "leave open" => Ok(None),
        "accept" => Ok(Some(match content()? {
            Some(content) => json!({ "action": "accept", "content": content }),
            None => json!({ "action": "accept" }),
        })),
        action => Ok(Some(json!({ "action": action }))),
    }
}

/// Asks for each field of a form.
fn ask_fields(fields: &[Field]) -> Result<Value, Failure> {
    let mut content = Map::new();
    for field in fields {
        if let Some(description) = &field.description {
            show(description);
        }
        let optional = if field.is_required { "" } else { " (optional)" };
        let prompt = format!("{}{optional}", text::cut(&field.title, MAX_COLUMNS));
        if let Some(value) = ask_field(&prompt, field)? {
            content.insert(field.name.clone(), value);
        }
    }
    Ok(content.into())
}

fn ask_field(prompt: &str, field: &Field) -> Result<Option<Value>, Failure> {
    match &field.kind {
        FieldKind::Choice(choices) => ask_choice(prompt, field, choices),
        FieldKind::Boolean => {
            let mut confirm = Confirm::new().with_prompt(prompt);
            if let Some(default) = field.schema["default"].as_bool() {
                confirm = confirm.default(default);
            }
            Ok(Some(confirm.interact()?.into()))
        }
        FieldKind::Choices(choices) => {
            let chosen = MultiSelect::new()
                .with_prompt(format!("{prompt} (space selects)"))
                .items(titles(choices))
                .interact()?;
            Ok(Some(chosen.into_iter().map(|index| choices[index].value.clone()).collect()))
        }
        FieldKind::Text | FieldKind::Integer | FieldKind::Number => ask_text(prompt, field),
    }
}

fn titles(choices: &[Choice]) -> Vec<String> {
    choices.iter().map(|choice| text::cut(&choice.title, MAX_COLUMNS)).collect()
}

fn ask_choice(prompt: &str, field: &Field, choices: &[Choice]) -> Result<Option<Value>, Failure> {
    let mut titles = titles(choices);
    if !field.is_required {
        titles.push("(none)".to_owned());
    }
    let default = choices.iter().position(|choice| choice.value == field.schema["default"]);
    let select = Select::new().with_prompt(prompt).items(titles).default(default.unwrap_or_default());
    let chosen = select.interact()?;
    Ok(choices.get(chosen).map(|choice| choice.value.clone()))
}

fn ask_text(prompt: &str, field: &Field) -> Result<Option<Value>, Failure> {
    let (checked, is_required) = (field.clone(), field.is_required);
    let mut input = Input::<String>::new().with_prompt(prompt).allow_empty(!is_required);
    if let Some(default) = field.default_text() {
        input = input.default(default);
    }
    let text = input
        .validate_with(move |text: &String| match checked.read(text) {
            Err(mistake) if is_required || !text.is_empty() => Err(mistake),
            _ => Ok(()),
        })
        .interact_text()?;
    if text.is_empty() && !is_required {
        return Ok(None);
    }
    field.read(&text).map(Some).map_err(Failure::failed)
}

fn ask_json(prompt: &str) -> Result<Value, Failure> {
    let parse =
        |text: &str| serde_json::from_str::<Value>(text).map_err(|error| format!("enter JSON: {error}"));
    let text: String = Input::new()
        .with_prompt(prompt)
        .validate_with(|text: &String| parse(text).map(drop))
        .interact_text()?;
    parse(&text).map_err(Failure::failed)
}
