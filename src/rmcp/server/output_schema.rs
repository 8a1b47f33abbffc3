//! The output schema of a tool for clients without tasks: a call has either the structured content of the tool, or the state of
//! its task. Clients reject structured content that does not match the schema.

use rmcp::handler::server::tool::schema_for_output;
use rmcp::model::{JsonObject, Tool};
use rmcp::schemars::Schema;
use rmcp::schemars::transform::{Transform, transform_subschemas};
use serde_json::{Value, json};

use super::state_content::TaskStateContent;

/// Lets the output schema of a tool accept the state of a task too. A tool without an output schema stays as it is.
pub(super) fn accept_state(tool: &mut Tool) {
    if let Some(own) = &tool.output_schema {
        let state = schema_for_output::<TaskStateContent>();
        tool.output_schema = Some(any_of(own.as_ref().clone(), state.as_ref().clone()).into());
    }
}

/// Returns the schema that accepts what either schema accepts. Its root is an object if that of `own` is, because older protocols
/// demand this. For them the SDK removes any other schema, and writes content that is no object as text.
fn any_of(mut own: JsonObject, mut state: JsonObject) -> JsonObject {
    let mut root = JsonObject::new();
    state.remove("$schema");
    if let Some(dialect) = own.remove("$schema") {
        root.insert("$schema".to_owned(), dialect);
    }
    if own.get("type").is_some_and(|of_root| of_root == "object") {
        root.insert("type".to_owned(), "object".into());
    }
    // References are relative to the root of the document.
    for definitions in ["$defs", "definitions"] {
        if let Some(definitions_of_own) = own.remove(definitions) {
            root.insert(definitions.to_owned(), definitions_of_own);
        }
    }
    root.insert("anyOf".to_owned(), json!([own, state]));
    let mut schema = Schema::from(root);
    RootReferences.transform(&mut schema);
    match schema.to_value() {
        Value::Object(root) => root,
        // A schema that was an object stays one.
        _ => JsonObject::new(),
    }
}

/// Makes references to the root of a schema name its new place: types that contain themselves have such references.
struct RootReferences;

impl Transform for RootReferences {
    fn transform(&mut self, schema: &mut Schema) {
        if schema.get("$ref").is_some_and(|reference| reference == "#") {
            schema.insert("$ref".to_owned(), "#/anyOf/0".into());
        }
        transform_subschemas(self, schema);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(own: Value) -> Value {
        let Value::Object(own) = own else { panic!("no object: {own}") };
        let mut tool = Tool::new("t", "", JsonObject::new());
        tool.output_schema = Some(own.into());
        accept_state(&mut tool);
        Value::Object(tool.output_schema.unwrap().as_ref().clone())
    }

    #[test]
    fn the_schema_has_both_forms_and_its_references_stay_valid() {
        let schema = accepting(json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": { "child": { "$ref": "#" }, "size": { "$ref": "#/$defs/Size" } },
            "$defs": { "Size": { "type": "integer" } },
        }));
        assert_eq!(schema["type"], "object");
        assert_eq!(schema["$defs"]["Size"]["type"], "integer");
        assert_eq!(schema["anyOf"][0]["properties"]["child"]["$ref"], "#/anyOf/0");
        assert_eq!(schema["anyOf"][0]["properties"]["size"]["$ref"], "#/$defs/Size");
        assert_eq!(schema["anyOf"][1]["required"], json!(["taskId", "status"]));
        assert!(schema["anyOf"][1]["$schema"].is_null());
        let text = schema["anyOf"][1].to_string();
        assert!(!text.contains("$ref"), "a reference of the state has no target: {text}");
        assert!(!text.contains("format"), "some clients print a warning for a format: {text}");
        let progress = &schema["anyOf"][1]["properties"]["progress"]["required"];
        assert_eq!(progress, &json!(["done"]), "{text}");
    }

    #[test]
    fn the_root_of_the_schema_of_content_that_is_no_object_is_no_object_either() {
        let schema = accepting(
            json!({ "type": "array", "items": { "$ref": "#/$defs/Size" }, "$defs": { "Size": {} } }),
        );
        assert!(schema["type"].is_null(), "{schema}");
        assert_eq!(schema["anyOf"][0], json!({ "type": "array", "items": { "$ref": "#/$defs/Size" } }));
        assert_eq!(schema["anyOf"][1]["type"], "object");
        let either = accepting(json!({ "oneOf": [{ "type": "object" }, { "type": "null" }] }));
        assert!(either["type"].is_null(), "{either}");
    }

    #[test]
    fn a_tool_without_an_output_schema_stays_without() {
        let mut tool = Tool::new("t", "", JsonObject::new());
        accept_state(&mut tool);
        assert!(tool.output_schema.is_none());
    }
}
