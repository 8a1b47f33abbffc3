//! Files that an import refuses, before it writes anything.

use rstest_reuse::apply;
use serde_json::json;

use super::{File, records};
use crate::support::{Engine, on_every_engine};

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_whole_or_not_of_this_version_changes_nothing(#[case] engine: Engine) {
    let (source, target, file) = (Engine::Sqlite.open().await, engine.open().await, File::new());
    for number in 0..5 {
        source.put("alice", &format!("{number}"), json!({ "status": "completed" })).await;
    }
    source.run(&["export", "--output", file.path()]).ok();
    let whole = std::fs::read_to_string(&file.path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let bad = File::new();
    for (text, expected) in [
        (whole.replace(r#""version":1"#, r#""version":2"#), "use a later mcp-tasks"),
        (lines[..4].join("\n") + "\n", "ends after line 4"),
        (whole[..whole.len() - 90].to_owned(), "cut off"),
        (whole.replacen("completed", "cancelled", 1), "altered"),
        (whole.replacen(r#""taskId""#, r#""taskid""#, 1), "line 2 of"),
        (lines[1..].join("\n"), "line 1 is not its header"),
        ("not an export".to_owned(), "line 1 is not its header"),
        (String::new(), "is empty"),
    ] {
        std::fs::write(&bad.path, &text).unwrap();
        let refused = target.run(&["import", bad.path()]).failed(1);
        assert!(refused.contains(expected), "{expected}: {refused}");
        let refused = target.run_with(&["import", "-"], &text).failed(1);
        assert!(refused.contains(expected), "{expected}, from stdin: {refused}");
    }
    assert_eq!(records(target.tasks.backend(), "alice").await, []);
    let missing = target.run(&["import", "nothing.jsonl"]).failed(1);
    assert!(missing.contains("nothing.jsonl cannot be read"), "{missing}");
}
