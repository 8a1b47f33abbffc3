//! The questions of a task to its client, and what answers them.
//!
//! A question is a request of MCP to a client (<https://modelcontextprotocol.io/specification/draft/client/elicitation>). A form asks
//! for the fields of a flat JSON schema.

use mcp_task_store::Printable;
use serde_json::{Value, json};

const ELICITATION: &str = "elicitation/create";
const SAMPLING: &str = "sampling/createMessage";

/// The longest default that is offered.
const MAX_DEFAULT_BYTES: usize = 1_000;

/// What a question asks for.
#[derive(Clone, Debug)]
pub enum Question {
    /// The fields of a form.
    Form(Vec<Field>),
    /// A visit to a web page.
    Page {
        /// The address of the page.
        url: String,
    },
    /// The reply of a language model to a conversation.
    Sampling,
    /// An answer that only the request describes.
    Other,
}

/// One field of a form.
#[derive(Clone, Debug)]
pub struct Field {
    /// The name of the field in the content of the answer.
    pub name: String,
    /// The title for people.
    pub title: String,
    /// What the field is for.
    pub description: Option<String>,
    /// Which values the field has.
    pub kind: FieldKind,
    /// Whether the answer must have the field.
    pub is_required: bool,
    /// The schema of the field.
    pub schema: Value,
}

/// Which values a field has.
#[derive(Clone, Debug)]
pub enum FieldKind {
    /// Text, as far as the schema allows it.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// One of some values.
    Choice(Vec<Choice>),
    /// Any of some values.
    Choices(Vec<Choice>),
}

/// One of the values of a field.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The value.
    pub value: Value,
    /// The title for people.
    pub title: String,
}

impl Question {
    /// Returns what a request asks for.
    pub fn of(request: &Value) -> Self {
        let params = &request["params"];
        match request["method"].as_str() {
            Some(ELICITATION) if params["mode"] == "url" => {
                Self::Page { url: params["url"].as_str().unwrap_or_default().to_owned() }
            }
            Some(ELICITATION) => Self::Form(fields(&params["requestedSchema"])),
            Some(SAMPLING) => Self::Sampling,
            _ => Self::Other,
        }
    }

    /// Returns what is wrong with an answer: the name of a field, and the mistake. The name is empty if the answer as a whole is
    /// wrong.
    pub fn mistakes(&self, answer: &Value) -> Vec<(String, String)> {
        let whole = |mistake: &str| vec![(String::new(), mistake.to_owned())];
        match self {
            Self::Other => Vec::new(),
            Self::Sampling if answer["role"].is_string() && !answer["content"].is_null() => Vec::new(),
            Self::Sampling => whole("the answer is a message with a role, a content and a model"),
            Self::Page { .. } | Self::Form(_) => match (answer["action"].as_str(), self) {
                (Some("decline" | "cancel"), _) | (Some("accept"), Self::Page { .. }) => Vec::new(),
                (Some("accept"), Self::Form(fields)) => content_mistakes(fields, &answer["content"]),
                _ => whole("the action of the answer is accept, decline or cancel"),
            },
        }
    }
}

fn content_mistakes(fields: &[Field], content: &Value) -> Vec<(String, String)> {
    let mistake = |field: &Field| match content.get(&field.name) {
        None if field.is_required => Some("an answer is required".to_owned()),
        None => None,
        Some(value) => field.check(value).err(),
    };
    fields.iter().filter_map(|field| Some((field.name.clone(), mistake(field)?))).collect()
}

fn fields(schema: &Value) -> Vec<Field> {
    let is_required =
        |name: &String| schema["required"].as_array().is_some_and(|names| names.iter().any(|of| of == name));
    let properties = schema["properties"].as_object().into_iter().flatten();
    let field = |(name, field): (&String, &Value)| Field {
        name: name.clone(),
        title: field["title"].as_str().unwrap_or(name).to_owned(),
        description: field["description"].as_str().map(str::to_owned),
        kind: FieldKind::of(field),
        is_required: is_required(name),
        schema: field.clone(),
    };
    properties.map(field).collect()
}

