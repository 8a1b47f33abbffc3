//! Status messages and progress. A report never fails, and the runtime writes the newest one when it can.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mcp_task_store::{DurableTaskManager, MemoryBackend, Progress, StoreConfig, TaskStore};
use rmcp::model::TaskStatus;
use rmcp::task_manager::TaskExit;
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{agenda, memory};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};

#[tokio::test(start_paused = true)]
async fn an_operation_that_reports_its_progress_continues_while_the_engine_is_unavailable() {
    for outage in [Duration::from_millis(500), Duration::from_secs(8)] {
        let gate = memory();
        let one = manager(&agenda(&gate), Duration::from_secs(30));
        let away = Arc::clone(&gate);
        one.register("work", move |context, _| {
            let away = Arc::clone(&away);
            Box::pin(async move {
                context.set_status_message("before");
                away.set_closed(true);
                for step in 0..10 {
                    context.set_status_message(format!("step {step}"));
                    tokio::time::sleep(outage / 10).await;
                }
                away.set_closed(false);
                tokio::time::sleep(Duration::from_secs(3)).await;
                let answer = context.request_input("go", elicitation("Go on?")).await?;
                Ok(text(format!("{answer} in attempt {}", context.attempt())))
            })
        });
        let task_id = one.spawn_registered(&alice(), "work", Value::Null, resume()).await.unwrap().task_id;
        tokio::time::sleep(outage + Duration::from_secs(2)).await;
        let task = one.get_task(&alice(), &task_id).await.unwrap();
        assert_eq!(
            task.task.status_message.as_deref(),
            Some("step 9"),
            "the newest message is written after the outage"
        );
        asks(&one, &task_id).await;
        one.update_task(&alice(), &task_id, [("go".to_owned(), json!(1))]).await.unwrap();
        assert_eq!(said(&ended(&one, &task_id).await), "1 in attempt 1");
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn ten_thousand_messages_cost_a_few_writes_and_the_last_one_is_in_the_completed_task(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let gate = Gate::new(&store);
    let one = manager(&agenda(&gate), LONG);
    let begun = std::time::Instant::now();
    let task_id = spawn(&one, |context| async move {
        for number in 0..10_000 {
            context.set_status_message(format!("message {number}"));
            if number % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(text("done"))
    })
    .await;
    assert_eq!(said(&ended(&one, &task_id).await), "done");
    let done = one.get_task(&alice(), &task_id).await.unwrap().task;
    assert_eq!(done.status_message.as_deref(), Some("message 9999"));
    // The create, the outcome, and at most four messages a second.
    let most = 3 + begun.elapsed().as_millis() / 250;
    let writes = u128::from(store.get(&key(&task_id)).await.unwrap().version.get());
    assert!(writes <= most, "{writes} writes in {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_sets_messages_all_the_time_costs_four_writes_a_second() {
    let gate = memory();
    let one = manager(&agenda(&gate), LONG);
    let task_id = spawn(&one, |context| async move {
        for number in 0.. {
            context.set_status_message(format!("message {number}"));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(TaskExit::Cancelled)
    })
    .await;
    let version = async || gate.backend.get(&key(&task_id)).await.unwrap().version.get();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = version().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let writes = version().await - before;
    assert!((38..=41).contains(&writes), "{writes} in ten seconds");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_message_that_is_set_just_before_the_end_is_in_the_record(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    for (exit, status) in [
        (Ok(text("done")), TaskStatus::Completed),
        (Err(TaskExit::Error(rmcp::ErrorData::internal_error("no", None))), TaskStatus::Failed),
        (Err(TaskExit::Cancelled), TaskStatus::Cancelled),
    ] {
        let task_id = spawn(&one, |context| async move {
            context.set_status_message("the first");
            tokio::time::sleep(Duration::from_millis(20)).await;
            context.set_status_message("the last");
            exit
        })
        .await;
        let task = polled(&other, &task_id, |task| task.status().is_terminal()).await;
        assert_eq!((task.status(), task.task.status_message.as_deref()), (status, Some("the last")));
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_report_of_progress_is_one_write_that_every_instance_reads_and_the_end_stores_the_last_one(
    #[case] engine: Engine,
) {
    let (store, one, other) = open(engine, LONG).await;
    let (next, mut steps) = mpsc::channel::<()>(1);
    let task_id = spawn(&one, |context| async move {
        context.progress(1, 240, "frame 1");
        steps.recv().await.unwrap();
        context.set_status_message("a longer frame");
        steps.recv().await.unwrap();
        context.progress(2, None, "frame 2");
        Ok(text("done"))
    })
    .await;
    let state = async |message: &str| {
        polled(&other, &task_id, |task| task.task.status_message.as_deref() == Some(message)).await;
        let stored = other.store().get(&key(&task_id)).await.unwrap();
        (stored.task.progress.clone(), stored.version.get())
    };
    assert_eq!(state("frame 1").await, (Some(Progress::new(1, 240)), 2));
    next.send(()).await.unwrap();
    let unchanged = Some(Progress::new(1, 240));
    assert_eq!(state("a longer frame").await, (unchanged, 3), "a message leaves the progress as it is");
    next.send(()).await.unwrap();
    assert_eq!(said(&ended(&other, &task_id).await), "done");
    assert_eq!(state("frame 2").await.0, Some(Progress::new(2, None)));
    let record: Value = serde_json::from_slice(&store.get(&key(&task_id)).await.unwrap().data).unwrap();
    assert_eq!(record["progress"], json!({ "done": 2 }));
}

#[tokio::test]
async fn a_message_over_the_limit_is_cut_and_a_message_that_fills_the_record_does_not_prevent_the_outcome() {
    let gate = Intercept::new(Gate { most_bytes: 2_000, ..Gate::of(Arc::new(MemoryBackend::new())) });
    let config = StoreConfig::new().lease(LONG).max_status_message_bytes(10);
    let one = DurableTaskManager::new(TaskStore::with_config(agenda(&gate), config));
    let task_id = spawn(&one, |context| async move {
        context.set_status_message("naïve naïveté");
        Ok(text("done"))
    })
    .await;
    assert_eq!(said(&ended(&one, &task_id).await), "done");
    let done = one.get_task(&alice(), &task_id).await.unwrap().task;
    assert_eq!(done.status_message.as_deref(), Some("naïve na"));

    let config = StoreConfig::new().lease(LONG);
    let one = DurableTaskManager::new(TaskStore::with_config(agenda(&gate), config));
    // Chance decides whether the message is written before the outcome or with it.
    for _ in 0..20 {
        let task_id = spawn(&one, |context| async move {
            context.set_status_message("x".repeat(3_000));
            Ok(text("done"))
        })
        .await;
        assert_eq!(said(&ended(&one, &task_id).await), "done");
    }
}

#[tokio::test(start_paused = true)]
async fn messages_that_the_engine_does_not_answer_delay_neither_the_lease_nor_the_outcome() {
    let gate = memory();
    let lease = Duration::from_secs(3);
    let one = manager(&agenda(&gate), lease);
    let hangs = Arc::clone(&gate);
    let task_id = spawn(&one, |context| async move {
        // The write of every message hangs until it times out.
        hangs.message_hangs.store(true, Ordering::SeqCst);
        for number in 0..100 {
            context.set_status_message(format!("message {number}"));
            tokio::time::sleep(lease / 10).await;
        }
        Ok(text(format!("attempt {}", context.attempt())))
    })
    .await;
    let renewals = async || {
        let record = gate.backend.get(&key(&task_id)).await.unwrap();
        serde_json::from_slice::<Value>(&record.data).unwrap()["lease"]["renewals"].as_u64().unwrap_or(0)
    };
    tokio::time::sleep(lease * 5).await;
    let renewed = renewals().await;
    assert!(renewed >= 13, "{renewed} renewals in five leases");
    assert_eq!(said(&ended(&one, &task_id).await), "attempt 1");
    let done = one.get_task(&alice(), &task_id).await.unwrap().task;
    assert_eq!(done.status_message.as_deref(), Some("message 99"));
}

/// Returns an engine whose watches yield nothing, so that a run reads its task only before a write.
fn without_notifications() -> Arc<Intercept<Gate>> {
    let gate = memory();
    gate.watch_hangs.store(true, Ordering::SeqCst);
    gate
}

#[tokio::test(start_paused = true)]
async fn a_run_reads_its_task_before_a_write_only_if_its_copy_is_over_a_second_old() {
    for (pause, reads) in [(Duration::from_millis(260), 0), (Duration::from_millis(1_100), 4)] {
        let gate = without_notifications();
        let one = manager(&agenda(&gate), LONG);
        let task_id = spawn(&one, |context| async move {
            for number in 0..3 {
                tokio::time::sleep(pause).await;
                context.set_status_message(format!("message {number}"));
            }
            tokio::time::sleep(pause).await;
            Ok(text("done"))
        })
        .await;
        until(|| one.running_task_count() == 0).await;
        assert_eq!(gate.reads.load(Ordering::SeqCst), reads, "{pause:?}");
        let done = one.get_task(&alice(), &task_id).await.unwrap().task;
        assert_eq!(done.status, TaskStatus::Completed);
        assert_eq!(done.status_message.as_deref(), Some("message 2"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_conflicts_with_a_cancel_is_written_and_passes_the_cancel_to_the_operation() {
    let gate = without_notifications();
    let (one, other) = (manager(&agenda(&gate), LONG), manager(&gate.backend, LONG));
    let task_id = spawn(&one, |context| async move {
        while !context.is_cancel_requested() {
            tokio::time::sleep(Duration::from_millis(260)).await;
            context.set_status_message("at work");
        }
        Err(TaskExit::Cancelled)
    })
    .await;
    polled(&other, &task_id, |task| task.task.status_message.is_some()).await;
    other.cancel_task(&alice(), &task_id).await.unwrap();
    let cancelled = polled(&other, &task_id, |task| task.status().is_terminal()).await;
    assert_eq!(cancelled.status(), TaskStatus::Cancelled);
    assert_eq!(cancelled.task.status_message.as_deref(), Some("at work"));
}
