//! answer: from scripts. The module `terminal` answers in a terminal.

use mcp_task_store::{StoredTask, TaskStatus};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Store, name, on_every_engine};

pub async fn asking(store: &Store) -> StoredTask {
    let task = store.running("alice", "render").await;
    let tray = json!({ "method": "elicitation/create", "params": {
        "mode": "form", "message": "Which tray?",
        "requestedSchema": { "type": "object", "required": ["tray"], "properties": {
            "copies": { "type": "integer", "title": "Copies" },
            "tray": { "type": "string", "enum": ["upper", "lower"] },
            "urgent": { "type": "boolean", "description": "Print it first" },
        } },
    } });
    let roots = json!({ "method": "roots/list" });
    store.tasks.request_input(&task.key, [("tray", tray), ("roots", roots)]).await.unwrap()
}

async fn responses(store: &Store, task: &StoredTask) -> Value {
    store.record(&task.key).await.unwrap()["inputResponses"].clone()
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_script_answers_by_argument_file_and_stdin(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = asking(&store).await;
    let name = name(&task.key);
    let wrong = store.run(&["answer", &name, "--json", r#"{"colour": 1}"#]).failed(2);
    assert!(wrong.contains("colour") && wrong.contains("roots, tray"), "{wrong}");
    let invalid =
        store.run(&["answer", &name, "--json", r#"{"tray": {"tray": "middle", "copies": 1.5}}"#]).failed(2);
    assert!(invalid.contains(r#"the answer to "tray" is invalid: "#), "{invalid}");
    assert!(
        invalid.contains("copies: enter a whole number") && invalid.contains("tray: choose one"),
        "{invalid}"
    );
    let agreed = store.run(&["answer", &name, "--json", r#"{"tray": {"action": "agree"}}"#]).failed(2);
    assert!(agreed.contains("accept, decline or cancel"), "{agreed}");
    store.run(&["answer", &name, "--json", "[1]"]).failed(2);
    store.run(&["answer", &name, "--json", "{}"]).failed(2);
    store.run(&["answer", &name]).failed(2);
    assert_eq!(responses(&store, &task).await, Value::Null);

    let first = store.run_with(&["answer", &name, "--json", "-"], r#"{"tray": {"tray": "upper"}}"#).ok();
    assert!(first.contains("answered 1 question, 1 still open; the task is input_required"), "{first}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.json");
    std::fs::write(&file, r#"{"roots": {"roots": []}}"#).unwrap();
    let second = store.run(&["answer", &name, "--json", &format!("@{}", file.display())]).ok();
    assert!(second.contains("the task is working"), "{second}");
    let expected = json!({
        "tray": { "action": "accept", "content": { "tray": "upper" } }, "roots": { "roots": [] },
    });
    assert_eq!(responses(&store, &task).await, expected);
    assert_eq!(store.tasks.get(&task.key).await.unwrap().task.status, TaskStatus::Working);
    let nothing = store.run(&["answer", &name, "--json", "{\"tray\": 1}"]).failed(1);
    assert!(nothing.contains("is working and asks nothing"), "{nothing}");
}
