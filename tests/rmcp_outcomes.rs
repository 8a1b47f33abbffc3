//! What an operation has produced, asked and said is not lost because the engine fails: the durable task manager for rmcp
//! tries again, and a shutdown waits for it only for so long.

#![cfg(feature = "rmcp")]

#[macro_use]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mcp_task_store::rmcp::DurableTaskManager;
use mcp_task_store::{Agenda, MemoryBackend, NewTask, OnWorkerLost, StoreConfig, TaskStore};
use rmcp::model::{TaskPayload, TaskStatus};
use rmcp::task_manager::{TaskExit, TaskOptions};
use rstest_reuse::apply;
use serde_json::{Value, json};
use support::rmcp::*;
use support::{Engine, Printed, on_every_engine};
use tokio::sync::oneshot;
use tokio::time::Instant;

fn memory() -> Arc<Gate> {
    Arc::new(Gate::of(Arc::new(MemoryBackend::new())))
}

fn on(gate: &Arc<Gate>) -> Arc<dyn Agenda> {
    Arc::<Gate>::clone(gate)
}

// Outcomes

#[cfg(feature = "redis-tests")]
mod behind_a_proxy {
    use super::*;
    use support::redis::{Namespace, Server};
    use support::refusing::Refusing;

    /// A lease of 3 s, and an error of 1.5 s that begins before the outcome.
    async fn an_outcome_survives(error: &str) {
        const LEASE: Duration = Duration::from_secs(3);
        let server = Server::start(&[]);
        let port = server.url().rsplit(':').next().unwrap().parse().unwrap();
        let proxy = Refusing::start(port).await;
        let namespace = Namespace::new();
        let connect = async |url: &str| -> Arc<dyn Agenda> {
            let backend: Arc<dyn Agenda> = Arc::new(namespace.builder().connect(url).await.unwrap());
            backend
        };
        let one = manager(&connect(&proxy.url()).await, LEASE);
        let other = manager(&connect(&server.url()).await, LEASE);
        let runs = Arc::new(AtomicUsize::new(0));
        let (end, ends) = tokio::sync::watch::channel(false);
        for manager in [&one, &other] {
            let (runs, ends) = (Arc::clone(&runs), ends.clone());
            manager.register("work", move |context, _| {
                runs.fetch_add(1, Ordering::SeqCst);
                let mut ends = ends.clone();
                Box::pin(async move {
                    ends.wait_for(|ends| *ends).await.unwrap();
                    Ok(text(format!("attempt {}", context.attempt())))
                })
            });
        }
        let resumable = one.spawn_registered(&alice(), "work", Value::Null, resume()).await.unwrap().task_id;
        let mut closure_ends = ends.clone();
        let closure = spawn(&one, |context| async move {
            closure_ends.wait_for(|ends| *ends).await.unwrap();
            Ok(text(format!("attempt {}", context.attempt())))
        })
        .await;
        // Most of the first lease has passed, and the other instance has looked at it.
        tokio::time::sleep(LEASE * 2 / 3).await;
        proxy.answer(Some(error));
        end.send(true).unwrap();
        let refused = proxy.refused();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(proxy.refused() > refused, "the outcome was tried");
        assert_eq!(one.running_task_count(), 2);
        proxy.answer(None);
        for task_id in [&resumable, &closure] {
            assert_eq!(said(&ended(&other, task_id).await), "attempt 1");
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_outcome_survives_a_proxy_without_an_upstream() {
        tokio::join!(an_outcome_survives("-upstream failure"), an_outcome_survives("-no upstream host"));
    }

    #[tokio::test]
    async fn an_outcome_survives_a_limit_of_requests() {
        an_outcome_survives("-ERR max daily request limit exceeded").await;
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_outcome_is_kept_for_as_long_as_it_takes_while_the_lease_can_be_renewed(#[case] engine: Engine) {
    let store = engine.open().await;
    for error in [is_away, is_broken, is_denied] {
        let gate = Gate::with(&store, error);
        let one = manager(&on(&gate), SHORT);
        let other = manager(&store.backend, SHORT);
        gate.refuses_parts.store(true, Ordering::SeqCst);
        let result = "x".repeat(10_000);
        let returned = result.clone();
        let task_id = spawn(&one, |_| async move { Ok(text(returned)) }).await;
        // Many leases long.
        until(|| gate.refused.load(Ordering::SeqCst) >= 15).await;
        gate.refuses_parts.store(false, Ordering::SeqCst);
        assert_eq!(said(&ended(&other, &task_id).await), result);
    }
}

#[tokio::test]
async fn an_outcome_that_cannot_be_stored_is_given_up_once_the_ttl_has_elapsed() {
    let gate = memory();
    let one = manager(&on(&gate), Duration::from_secs(3));
    gate.refuses_parts.store(true, Ordering::SeqCst);
    let options = TaskOptions::new().with_ttl_ms(1_000);
    let operation =
        |_| -> rmcp::task_manager::TaskFuture { Box::pin(async { Ok(text("x".repeat(10_000))) }) };
    let task_id = one.spawn(&alice(), "test", options, operation).await.unwrap().task_id;
    gate.refuses().await;
    assert_eq!(one.running_task_count(), 1);
    until(|| one.running_task_count() == 0).await;
    assert!(said(&ended(&one, &task_id).await).contains("TTL"));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_ends_the_run() {
    let gate = memory();
    let one = manager(&on(&gate), LONG);
    let (finish, finished) = oneshot::channel::<()>();
    let task_id = spawn(&one, |_| async move {
        finished.await.unwrap();
        Ok(text("done"))
    })
    .await;
    gate.backend.put(&key(&task_id), "{".into(), Default::default()).await.unwrap();
    finish.send(()).unwrap();
    until(|| one.running_task_count() == 0).await;
}

// Status messages

#[tokio::test(start_paused = true)]
async fn an_operation_that_reports_its_progress_goes_on_while_the_engine_is_away() {
    for outage in [Duration::from_millis(500), Duration::from_secs(8)] {
        let gate = memory();
        let one = manager(&on(&gate), Duration::from_secs(30));
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
        assert_eq!(task.task.status_message.as_deref(), Some("step 9"), "tried again, with the newest value");
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
    let one = manager(&on(&gate), LONG);
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
async fn an_operation_that_never_rests_costs_four_writes_of_its_messages_a_second() {
    let gate = memory();
    let one = manager(&on(&gate), LONG);
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

#[tokio::test]
async fn a_message_over_the_limit_is_cut_and_one_that_fills_the_record_does_not_cost_the_outcome() {
    let gate = Arc::new(Gate { most_bytes: 2_000, ..Gate::of(Arc::new(MemoryBackend::new())) });
    let config = StoreConfig::new().lease(LONG).max_status_message_bytes(10);
    let one = DurableTaskManager::new(TaskStore::with_config(on(&gate), config));
    let task_id = spawn(&one, |context| async move {
        context.set_status_message("naïve naïveté");
        Ok(text("done"))
    })
    .await;
    assert_eq!(said(&ended(&one, &task_id).await), "done");
    let done = one.get_task(&alice(), &task_id).await.unwrap().task;
    assert_eq!(done.status_message.as_deref(), Some("naïve na"));

    let config = StoreConfig::new().lease(LONG);
    let one = DurableTaskManager::new(TaskStore::with_config(on(&gate), config));
    // Whether it is written before the outcome or with it is left to chance.
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
async fn messages_that_the_engine_does_not_answer_hold_up_neither_the_lease_nor_the_outcome() {
    let gate = memory();
    let lease = Duration::from_secs(3);
    let one = manager(&on(&gate), lease);
    let hangs = Arc::clone(&gate);
    let task_id = spawn(&one, |context| async move {
        // Every message hangs for as long as it may.
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

// Requests

#[tokio::test(start_paused = true)]
async fn a_request_to_the_client_is_made_again_while_the_engine_fails() {
    for error in [is_away, is_broken, is_denied] {
        let gate = Arc::new(Gate { error, ..Gate::of(Arc::new(MemoryBackend::new())) });
        let one = manager(&on(&gate), Duration::from_secs(30));
        let away = Arc::clone(&gate);
        let task_id = spawn(&one, |context| async move {
            away.set_closed(true);
            Ok(text(context.request_input("a", elicitation("A?")).await?.to_string()))
        })
        .await;
        tokio::time::sleep(Duration::from_secs(8)).await;
        gate.set_closed(false);
        asks(&one, &task_id).await;
        one.update_task(&alice(), &task_id, [("a".to_owned(), json!(1))]).await.unwrap();
        assert_eq!(said(&ended(&one, &task_id).await), "1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_reply_is_lost_is_made_once_also_if_it_is_answered_before_it_is_tried_again() {
    let gate = Arc::new(Gate { error: is_broken, ..Gate::of(Arc::new(MemoryBackend::new())) });
    let one = manager(&on(&gate), LONG);
    let answers = manager(&gate.backend, LONG);
    let loses = Arc::clone(&gate);
    let task_id = spawn(&one, |context| async move {
        loses.loses_replies.store(true, Ordering::SeqCst);
        Ok(text(context.request_input("a", elicitation("A?")).await?.to_string()))
    })
    .await;
    asks(&answers, &task_id).await;
    answers.update_task(&alice(), &task_id, [("a".to_owned(), json!(1))]).await.unwrap();
    gate.set_closed(false);
    assert_eq!(said(&ended(&answers, &task_id).await), "1");
}

#[tokio::test(start_paused = true)]
async fn a_request_of_a_void_attempt_ends_as_if_it_were_cancelled() {
    let gate = memory();
    let one = manager(&on(&gate), Duration::from_secs(3));
    let (tell, told) = oneshot::channel();
    let away = Arc::clone(&gate);
    let task_id = spawn(&one, |context| async move {
        away.set_closed(true);
        tell.send(context.request_input("a", elicitation("A?")).await).unwrap();
        Err(TaskExit::Cancelled)
    })
    .await;
    gate.refuses().await;
    gate.backend.delete(&key(&task_id)).await.unwrap();
    gate.set_closed(false);
    let asked = within(told).await.unwrap();
    assert!(matches!(asked, Err(TaskExit::Cancelled)), "{asked:?}");
}

// Shutdown

/// How an engine gives no answer.
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
async fn shutdown_returns_within_its_limit_on_an_engine_that_gives_no_answer(
    #[case] hangs: Hangs,
    #[values(false, true)] has_ended: bool,
    #[values(Duration::from_secs(3), LONG)] lease: Duration,
) {
    let gate = memory();
    let one = manager(&on(&gate), lease);
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
    spawn(&one, |_| std::future::pending()).await;
    one.spawn_registered(&alice(), "ask", Value::Null, resume()).await.unwrap();
    // Everything is under way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    match hangs {
        Hangs::Reads => gate.reads_hang.store(true, Ordering::SeqCst),
        Hangs::Writes => gate.writes_hang.store(true, Ordering::SeqCst),
        Hangs::Watches => {}
        Hangs::Everything => gate.is_silent.store(true, Ordering::SeqCst),
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    if has_ended {
        finish.send(()).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let begun = Instant::now();
    one.shutdown().await;
    assert!(begun.elapsed() <= Duration::from_secs(31), "{:?}", begun.elapsed());
    assert_eq!(one.running_task_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_half_a_minute_for_outcomes_and_logs_one_line_for_each_that_is_lost() {
    let printed = Printed::default();
    let _subscribed = support::subscribe(&printed, tracing::Level::INFO);
    let gate = memory();
    let one = manager(&on(&gate), LONG);
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
async fn an_outcome_that_the_engine_takes_in_time_is_stored_by_a_shutdown() {
    let gate = memory();
    let one = manager(&on(&gate), LONG);
    let (finish, finished) = oneshot::channel::<()>();
    let task_id = spawn(&one, |_| async move {
        finished.await.unwrap();
        Ok(text("done"))
    })
    .await;
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

// Arguments

/// A task that waits for a worker, with arguments that are a part of its record.
async fn waiting(gate: &Arc<Gate>) -> String {
    let config = StoreConfig::new().lease(LONG);
    let store = TaskStore::with_config(on(gate), config);
    let new = NewTask::new("tools/call").operation("measure").arguments(json!("x".repeat(10_000)));
    let (started, attempt) = store.start(&alice(), new.on_worker_lost(OnWorkerLost::Resume)).await.unwrap();
    attempt.release().await.unwrap();
    started.key.task.as_str().to_owned()
}

fn register_measure(manager: &Manager) {
    manager.register("measure", |_, arguments| {
        Box::pin(async move { Ok(text(arguments.as_str().unwrap().len().to_string())) })
    });
}

#[tokio::test(start_paused = true)]
async fn arguments_are_loaded_again_while_the_engine_fails_and_ones_that_cannot_be_read_fail_the_task() {
    for error in [is_away, is_broken, is_denied] {
        let gate = memory();
        let task_id = waiting(&gate).await;
        gate.part_error.lock().unwrap().replace(error);
        let one = manager(&on(&gate), LONG);
        register_measure(&one);
        gate.refuses().await;
        tokio::time::sleep(Duration::from_secs(8)).await;
        gate.part_error.lock().unwrap().take();
        assert_eq!(said(&ended(&one, &task_id).await), "10000");
    }
    let gate = memory();
    let task_id = waiting(&gate).await;
    gate.part_error.lock().unwrap().replace(is_corrupt);
    let one = manager(&on(&gate), LONG);
    register_measure(&one);
    let TaskPayload::Failed { .. } = ended(&one, &task_id).await else { panic!("it failed") };
}
