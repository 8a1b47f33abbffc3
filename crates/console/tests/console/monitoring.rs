//! `/metrics` and `/healthz`.

use std::time::Duration;

use axum::http::StatusCode;
use mcp_task_console::{Access, Console};
use mcp_task_store::StorageBackend;
use rstest_reuse::apply;
use serde_json::json;

use crate::support::engine::{How, Settable};
use crate::support::{Browser, Engine, on_every_engine, owner, resumable};
use crate::workers::announce;

const TOKEN: &str = "0123456789abcdef";

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn metrics_has_the_gauges_of_the_store_and_what_the_process_records(#[case] engine: Engine) {
    let store = engine.open().await;
    store.running("alice", "render").await;
    store.dead("alice", "print").await;
    store.completed("bob", "print").await;
    let waits = store.tasks.enqueue(&owner("bob"), resumable("render")).await.unwrap();
    let later = resumable("render").delay(Duration::from_secs(600));
    store.tasks.enqueue(&owner("bob"), later).await.unwrap();
    let old = json!({ "createdAt": store.ago(7_300), "lastUpdatedAt": store.ago(7_300) });
    store.put("carol", "unnamed", old).await;
    announce(&store, "alive", 5, json!({ "periodMs": 600_000 })).await;
    announce(&store, "lost", 60, json!({})).await;
    let recorded = || "my_process_total 7\n".to_owned();
    let console = Console::new(store.backend(), Access::loopback()).scan_rate(1_000_000);
    let browser = Browser(console.metrics(recorded).router());
    browser.until("/", |page| page.contains("Counts and lists as of")).await;
    let text = browser.until("/metrics", |text| text.contains("mcp_store_workers{")).await;
    for expected in [
        "# TYPE mcp_store_tasks gauge",
        "mcp_store_tasks{tool=\"render\",status=\"working\"} 3",
        "mcp_store_tasks{tool=\"print\",status=\"completed\"} 1",
        "mcp_store_tasks{tool=\"print\",status=\"failed\"} 1",
        "mcp_store_tasks{tool=\"other\",status=\"working\"} 1",
        "mcp_store_queued_tasks{tool=\"render\"} 1",
        "mcp_store_stuck_tasks{tool=\"other\"} 1",
        "mcp_store_dead_tasks{tool=\"print\"} 1",
        "mcp_store_dead_tasks{tool=\"render\"} 0",
        "mcp_store_workers{state=\"running\"} 1",
        "mcp_store_workers{state=\"lost\"} 1",
        "mcp_store_unreadable_records 0",
        "my_process_total 7",
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected}: {text}");
    }
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name}: {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!((7_300.0..7_600.0).contains(&value("mcp_store_oldest_open_seconds")), "{text}");
    let queued_for = (store.tasks.backend().now() - waits.task.created_at).as_seconds_f64();
    assert!((0.0..=queued_for + 1.0).contains(&value("mcp_store_oldest_queued_seconds")), "{text}");
    assert!((0.0..300.0).contains(&value("mcp_store_snapshot_age_seconds")), "{text}");
    assert!(!text.contains("alice") && !text.contains("unnamed"), "no label holds an owner or a task");
    let answer = browser.get("/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_needs_the_access_of_the_pages_and_healthz_needs_none() {
    let store = Engine::Memory.open().await;
    let browser = store.browser(Access::token(TOKEN).unwrap());
    assert_eq!(browser.get("/metrics").await.status, StatusCode::UNAUTHORIZED);
    let wrong = browser.get_with("/metrics", &[("authorization", "Bearer 0123456789abcdeX")]).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    assert!(!wrong.body.contains("mcp_store"), "{wrong:?}");
    let text = browser.get_with("/metrics", &[("authorization", &format!("Bearer {TOKEN}"))]).await.page();
    assert!(text.contains("mcp_store_snapshot_age_seconds"), "{text}");
    let health = browser.get_with("/healthz", &[("host", "example.com")]).await;
    assert_eq!((health.status, health.body.as_str()), (StatusCode::OK, "ok\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn healthz_says_only_whether_the_engine_answers_in_time() {
    let store = Engine::Memory.open().await;
    let engine = Settable::new(store.backend());
    let browser = Browser(Console::new(engine.agenda(), Access::token(TOKEN).unwrap()).router());
    for how in [How::Answers, How::Fails, How::Answers, How::Hangs, How::Answers] {
        engine.set(how);
        let (status, body) = match how {
            How::Answers => (StatusCode::OK, "ok\n"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "unavailable\n"),
        };
        let changes = async {
            loop {
                let health = browser.get("/healthz").await;
                if health.status == status {
                    return assert_eq!(health.body, body);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), changes).await.unwrap();
    }
}
