//! export and import: what a file has, and what another store then has.

mod imports;
mod many;
mod refused;
mod schedules;

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use mcp_task_store::{
    Agenda, MAX_PAGE_LIMIT, NewTask, PageRequest, PartName, PutOptions, StorageBackend, TaskKey, UniqueKey,
};
use rstest_reuse::apply;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Engine, Keys, name, on_every_engine, owner, resumable};

/// A file for an export. Dropping it removes the file.
pub struct File {
    pub path: PathBuf,
    _folder: TempDir,
}

impl File {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        Self { path: folder.path().join("tasks.jsonl"), _folder: folder }
    }

    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the ids of the tasks in the file.
    pub fn tasks(&self) -> Vec<String> {
        let id = |line: &Value| line["taskId"].as_str().map(str::to_owned);
        self.lines().iter().filter_map(id).collect()
    }

    /// Returns the names of the files in its folder.
    pub fn folder(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.path.parent().unwrap()).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// A record with everything that an import keeps.
#[derive(Debug, PartialEq)]
pub struct Kept {
    pub task: String,
    pub data: Vec<u8>,
    pub parts: BTreeMap<PartName, Vec<u8>>,
}

/// Returns the records of an owner, newest first, and when each expires.
pub async fn records(backend: &dyn Agenda, owner: &str) -> Vec<(Kept, Option<DateTime<Utc>>)> {
    let (owner, mut found, mut cursor) = (self::owner(owner), Vec::new(), None);
    loop {
        let request = PageRequest::new(MAX_PAGE_LIMIT);
        let page = backend.list(&owner, cursor.map_or(request.clone(), |cursor| request.after(cursor))).await;
        let page = page.unwrap();
        assert!(page.corrupt.is_empty(), "{page:?}");
        for listed in page.records {
            let key = TaskKey { owner: owner.clone(), task: listed.task };
            let mut parts = BTreeMap::new();
            for name in listed.parts.keys() {
                parts.insert(name.clone(), backend.part(&key, name).await.unwrap().unwrap().data.to_vec());
            }
            let kept = Kept { task: key.task.to_string(), data: listed.data.to_vec(), parts };
            found.push((kept, listed.expires_at));
        }
        cursor = page.next;
        if cursor.is_none() {
            return found;
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_a_header_the_records_and_a_checksum_and_no_record_of_the_runtime(#[case] engine: Engine) {
    let (store, file) = (engine.open().await, File::new());
    let unique = UniqueKey::new("render", "scene 7");
    store.tasks.enqueue_unique(&owner("alice"), resumable("render"), &unique).await.unwrap();
    let done = store.tasks.create(&owner("bob"), NewTask::new("tools/call")).await.unwrap();
    let done = store.tasks.complete(&done, json!({ "pages": "x".repeat(6_000) })).await.unwrap();
    let ended = store.run(&["export", "--output", file.path()]);
    assert!(ended.err.contains("exported 2 tasks"), "{ended:?}");
    let lines = file.lines();
    let kind = store.url.split(':').next().unwrap();
    assert_eq!(
        (&lines[0]["format"], &lines[0]["version"], &lines[0]["engine"]),
        (&json!("mcp-tasks"), &json!(1), &json!(kind))
    );
    assert_eq!((lines.len(), &lines[3]["records"]), (4, &json!(2)), "{lines:#?}");
    let bob = lines.iter().find(|line| line["owner"] == "bob").unwrap();
    assert_eq!(bob["taskId"], done.key.task.as_str());
    assert_eq!(bob["record"], store.record(&done.key).await.unwrap());
    assert!(bob["parts"]["output"].as_str().unwrap().len() > 6_000, "{bob}");
    assert_eq!(file.folder(), ["tasks.jsonl"]);
    // The same lines on stdout, apart from the time.
    let out = store.run(&["export", "--quiet"]);
    assert!(out.err.is_empty(), "{out:?}");
    let mut out = out.json();
    assert_eq!(out.len(), 4);
    out.retain(|line| line["taskId"] == done.key.task.as_str());
    assert_eq!(&out[0], bob);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_the_tasks_that_match_the_filters(#[case] engine: Engine) {
    let store = engine.open().await;
    let dead = store.dead("alice", "print").await.key;
    let other = store.dead("bob", "render").await.key;
    let running = store.running("alice", "print").await.key;
    store.put("alice", "x", json!({ "status": "completed" })).await;
    let damaged = TaskKey::new("alice", "damaged").unwrap();
    store.tasks.backend().put(&damaged, "{".into(), Default::default()).await.unwrap();
    let exported = |args: &[&str]| {
        let file = File::new();
        let ended = store.run(&[&["export", "--output", file.path()], args].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let mut tasks = file.tasks();
        tasks.sort_unstable();
        (tasks, ended.err)
    };
    let sorted = |mut tasks: Vec<&str>| {
        tasks.sort_unstable();
        tasks.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(exported(&["--dead"]).0, sorted(vec![dead.task.as_str(), other.task.as_str()]));
    let (found, remarks) = exported(&["--owner", "alice", "--tool", "print"]);
    assert_eq!(found, sorted(vec![dead.task.as_str(), running.task.as_str()]));
    assert!(remarks.contains("leaves out 1 record that cannot be read as tasks"), "{remarks}");
    let (found, remarks) = exported(&["--owner", "alice"]);
    assert_eq!(found, sorted(vec!["damaged", "x", dead.task.as_str(), running.task.as_str()]));
    assert!(remarks.contains("exported 1 record as stored"), "{remarks}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_export_never_replaces_a_file_and_leaves_none_behind_when_it_fails(#[case] engine: Engine) {
    let (store, file) = (engine.open().await, File::new());
    store.completed("alice", "print").await;
    std::fs::write(&file.path, "mine").unwrap();
    let refused = store.run(&["export", "--output", file.path()]).failed(1);
    assert!(refused.contains("exists") && refused.contains("tasks.jsonl"), "{refused}");
    assert_eq!(std::fs::read_to_string(&file.path).unwrap(), "mine");
    std::fs::remove_file(&file.path).unwrap();
    let missing = store.run(&["export", "--output", "/nonexistent/tasks.jsonl"]).failed(1);
    assert!(missing.contains("/nonexistent"), "{missing}");
    for number in 0..400 {
        store.put("alice", &format!("{number}"), json!({ "status": "completed" })).await;
    }
    // The second page waits for the rate.
    let mut running =
        crate::support::Running::new(store.command(&["export", "--output", file.path(), "--rate", "10"]));
    running.expect("256 records exported");
    running.press_ctrl_c();
    let (rest, code) = running.end();
    assert!(rest.contains("interrupted") && code == 1, "{rest:?}");
    assert!(file.folder().is_empty(), "{:?}", file.folder());
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_store_is_exported_readable_with_its_keys_and_as_stored_without_them(
    #[case] engine: Engine,
) {
    let (store, keys, file, as_stored) = (engine.open().await, Keys::new(&["k1"]), File::new(), File::new());
    let encrypted = keys.of(&store);
    let damaged = TaskKey::new("alice", "damaged").unwrap();
    encrypted.backend().put(&damaged, "{".into(), PutOptions::default()).await.unwrap();
    let task =
        encrypted.create(&owner("alice"), NewTask::new("tools/call").operation("print")).await.unwrap();
    let task = encrypted.complete(&task, json!({ "secret": "x".repeat(6_000) })).await.unwrap().key;

    store.run(&["export", "--keys", keys.path(), "--output", file.path()]).ok();
    assert_eq!(file.lines()[1]["record"]["operation"], "print");
    let remarks = store.run(&["export", "--output", as_stored.path()]).err;
    assert!(remarks.contains("--keys FILE decrypts them"), "{remarks}");
    let line = &as_stored.lines()[1];
    assert!(line["data"].is_string() && line.get("record").is_none(), "{line}");

    // Both files restore the same task: one into a store with other keys, one into a store with the same keys.
    let (other, other_keys) = (Engine::Sqlite.open().await, Keys::new(&["k2"]));
    other.run(&["import", file.path(), "--keys", other_keys.path()]).ok();
    let of_other = other_keys.of(&other);
    let restored = of_other.get(&task).await.unwrap();
    let of_other = of_other.payload(&restored, mcp_task_store::PayloadKind::Output).await.unwrap();
    assert_eq!(of_other.unwrap()["secret"].as_str().unwrap().len(), 6_000);
    assert!(keys.of(&other).get(&task).await.is_err(), "it is encrypted under k2");
    assert_eq!(other_keys.of(&other).backend().get(&damaged).await.unwrap().data, "{");
    let same = Engine::Sqlite.open().await;
    let refused = same.run(&["import", as_stored.path(), "--keys", keys.path()]).failed(1);
    assert!(refused.contains("without --keys"), "{refused}");
    same.run(&["import", as_stored.path()]).ok();
    assert!(keys.of(&same).get(&task).await.unwrap().task.status.is_terminal());

    // Keys that do not fit: nothing is exported, and the command fails.
    let wrong = File::new();
    let failed = store.run(&["export", "--keys", other_keys.path(), "--output", wrong.path()]).failed(1);
    assert!(
        failed.contains(&name(&task)) && failed.contains("k1") && failed.contains("left out 2 records"),
        "{failed}"
    );
    assert!(wrong.tasks().is_empty());
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_data_and_parts_of_the_same_version_while_tasks_change(#[case] engine: Engine) {
    const RECORDS: usize = 20;
    let store = engine.open().await;
    let backend = store.tasks.backend().clone();
    let (written, mut is_written) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        for number in 0_u64.. {
            for record in 0..RECORDS {
                let key = TaskKey::new("alice", &format!("{record}")).unwrap();
                let part =
                    PutOptions::default().set_part(PartName::from_static("output"), number.to_string());
                backend.put(&key, json!({ "n": number }).to_string().into(), part).await.unwrap();
            }
            written.send_replace(true);
        }
    });
    is_written.wait_for(|written| *written).await.unwrap();
    for _ in 0..5 {
        let lines = store.run(&["export", "--quiet"]).json();
        assert_eq!(lines.len(), RECORDS + 2);
        for line in &lines[1..=RECORDS] {
            let number = line["record"]["n"].to_string();
            assert_eq!(line["parts"]["output"], base64(number.as_bytes()), "{line}");
        }
    }
    writing.abort();
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_export_never_writes_to_a_terminal(#[case] engine: Engine) {
    let store = engine.open().await;
    let (shown, code) = crate::support::Running::new(store.command(&["export"])).end();
    assert!(
        shown.contains("stdout is a terminal") && shown.contains("--output FILE") && code == 2,
        "{shown}"
    );
}

#[cfg(feature = "redis-tests")]
#[tokio::test(flavor = "multi_thread")]
async fn an_export_continues_after_a_short_outage() {
    let (server, file) = (crate::support::server::Server::start(&[]), File::new());
    let url = format!("redis://127.0.0.1:{}", server.port);
    let backend = mcp_task_store::RedisBackend::connect(&url).await.unwrap();
    for number in 0..300 {
        let key = TaskKey::new("alice", &format!("{number}")).unwrap();
        backend.put(&key, "{}".into(), PutOptions::default()).await.unwrap();
    }
    let mut command = crate::support::command();
    command.env("MCP_TASKS_URL", &url).args(["export", "--rate", "100", "--output", file.path()]);
    let mut exporting = crate::support::Running::new(command);
    // The second page waits for the rate, and then for longer than a call may take.
    exporting.expect("256 records exported");
    server.pause(std::time::Duration::from_secs(6));
    let (rest, code) = exporting.end();
    assert!(rest.contains("exported 300 tasks") && code == 0, "{rest}");
    assert_eq!(file.tasks().len(), 300);
}