impl FieldKind {
    fn of(schema: &Value) -> Self {
        match (choices(schema), schema["type"].as_str()) {
            (Some(choices), _) => Self::Choice(choices),
            (_, Some("boolean")) => Self::Boolean,
            (_, Some("array")) => Self::Choices(choices(&schema["items"]).unwrap_or_default()),
            (_, Some("integer")) => Self::Integer,
            (_, Some("number")) => Self::Number,
            _ => Self::Text,
        }
    }
}

/// Returns the values of an enumeration and their titles.
fn choices(field: &Value) -> Option<Vec<Choice>> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if let Some(values) = field["enum"].as_array() {
        let titles = field["enumNames"].as_array();
        let choice = |(index, value): (usize, &Value)| {
            let named = titles.and_then(|titles| titles.get(index)).map(text);
            Choice { value: value.clone(), title: named.unwrap_or_else(|| text(value)) }
        };
        return Some(values.iter().enumerate().map(choice).collect());
    }
    let alternatives = field["oneOf"].as_array().or_else(|| field["anyOf"].as_array())?;
    let choice = |alternative: &Value| {
        let value = alternative.get("const")?.clone();
        let title = alternative["title"].as_str().map_or_else(|| text(&value), str::to_owned);
        Some(Choice { value, title })
    };
    Some(alternatives.iter().filter_map(choice).collect())
}

impl Field {
    /// Returns the default value as text. There is none if it is long, or has characters that a person cannot see.
    pub fn default_text(&self) -> Option<String> {
        let default = self.schema.get("default").filter(|default| !default.is_null())?;
        let text = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
        Some(text).filter(|text| text.len() <= MAX_DEFAULT_BYTES && !text.contains(Printable::escapes))
    }

    /// Reads the value of the field from text.
    ///
    /// # Errors
    /// The mistake, as a request to the person.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        let value = match self.kind {
            FieldKind::Integer => text.trim().parse::<i64>().map(Value::from).unwrap_or_default(),
            FieldKind::Number => serde_json::from_str(text.trim()).unwrap_or_default(),
            _ => text.into(),
        };
        self.check(&value).map(|()| value)
    }

    /// Checks a value of the field.
    ///
    /// # Errors
    /// The mistake, as a request to the person.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let offers = |choices: &[Choice], value: &Value| choices.iter().any(|choice| choice.value == *value);
        match &self.kind {
            FieldKind::Text => self.check_text(value.as_str().ok_or("enter text")?),
            FieldKind::Integer if !value.is_i64() && !value.is_u64() => {
                Err("enter a whole number".to_owned())
            }
            FieldKind::Integer | FieldKind::Number => {
                self.check_number(value.as_f64().ok_or("enter a number")?)
            }
            FieldKind::Boolean if value.is_boolean() => Ok(()),
            FieldKind::Boolean => Err("answer true or false".to_owned()),
            FieldKind::Choice(choices) if offers(choices, value) => Ok(()),
            FieldKind::Choice(_) => Err("choose one of the values".to_owned()),
            FieldKind::Choices(choices) => {
                let values = value.as_array().ok_or("choose some of the values")?;
                match values.iter().all(|value| offers(choices, value)) {
                    true => self.check_count("minItems", "maxItems", values.len() as u64, "values"),
                    false => Err("choose some of the values".to_owned()),
                }
            }
        }
    }

    fn check_text(&self, text: &str) -> Result<(), String> {
        self.check_count("minLength", "maxLength", text.chars().count() as u64, "characters")
    }

    fn check_count(&self, least: &str, most: &str, count: u64, noun: &str) -> Result<(), String> {
        match (self.schema[least].as_u64(), self.schema[most].as_u64()) {
            (Some(least), _) if count < least => Err(format!("at least {least} {noun}")),
            (_, Some(most)) if count > most => Err(format!("at most {most} {noun}")),
            _ => Ok(()),
        }
    }

    fn check_number(&self, number: f64) -> Result<(), String> {
        match (&self.schema["minimum"], &self.schema["maximum"]) {
            (least, _) if least.as_f64().is_some_and(|least| number < least) => {
                Err(format!("at least {least}"))
            }
            (_, most) if most.as_f64().is_some_and(|most| number > most) => Err(format!("at most {most}")),
            _ => Ok(()),
        }
    }
}

