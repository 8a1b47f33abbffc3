//! The output that scripts depend on: JSON fields, completions, pages, help.

use mcp_task_store::TaskKey;
use rstest_reuse::apply;
use serde_json::Value;

use crate::support::{Ended, Engine, command, name, on_every_engine};

/// docs/guide/cli.md documents these fields.
const TASK: [&str; 15] = [
    "attempt",
    "cancelRequested",
    "createdAt",
    "dead",
    "expiresAt",
    "holder",
    "lastUpdatedAt",
    "method",
    "owner",
    "progress",
    "status",
    "statusMessage",
    "stuck",
    "taskId",
    "tool",
];
const SHOWN: [&str; 4] = ["history", "parts", "record", "version"];
const STATS: [&str; 8] =
    ["dead", "newestSeconds", "oldestSeconds", "otherTools", "status", "stuck", "tasks", "tool"];
const OUTCOME: [&str; 6] = ["action", "error", "newTaskId", "outcome", "owner", "taskId"];

fn fields(object: &Value) -> Vec<String> {
    let mut fields: Vec<String> = object.as_object().unwrap().keys().cloned().collect();
    fields.sort();
    fields
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_fields_of_json_are_as_documented(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.dead("alice", "render").await;
    let open = store.put("alice", "t1", serde_json::json!({})).await;
    for task in store.run(&["list", "--json"]).json() {
        assert_eq!(fields(&task), TASK);
    }
    let mut shown = [&TASK[..], &SHOWN].concat();
    shown.sort();
    assert_eq!(fields(&store.run(&["show", "--json", &name(&task.key)]).json()[0]), shown);
    assert_eq!(fields(&store.run(&["stats", "--json"]).json()[0]), STATS);
    assert_eq!(fields(&store.run(&["owners", "--json"]).json()[0]), ["owner"]);
    for args in [["cancel", &name(&open)], ["requeue", &name(&task.key)], ["delete", &name(&task.key)]] {
        assert_eq!(fields(&store.run(&[&args[..], &["--json"]].concat()).json()[0]), OUTCOME);
    }
    let failed = store.run(&["cancel", "--json", &name(&TaskKey::new("alice", "none").unwrap())]);
    let outcome: Value = serde_json::from_str(failed.out.trim_end()).unwrap();
    assert_eq!(
        (fields(&outcome), &outcome["outcome"]),
        (OUTCOME.map(str::to_owned).to_vec(), &"failed".into())
    );

    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/cli.md")).unwrap();
    for field in [&TASK[..], &SHOWN, &STATS, &OUTCOME].concat() {
        assert!(page.contains(&format!("`{field}`")), "docs/guide/cli.md lacks {field}");
    }
}

fn run(args: &[&str]) -> Ended {
    let mut command = command();
    command.args(args);
    Ended::of(command, "")
}

const COMMANDS: [&str; 13] = [
    "owners",
    "workers",
    "list",
    "show",
    "stats",
    "watch",
    "cancel",
    "requeue",
    "delete",
    "purge",
    "answer",
    "completions",
    "man",
];

#[test]
fn the_help_names_every_command_and_each_command_has_its_own() {
    let short = run(&["-h"]).ok();
    let long = run(&["--help"]).ok();
    for command in COMMANDS {
        assert!(short.contains(&format!("\n  {command} ")), "{command}: {short}");
        let help = run(&[command, "--help"]).ok();
        assert!(help.contains("Usage: mcp-tasks") && help.contains(command), "{help}");
    }
    for text in ["MCP_TASKS_URL", "MCP_TASKS_PASSWORD", "NO_COLOR", "Exit codes", "Examples:"] {
        assert!(long.contains(text), "{text}: {long}");
    }
}

#[test]
fn every_shell_has_completions_of_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]).ok();
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} {command}");
        }
    }
    run(&["completions", "cmd"]).failed(2);
}

#[test]
fn there_is_a_manual_page_of_the_program_and_of_each_command() {
    let page = run(&["man"]).ok();
    assert!(page.contains(".TH mcp-tasks 1"), "{page}");
    for command in COMMANDS {
        assert!(page.contains(command), "{command}");
        let page = run(&["man", command]).ok();
        assert!(page.contains(&format!(".TH mcp-tasks-{command} 1")), "{page}");
    }
    run(&["man", "nothing"]).failed(2);
}
