//! The manager on an engine that is unavailable for a while, or for one instance.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::elsewhere::elsewhere;
use crate::support::rmcp::*;
use crate::support::spy::Spy;
use crate::support::{Engine, on_every_engine};
use mcp_task_store::{
    Agenda, MemoryBackend, Priority, PutOptions, Queue, StorageError, TaskContext, TaskError,
};
use rmcp::ErrorData;
use rmcp::model::{DetailedTask, TaskStatus};
use rmcp::task_manager::{TaskExit, TaskFuture, TaskOptions};
use rstest_reuse::apply;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_that_has_lost_its_lease_receives_the_signal_to_stop_and_changes_nothing(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let gate = Gate::new(&store);
    let cut_off = manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), SHORT);
    let other = manager(&store.backend, SHORT);
    let (sender, mut received) = mpsc::unbounded_channel();
    for (name, manager) in [("first", &cut_off), ("second", &other)] {
        let sender = sender.clone();
        manager.register("work", move |context, _| {
            let sender = sender.clone();
            Box::pin(async move {
                if context.attempt() == 1 {
                    context.cancelled().await;
                    context.set_status_message("late");
                    let late = context.request_input("late", elicitation("Too late?")).await;
                    assert!(matches!(late, Err(TaskExit::Cancelled)), "{late:?}");
                }
                sender.send(name).unwrap();
                Ok(text(name))
            })
        });
    }
    let task_id = cut_off.spawn_registered(&alice(), "work", Value::Null, resume()).await.unwrap().task_id;
    gate.set_closed(true);
    assert_eq!(said(&ended(&other, &task_id).await), "second");
    assert_eq!(within(received.recv()).await.unwrap(), "second");
    gate.set_closed(false);
    assert_eq!(within(received.recv()).await.unwrap(), "first", "the operation received the signal to stop");
    within(async {
        while cut_off.running_task_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let done = other.get_task(&alice(), &task_id).await.unwrap();
    assert_eq!((&*said(&done.payload), done.task.status_message), ("second", None));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_outage_shorter_than_the_lease_loses_neither_the_task_nor_its_result(
    #[case] engine: Engine,
    #[values(unreachable_error, backend_error)] error: fn() -> StorageError,
) {
    let store = engine.open().await;
    let gate = Gate::with(&store, error);
    let backend: Arc<dyn Agenda> = gate.agenda();
    let one = manager(&backend, Duration::from_secs(30));
    let (finish, task_id) = spawn_until_finished(&one).await;
    gate.set_closed(true);
    finish.send(()).unwrap();
    gate.refuses().await;
    let unavailable = ErrorData::from(one.get_task(&alice(), &task_id).await.unwrap_err());
    assert_eq!(unavailable.code.0, -32603);
    assert_eq!(unavailable.message.contains("try again"), error().is_retryable());
    assert!(!unavailable.message.contains("gate"), "the message names the store: {unavailable:?}");
    assert_eq!(one.running_task_count(), 1);
    gate.set_closed(false);
    assert_eq!(said(&ended(&one, &task_id).await), "done");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_outage_longer_than_the_lease_fails_no_task_whose_worker_lives(#[case] engine: Engine) {
    let store = engine.open().await;
    let gate = Gate::new(&store);
    let backend: Arc<dyn Agenda> = gate.agenda();
    // The engine is unavailable for both instances, and neither knows the runs of the other.
    let (one, other) = (manager(&backend, SHORT), manager(&elsewhere(&backend), SHORT));
    let (finish, finished) = oneshot::channel::<()>();
    let task_id = spawn(&one, |context| async move {
        finished.await.unwrap();
        Ok(text(format!("attempt {}", context.attempt())))
    })
    .await;
    gate.set_closed(true);
    let lapsed = store.get(&key(&task_id)).await.unwrap();
    tokio::time::sleep(SHORT * 3).await;
    assert_eq!(store.get(&key(&task_id)).await.unwrap(), lapsed);
    gate.set_closed(false);
    assert_eq!(other.get_task(&alice(), &task_id).await.unwrap().status(), TaskStatus::Working);
    polled(&other, &task_id, |_| one.running_task_count() == 1).await;
    within(async {
        while store.get(&key(&task_id)).await.unwrap().version == lapsed.version {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    finish.send(()).unwrap();
    assert_eq!(said(&ended(&other, &task_id).await), "attempt 1");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn the_outcome_of_an_operation_that_ends_as_a_shutdown_begins_is_stored(#[case] engine: Engine) {
    let store = engine.open().await;
    // Chance decides whether the run detects the end of the operation or the shutdown first.
    for _ in 0..20 {
        let one = manager(&store.backend, LONG);
        let (finish, finished) = oneshot::channel::<()>();
        let task_id = spawn(&one, |context| async move {
            context.set_status_message("at work");
            finished.await.unwrap();
            Ok(text("done"))
        });
        let task_id = task_id.await;
        let at_work = |task: &DetailedTask| task.task.status_message.as_deref() == Some("at work");
        polled(&one, &task_id, at_work).await;
        finish.send(()).unwrap();
        within(one.shutdown()).await;
        assert_eq!(said(&ended(&one, &task_id).await), "done");
    }
}

#[tokio::test]
async fn a_read_that_hangs_delays_neither_the_next_renewal_nor_a_shutdown() {
    let store = Engine::Memory.open().await;
    let gate = Gate::new(&store);
    let one = manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), Duration::from_secs(3));
    let other = manager(&store.backend, LONG);
    let task_id = spawn(&one, |_| std::future::pending()).await;
    let reads = || gate.reads.load(Ordering::SeqCst);
    until(|| reads() > 0).await;
    gate.is_silent.store(true, Ordering::SeqCst);
    let before = reads();
    other.store().set_status_message(&key(&task_id), "news").await.unwrap();
    until(|| reads() > before).await;
    until(|| reads() > before + 1).await;
    within(one.shutdown()).await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_claim_or_a_create_that_hangs() {
    let store = Engine::Memory.open().await;
    let gate = Gate::new(&store);
    let (one, other) =
        (manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), LONG), manager(&store.backend, LONG));
    register(&other);
    other.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap();
    gate.reads_hang.store(true, Ordering::SeqCst);
    let _started = register(&one);
    within(other.shutdown()).await;
    until(|| gate.reads.load(Ordering::SeqCst) > 0).await;
    gate.is_silent.store(true, Ordering::SeqCst);
    let creating = one.clone();
    let created = tokio::spawn(async move {
        creating.spawn(&alice(), "test", TaskOptions::new(), |_| Box::pin(std::future::pending())).await
    });
    until(|| one.running_task_count() == 2).await;
    within(one.shutdown()).await;
    assert!(matches!(created.await.unwrap(), Err(TaskError::ShuttingDown)));
}

#[tokio::test]
async fn a_task_whose_record_cannot_be_read_is_claimed_only_once() {
    let store = Engine::Memory.open().await;
    let gate = Gate::new(&store);
    let (one, other) =
        (manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), LONG), manager(&store.backend, LONG));
    register(&other);
    let task_id = other.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap().task_id;
    within(other.shutdown()).await;
    store.put(&key(&task_id), "{".into(), PutOptions::default()).await.unwrap();
    let _started = register(&one);
    let work = Queue::work("wait", Priority::Normal).unwrap();
    within(async {
        while store.timers(&work, None).await.unwrap().total > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(gate.reads.load(Ordering::SeqCst), 1);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_run_whose_subscription_was_refused_subscribes_again_after_a_renewal(#[case] engine: Engine) {
    let store = engine.open().await;
    let gate = Gate::with(&store, backend_error);
    let one = manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), SHORT * 10);
    let begun = Arc::clone(&gate);
    let task_id = spawn(&one, |context| {
        // The task is stored, and the run has not subscribed yet.
        begun.set_closed(true);
        async move {
            context.cancelled().await;
            Ok(text("cleaned up"))
        }
    })
    .await;
    until(|| gate.watches.load(Ordering::SeqCst) > 0).await;
    gate.set_closed(false);
    let refused = gate.watches.load(Ordering::SeqCst);
    until(|| gate.watches.load(Ordering::SeqCst) > refused).await;
    assert_eq!(one.running_task_count(), 1);
    one.cancel_task(&alice(), &task_id).await.unwrap();
    assert_eq!(said(&ended(&one, &task_id).await), "cleaned up");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_request_of_a_void_attempt_is_rejected_like_a_request_of_a_cancelled_task(#[case] engine: Engine) {
    let (store, one, other) = open(engine, LONG).await;
    let (sender, mut received) = mpsc::unbounded_channel();
    let sender = move |context: TaskContext| -> TaskFuture {
        let sender = sender.clone();
        Box::pin(async move {
            context.cancelled().await;
            sender.send(context.request_input("late", elicitation("Too late?")).await).unwrap();
            Err(TaskExit::Cancelled)
        })
    };
    let gone = one.spawn(&alice(), "test", TaskOptions::new(), &sender).await.unwrap().task_id;
    other.store().delete(&key(&gone)).await.unwrap();
    let late = within(received.recv()).await.unwrap();
    assert!(matches!(late, Err(TaskExit::Cancelled)), "{late:?}");

    // Another attempt holds the lease, as after a release and a claim.
    one.register("work", move |context, _| sender(context));
    let task_id = one.spawn_registered(&alice(), "work", Value::Null, resume()).await.unwrap().task_id;
    let mut record: Value = serde_json::from_slice(&store.get(&key(&task_id)).await.unwrap().data).unwrap();
    record["lease"]["attempt"] = json!(2);
    store.put(&key(&task_id), record.to_string().into(), PutOptions::default()).await.unwrap();
    let late = within(received.recv()).await.unwrap();
    assert!(matches!(late, Err(TaskExit::Cancelled)), "{late:?}");
}

#[tokio::test]
async fn an_operation_of_a_void_attempt_that_does_not_stop_is_aborted() {
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let one = manager(&backend, LONG);
    let (_alive, aborted) = oneshot::channel::<()>();
    let task_id = spawn(&one, |_| async move {
        let _alive = _alive;
        std::future::pending().await
    })
    .await;
    one.store().delete(&key(&task_id)).await.unwrap();
    within(aborted).await.unwrap_err();
    within(one.shutdown()).await;
}

/// A call during the outage fails after two seconds. When the outage ends, a renewal may still wait for such a call.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_that_delays_every_call_fails_no_task_whose_worker_lives() {
    let rounds = (0..12).map(|round| async move {
        let lease = Duration::from_secs(3);
        let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
        let gate = Intercept::new(Gate { fails_after: Duration::from_secs(2), ..Gate::of(backend) });
        let backend: Arc<dyn Agenda> = gate.agenda();
        let (one, other) = (manager(&backend, lease), manager(&elsewhere(&backend), lease));
        let (finish, finished) = oneshot::channel::<()>();
        let works_on = spawn(&one, |context| async move {
            finished.await.unwrap();
            Ok(text(format!("attempt {}", context.attempt())))
        })
        .await;
        // Another operation ends during the outage.
        let (end, ends) = oneshot::channel::<()>();
        let has_ended = spawn(&one, |_| async move {
            ends.await.unwrap();
            Ok(text("ended"))
        })
        .await;
        gate.set_closed(true);
        end.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(4_500 + 170 * round)).await;
        gate.set_closed(false);
        // These polls last longer than the observation of a lapsed lease.
        for _ in 0..25 {
            for task_id in [&works_on, &has_ended] {
                let status = other.get_task(&alice(), task_id).await.unwrap().status();
                assert_ne!(status, TaskStatus::Failed, "round {round}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        finish.send(()).unwrap();
        assert_eq!(said(&ended(&other, &works_on).await), "attempt 1");
        assert_eq!(said(&ended(&other, &has_ended).await), "ended");
    });
    futures_util::future::join_all(rounds).await;
}

/// Large results are parts, whose writes may fail while all other writes succeed.
#[apply(on_every_engine)]
#[tokio::test]
async fn a_worker_whose_result_cannot_be_stored_for_longer_than_a_lease_is_not_lost(#[case] engine: Engine) {
    let store = engine.open().await;
    let gate = Gate::new(&store);
    let one = manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), SHORT);
    let other = manager(&store.backend, SHORT);
    gate.refuses_parts.store(true, Ordering::SeqCst);
    let result = "x".repeat(10_000);
    let returned = result.clone();
    let task_id = spawn(&one, |_| async move { Ok(text(returned)) }).await;
    // The run tries five times a second. Thirty tries last longer than several observations of the lease.
    until(|| gate.refused.load(Ordering::SeqCst) >= 30).await;
    gate.refuses_parts.store(false, Ordering::SeqCst);
    assert_eq!(said(&ended(&other, &task_id).await), result);
}

#[tokio::test]
async fn a_renewal_that_hangs_after_the_clock_stepped_back_times_out_within_the_lease() {
    let spy = Spy::new(&(Arc::new(MemoryBackend::new()) as Arc<dyn Agenda>));
    let gate = Intercept::new(Gate::of(spy.agenda()));
    let one = manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), Duration::from_secs(3));
    spawn(&one, |_| std::future::pending()).await;
    until(|| gate.reads.load(Ordering::SeqCst) > 0).await;
    spy.leads_by_ms.store(-86_400_000, Ordering::SeqCst);
    gate.is_silent.store(true, Ordering::SeqCst);
    let before = gate.reads.load(Ordering::SeqCst);
    until(|| gate.reads.load(Ordering::SeqCst) >= before + 3).await;
}

#[tokio::test]
async fn an_outcome_over_a_limit_fails_the_task_with_a_message_that_hides_the_store() {
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let narrow: Arc<dyn Agenda> = Intercept::new(Gate { most_bytes: 2_000, ..Gate::of(backend) });
    let one = manager(&narrow, LONG);
    let task_id = spawn(&one, |_| async { Ok(text("x".repeat(4_000))) }).await;
    let message = said(&ended(&one, &task_id).await);
    assert!(message.contains("cannot be stored") && !message.contains("gate"), "{message}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_that_panics_before_it_returns_its_future_fails_its_task(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    one.register("count", |_, _| Box::pin(std::future::pending()));
    other.register("count", |_, arguments| {
        let count = arguments["count"].as_u64().expect("on purpose");
        Box::pin(async move { Ok(text(count.to_string())) })
    });
    let resumed = one.spawn_registered(&alice(), "count", json!({}), resume()).await.unwrap().task_id;
    within(one.shutdown()).await;
    assert!(said(&ended(&other, &resumed).await).contains("panicked"));
    let begun = other.spawn_registered(&alice(), "count", json!({}), resume()).await;
    let Err(TaskError::OperationPanicked { task }) = begun else {
        panic!("the caller receives an error, not {begun:?}")
    };
    assert!(said(&ended(&other, task.as_str()).await).contains("panicked"));
}

#[tokio::test]
async fn a_task_of_an_operation_that_no_instance_has_registered_costs_one_read_in_ten_leases() {
    const LEASE: Duration = Duration::from_millis(500);
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let one = manager(&backend, LEASE);
    register(&one);
    let task_id = one.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap().task_id;
    within(one.shutdown()).await;
    drop(one);
    let gate = Intercept::new(Gate::of(backend));
    let without_operation = manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), Duration::from_secs(30));
    without_operation.register("another", |_, _| Box::pin(std::future::pending()));
    let reads = || gate.reads.load(Ordering::SeqCst);
    // The first poll makes the instance read the task.
    without_operation.get_task(&alice(), &task_id).await.unwrap();
    until(|| reads() == 2).await;
    // The client's poll was one of the two reads. The keeper's was the other, and its next read follows after ten
    // leases.
    tokio::time::sleep(LEASE * 9).await;
    assert_eq!(reads(), 2);
    until(|| reads() > 2).await;
    assert_eq!(reads(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_does_not_wait_for_an_operation_that_does_not_yield() {
    let backend: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let one = manager(&backend, LONG);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (sender, received) = oneshot::channel();
    let released = std::sync::Mutex::new(released);
    let task_id = spawn(&one, |_| async move {
        sender.send(()).unwrap();
        tokio::task::block_in_place(|| released.lock().unwrap().recv()).unwrap();
        Ok(text("late"))
    })
    .await;
    received.await.unwrap();
    within(one.shutdown()).await;
    let lost = one.get_task(&alice(), &task_id).await.unwrap();
    assert!(said(&lost.payload).contains("worker"), "the release failed the task: {lost:?}");
    release.send(()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_is_repeated_well_before_other_instances_consider_the_worker_lost() {
    let gate = Intercept::new(Gate::of(Arc::new(MemoryBackend::new())));
    let one = manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), Duration::from_secs(30));
    spawn(&one, |_| std::future::pending()).await;
    gate.set_closed(true);
    // The run writes nothing before a third of the lease has passed.
    tokio::time::sleep(Duration::from_millis(9_900)).await;
    let before = gate.refused.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = gate.refused.load(Ordering::SeqCst) - before;
    assert!((5..=15).contains(&refused), "{refused} in two seconds");
}
