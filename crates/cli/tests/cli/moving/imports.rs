//! What an import creates, keeps, skips and overwrites.

use std::time::Duration;

use mcp_task_store::{Expiry, NewTask, PageRequest, PartName, PutOptions, StorageBackend, TaskKey};
use rstest_reuse::apply;
use serde_json::json;

use super::{File, records};
use crate::support::{Engine, Running, Store, in_every_direction, on_every_engine, owner, resumable};

const OWNERS: [&str; 4] = ["alice", "b:o{b}", "new\nline 🦀", "\0\u{1b}"];
const OUTPUT: PartName = PartName::from_static("output");

/// Stores tasks of every kind, for each owner.
async fn fill(store: &Store) {
    for owner in OWNERS {
        store.running(owner, "render").await;
        store.waiting(owner, "render").await;
        store.dead(owner, "print").await;
        let new = NewTask::new("tools/call").arguments(json!({ "text": "ю".repeat(5_000) }));
        let task = store.tasks.create(&self::owner(owner), new).await.unwrap();
        store.tasks.complete(&task, json!({ "pages": [1.5, "x".repeat(100_000)] })).await.unwrap();
        let key = TaskKey::new(owner, "not \u{202e} JSON").unwrap();
        let options = PutOptions::new(Expiry::After(Duration::from_secs(600))).set_part(OUTPUT, vec![0; 300]);
        store.tasks.backend().put(&key, vec![0, 255, 10].into(), options).await.unwrap();
        store
            .put(owner, "unlimited", json!({ "future": 123456789012345678901234567890_u128.to_string() }))
            .await;
    }
}

