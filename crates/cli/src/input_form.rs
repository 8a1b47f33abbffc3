//! The questions of a task, and how a person answers them on a terminal.
//!
//! A question is a request of MCP to a client (<https://modelcontextprotocol.io/specification/draft/client/elicitation>). A form asks
//! for the fields of a flat JSON schema.

use dialoguer::{Confirm, Input, MultiSelect, Select};
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::output::text;

/// How many lines of a question the terminal shows.
const MAX_LINES: usize = 40;
/// How many columns of a line of a question the terminal shows.
const MAX_COLUMNS: usize = 400;

const ELICITATION: &str = "elicitation/create";
const SAMPLING: &str = "sampling/createMessage";

/// Returns the method of a request.
pub fn method(request: &Value) -> String {
    request["method"].as_str().unwrap_or("a request without a method").to_owned()
}

/// Returns the question of a form or a page, if the request has one.
pub fn question(request: &Value) -> Option<String> {
    request["params"]["message"].as_str().map(str::to_owned)
}

/// Completes an answer that leaves out what is always the same: the content of a form stands for its acceptance.
pub fn complete(request: &Value, answer: Value) -> Value {
    let is_form = request["method"] == ELICITATION && request["params"]["mode"] != "url";
    match is_form && answer.is_object() && answer.get("action").is_none() {
        true => json!({ "action": "accept", "content": answer }),
        false => answer,
    }
}

