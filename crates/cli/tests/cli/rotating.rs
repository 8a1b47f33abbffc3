//! rotate, and the other commands on an encrypted store.

use std::sync::Arc;

use mcp_task_store::{Agenda, NewTask, PutOptions, StorageBackend, TaskKey, TaskStore};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Keys, Running, Store, name, on_every_engine, owner};

type Tasks = TaskStore<Arc<dyn Agenda>>;

/// Creates a task with a secret result, which is a part.
async fn secret(tasks: &Tasks, owner: &str) -> TaskKey {
    let new = NewTask::new("tools/call").operation("print");
    let task = tasks.create(&self::owner(owner), new).await.unwrap();
    tasks.complete(&task, json!({ "secret": "x".repeat(6_000) })).await.unwrap().key
}

fn rotated(store: &Store, args: &[&str]) -> Value {
    let mut lines = store.run(&[&["rotate", "--json"], args].concat()).json();
    assert_eq!(lines.len(), 1);
    lines.remove(0)
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_the_old_key_is_not_needed(#[case] engine: Engine) {
    let store = engine.open().await;
    let (old, both, new) = (Keys::new(&["k1"]), Keys::new(&["k2", "k1"]), Keys::new(&["k2"]));
    let mut keys = Vec::new();
    for owner in ["alice", "bob", "bob"] {
        keys.push(secret(&old.of(&store), owner).await);
    }
    let counts = |rotated: u64, current: u64| json!({ "rotated": rotated, "current": current, "failed": 0, "position": null });
    assert_eq!(rotated(&store, &["--keys", both.path(), "--owner", "bob"]), counts(2, 0));
    assert!(new.of(&store).get(&keys[0]).await.is_err());
    assert_eq!(rotated(&store, &["--keys", both.path()]), counts(1, 2));
    assert_eq!(rotated(&store, &["--keys", both.path()]), counts(0, 3));
    for key in &keys {
        let shown = store.run(&["show", &name(key), "--keys", new.path(), "--part", "output"]).ok();
        assert!(shown.contains(&"x".repeat(6_000)));
    }
    let said = store.run(&["rotate", "--keys", new.path()]);
    assert!(
        said.err.contains("under the key k2") && said.err.contains("encrypted 0 records, 3 were"),
        "{said:?}"
    );
    let mistake = store.run(&["rotate"]).failed(2);
    assert!(mistake.contains("--keys FILE"), "{mistake}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn records_that_cannot_be_encrypted_are_named_and_plain_ones_are_encrypted_on_request(
    #[case] engine: Engine,
) {
    let (store, old, other) = (engine.open().await, Keys::new(&["k1"]), Keys::new(&["k2"]));
    let missing = secret(&old.of(&store), "alice").await;
    let plain = store.completed("bob", "print").await.key;
    let failed = store.run(&["rotate", "--keys", other.path()]);
    assert!(
        failed.err.contains("encrypted 0 records") && failed.err.contains("2 stay as they are"),
        "{failed:?}"
    );
    let failed = failed.failed(1);
    assert!(
        failed.contains(&name(&missing)) && failed.contains("k1") && failed.contains(&name(&plain)),
        "{failed}"
    );
    let both = Keys::new(&["k2", "k1"]);
    store.run(&["rotate", "--keys", both.path(), "--encrypt-plain"]).ok();
    assert!(other.of(&store).get(&plain).await.is_ok() && other.of(&store).get(&missing).await.is_ok());
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_a_rotation_and_the_command_that_it_prints_continues(#[case] engine: Engine) {
    let (store, both, new) = (engine.open().await, Keys::new(&["k2", "k1"]), Keys::new(&["k2"]));
    let old = Keys::new(&["k1"]).of(&store);
    for number in 0..400 {
        let key = TaskKey::new("alice", &format!("{number}")).unwrap();
        old.backend().put(&key, "{}".into(), PutOptions::default()).await.unwrap();
    }
    // The second page waits for the rate.
    let mut running = Running::new(store.command(&["rotate", "--keys", both.path(), "--rate", "10"]));
    running.expect("encrypted 256 records");
    running.press_ctrl_c();
    let (rest, code) = running.end();
    assert!(rest.contains("interrupted; to continue, run: ") && code == 1, "{rest:?}");
    let position = rest.split("--resume ").nth(1).unwrap().trim().trim_matches('\'');
    let continued = rotated(&store, &["--keys", both.path(), "--resume", position]);
    assert_eq!(continued, json!({ "rotated": 144, "current": 0, "failed": 0, "position": null }));
    assert_eq!(rotated(&store, &["--keys", new.path()])["current"], 400);
    store.run(&["rotate", "--keys", both.path(), "--resume", "nonsense"]).failed(2);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn commands_decrypt_with_the_keys_and_show_nothing_encrypted_without_them(#[case] engine: Engine) {
    let (store, keys) = (engine.open().await, Keys::new(&["k1"]));
    let key = secret(&keys.of(&store), "alice").await;
    let listed = store.run(&["list", "--json", "--keys", keys.path()]).json();
    assert_eq!((&listed[0]["tool"], &listed[0]["status"]), (&json!("print"), &json!("completed")));
    let mut command = store.command(&["show", &name(&key)]);
    command.env("MCP_TASKS_KEYS", std::fs::read_to_string(&keys.path).unwrap());
    assert!(crate::support::Ended::of(command, "").ok().contains("completed"));

    let unreadable = store.run(&["list"]);
    assert!(
        unreadable.err.contains("unreadable: ") && unreadable.err.contains("--keys FILE"),
        "{unreadable:?}"
    );
    let row: Vec<&str> = unreadable.out.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row, [&name(&key), "unreadable", "-", "-", "-", "-"]);
    let line = &store.run(&["list", "--json"]).json()[0];
    assert_eq!((&line["taskId"], &line["status"]), (&json!(key.task), &Value::Null));
    let fields = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(line), fields(&listed[0]), "all fields of a task");
    let filtered = store.run(&["list", "--tool", "print"]);
    assert!(filtered.out.is_empty() && filtered.err.contains("leaves out 1 record"), "{filtered:?}");
    let shown = store.run(&["show", &name(&key)]);
    assert!(shown.out.is_empty(), "{shown:?}");
    let shown = shown.failed(1);
    assert!(shown.contains("cannot be read") && shown.contains("--keys FILE"), "{shown}");
    let wrong = store.run(&["show", &name(&key), "--keys", Keys::new(&["k2"]).path()]).failed(1);
    assert!(wrong.contains("k1"), "{wrong}");

    // A file that others can read is refused, and no error contains a key.
    let open = Keys::new(&["k1"]);
    std::process::Command::new("chmod").arg("644").arg(&open.path).status().unwrap();
    let refused = store.run(&["list", "--keys", open.path()]).failed(1);
    assert!(refused.contains("chmod 600") && !refused.contains("k1k1"), "{refused}");
}