#[apply(in_every_direction)]
#[tokio::test(flavor = "multi_thread")]
async fn an_imported_store_is_equal(#[case] from: Engine, #[case] to: Engine) {
    let (source, target, file) = (from.open().await, to.open().await, File::new());
    fill(&source).await;
    source.run(&["export", "--output", file.path()]).ok();
    let imported = target.run(&["import", file.path(), "--json"]).json();
    let all = json!({
        "created": 24, "overwritten": 0, "present": 0, "differs": 0, "expired": 0, "failed": 0,
    });
    assert_eq!(imported, [all]);
    for owner in OWNERS {
        let before = records(source.tasks.backend(), owner).await;
        let after = records(target.tasks.backend(), owner).await;
        assert_eq!(before.len(), 6);
        for ((before, expires_before), (after, expires_after)) in before.iter().zip(&after) {
            assert_eq!(before, after);
            assert_eq!(expires_before.is_some(), expires_after.is_some());
            let difference = expires_before.zip(*expires_after).map(|(before, after)| (after - before).abs());
            assert!(
                difference.is_none_or(|difference| difference.num_milliseconds() < 1_000),
                "{difference:?}"
            );
        }
        assert_eq!(before.len(), after.len());
    }
    // The same file again, from stdin.
    let text = std::fs::read_to_string(&file.path).unwrap();
    let again = target.run_with(&["import", "-"], &text);
    assert!(again.err.contains("imported 0 tasks, 24 already present") && again.code == Some(0), "{again:?}");
    let dead = target.run(&["list", "--dead", "--json"]).json();
    assert_eq!(dead.len(), OWNERS.len(), "the list of dead tasks");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_other_content_stays_unless_it_is_overwritten(#[case] engine: Engine) {
    let (source, target, file) = (Engine::Sqlite.open().await, engine.open().await, File::new());
    let kept = source.put("alice", "kept", json!({ "status": "completed" })).await;
    let other = source.put("alice", "other", json!({ "status": "completed" })).await;
    source.run(&["export", "--output", file.path()]).ok();
    let options = PutOptions::default().set_part(OUTPUT, "another result");
    target.tasks.backend().put(&kept, "{}".into(), options).await.unwrap();

    let refused = target.run(&["import", file.path()]);
    assert!(refused.err.contains("imported 1 task, 1 left as they are"), "{refused:?}");
    let refused = refused.failed(1);
    assert!(
        refused.contains("alice:kept: exists with other content") && refused.contains("--overwrite"),
        "{refused}"
    );
    assert_eq!(target.record(&kept).await.unwrap(), json!({}));
    assert_eq!(target.record(&other).await, source.record(&other).await);

    let overwritten = target.run(&["import", file.path(), "--overwrite"]);
    assert!(
        overwritten.err.contains("imported 0 tasks, 1 overwritten, 1 already present"),
        "{overwritten:?}"
    );
    assert_eq!(overwritten.code, Some(0));
    assert_eq!(target.record(&kept).await, source.record(&kept).await);
    assert_eq!(
        target.tasks.backend().part(&kept, &OUTPUT).await.unwrap(),
        None,
        "a part of the other content"
    );
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_another_part_differs(#[case] engine: Engine) {
    let (source, target, file) = (Engine::Sqlite.open().await, engine.open().await, File::new());
    let key = TaskKey::new("alice", "t1").unwrap();
    for (store, part) in [(&source, "abc"), (&target, "abd")] {
        let options = PutOptions::default().set_part(OUTPUT, part);
        store.tasks.backend().put(&key, "{}".into(), options).await.unwrap();
    }
    source.run(&["export", "--output", file.path()]).ok();
    target.run(&["import", file.path()]).failed(1);
    target.run(&["import", file.path(), "--overwrite"]).ok();
    assert_eq!(target.tasks.backend().part(&key, &OUTPUT).await.unwrap().unwrap().data, "abc");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_have_expired_since_the_export_are_left_out(#[case] engine: Engine) {
    let (source, target, file) = (Engine::Sqlite.open().await, engine.open().await, File::new());
    let backend = source.tasks.backend();
    let brief = TaskKey::new("alice", "brief").unwrap();
    source.put("alice", "lasting", json!({ "status": "completed" })).await;
    let options = PutOptions::new(Expiry::After(Duration::from_secs(5)));
    let expires_at = backend.put(&brief, "{}".into(), options).await.unwrap().expires_at.unwrap();
    source.run(&["export", "--output", file.path()]).ok();
    assert_eq!(file.tasks().len(), 2, "the export takes less than 5 s");
    while target.tasks.backend().clock(&brief).await.unwrap() <= expires_at {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let imported = target.run(&["import", file.path()]);
    assert!(imported.err.contains("imported 1 task, 1 expired") && imported.code == Some(0), "{imported:?}");
    assert_eq!(target.record(&brief).await, None);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_an_import_between_two_tasks_and_the_same_command_continues(#[case] engine: Engine) {
    let (source, target, file) = (Engine::Sqlite.open().await, engine.open().await, File::new());
    // One owner, whose tasks are created one after the other.
    super::many::fill(&source, &["alice"], 20_000).await;
    source.run(&["export", "--output", file.path(), "--rate", "1000000"]).ok();
    let mut importing = Running::new(target.command(&["import", file.path()]));
    importing.expect("00 tasks, ");
    // The progress appears before the first task does.
    let one = PageRequest::new(1);
    while target.tasks.backend().list(&owner("alice"), one.clone()).await.unwrap().records.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    importing.press_ctrl_c();
    let (rest, code) = importing.end();
    assert!(rest.contains("interrupted") && rest.contains("to continue") && code == 1, "{rest:?}");
    let imported = records(target.tasks.backend(), "alice").await;
    let before = records(source.tasks.backend(), "alice").await;
    let (first, done) = (before.len() - imported.len(), imported.len());
    assert!(done < before.len());
    assert!(
        imported.iter().map(|(kept, _)| kept).eq(before[first..].iter().map(|(kept, _)| kept)),
        "the oldest ones"
    );
    let again = target.run(&["import", file.path()]);
    assert!(again.err.contains("already present") && again.code == Some(0), "{again:?}");
    let after = records(target.tasks.backend(), "alice").await;
    assert!(after.iter().map(|(kept, _)| kept).eq(before.iter().map(|(kept, _)| kept)));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_checks_the_file_and_changes_nothing(#[case] engine: Engine) {
    let (store, file) = (engine.open().await, File::new());
    let task = store.tasks.enqueue(&owner("alice"), resumable("render")).await.unwrap().key;
    store.run(&["export", "--output", file.path()]).ok();
    store.tasks.delete(&task).await.unwrap();
    let dry = store.run(&["import", file.path(), "--dry-run"]);
    assert!(dry.err.contains("the file has 1 task, exported from") && dry.code == Some(0), "{dry:?}");
    assert_eq!(store.record(&task).await, None);
}
