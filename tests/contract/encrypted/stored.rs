//! Nothing that a server writes is stored in the clear, except what the guide says.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{Agenda, Encrypted, NewTask, PartName, RedisBackend, RpcError, TaskStore};
use serde_json::json;

use crate::support::encryption::keyring;
use crate::support::redis::Server;
use crate::support::sqlite::Folder;
use crate::support::{in_an_hour, key, owner};

/// Part of every text that must not be stored.
const MARKER: &str = "plain-text-marker";
const OUTPUT: PartName = PartName::from_static("output");

/// Writes records and tasks that contain the marker wherever a caller can put one.
async fn write_markers<B: Agenda + Clone>(engine: B) {
    let marked = |text: &str| format!("{MARKER} {text}");
    let t1 = key("alice", "t1");
    engine.put(&t1, marked("data").into(), in_an_hour().set_part(OUTPUT, marked("part"))).await.unwrap();
    engine.put(&t1, marked("again").into(), in_an_hour()).await.unwrap();
    assert_eq!(engine.get(&t1).await.unwrap().data, marked("again"));

    let tasks = TaskStore::new(engine.clone());
    let large = json!({ "text": marked(&MARKER.repeat(1000)) });
    let new = NewTask::new("tools/call").operation("render").arguments(large.clone());
    let (stored, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
    attempt.set_status_message(marked("message")).await.unwrap();
    attempt.set_checkpoint(large.clone()).await.unwrap();
    attempt.request_input("question", json!({ "message": marked("question") })).await.unwrap();
    attempt.complete(large).await.unwrap();
    let (_, attempt) = tasks.start(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
    attempt.fail(RpcError::new(-32603, marked("error"))).await.unwrap();
    assert!(tasks.get(&stored.key).await.unwrap().task.status.is_terminal());
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn assert_no_marker(files: &[(String, Vec<u8>)]) {
    let names: Vec<_> = files.iter().map(|(name, bytes)| (name, bytes.len())).collect();
    // The search finds what is in the clear.
    assert!(files.iter().any(|(_, bytes)| contains(bytes, "alice")), "{names:?}");
    for (name, bytes) in files {
        assert!(!contains(bytes, MARKER), "{name} contains plain text");
    }
}

fn read_all(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(read_all(&path));
        } else {
            files.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    files
}

#[tokio::test]
async fn no_plain_text_is_in_a_sqlite_file_or_its_log() {
    let folder = Folder::roomy();
    write_markers(Arc::new(Encrypted::new(folder.backend().await, keyring(&["k1"])))).await;
    let files = read_all(folder.path().parent().unwrap());
    assert!(files.iter().any(|(name, bytes)| name.ends_with("-wal") && !bytes.is_empty()));
    assert_no_marker(&files);
}

#[tokio::test]
async fn no_plain_text_is_in_the_dump_or_the_append_only_file_of_a_redis() {
    let server =
        Server::start(&["--appendonly", "yes", "--rdbcompression", "no", "--slowlog-log-slower-than", "0"]);
    let engine = RedisBackend::builder()
        .response_timeout(Duration::from_secs(20))
        .connect(&server.url())
        .await
        .unwrap();
    write_markers(Arc::new(Encrypted::new(engine, keyring(&["k1"])))).await;
    let mut connection = server.connection();
    let _: () = redis::cmd("SAVE").query(&mut connection).unwrap();
    // The slow log has the arguments of all commands, cut to their first 128 bytes.
    let log: redis::Value = redis::cmd("SLOWLOG").arg("GET").arg(-1).query(&mut connection).unwrap();
    assert!(!format!("{log:?}").contains(MARKER));
    let files = read_all(server.folder());
    for suffix in [".rdb", ".aof"] {
        assert!(files.iter().any(|(name, bytes)| name.ends_with(suffix) && !bytes.is_empty()), "{suffix}");
    }
    assert_no_marker(&files);
}
