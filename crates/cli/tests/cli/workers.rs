//! workers: what it prints.

use std::time::Duration;

use mcp_task_store::{Expiry, PutOptions, TaskKey};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Store, on_every_engine};

/// Writes the record of a worker that was last seen this long ago.
async fn announce(store: &Store, holder: &str, seconds: i64, fields: Value) {
    let mut record = json!({
        "holder": holder, "host": "build-7", "processId": 4711, "version": "0.1.0", "operations": ["render"], "operationCount": 1,
        "capacity": 8, "tasks": [{ "owner": "alice", "taskId": "t1", "attempt": 2 }], "taskCount": 3,
        "startedAt": store.ago(7_300), "lastSeenAt": store.ago(seconds), "periodMs": 10_000,
    });
    record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let expires = PutOptions::new(Expiry::After(Duration::from_secs(3600)));
    let key = TaskKey::new("\0mcp/workers", holder).unwrap();
    store.tasks.backend().put(&key, record.to_string().into(), expires).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn workers_lists_the_workers_with_what_they_run_and_those_that_were_lost(#[case] engine: Engine) {
    let store = engine.open().await;
    let none = store.run(&["workers"]);
    assert!(none.out.is_empty() && none.err.contains("no worker has announced itself"), "{none:?}");
    // It stays alive for longer than the test.
    announce(&store, "0f1b2c3d-aaaa", 130, json!({ "periodMs": 600_000 })).await;
    announce(&store, "7e57ab1e-bbbb", 400, json!({ "host": "a\u{1b}[2K", "tasks": [], "taskCount": 0 }))
        .await;
    announce(&store, "later", 60, json!({ "tasks": "many" })).await;

    let shown = store.run(&["workers"]);
    let lines: Vec<Vec<&str>> = shown.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [
            vec!["HOLDER", "STATE", "HOST", "PROCESS", "VERSION", "RUNS", "STARTED", "SEEN", "TASKS"],
            vec!["7e57ab1e", "lost", r"a\u{1b}[2K", "4711", "0.1.0", "0/8", "2h", "6m"],
            vec![
                "0f1b2c3d", "running", "build-7", "4711", "0.1.0", "3/8", "2h", "2m", "alice:t1", "and", "2",
                "more"
            ],
        ]
    );
    assert!(shown.err.contains("1 record of workers cannot be read"), "{shown:?}");

    let objects = store.run(&["workers", "--json", "-q"]).json();
    let expected = json!({
        "holder": "0f1b2c3d-aaaa", "lost": false, "host": "build-7", "processId": 4711, "version": "0.1.0",
        "operations": ["render"], "operationCount": 1, "capacity": 8,
        "tasks": [{ "owner": "alice", "taskId": "t1", "attempt": 2 }], "taskCount": 3,
        "startedAt": objects[1]["startedAt"], "lastSeenAt": objects[1]["lastSeenAt"],
    });
    assert_eq!((objects.len(), &objects[1], &objects[0]["lost"]), (2, &expected, &json!(true)));
    let limited = store.run(&["workers", "--limit", "1", "--json"]);
    assert_eq!(limited.out.lines().count(), 1);
    assert!(limited.err.contains("--limit N shows more"), "{limited:?}");

    // Records of workers are no tasks.
    let exported = store.run(&["export", "-q"]).ok();
    assert_eq!(exported.lines().count(), 2, "the header and the checksum: {exported}");
    for command in [&["owners", "-q"] as &[&str], &["stats", "-q"], &["list", "-q"]] {
        assert_eq!(store.run(command).ok().lines().filter(|line| line.contains("mcp/")).count(), 0);
    }
}
