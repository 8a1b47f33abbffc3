//! Workers whose keyring lacks the key of a task, as while a new key is rolled out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{Agenda, NewTask, OnWorkerLost, Priority, Queue};
use rstest_reuse::apply;
use serde_json::Value;

use crate::support::elsewhere::elsewhere;
use crate::support::encryption::encrypted;
use crate::support::rmcp::*;
use crate::support::{Engine, Store, on_every_engine, timers};

fn worker(store: &Store, keys: &[&str], text: &'static str) -> Manager {
    let backend: Arc<dyn Agenda> = Arc::new(encrypted(store, keys));
    let manager = manager(&elsewhere(&backend), SHORT);
    manager.register("render", move |_, _: Value| Box::pin(async move { Ok(self::text(text)) }));
    manager
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_without_the_key_leaves_the_task_to_a_worker_that_has_it(#[case] engine: Engine) {
    let store = engine.open().await;
    let backend: Arc<dyn Agenda> = Arc::new(encrypted(&store, &["k1"]));
    let server = manager(&backend, SHORT);
    let new = NewTask::new("tools/call").operation("render").on_worker_lost(OnWorkerLost::Resume);
    let _without = worker(&store, &["k2"], "without the key");
    let queued = server.store().enqueue(&alice(), new).await.unwrap();

    // The worker without the key takes the timer of the task again and again, and moves it each time.
    let queue = Queue::work("render", Priority::Normal).unwrap();
    let moved = async {
        // When it was enqueued, when it was hidden, and when it was returned.
        let mut due_times = BTreeSet::new();
        while due_times.len() < 3 {
            let timers = timers(&*store, &queue).await;
            let [timer] = &timers[..] else { panic!("the timer of a waiting task stays: {timers:?}") };
            due_times.insert(timer.due_at);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(moved).await;
    let _with = worker(&store, &["k1"], "with the key");
    assert_eq!(said(&ended(&server, queued.key.task.as_str()).await), "with the key");
}
