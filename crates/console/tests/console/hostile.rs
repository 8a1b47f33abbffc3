//! Content that tries to act on the browser, or on the reader: it is shown, and does nothing.

use mcp_task_console::Access;
use mcp_task_store::{NewTask, Printable, StoredTask, TaskKey};
use rstest_reuse::apply;
use serde_json::json;

use crate::support::{Engine, Store, on_every_engine, owner, path};

/// Ends attributes and elements, runs scripts, clears the screen, and reverses the direction of writing.
pub const HOSTILE: &str = "a\u{202e}\"'><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\u{1b}[2J\u{9b}31mb\u{2066}c\u{200b}\r\nd\u{e0041}";

pub async fn hostile(store: &Store) -> StoredTask {
    let question = json!({ "method": HOSTILE, "params": { "message": HOSTILE } });
    let error = json!({ "code": 1, "message": HOSTILE, "data": { HOSTILE: HOSTILE } });
    let fields = json!({
        "status": "input_required", "statusMessage": HOSTILE, "operation": HOSTILE, "method": HOSTILE,
        "arguments": { HOSTILE: [HOSTILE] }, "inputRequests": { HOSTILE: question }, "result": { "text": HOSTILE },
        "inputResponses": { "answered": HOSTILE }, "variables": { HOSTILE: HOSTILE },
        "error": error, "traceparent": HOSTILE, "requeuedFrom": HOSTILE,
        "history": [[store.ago(9), HOSTILE, 1, HOSTILE, HOSTILE]],
        "lease": { "holder": HOSTILE, "attempt": 1, "durationMs": 3_600_000, "deadline": store.ago(-3_600) },
    });
    let key = store.put(&format!("owner {HOSTILE}"), &format!("task {HOSTILE}"), fields).await;
    store.tasks.get(&key).await.unwrap()
}

/// The only script of a page.
const SCRIPT: &str = "<script src=\"/live.js\" defer></script>";

/// Fails if a page has a script other than that of the console, an image, a handler of events, or a character that acts on the screen.
pub fn assert_inert(page: &str, what: &str) {
    let page = &page.replacen(SCRIPT, "", 1);
    for element in page.split('<').skip(1) {
        let (tag, _) = element.split_once('>').unwrap_or((element, ""));
        let name = tag.split_whitespace().next().unwrap_or_default();
        assert!(!["script", "img", "iframe", "object", "style", "base"].contains(&name), "{what}: <{tag}>");
        // Outside of the values of attributes.
        let names = tag.split('"').step_by(2).collect::<String>();
        assert!(!names.contains("onerror") && !names.contains("style="), "{what}: <{tag}>");
    }
    assert!(!page.lines().any(|line| line.contains(Printable::escapes)), "{what}: {page:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn hostile_content_is_inert_on_every_page(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = hostile(&store).await;
    let browser = store.browse().await;
    for page in ["/", "/tasks", "/owners", &path(&task.key)] {
        let shown = browser.page(page).await;
        assert_inert(&shown, page);
        assert!(shown.contains("&lt;script&gt;") && shown.contains("\\u{202e}"), "{page} shows it: {shown}");
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn hostile_queries_are_inert(#[case] engine: Engine) {
    let browser = engine.open().await.browse().await;
    let query = "%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E%E2%80%AE";
    for field in ["id", "owner", "tool", "status", "only", "older", "page"] {
        for page in ["/tasks", "/owners"] {
            let shown = browser.get(&format!("{page}?{field}={query}")).await.body.replacen(SCRIPT, "", 1);
            assert!(!shown.contains("<script"), "{page} {field}: {shown}");
        }
    }
    let shown = browser.get(&format!("/task?owner={query}&id={query}")).await.body.replacen(SCRIPT, "", 1);
    assert!(!shown.contains("<script"), "{shown}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn large_content_is_cut_and_a_large_result_is_not_loaded(#[case] engine: Engine) {
    let store = engine.open().await;
    let tool = "n".repeat(100_000);
    let fields = json!({ "statusMessage": "字".repeat(100_000), "operation": tool, "variables": { "v": "x".repeat(500_000) } });
    let key: TaskKey = store.put("alice", "t1", fields).await;
    let new = NewTask::new("tools/call").arguments(json!({ "text": "y".repeat(3_000_000) }));
    let big = store.tasks.create(&owner("alice"), new).await.unwrap();
    let browser = store.browse().await;
    for page in ["/", "/tasks", "/owners", &path(&big.key)] {
        let shown = browser.page(page).await;
        assert!(shown.len() < 30_000, "{page}: {}", shown.len());
    }
    let shown = browser.page(&path(&key)).await;
    // 64 Ki characters of the record, and the variable cut.
    assert!(shown.len() < 250_000, "{}", shown.len());
    let shown = browser.page(&path(&big.key)).await;
    assert!(shown.contains("3,000,011 bytes, not loaded."), "{shown}");
    // The list can be filtered by the name that it shows only in part.
    let found = store.browser(Access::loopback());
    found.until("/tasks?only=open", |page| page.contains(&path(&key).replace('&', "&amp;"))).await;
}
