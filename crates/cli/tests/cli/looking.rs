//! owners, list, show, stats: what they print in a pipe, and that they change nothing.

use std::collections::BTreeSet;

use mcp_task_store::{NewTask, StorageBackend};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Store, name, on_every_engine, owner};

/// Returns the ids of the listed tasks.
fn listed(store: &Store, args: &[&str]) -> BTreeSet<String> {
    let args: Vec<&str> = ["list", "--json"].iter().chain(args).copied().collect();
    store.run(&args).json().iter().map(|task| task["taskId"].as_str().unwrap().to_owned()).collect()
}

fn ids<const N: usize>(tasks: [&mcp_task_store::TaskKey; N]) -> BTreeSet<String> {
    tasks.iter().map(|key| key.task.to_string()).collect()
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn owners_lists_each_owner_that_has_tasks(#[case] engine: Engine) {
    let store = engine.open().await;
    for owner in ["bob", "alice", "alice"] {
        store.waiting(owner, "render").await;
    }
    let shown = store.run(&["owners"]);
    assert_eq!(shown.out.lines().collect::<BTreeSet<_>>(), BTreeSet::from(["alice", "bob"]));
    assert!(shown.err.contains("scans the store"), "{shown:?}");
    let json = store.run(&["owners", "--json", "--quiet"]);
    assert!(json.err.is_empty(), "{json:?}");
    let owners: BTreeSet<String> = json.json().iter().map(Value::to_string).collect();
    assert_eq!(owners, BTreeSet::from([r#"{"owner":"alice"}"#.to_owned(), r#"{"owner":"bob"}"#.to_owned()]));
    let limited = store.run(&["owners", "--limit", "1"]);
    assert_eq!(limited.out.lines().count(), 1);
    assert!(limited.err.contains("--limit N shows more"), "{limited:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn list_selects_tasks_by_every_filter(#[case] engine: Engine) {
    let store = engine.open().await;
    let running = store.running("alice", "render").await.key;
    let dead = store.dead("alice", "print").await.key;
    let completed = store.completed("bob", "print").await.key;
    let stuck = store
        .put("bob", "stuck", json!({ "createdAt": store.ago(7_300), "lastUpdatedAt": store.ago(7_300) }))
        .await;
    let by_arguments = store.put("bob", "named", json!({ "arguments": { "name": "scan" } })).await;

    assert_eq!(listed(&store, &[]), ids([&running, &dead, &completed, &stuck, &by_arguments]));
    assert_eq!(listed(&store, &["--owner", "alice"]), ids([&running, &dead]));
    assert_eq!(listed(&store, &["--status", "completed,failed"]), ids([&dead, &completed]));
    assert_eq!(listed(&store, &["--tool", "print"]), ids([&dead, &completed]));
    assert_eq!(listed(&store, &["--tool", "scan"]), ids([&by_arguments]));
    assert_eq!(listed(&store, &["--stuck"]), ids([&stuck]));
    assert_eq!(listed(&store, &["--dead"]), ids([&dead]));
    assert_eq!(listed(&store, &["--older-than", "2h"]), ids([&stuck]));
    assert_eq!(listed(&store, &["--dead", "--owner", "bob"]), ids([]));
    let none = store.run(&["list", "--tool", "nothing"]);
    assert!(none.err.contains("no task matches") && none.code == Some(0), "{none:?}");
    let one = store.run(&["list", "--limit", "1"]);
    assert!(one.err.contains("stopped after 1 task;"), "{one:?}");
    for command in ["list", "owners", "workers"] {
        store.run(&[command, "--limit", "0"]).failed(2);
    }
    let limited = store.run(&["list", "--limit", "2"]);
    assert!(limited.err.contains("stopped after 2 tasks"), "{limited:?}");
    assert_eq!(limited.out.lines().count(), 3, "the titles and two tasks: {limited:?}");
    store.run(&["list", "--status", "asleep"]).failed(2);
    let soon = store.run(&["list", "--older-than", "soon"]).failed(2);
    assert!(soon.contains("write numbers with units, such as 30s"), "{soon}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_list_in_a_pipe_is_aligned_text(#[case] engine: Engine) {
    let store = engine.open().await;
    let first = store.put("alice", "t1", json!({ "operation": "render", "statusMessage": "frame 7" })).await;
    store.put("alice", "a longer id", json!({ "status": "failed", "gaveUpAfter": 3 })).await;
    let shown = store.run(&["list", "--quiet"]).ok();
    let lines: Vec<&str> = shown.lines().collect();
    let column = lines[0].find("STATUS").unwrap();
    assert!(lines[0].starts_with("TASK "), "{shown}");
    assert!(
        lines[1..].iter().all(|line| line[..column].ends_with("  ") && !line[column..].starts_with(' ')),
        "{shown}"
    );
    assert!(shown.contains("alice:a longer id  failed (dead)"), "{shown}");
    let line = lines.iter().find(|line| line.starts_with(&name(&first))).unwrap();
    assert!(line.contains("working") && line.contains("render") && line.ends_with("frame 7"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_changes_nothing_even_of_an_overdue_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let old = store.ago(120);
    let overdue =
        store.put("alice", "t1", json!({ "ttlMs": 60_000, "createdAt": old, "lastUpdatedAt": old })).await;
    let asked = store
        .put("alice", "t2", json!({ "status": "failed", "operation": "render", "gaveUpAfter": 1 }))
        .await;
    let before = (store.record(&overdue).await, store.record(&asked).await);
    let version = store.tasks.backend().get(&overdue).await.unwrap().version;
    let name = name(&overdue);
    assert!(store.run(&["list"]).ok().contains("TTL elapsed"));
    assert!(store.run(&["show", &name]).ok().contains("TTL elapsed"));
    for args in [
        &["owners"] as &[&str],
        &["stats"],
        &["watch", &name],
        &["cancel", "--owner", "alice", "--dry-run"],
        &["requeue", "--status", "failed", "--dry-run"],
        &["delete", "--owner", "alice", "--force", "--dry-run"],
        &["purge", "--all-ended", "--dry-run"],
        &["delete", &name, "--dry-run"],
    ] {
        store.run(args).ok();
    }
    assert_eq!((store.record(&overdue).await, store.record(&asked).await), before);
    assert_eq!(store.tasks.backend().get(&overdue).await.unwrap().version, version);
    let queues = [mcp_task_store::Queue::leases(), mcp_task_store::Queue::dead()];
    for queue in queues {
        assert!(store.tasks.backend().timers(&queue, None).await.unwrap().timers.is_empty());
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn show_describes_a_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let question = json!({ "method": "elicitation/create", "params": { "message": "Which tray?" } });
    store.tasks.request_input(&task.key, [("tray", question)]).await.unwrap();
    let shown = store.run(&["show", &name(&task.key)]).ok();
    for text in [
        "input_required",
        "render",
        "Lease",
        "attempt:",
        "Open questions",
        "Which tray?",
        "History",
        "  started  attempt 1 of ",
        "  input requested  attempt 1 of ",
        "Arguments",
        "\"n\": 1",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert_eq!(store.run(&["show", task.key.task.as_str(), "--owner", "alice"]).ok(), shown);
    let missing = store.run(&["show", "alice:nothing"]).failed(1);
    assert!(
        missing.contains("alice:nothing was not found") && missing.contains("mcp-tasks list"),
        "{missing}"
    );
    let unnamed = store.run(&["show", "nothing"]).failed(2);
    assert!(unnamed.contains("OWNER:TASK"), "{unnamed}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn show_prints_the_record_and_its_parts_byte_by_byte(#[case] engine: Engine) {
    let store = engine.open().await;
    let text = "x".repeat(10_000);
    let new = NewTask::new("tools/call").arguments(json!({ "text": text }));
    let task = store.tasks.create(&owner("alice"), new).await.unwrap();
    let name = name(&task.key);
    let record = store.tasks.backend().get(&task.key).await.unwrap();
    assert_eq!(store.run(&["show", &name, "--raw"]).ok().as_bytes(), &record.data[..]);
    let part = store.run(&["show", &name, "--part", "input"]).ok();
    assert_eq!(serde_json::from_str::<Value>(&part).unwrap(), json!({ "text": text }));
    let absent = store.run(&["show", &name, "--part", "output"]).failed(1);
    assert!(absent.contains("has no part output"), "{absent}");
    let json = &store.run(&["show", &name, "--json"]).json()[0];
    assert_eq!(json["parts"], json!({ "input": part.len() }));
    assert_eq!(json["record"], serde_json::from_slice::<Value>(&record.data).unwrap());
    assert!(store.run(&["show", &name]).ok().contains("Arguments"));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn stats_counts_by_tool_and_status(#[case] engine: Engine) {
    let store = engine.open().await;
    for owner in ["alice", "bob"] {
        store.running(owner, "render").await;
        store.dead(owner, "print").await;
    }
    store
        .put("alice", "t1", json!({ "createdAt": store.ago(7_300), "lastUpdatedAt": store.ago(7_300) }))
        .await;
    store
        .tasks
        .backend()
        .put(&mcp_task_store::TaskKey::new("bob", "damaged").unwrap(), "{".into(), Default::default())
        .await
        .unwrap();
    let counted = store.run(&["stats", "--json"]);
    assert!(counted.err.contains("leaves out 1 record"), "{counted:?}");
    let counted = counted.json();
    let row = |tool: Value, status: &str| {
        let found = counted.iter().find(|row| row["tool"] == tool && row["status"] == status);
        let row = found.unwrap_or_else(|| panic!("{tool} {status}: {counted:?}"));
        (row["tasks"].as_u64().unwrap(), row["stuck"].as_u64().unwrap(), row["dead"].as_u64().unwrap())
    };
    assert_eq!(row(json!("render"), "working"), (2, 0, 0));
    assert_eq!(row(json!("print"), "failed"), (2, 0, 2));
    assert_eq!(row(Value::Null, "working"), (1, 1, 0));
    let shown = store.run(&["stats"]).ok();
    let total = shown.lines().last().unwrap();
    assert!(total.starts_with("total") && total.contains(" 5 ") && total.contains("2h"), "{shown}");
    assert_eq!(store.run(&["stats", "--json", "--tool", "render"]).json().len(), 1);
}
