//! A shutdown on an engine that does not answer, or fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mcp_task_store::{DurableTaskManager, StoreConfig, TaskStore};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{agenda, memory};
use crate::support::Printed;
use crate::support::rmcp::*;

/// The calls that the engine does not answer.
#[derive(Clone, Copy, Debug)]
enum Hangs {
    Reads,
    Writes,
    Watches,
    Everything,
}

#[rstest::rstest]
#[case::reads(Hangs::Reads)]
#[case::writes(Hangs::Writes)]
#[case::watches(Hangs::Watches)]
#[case::everything(Hangs::Everything)]
#[tokio::test(start_paused = true)]
async fn shutdown_returns_within_its_limit_on_an_engine_that_does_not_answer(
    #[case] hangs: Hangs,
    #[values(false, true)] has_ended: bool,
    #[values(Duration::from_secs(3), LONG)] lease: Duration,
) {
    let gate = memory();
    // No time limit of the store ends a call that hangs.
    let config = StoreConfig::new().lease(lease).call_timeout(LONG);
    let one = DurableTaskManager::new(TaskStore::with_config(agenda(&gate), config));
    one.register("ask", |context, _| {
        Box::pin(async move { Ok(text(context.request_input("a", elicitation("A?")).await?.to_string())) })
    });
    if matches!(hangs, Hangs::Watches) {
        gate.watch_hangs.store(true, Ordering::SeqCst);
    }
    let (finish, finished) = oneshot::channel::<()>();
    spawn(&one, |context| async move {
        context.set_status_message("at work");
        finished.await.unwrap();
        Ok(text("done"))
    })
    .await;
    let reads = spawn(&one, |_| std::future::pending()).await;
    one.spawn_registered(&alice(), "ask", Value::Null, resume()).await.unwrap();
    // The operations run and have made their first writes.
    tokio::time::sleep(Duration::from_millis(300)).await;
    match hangs {
        Hangs::Reads => gate.reads_hang.store(true, Ordering::SeqCst),
        Hangs::Writes => gate.writes_hang.store(true, Ordering::SeqCst),
        Hangs::Watches => {}
        Hangs::Everything => gate.is_silent.store(true, Ordering::SeqCst),
    }
    // A run reads its task after every change.
    let other = TaskStore::new(Arc::clone(&gate.backend));
    other.set_status_message(&key(&reads), "news").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    if has_ended {
        finish.send(()).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let begun = Instant::now();
    within(one.shutdown()).await;
    assert!(begun.elapsed() <= Duration::from_secs(31), "{:?}", begun.elapsed());
    assert_eq!(one.running_task_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_half_a_minute_for_outcomes_and_logs_one_line_for_each_lost_outcome() {
    let printed = Printed::default();
    let _subscribed = crate::support::subscribe(&printed, tracing::Level::INFO);
    let gate = memory();
    let one = manager(&agenda(&gate), LONG);
    let (finish, finished) = tokio::sync::watch::channel(false);
    let mut task_ids = Vec::new();
    for _ in 0..3 {
        let mut finished = finished.clone();
        let task_id = spawn(&one, |_| async move {
            finished.wait_for(|finished| *finished).await.unwrap();
            Ok(text("done"))
        });
        task_ids.push(task_id.await);
    }
    gate.set_closed(true);
    finish.send(true).unwrap();
    gate.refuses().await;
    let begun = Instant::now();
    one.shutdown().await;
    let took = begun.elapsed();
    assert!((Duration::from_secs(30)..=Duration::from_secs(31)).contains(&took), "{took:?}");
    let lost: Vec<String> =
        printed.text().lines().filter(|line| line.contains("is lost")).map(str::to_owned).collect();
    assert_eq!(lost.len(), 3, "{lost:?}");
    for task_id in task_ids {
        assert_eq!(lost.iter().filter(|line| line.contains(&task_id)).count(), 1, "{lost:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_stores_an_outcome_that_the_engine_accepts_in_time() {
    let gate = memory();
    let one = manager(&agenda(&gate), LONG);
    let (finish, task_id) = spawn_until_finished(&one).await;
    gate.set_closed(true);
    finish.send(()).unwrap();
    gate.refuses().await;
    let opens = async {
        tokio::time::sleep(Duration::from_secs(25)).await;
        gate.set_closed(false);
    };
    tokio::join!(one.shutdown(), opens);
    assert_eq!(said(&ended(&one, &task_id).await), "done");
}
