//! The page of the workers.

use std::time::Duration;

use axum::http::StatusCode;
use mcp_task_store::{Expiry, PutOptions, StorageBackend, TaskKey};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Store, on_every_engine, path};

/// Writes the record of a worker that was last seen this long ago.
pub async fn announce(store: &Store, holder: &str, seconds: i64, fields: Value) {
    let mut record = json!({
        "holder": holder, "host": "build-7", "processId": 4711, "version": "0.1.0", "operations": ["render"], "operationCount": 1,
        "capacity": 8, "tasks": [], "taskCount": 0, "startedAt": store.ago(7_300), "lastSeenAt": store.ago(seconds),
        "periodMs": 10_000,
    });
    record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let expires = PutOptions::new(Expiry::After(Duration::from_secs(3600)));
    let key = TaskKey::new("\0mcp/workers", holder).unwrap();
    store.backend().put(&key, record.to_string().into(), expires).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_each_worker_with_what_it_runs_and_the_overview_counts_the_lost(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let tasks = json!([{ "owner": "alice", "taskId": task.key.task, "attempt": 1 }]);
    // It stays alive for longer than the test.
    let alive = json!({ "tasks": tasks, "taskCount": 9, "periodMs": 600_000 });
    announce(&store, "0f1b2c3d-aaaa", 5, alive).await;
    announce(&store, "7e57ab1e-bbbb", 60, json!({ "host": "<b>\u{202e}", "operationCount": 40 })).await;
    announce(&store, "later", 60, json!({ "tasks": "many" })).await;
    let browser = store.browse().await;
    let page = browser.page("/workers").await;
    for expected in [
        "0f1b2c3d…",
        "build-7",
        "4711",
        "9 of 8",
        "and 8 more",
        "render and 39 more",
        "&lt;b&gt;\\u{202e}",
        "1 record cannot be read",
        &path(&task.key).replace('&', "&amp;"),
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert_eq!((page.matches(">running<").count(), page.matches(">lost<").count()), (1, 1), "{page}");
    assert!(page.contains("aria-current=\"page\">Workers"), "{page}");
    browser.until("/", |page| page.contains("1 running, 1 lost")).await;
    store.backend().delete(&TaskKey::new("\0mcp/workers", "7e57ab1e-bbbb").unwrap()).await.unwrap();
    browser.until("/", |page| page.contains("1 running, 0 lost")).await;
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn every_worker_is_on_one_page(#[case] engine: Engine) {
    let store = engine.open().await;
    for number in 0..150 {
        announce(&store, &format!("w{number:03}"), 5, json!({})).await;
    }
    let browser = store.browse().await;
    let (first, mut seen) = (browser.page("/workers").await, Vec::new());
    let (before, _) = first.split_once("\" rel=\"next\"").unwrap();
    let next = browser.page(&before.rsplit('"').next().unwrap().replace("&amp;", "&")).await;
    for page in [&first, &next] {
        seen.extend(page.split("scope=\"row\" title=\"").skip(1).map(|row| row[..4].to_owned()));
    }
    assert_eq!(seen, (0..150).rev().map(|number| format!("w{number:03}")).collect::<Vec<_>>());
    assert!(!next.contains("rel=\"next\""), "{next}");
    let refused = browser.get("/workers?after=nonsense").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
}
