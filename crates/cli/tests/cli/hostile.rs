//! Content that tries to act on the terminal, or on the reader: it is shown, and does nothing.

use mcp_task_store::{Printable, StoredTask, TaskKey};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Running, Store, name, on_every_engine};

/// Clears the screen, sets the title of the window, rings, reverses the direction of writing, and begins a line.
const HOSTILE: &str = "a\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}b\u{2066}c\u{200b}\r\nd\u{e0041}";

async fn hostile(store: &Store) -> StoredTask {
    let question = json!({ "method": HOSTILE, "params": { "message": HOSTILE } });
    let error = json!({ "code": 1, "message": HOSTILE, "data": { HOSTILE: HOSTILE } });
    let fields = json!({
        "status": "input_required", "statusMessage": HOSTILE, "operation": HOSTILE, "method": HOSTILE,
        "arguments": { HOSTILE: [HOSTILE] }, "inputRequests": { HOSTILE: question }, "result": { "text": HOSTILE },
        "error": error, "traceparent": HOSTILE,
        "lease": { "holder": HOSTILE, "attempt": 1, "durationMs": 3_600_000, "deadline": store.ago(-3_600) },
    });
    let key = store.put(&format!("owner {HOSTILE}"), &format!("task {HOSTILE}"), fields).await;
    store.tasks.get(&key).await.unwrap()
}

/// Returns whether text has a character that acts on the terminal, apart from ends of lines.
fn is_inert(text: &str) -> bool {
    !text.lines().any(|line| line.trim_end_matches('\r').contains(Printable::escapes))
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn hostile_content_is_inert_in_every_form_of_output(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = hostile(&store).await;
    let name = name(&task.key);
    // Without colors, nothing but text may reach the terminal.
    for args in [
        &["owners"] as &[&str],
        &["list"],
        &["stats"],
        &["show", &name],
        &["show", "--raw", &name],
        &["list", "--json"],
        &["show", "--json", &name],
        &["cancel", "--dry-run", &name],
        &["requeue", &name],
    ] {
        let mut command = store.command(args);
        command.env("NO_COLOR", "1");
        let (shown, _) = Running::new(command).end();
        // The progress on stderr is drawn in place.
        let drawn = shown.replace("\r\u{1b}[2K", "");
        assert!(is_inert(&drawn), "{args:?}: {shown:?}");
        assert!(
            shown.contains("u{1b}") || shown.contains("u001b") || shown.contains("%1B"),
            "{args:?}: {shown:?}"
        );
    }
    for args in
        [&["list"] as &[&str], &["stats"], &["show", &name], &["list", "--json"], &["show", "--json", &name]]
    {
        let shown = store.run(args).ok();
        assert!(is_inert(&shown), "{args:?}: {shown:?}");
    }
    let listed = &store.run(&["list", "--json"]).json()[0];
    assert_eq!(listed["statusMessage"], Value::from(HOSTILE), "the value is the same");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_name_that_a_list_shows_names_the_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = hostile(&store).await;
    let listed = store.run(&["list"]).ok();
    let end = listed.lines().next().unwrap().find("  STATUS").unwrap();
    let shown = listed.lines().nth(1).unwrap();
    let name: String = shown.chars().take(end).collect();
    let shown = &store.run(&["show", "--json", name.trim_end()]).json()[0];
    assert_eq!(shown["taskId"], json!(task.key.task));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_long_message_is_cut_and_a_large_result_is_not_loaded(#[case] engine: Engine) {
    let store = engine.open().await;
    let key: TaskKey = store.put("alice", "t1", json!({ "statusMessage": "字".repeat(100_000) })).await;
    let listed = store.run(&["list"]).ok();
    assert!(listed.lines().nth(1).unwrap().chars().count() < 400, "{listed}");
    let done = store.tasks.complete(&key, json!({ "text": "x".repeat(3_000_000) })).await.unwrap();
    let shown = store.run(&["show", &name(&done.key)]).ok();
    assert!(shown.contains("Result: 3,000,011 bytes (--part output prints them)"), "{shown}");
    assert!(shown.len() < 20_000, "{}", shown.len());
}
