//! cancel, requeue, delete, purge: named tasks, and all that match.

use mcp_task_store::{PutOptions, StorageBackend, TaskKey, TaskStatus};
use rstest_reuse::apply;
use serde_json::json;

use crate::support::{Engine, Store, name, on_every_engine};

async fn status(store: &Store, key: &TaskKey) -> String {
    store.record(key).await.map_or("gone".to_owned(), |record| record["status"].as_str().unwrap().to_owned())
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn cancel_asks_the_worker_and_with_now_ends_the_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let (running, waiting) =
        (store.running("alice", "render").await.key, store.waiting("alice", "render").await.key);
    let completed = store.completed("alice", "render").await.key;
    let names = [&running, &waiting, &completed].map(name);
    let done = store.run(&["cancel", &names[0], &names[1], &names[2]]).ok();
    assert!(done.contains(&format!("{}: cancel requested", names[0])), "{done}");
    assert!(done.contains(&format!("{}: cancelled", names[1])), "{done}");
    assert!(done.contains(&format!("{}: has already ended", names[2])), "{done}");
    assert!(store.tasks.get(&running).await.unwrap().task.cancel_requested);
    assert_eq!(status(&store, &running).await, "working");
    let now = &store.run(&["cancel", "--now", "--json", &names[0]]).json()[0];
    assert_eq!((&now["outcome"], &now["action"]), (&json!("cancelled"), &json!("cancel")));
    assert_eq!(status(&store, &running).await, "cancelled");
    let missing = store.run(&["cancel", "alice:nothing", &names[0]]);
    assert!(missing.out.contains("has already ended"), "the other task: {missing:?}");
    assert!(missing.failed(1).contains("was not found"));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_are_cancelled_only_with_yes_and_a_second_run_finds_none(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut open = Vec::new();
    for number in 0..20 {
        open.push(store.running(&format!("owner {}", number % 3), "render").await.key);
    }
    let other = store.running("alice", "print").await.key;
    let refused = store.run(&["cancel", "--tool", "render"]).failed(2);
    assert!(refused.contains("--yes") && refused.contains("--dry-run"), "{refused}");
    let dry = store.run(&["cancel", "--tool", "render", "--dry-run", "--now"]);
    assert!(dry.err.contains("would cancel 20 tasks"), "{dry:?}");
    assert_eq!(dry.out.lines().count(), 21, "{dry:?}");
    for key in &open {
        assert_eq!(status(&store, key).await, "working");
    }
    let requested = store.run(&["cancel", "--tool", "render", "--yes"]);
    assert!(requested.err.contains("requested to cancel 20 tasks"), "{requested:?}");
    let again = store.run(&["cancel", "--tool", "render", "--yes"]);
    assert!(again.err.contains("no task to cancel") && again.code == Some(0), "{again:?}");
    let ended = store.run(&["cancel", "--tool", "render", "--yes", "--now", "--json"]).json();
    assert_eq!(ended.len(), 20);
    for key in &open {
        assert_eq!(status(&store, key).await, "cancelled");
    }
    assert_eq!(status(&store, &other).await, "working");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn requeue_runs_dead_tasks_again_once(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut dead = Vec::new();
    for _ in 0..3 {
        dead.push(store.dead("alice", "print").await.key);
    }
    let completed = store.completed("alice", "print").await.key;
    let running = store.running("alice", "print").await.key;
    let requeued = store.run(&["requeue", "--dead", "--yes", "--json"]).json();
    assert_eq!(requeued.len(), 3);
    for outcome in &requeued {
        let new = TaskKey::new("alice", outcome["newTaskId"].as_str().unwrap()).unwrap();
        let new = store.tasks.get(&new).await.unwrap().task;
        assert_eq!(new.requeued_from.as_ref().unwrap().as_str(), outcome["taskId"].as_str().unwrap());
        assert_eq!(new.status, TaskStatus::Working);
    }
    let stats = store.run(&["stats", "--json", "--status", "failed"]).json();
    assert_eq!((&stats[0]["tasks"], &stats[0]["dead"]), (&json!(3), &json!(0)), "{stats:?}");
    let again = store.run(&["requeue", "--dead", "--yes"]);
    assert!(again.err.contains("no task to requeue"), "{again:?}");
    let same = store.run(&["requeue", &name(&dead[0])]).ok();
    assert!(same.contains("requeued as"), "{same}");
    let open = store.run(&["requeue", &name(&running)]).failed(1);
    assert!(open.contains("has not ended"), "{open}");
    // Only failed tasks, unless the status is named.
    let failed = store.run(&["requeue", "--tool", "print", "--dry-run", "--json"]).json();
    assert_eq!(failed.len(), 3);
    assert!(failed.iter().all(|task| task["taskId"] != completed.task.as_str()));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn delete_refuses_open_tasks_and_unreadable_ones_without_force(#[case] engine: Engine) {
    let store = engine.open().await;
    let (running, completed) =
        (store.running("alice", "render").await.key, store.completed("alice", "render").await.key);
    let damaged = TaskKey::new("alice", "damaged").unwrap();
    store.tasks.backend().put(&damaged, "{".into(), PutOptions::default()).await.unwrap();
    let refused = store.run(&["delete", &name(&running), &name(&completed), "alice:damaged"]);
    assert!(refused.out.contains(&format!("{}: deleted", name(&completed))), "{refused:?}");
    let errors = refused.failed(1);
    assert!(errors.contains("is working and was not deleted") && errors.contains("--force"), "{errors}");
    assert!(errors.contains("cannot be read"), "{errors}");
    assert_eq!(
        (status(&store, &running).await, status(&store, &completed).await),
        ("working".into(), "gone".into())
    );
    let left = store.run(&["delete", "--owner", "alice", "--yes"]);
    assert!(left.err.contains("leaves out 1 task: not ended"), "{left:?}");
    assert_eq!(status(&store, &running).await, "working");
    store.run(&["delete", "--force", &name(&running), "alice:damaged"]).ok();
    assert_eq!(status(&store, &running).await, "gone");
    assert!(store.tasks.backend().get(&damaged).await.is_err());
    let mistake = store.run(&["delete"]).failed(2);
    assert!(mistake.contains("no task was named"), "{mistake}");
    store.run(&["delete", "alice:t1", "--tool", "render"]).failed(2);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn purge_deletes_what_ended_long_ago(#[case] engine: Engine) {
    let store = engine.open().await;
    let old =
        json!({ "status": "completed", "createdAt": store.ago(10_000), "lastUpdatedAt": store.ago(8_000) });
    let mut olds = Vec::new();
    for number in 0..300 {
        olds.push(store.put("alice", &format!("old {number}"), old.clone()).await);
    }
    let ended_lately = json!({ "status": "completed", "createdAt": store.ago(10_000) });
    let ended_lately = store.put("alice", "ended lately", ended_lately).await;
    let open = store.put("bob", "open", json!({ "createdAt": store.ago(10_000) })).await;
    let mistake = store.run(&["purge", "--yes"]).failed(2);
    assert!(mistake.contains("--older-than") && mistake.contains("--all-ended"), "{mistake}");
    let purged = store.run(&["purge", "--older-than", "2h", "--yes"]);
    assert!(purged.err.contains("deleted 300 tasks"), "{purged:?}");
    for key in &olds {
        assert_eq!(status(&store, key).await, "gone");
    }
    assert_eq!(
        (status(&store, &ended_lately).await, status(&store, &open).await),
        ("completed".into(), "working".into())
    );
    store.run(&["purge", "--all-ended", "--yes"]).ok();
    assert_eq!(
        (status(&store, &ended_lately).await, status(&store, &open).await),
        ("gone".into(), "working".into())
    );
}
