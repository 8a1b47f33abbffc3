//! What each page shows.

use axum::Router;
use axum::http::StatusCode;
use mcp_task_console::{Access, Console};
use mcp_task_store::{Progress, StorageBackend};
use rstest_reuse::apply;
use serde_json::json;

use crate::support::{Browser, Engine, Store, on_every_engine, owner, path, resumable};

/// Returns the text of a page without its tags, with single spaces.
fn text(page: &str) -> String {
    let pieces = page.split('<').map(|piece| piece.split_once('>').map_or(piece, |(_, text)| text));
    pieces.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns which of these tasks a page of the list links to.
async fn listed<const N: usize>(
    browser: &Browser,
    query: &str,
    tasks: [&mcp_task_store::TaskKey; N],
) -> [bool; N] {
    let page = browser.page(&format!("/tasks?{query}")).await;
    tasks.map(|key| page.contains(&path(key).replace('&', "&amp;")))
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_overview_counts_tasks_and_names_what_needs_attention(#[case] engine: Engine) {
    let store = engine.open().await;
    store.running("alice", "render").await;
    store.dead("alice", "print").await;
    store.completed("bob", "print").await;
    let old =
        json!({ "operation": "scan", "createdAt": store.ago(7_300), "lastUpdatedAt": store.ago(7_300) });
    let oldest = store.put("bob", "oldest", old).await;
    let history = json!([[store.ago(60), "created"], [0, "started", 1, "0f1b2c3d"], [9, "lease_lost", 1]]);
    store.put("bob", "lost", json!({ "status": "cancelled", "history": history })).await;
    let page = store.browse().await.page("/").await;
    let shown = text(&page);
    for expected in [
        "2 Working 0 Input required 1 Completed 1 Failed 1 Cancelled",
        "Dead tasks 1 whose attempts are used up",
        "Stuck tasks 1 that nobody works on",
        "Lost workers 1 task lost a worker in the last hour",
        "Oldest open task oldest , created 2h ago",
        "answers a read in",
        "4 created",
        "4 started",
        "1 completed",
        "1 failed",
        "print 2 0 1 1 0 0 1",
        "scan 1 1 0 0 0 1 0",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(page.contains(&path(&oldest).replace('&', "&amp;")), "{page}");
    assert!(page.contains("<rect"), "the charts have bars");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_list_selects_tasks_by_every_filter(#[case] engine: Engine) {
    let store = engine.open().await;
    let running = &store.running("alice", "render").await.key;
    let dead = &store.dead("alice", "print").await.key;
    let completed = &store.completed("bob", "print").await.key;
    let old = json!({ "createdAt": store.ago(7_300), "lastUpdatedAt": store.ago(7_300) });
    let stuck = &store.put("b&b <i>", "a stuck/one", old).await;
    let (browser, all) = (store.browse().await, [running, dead, completed, stuck]);
    for (query, expected) in [
        ("", [true, true, true, true]),
        ("owner=alice", [true, true, false, false]),
        ("owner=b%26b+%3Ci%3E", [false, false, false, true]),
        ("status=working", [true, false, false, true]),
        ("status=failed&tool=print", [false, true, false, false]),
        ("tool=print", [false, true, true, false]),
        ("only=open", [true, false, false, true]),
        ("only=stuck", [false, false, false, true]),
        ("only=dead", [false, true, false, false]),
        ("older=1h", [false, false, false, true]),
        ("id=stuck%2F", [false, false, false, true]),
        ("id=nothing", [false, false, false, false]),
    ] {
        assert_eq!(listed(&browser, query, all).await, expected, "{query}");
    }
    assert!(text(&browser.page("/tasks?id=nothing").await).contains("No task matches."));
    for query in ["status=asleep", "only=mine", "older=soon"] {
        let refused = browser.get(&format!("/tasks?{query}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(refused.body.contains("There is no"), "{refused:?}");
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn pages_show_every_task_once_newest_first(#[case] engine: Engine) {
    let store = engine.open().await;
    for number in 0..120_i64 {
        let created = store.ago(1_000 - number);
        store.put("alice", &format!("t{number:03}"), json!({ "createdAt": created })).await;
    }
    let browser = store.browse().await;
    let (mut found, mut next) = (Vec::new(), "/tasks?owner=alice".to_owned());
    loop {
        let page = browser.page(&next).await;
        found.extend(page.split("class=\"id\"").skip(1).map(|row| {
            let (_, row) = row.split_once('>').unwrap();
            row.split('<').next().unwrap().to_owned()
        }));
        let Some((before, _)) = page.split_once("\" rel=\"next\"") else { break };
        next = before.rsplit('"').next().unwrap().replace("&amp;", "&");
        assert!(found.len() < 200, "the list ends");
    }
    assert_eq!(found, (0..120).rev().map(|number| format!("t{number:03}")).collect::<Vec<_>>());
    let beyond = text(&browser.page("/tasks?page=99999999999999999").await);
    assert!(beyond.contains("none of 120"), "{beyond}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_a_task_shows_its_timeline_questions_and_payloads(#[case] engine: Engine) {
    let store = engine.open().await;
    let (stored, attempt) = store.tasks.start(&owner("alice"), resumable("print")).await.unwrap();
    let question = json!({ "method": "elicitation/create", "params": { "message": "Which tray?" } });
    store.tasks.request_input(&stored.key, [("tray", question)]).await.unwrap();
    let browser = store.browser(Access::loopback());
    let asked = text(&browser.page(&path(&stored.key)).await);
    for expected in [
        "input required",
        "Open questions tray Which tray?",
        "Lapses",
        "Arguments",
        "copies : 17",
        "Asked the client tray",
    ] {
        assert!(asked.contains(expected), "{expected}: {asked}");
    }
    let answers = [("tray", json!({ "action": "accept", "content": { "tray": "upper" } }))];
    store.tasks.deliver_inputs(&stored.key, answers).await.unwrap();
    attempt.complete(json!({ "content": "x".repeat(5_000) })).await.unwrap();
    let page = browser.page(&path(&stored.key)).await;
    let ended = text(&page);
    for expected in [
        "completed",
        "Created",
        "Started by",
        "The client answered tray",
        "Completed",
        "Answers tray",
        "upper",
        "Result 1 field",
        "Raw record",
        "part output: 5,014 bytes",
        "&quot;taskId&quot;",
    ] {
        assert!(ended.contains(expected), "{expected}: {ended}");
    }
    let order =
        ["Started", "Asked the client", "The client answered", "Completed"].map(|event| page.find(event));
    assert!(order.is_sorted() && order[0].is_some(), "{page}");
    for missing in
        ["/task?owner=alice&id=nothing", "/task?owner=&id=x", "/task?owner=%00mcp%2Fworkers&id=x", "/nothing"]
    {
        assert_eq!(browser.get(missing).await.status, StatusCode::NOT_FOUND, "{missing}");
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn every_id_has_a_page_of_its_own(#[case] engine: Engine) {
    let store = engine.open().await;
    let keys = [("..", "."), ("a/b", "c?d#e"), ("ю 🦀", "%2F"), ("nul\0", "new\nline"), ("a&b=c", "+")];
    let mut links = Vec::new();
    for (owner, task) in keys {
        let key = store.put(owner, task, json!({ "statusMessage": format!("message of {task:?}") })).await;
        links.push((path(&key), maud_text(&format!("message of {task:?}"))));
    }
    let browser = store.browse().await;
    let (list, owners) = (browser.page("/tasks").await, browser.page("/owners").await);
    for (link, message) in links {
        assert!(list.contains(&link.replace('&', "&amp;")), "{link}: {list}");
        assert!(browser.page(&link).await.contains(&message), "{link}");
    }
    assert_eq!(owners.matches("scope=\"row\"").count(), keys.len(), "{owners}");
}

/// Returns text as a page has it.
fn maud_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;")
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_owners_are_listed_with_their_counts(#[case] engine: Engine) {
    let store = engine.open().await;
    store.running("alice", "render").await;
    store.dead("alice", "print").await;
    store.completed("bob", "print").await;
    let browser = store.browse().await;
    let shown = text(&browser.page("/owners").await);
    assert!(shown.contains("alice 2 1 0 1 0 0 1 bob 1 0 1 0 0 0 0"), "{shown}");
    let found = text(&browser.page("/owners?owner=bo").await);
    assert!(found.contains("bob 1") && !found.contains("alice"), "{found}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_console_links_to_itself(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let console = Console::new(store.backend(), Access::loopback()).router();
    let browser = Browser(Router::new().nest("/ops/console", console));
    browser.until("/ops/console", |page| page.contains("Counts and lists as of")).await;
    let task = format!("/ops/console{}", path(&task.key)).replace('&', "&amp;");
    for page in ["/ops/console", "/ops/console/tasks", "/ops/console/owners"] {
        let page = browser.page(page).await;
        let links = page.split("href=\"").skip(1).map(|link| link.split('"').next().unwrap());
        for link in links.filter(|link| *link != "#main") {
            assert!(link.starts_with("/ops/console/"), "{link}");
        }
    }
    assert!(browser.page("/ops/console/tasks").await.contains(&task));
    let style = browser.get("/ops/console/style.css").await;
    assert_eq!((style.status, style.header("content-type")), (StatusCode::OK, "text/css; charset=utf-8"));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_console_writes_nothing_even_of_an_overdue_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let old = json!({ "ttlMs": 60_000, "createdAt": store.ago(120), "lastUpdatedAt": store.ago(120) });
    let key = store.put("alice", "overdue", old).await;
    let before = store.tasks.backend().get(&key).await.unwrap();
    let browser = store.browse().await;
    for page in ["/", "/tasks", "/owners"] {
        browser.page(page).await;
    }
    assert!(text(&browser.page(&path(&key)).await).contains("TTL elapsed"));
    let after = store.tasks.backend().get(&key).await.unwrap();
    assert_eq!((after.version, after.data), (before.version, before.data));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_raw_record_hides_the_secret_of_the_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let key = store.put("alice", "t1", json!({ "adapter": { "secret": "5ecre7" } })).await;
    let page = store.browser(Access::loopback()).page(&path(&key)).await;
    assert!(page.contains("(hidden)") && !page.contains("5ecre7"), "{page}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_no_task_is_counted_and_shown_raw(#[case] engine: Engine) {
    let store: Store = engine.open().await;
    let key = mcp_task_store::TaskKey::new("alice", "damaged").unwrap();
    store.tasks.backend().put(&key, "{<b>".into(), Default::default()).await.unwrap();
    let browser = store.browse().await;
    assert!(text(&browser.page("/").await).contains("1 record cannot be read as tasks"));
    let shown = browser.get(&path(&key)).await;
    assert_eq!(shown.status, StatusCode::BAD_GATEWAY);
    assert!(shown.body.contains("{&lt;b&gt;"), "{shown:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn progress_is_a_bar_with_numbers(#[case] engine: Engine) {
    let store = engine.open().await;
    let progress = serde_json::to_value(Progress::new(1_500, 2_000)).unwrap();
    let key = store.put("alice", "t1", json!({ "progress": progress })).await;
    let browser = store.browse().await;
    for page in ["/tasks", &path(&key)] {
        let page = browser.page(page).await;
        assert!(
            page.contains("<progress value=\"1500\" max=\"2000\"") && page.contains("1,500/2,000"),
            "{page}"
        );
    }
}
