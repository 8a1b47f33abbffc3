//! The pictures of the README and of the guide: a fleet of digest servers, at a fixed time.
//!
//! The wall clock of the process that takes them stands still, so that they show the same in every run.

use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use mcp_task_store::TaskKey;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::chromium::Tab;
use super::site::Site;
use crate::support::{Engine, Store, path};
use crate::workers::announce;

/// If this variable is set, the pictures go into the guide.
const WRITE: &str = "SCREENSHOTS_WRITE";
/// Where the process that takes the pictures puts them.
const FOLDER: &str = "SCREENSHOTS_FOLDER";
const NOW: &str = "2026-11-28 09:30:40";
const MAX_BYTES: usize = 100_000;
const WORKERS: [&str; 4] = ["70469044", "c41f09ab", "3e74a4d5", "7d8703b0"];
const NAMES: [&str; 4] = ["overview-light", "overview-dark", "task-light", "task-dark"];

/// Runs [`take`] in a process whose wall clock stands still.
#[test]
fn the_pictures_of_the_guide_are_small_and_made_again_if_asked() {
    let folder = TempDir::new().unwrap();
    let taken = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "browser::screenshots::take", "--nocapture"])
        .env(FOLDER, folder.path())
        .env("LD_PRELOAD", faketime())
        .env("FAKETIME", NOW)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("TZ", "UTC")
        .output()
        .unwrap();
    assert!(taken.status.success(), "{taken:?}");
    let guide = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/images");
    for name in NAMES {
        let picture = std::fs::read(folder.path().join(name).with_extension("png")).unwrap();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() < MAX_BYTES, "{name}: {}", picture.len());
        let shown = guide.join(format!("console-{name}.png"));
        if std::env::var_os(WRITE).is_some() {
            std::fs::create_dir_all(&guide).unwrap();
            std::fs::write(&shown, &picture).unwrap();
        }
        assert!(shown.exists(), "{}: make it with `make screenshots`", shown.display());
    }
}

fn faketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let found =
        folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|library| library.exists());
    found.expect("libfaketime.so.1; install it with `make faketime`")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test of this file, in a process of its own"]
async fn take() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let store = Engine::Memory.open().await;
    let task = fleet(&store).await;
    let site = Site::of(store).await;
    let tab = Tab::open(&site).await;
    for scheme in ["light", "dark"] {
        tab.set_color_scheme(scheme).await;
        take_one(&tab, "/", &folder, &format!("overview-{scheme}")).await;
        take_one(&tab, &path(&task), &folder, &format!("task-{scheme}")).await;
    }
    tab.close().await;
}

async fn take_one(tab: &Tab, path: &str, folder: &Path, name: &str) {
    tab.set_size(1000, 720).await;
    tab.set_scripts_disabled(false).await;
    tab.goto(path).await;
    tab.until("document.querySelector('#live').dataset.state === 'live'").await;
    // The page stays as it is now. One figure is measured with a clock that does not stand still.
    tab.disable_scripts().await;
    let fix = "document.querySelectorAll('#live-engine p').forEach(line => line.lastChild.data = ' a read in 0.05 ms') ?? true";
    tab.eval::<bool>(fix).await;
    std::fs::write(folder.join(name).with_extension("png"), tab.screenshot().await).unwrap();
}

/// Returns the time this long ago, as records state it. The clock of the engine goes on for some milliseconds.
fn ago(seconds: i64) -> String {
    let now = NOW.replace(' ', "T") + ".000Z";
    let time = now.parse::<DateTime<Utc>>().unwrap() - TimeDelta::seconds(seconds);
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Creates the tasks of an hour. Returns one that has lost a worker, and that asks its client.
async fn fleet(store: &Store) -> TaskKey {
    for number in 0..180_u32 {
        put(store, number).await;
    }
    // The first one is lost. The clock stands still, so the others stay alive.
    for (holder, seconds) in WORKERS.iter().zip([200, 4, 7, 2]) {
        announce(store, holder, seconds, json!({ "operations": ["digest_folder"] })).await;
    }
    let history = json!([
        [ago(600), "created"],
        [14, "started", 1, "70469044"],
        [186_020, "lease_lost", 1, "70469044"],
        [186_391, "resumed", 2, "c41f09ab"],
        [412_870, "input_requested", 2, "c41f09ab", "unreadable"],
    ]);
    let question = json!({ "method": "elicitation/create", "params": {
        "message": "3 of 1,204 files cannot be read. Leave them out?",
        "requestedSchema": { "type": "object", "properties": { "leaveOut": { "type": "boolean" } } },
    } });
    let fields = json!({
        "status": "input_required", "operation": "digest_folder", "statusMessage": "waits for an answer",
        "createdAt": ago(600), "lastUpdatedAt": ago(187), "ttlMs": 3_600_000,
        "progress": { "done": 812, "total": 1_204 }, "history": history, "inputRequests": { "unreadable": question },
        "arguments": { "folder": "/srv/nightly/2026-11-27/orders", "algorithm": "sha256" },
        "lease": {
            "holder": "c41f09ab-4be1-4c3e-9d5b-8f1a7c20e6d3", "attempt": 2, "losses": 1, "renewals": 41,
            "durationMs": 30_000, "deadline": ago(-21),
        },
    });
    store.put("acme", &id(7_919), fields).await
}

/// Creates the task with this number: some are open, some have failed, and one in forty is dead.
async fn put(store: &Store, number: u32) {
    let owner = ["acme", "globex", "initech"][number as usize % 3];
    let tool = ["digest_folder", "digest_folder", "verify_manifest", "digest_archive"][number as usize % 4];
    // More tasks in the middle of the hour.
    let begun = 40 + i64::from(number) * 19 + i64::from(number % 7) * 31;
    let took = 20 + i64::from(number % 11) * 9;
    let history = json!([[ago(begun), "created"], [900, "started", 1, WORKERS[number as usize % 4]]]);
    let mut fields =
        json!({ "operation": tool, "createdAt": ago(begun), "ttlMs": 3_600_000, "history": history });
    let more = match number {
        0..6 => json!({
            "status": "working", "lastUpdatedAt": ago(i64::from(number)),
            "lease": { "holder": "c41f09ab", "attempt": 1, "durationMs": 30_000, "deadline": ago(-20) },
        }),
        _ if number % 40 == 13 => ended(
            "failed",
            begun - took,
            json!({ "gaveUpAfter": 3, "statusMessage": "gave up after 3 attempts" }),
        ),
        _ if number % 17 == 5 => ended("failed", begun - took, json!({})),
        _ if number % 29 == 3 => ended("cancelled", begun - took, json!({})),
        _ => ended("completed", begun - took, json!({})),
    };
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    store.put(owner, &id(number), fields).await;
}

fn ended(status: &str, seconds: i64, mut fields: Value) -> Value {
    fields["status"] = status.into();
    fields["lastUpdatedAt"] = ago(seconds.max(1)).into();
    fields
}

/// Returns an id that looks random.
fn id(number: u32) -> String {
    let mixed = (u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    uuid::Builder::from_random_bytes(mixed.to_be_bytes()).into_uuid().to_string()
}
