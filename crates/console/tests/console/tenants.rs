//! Visitors who see the tasks of one owner only.

use axum::http::StatusCode;
use mcp_task_console::Access;
use mcp_task_store::{TaskKey, TaskStatus};
use rstest_reuse::apply;
use serde_json::json;

use crate::actions::{Shown, Visitor, status};
use crate::answers::question;
use crate::support::{Engine, Store, audit, on_every_engine, path};

fn console(store: &Store) -> Visitor {
    Visitor::new(store, Access::tenants("X-User", "X-Owner").unwrap())
}

fn alice(console: &Visitor) -> Visitor {
    console.with(&[("x-user", "ann"), ("x-owner", "alice")])
}

/// Requests a page until it has this text. Returns it.
async fn until(visitor: &Visitor, path: &str, text: &str) -> String {
    let begun = std::time::Instant::now();
    loop {
        let page = visitor.get(path).await.page();
        if page.contains(text) {
            return page;
        }
        assert!(begun.elapsed().as_secs() < 120, "{path}: {page}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_the_tasks_of_its_owner_on_every_page_and_in_every_count(#[case] engine: Engine) {
    let store = engine.open().await;
    let own = store.running("alice", "render").await;
    let foreign = store.dead("bob", "print-s3cret").await;
    store.running("alice2", "print-s3cret").await;
    store.put("bob", "s3cret-old", json!({ "createdAt": store.ago(9_000) })).await;
    mcp_task_store::StorageBackend::put(
        &store.backend(),
        &TaskKey::new("bob", "damaged").unwrap(),
        "{".into(),
        Default::default(),
    )
    .await
    .unwrap();
    let visitor = alice(&console(&store));
    let overview = until(&visitor, "/", "Counts and lists as of").await;
    for path in [
        "/",
        "/tasks",
        "/owners",
        "/tasks?owner=bob",
        "/owners?owner=bob",
        "/tasks?id=s3cret",
        "/tasks?tool=print-s3cret",
    ] {
        let page = visitor.get(path).await.page();
        let table = page.split("</form>").last().unwrap();
        assert!(
            !table.contains("s3cret") && !table.contains("bob") && !table.contains("alice2"),
            "{path}: {page}"
        );
        assert!(
            !page.contains(foreign.key.task.as_str()) && !page.contains("cannot be read as tasks"),
            "{path}: {page}"
        );
    }
    assert!(overview.contains(own.key.task.as_str()), "the oldest task of the owner: {overview}");
    assert!(
        overview.contains("<strong>1</strong> <span>Working")
            && overview.contains("<strong>0</strong> <span>Failed"),
        "{overview}"
    );
    for foreign in ["The last hour", "Engine", "Workers", "/workers"] {
        assert!(!overview.contains(foreign), "{foreign}: {overview}");
    }
    visitor.get(&path(&own.key)).await.page();
    let bob = console(&store).with(&[("x-user", "ann"), ("x-owner", "bob")]);
    until(&bob, "/tasks", foreign.key.task.as_str()).await;
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_task_is_answered_word_for_word_as_one_that_does_not_exist(#[case] engine: Engine) {
    let store = engine.open().await;
    let foreign = store.running("bob", "render").await;
    let absent = TaskKey::new("bob", "absent").unwrap();
    let visitor = alice(&console(&store));
    for action in ["", "/cancel", "/requeue", "/delete", "/answer"] {
        let [one, two] =
            [&foreign.key, &absent].map(|key| path(key).replace("/task?", &format!("/task{action}?")));
        let (one, two) = (visitor.get(&one).await, visitor.get(&two).await);
        assert_eq!((one.status, &one.body), (StatusCode::NOT_FOUND, &two.body), "{action}");
    }
    for path in ["/workers", "/metrics", "/nothing"] {
        assert_eq!(visitor.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_acts_on_its_own_tasks_only(#[case] engine: Engine) {
    let store = engine.open().await;
    let (own, foreign) = (store.running("alice", "render").await, store.running("bob", "render").await);
    let ended = store.completed("bob", "print").await;
    store.tasks.request_input(&foreign.key, [("q", question())]).await.unwrap();
    let visitor = alice(&console(&store));
    let form = visitor.open("cancel", &own.key).await;
    for (action, key, fields) in [
        ("cancel", &foreign.key, "how=now"),
        ("answer", &foreign.key, "answer=decline"),
        ("requeue", &ended.key, ""),
        ("delete", &ended.key, ""),
    ] {
        let action = path(key).replace("/task?", &format!("/task/{action}?")) + "&key=q";
        let (token, cookie) = (form.token.clone(), form.cookie.clone());
        let forged = Shown { action, token, cookie, page: String::new() };
        assert_eq!(visitor.send(&forged, fields).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(status(&store, &foreign.key).await, TaskStatus::InputRequired);
    assert_eq!(store.tasks.get(&ended.key).await.unwrap().version, ended.version);
    let lines = audit::lines(&[&foreign.key, &ended.key]);
    assert!(lines.len() == 4 && lines.iter().all(|line| line.contains("refused: no such task")), "{lines:?}");
    assert!(lines[0].contains("who=\"ann\"") && lines[0].contains("owner=\"bob\""), "{lines:?}");
    visitor.send(&form, "how=now").await.page();
    assert_eq!(status(&store, &own.key).await, TaskStatus::Cancelled);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_name_one_user_and_one_owner_is_refused(#[case] engine: Engine) {
    let store = engine.open().await;
    let console = console(&store);
    for headers in [
        &[] as &[(&'static str, &str)],
        &[("x-user", "ann")],
        &[("x-owner", "alice")],
        &[("x-user", "ann"), ("x-owner", "")],
        &[("x-user", " "), ("x-owner", "alice")],
        // The header of a client, which the proxy has not removed.
        &[("x-user", "ann"), ("x-owner", "bob"), ("x-owner", "alice")],
        &[("x-user", "eve"), ("x-user", "ann"), ("x-owner", "alice")],
    ] {
        let refused = console.with(headers).get("/tasks").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{headers:?}");
    }
    alice(&console).get("/tasks").await.page();
}