/// Asks a question on the terminal. Returns `None` if the person leaves it open.
pub fn ask(key: &str, request: &Value) -> Result<Option<Value>, Failure> {
    anstream::eprintln!("\n{}: {}", text::cut(key, MAX_COLUMNS), text::cut(&method(request), MAX_COLUMNS));
    if let Some(question) = question(request) {
        show(&question);
    }
    match request["method"].as_str() {
        Some(ELICITATION) if request["params"]["mode"] == "url" => {
            show(request["params"]["url"].as_str().unwrap_or_default());
            ask_action(|| Ok(None))
        }
        Some(ELICITATION) => ask_action(|| ask_fields(&request["params"]["requestedSchema"]).map(Some)),
        Some(SAMPLING) => {
            show(&text::pretty(&request["params"]["messages"]));
            let reply: String = Input::new().with_prompt("Text of the answer").interact_text()?;
            Ok(Some(json!({
                "role": "assistant", "content": { "type": "text", "text": reply }, "model": "an operator",
            })))
        }
        _ => {
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
fn ask_fields(schema: &Value) -> Result<Value, Failure> {
    let mut content = Map::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let required =
            schema["required"].as_array().is_some_and(|names| names.iter().any(|required| required == name));
        if let Some(description) = field["description"].as_str() {
            show(description);
        }
        let title = field["title"].as_str().unwrap_or(name);
        let optional = if required { "" } else { " (optional)" };
        let prompt = format!("{}{optional}", text::cut(title, MAX_COLUMNS));
        if let Some(value) = ask_field(&prompt, field, required)? {
            content.insert(name.clone(), value);
        }
    }
    Ok(content.into())
}

fn ask_field(prompt: &str, field: &Value, required: bool) -> Result<Option<Value>, Failure> {
    if let Some(choices) = choices(field) {
        return ask_choice(prompt, field, &choices, required);
    }
    match field["type"].as_str() {
        Some("boolean") => {
            let mut confirm = Confirm::new().with_prompt(prompt);
            if let Some(default) = field["default"].as_bool() {
                confirm = confirm.default(default);
            }
            Ok(Some(confirm.interact()?.into()))
        }
        Some("array") => {
            let choices = choices(&field["items"]).unwrap_or_default();
            let titles: Vec<String> =
                choices.iter().map(|(_, title)| text::cut(title, MAX_COLUMNS)).collect();
            let chosen = MultiSelect::new()
                .with_prompt(format!("{prompt} (space selects)"))
                .items(titles)
                .interact()?;
            Ok(Some(chosen.into_iter().map(|index| choices[index].0.clone()).collect()))
        }
        kind => ask_text(prompt, field, kind.unwrap_or("string"), required),
    }
}

/// Returns the values of an enumeration and their titles.
fn choices(field: &Value) -> Option<Vec<(Value, String)>> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if let Some(values) = field["enum"].as_array() {
        let titles = field["enumNames"].as_array();
        let title = |(index, value): (usize, &Value)| {
            let named = titles.and_then(|titles| titles.get(index)).map(text);
            (value.clone(), named.unwrap_or_else(|| text(value)))
        };
        return Some(values.iter().enumerate().map(title).collect());
    }
    let alternatives = field["oneOf"].as_array().or_else(|| field["anyOf"].as_array())?;
    let choice = |alternative: &Value| {
        let value = alternative.get("const")?.clone();
        let title = alternative["title"].as_str().map_or_else(|| text(&value), str::to_owned);
        Some((value, title))
    };
    Some(alternatives.iter().filter_map(choice).collect())
}

fn ask_choice(
    prompt: &str,
    field: &Value,
    choices: &[(Value, String)],
    required: bool,
) -> Result<Option<Value>, Failure> {
    let mut titles: Vec<String> = choices.iter().map(|(_, title)| text::cut(title, MAX_COLUMNS)).collect();
    if !required {
        titles.push("(none)".to_owned());
    }
    let default = choices.iter().position(|(value, _)| *value == field["default"]).unwrap_or_default();
    let chosen = Select::new().with_prompt(prompt).items(titles).default(default).interact()?;
    Ok(choices.get(chosen).map(|(value, _)| value.clone()))
}

fn ask_text(prompt: &str, field: &Value, kind: &str, required: bool) -> Result<Option<Value>, Failure> {
    let mut input = Input::<String>::new().with_prompt(prompt).allow_empty(!required);
    if let Some(default) = field.get("default").filter(|default| !default.is_null()) {
        input = input.default(default.as_str().map_or_else(|| default.to_string(), str::to_owned));
    }
    let of_kind = kind.to_owned();
    let text = input
        .validate_with(move |text: &String| match read(&of_kind, text) {
            Err(mistake) if required || !text.is_empty() => Err(mistake),
            _ => Ok(()),
        })
        .interact_text()?;
    if text.is_empty() && !required {
        return Ok(None);
    }
    read(kind, &text).map(Some).map_err(Failure::failed)
}

/// Reads the value of a field from its text.
fn read(kind: &str, text: &str) -> Result<Value, String> {
    match kind {
        "integer" => text.parse::<i64>().map(Value::from).map_err(|_| "enter a whole number".to_owned()),
        "number" => match serde_json::from_str::<Value>(text) {
            Ok(number) if number.is_number() => Ok(number),
            _ => Err("enter a number".to_owned()),
        },
        _ => Ok(text.into()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_of_a_form_stands_for_its_acceptance() {
        let form = json!({ "method": ELICITATION, "params": { "message": "Publish?" } });
        let accepted = json!({ "action": "accept", "content": { "confirm": true } });
        assert_eq!(complete(&form, json!({ "confirm": true })), accepted);
        assert_eq!(complete(&form, accepted.clone()), accepted);
        assert_eq!(complete(&form, json!({ "action": "decline" })), json!({ "action": "decline" }));
        let roots = json!({ "method": "roots/list" });
        assert_eq!(complete(&roots, json!({ "roots": [] })), json!({ "roots": [] }));
    }

    #[test]
    fn choices_have_the_titles_of_every_form_of_an_enumeration() {
        let titles = |field: Value| {
            choices(&field).map(|choices| choices.into_iter().map(|(_, title)| title).collect::<Vec<_>>())
        };
        assert_eq!(titles(json!({ "enum": ["a", 2] })).unwrap(), ["a", "2"]);
        assert_eq!(titles(json!({ "enum": ["a", "b"], "enumNames": ["A"] })).unwrap(), ["A", "b"]);
        assert_eq!(
            titles(json!({ "oneOf": [{ "const": "a", "title": "A" }, { "const": "b" }] })).unwrap(),
            ["A", "b"]
        );
        assert_eq!(titles(json!({ "type": "string" })), None);
    }

    #[test]
    fn numbers_are_numbers() {
        assert_eq!((read("integer", "7"), read("number", "1.5")), (Ok(json!(7)), Ok(json!(1.5))));
        assert_eq!(read("string", "7"), Ok(json!("7")));
        assert!(
            read("integer", "1.5").is_err()
                && read("number", "\"1\"").is_err()
                && read("number", "").is_err()
        );
    }
}