/// Completes an answer that leaves out what is always the same: the content of a form stands for its acceptance.
pub fn complete(request: &Value, answer: Value) -> Value {
    let is_form = request["method"] == ELICITATION && request["params"]["mode"] != "url";
    match is_form && answer.is_object() && answer.get("action").is_none() {
        true => json!({ "action": "accept", "content": answer }),
        false => answer,
    }
}

/// Returns the answer to [`Question::Sampling`] with a text that a person wrote.
pub fn reply(text: &str) -> Value {
    json!({ "role": "assistant", "content": { "type": "text", "text": text }, "model": "an operator" })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
            choices(&field).map(|choices| choices.into_iter().map(|choice| choice.title).collect::<Vec<_>>())
        };
        assert_eq!(titles(json!({ "enum": ["a", 2] })).unwrap(), ["a", "2"]);
        assert_eq!(titles(json!({ "enum": ["a", "b"], "enumNames": ["A"] })).unwrap(), ["A", "b"]);
        assert_eq!(
            titles(json!({ "oneOf": [{ "const": "a", "title": "A" }, { "const": "b" }] })).unwrap(),
            ["A", "b"]
        );
        assert_eq!(titles(json!({ "type": "string" })), None);
    }

    fn field(schema: Value) -> Field {
        let name = String::new();
        let kind = FieldKind::of(&schema);
        Field { title: name.clone(), name, description: None, kind, is_required: true, schema }
    }

    #[test]
    fn numbers_are_numbers_within_their_limits() {
        let (integer, number) = (field(json!({ "type": "integer" })), field(json!({ "type": "number" })));
        assert_eq!((integer.read("7"), number.read("1.5")), (Ok(json!(7)), Ok(json!(1.5))));
        assert_eq!(field(json!({ "type": "string" })).read("7"), Ok(json!("7")));
        assert_eq!(integer.read("1.5"), Err("enter a whole number".to_owned()));
        assert!(number.read("\"1\"").is_err() && number.read("").is_err());
        let copies = field(json!({ "type": "integer", "minimum": 1, "maximum": 3 }));
        assert_eq!((copies.read("0"), copies.read("4")), (Err("at least 1".into()), Err("at most 3".into())));
        assert_eq!(copies.read("3"), Ok(json!(3)));
    }

    #[test]
    fn a_default_that_a_person_cannot_see_is_not_offered() {
        let default = |default: Value| field(json!({ "type": "string", "default": default })).default_text();
        assert_eq!((default(json!("tray")), default(json!(7))), (Some("tray".into()), Some("7".into())));
        for hidden in [json!(null), json!("a\u{202e}b"), json!("\u{1b}[2J"), json!("x".repeat(1_001))] {
            assert_eq!(default(hidden), None);
        }
    }

    #[test]
    fn an_answer_is_held_against_its_form() {
        let question = Question::of(&json!({ "method": ELICITATION, "params": { "requestedSchema": {
            "required": ["tray"],
            "properties": {
                "tray": { "enum": ["upper", "lower"] }, "name": { "type": "string", "maxLength": 3 },
                "urgent": { "type": "boolean" }, "days": { "type": "array", "items": { "enum": ["mo", "tu"] }, "minItems": 1 },
            },
        } } }));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let wrong = |content: Value| {
            let mistakes = question.mistakes(&json!({ "action": "accept", "content": content }));
            // An object has the order of its text only if another crate asks serde_json for it.
            mistakes.into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>()
        };
        assert!(
            wrong(json!({ "tray": "lower", "name": "字字字", "urgent": false, "days": ["tu"] })).is_empty()
        );
        assert_eq!(wrong(json!({})), names(&["tray"]));
        let all = json!({ "tray": "middle", "name": "long", "urgent": 1, "days": [] });
        assert_eq!(wrong(all), names(&["days", "name", "tray", "urgent"]));
        assert_eq!(wrong(json!({ "tray": "upper", "days": ["su"] })), names(&["days"]));
        assert!(question.mistakes(&json!({ "action": "decline" })).is_empty());
        assert_eq!(question.mistakes(&json!({ "action": "agree" })).len(), 1);
    }
}
