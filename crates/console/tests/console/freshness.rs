//! How the snapshot follows the store.

use rstest_reuse::apply;
use serde_json::json;

use crate::support::{Engine, on_every_engine, path};

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn new_ended_and_deleted_tasks_reach_the_lists_without_a_restart(#[case] engine: Engine) {
    let store = engine.open().await;
    let ends = store.running("alice", "render").await;
    let deleted = store.put("alice", "deleted", json!({ "status": "completed" })).await;
    let browser = store.browse().await;
    store.tasks.cancel(&ends.key).await.unwrap();
    // The open task is read again within seconds, before the next pass.
    browser.until("/tasks?status=cancelled", |page| page.contains(ends.key.task.as_str())).await;
    store.tasks.delete(&deleted).await.unwrap();
    let new = store.running("bob", "print").await;
    browser.until("/tasks", |page| page.contains(new.key.task.as_str())).await;
    browser.until("/owners", |page| page.contains("bob")).await;
    browser.until("/tasks", |page| !page.contains("deleted")).await;
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_row_shows_the_task_as_it_is_now(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let gone = store.put("alice", "gone", json!({})).await;
    let browser = store.browse().await;
    store.tasks.set_status_message(&task.key, "frame 7").await.unwrap();
    store.tasks.delete(&gone).await.unwrap();
    let page = browser.page("/tasks").await;
    assert!(page.contains("frame 7"), "{page}");
    assert!(
        !page.contains(&path(&gone).replace('&', "&amp;")) || page.contains("gone or unreadable"),
        "{page}"
    );
}
