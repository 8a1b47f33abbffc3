//! How many claimed tasks an instance runs at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::rmcp::*;
use crate::support::{Engine, Store, on_every_engine};
use mcp_task_store::{
    Agenda, DurableTaskManager, ManagerConfig, NewTask, OnWorkerLost, StoreConfig, TaskContext, TaskStatus,
    TaskStore,
};
use rmcp::model::TaskPayload;
use rmcp::task_manager::{TaskFuture, TaskOptions};
use rstest_reuse::apply;
use serde_json::{Value, json};

fn store(store: &Store) -> TaskStore<Arc<dyn Agenda>> {
    let config = StoreConfig::new().lease(LONG).max_tasks_per_owner(None);
    TaskStore::with_config(Arc::clone(&store.backend), config)
}

fn instance(backend: &Store, max_concurrent: usize) -> Manager {
    DurableTaskManager::with_config(store(backend), ManagerConfig::new().max_concurrent(max_concurrent))
}

/// Creates tasks of an operation that wait for a worker.
async fn released(backend: &Store, operation: &str, number: usize) -> Vec<String> {
    let store = store(backend);
    let begin = async || {
        let new = NewTask::new("tools/call").operation(operation).on_worker_lost(OnWorkerLost::Resume);
        let (started, attempt) = store.start(&alice(), new).await.unwrap();
        attempt.release().await.unwrap();
        started.key.task.as_str().to_owned()
    };
    futures_util::future::join_all((0..number).map(|_| begin())).await
}

/// Counts the operations that run at once.
#[derive(Default)]
struct Counter {
    now: AtomicUsize,
    most: AtomicUsize,
    total: AtomicUsize,
}

impl Counter {
    async fn work(&self, how_long: Duration) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.total.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(how_long).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn total(&self) -> usize {
        self.total.load(Ordering::SeqCst)
    }
}

fn register_work(manager: &Manager, how_long: Duration) -> Arc<Counter> {
    let at_work = Arc::<Counter>::default();
    let counted = Arc::clone(&at_work);
    manager.register("work", move |_, _| {
        let counted = Arc::clone(&counted);
        Box::pin(async move {
            counted.work(how_long).await;
            Ok(text("done"))
        })
    });
    at_work
}

async fn all_complete(manager: &Manager, task_ids: &[String]) {
    for task_id in task_ids {
        let done = within(manager.store().wait(&key(task_id))).await.unwrap();
        assert_eq!(done.task.status, TaskStatus::Completed);
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_instance_claims_as_many_tasks_as_it_has_slots_and_leaves_the_rest_to_other_instances(
    #[case] engine: Engine,
) {
    let backend = engine.open().await;
    let task_ids = released(&backend, "work", 500).await;
    let (one, other) = (instance(&backend, 4), instance(&backend, 4));
    let how_long = Duration::from_millis(20);
    let at_work = [register_work(&one, how_long), register_work(&other, how_long)];
    all_complete(&one, &task_ids).await;
    let most: Vec<usize> = at_work.iter().map(|at_work| at_work.most()).collect();
    let totals: Vec<usize> = at_work.iter().map(|at_work| at_work.total()).collect();
    println!(
        "figure | 500 released tasks, two instances with 4 slots | at most {most:?} at once, {totals:?} in all"
    );
    assert!(most.iter().all(|most| *most <= 4), "{most:?}");
    assert_eq!(totals.iter().sum::<usize>(), 500, "{totals:?}");
    // The slots limit both instances, so each runs its share.
    assert!(totals.iter().all(|total| *total >= 50), "{totals:?}");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn runs_that_wait_for_input_hold_no_slot_and_acquire_one_before_they_continue(#[case] engine: Engine) {
    let backend = engine.open().await;
    let one = instance(&backend, 4);
    let at_work = Arc::<Counter>::default();
    let counted = Arc::clone(&at_work);
    one.register("ask", move |context: TaskContext, _| -> TaskFuture {
        let counted = Arc::clone(&counted);
        Box::pin(async move {
            let answer = context.request_input("a", elicitation("A?")).await?;
            // The work takes long enough that four operations overlap on a busy machine.
            counted.work(Duration::from_millis(500)).await;
            Ok(text(answer.to_string()))
        })
    });
    let asking = released(&backend, "ask", 8).await;
    for task_id in &asking {
        asks(&one, task_id).await;
    }
    assert_eq!(one.running_task_count(), 8);
    let working = register_work(&one, Duration::ZERO);
    let ninth = released(&backend, "work", 1).await;
    all_complete(&one, &ninth).await;
    assert_eq!(working.total(), 1);

    for task_id in &asking {
        one.update_task(&alice(), task_id, [("a".to_owned(), json!(1))]).await.unwrap();
    }
    all_complete(&one, &asking).await;
    assert_eq!((at_work.most(), at_work.total()), (4, 8));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_run_that_waits_for_input_stops_at_once_although_all_slots_are_taken(#[case] engine: Engine) {
    let backend = engine.open().await;
    let one = instance(&backend, 1);
    one.register("ask", |context: TaskContext, _| -> TaskFuture {
        Box::pin(async move { Ok(text(context.request_input("a", elicitation("A?")).await?.to_string())) })
    });
    let asking = released(&backend, "ask", 2).await;
    for task_id in &asking {
        asks(&one, task_id).await;
    }
    one.register("forever", |_, _| Box::pin(std::future::pending()));
    released(&backend, "forever", 1).await;
    until(|| one.running_task_count() == 3).await;
    // The first run waits for its answer. The second run has its answer and waits for a slot.
    one.update_task(&alice(), &asking[1], [("a".to_owned(), json!(1))]).await.unwrap();
    for task_id in &asking {
        one.cancel_task(&alice(), task_id).await.unwrap();
        let cancelled = within(one.store().wait(&key(task_id))).await.unwrap();
        assert_eq!(cancelled.task.status, TaskStatus::Cancelled);
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_a_call_of_this_instance_started_needs_no_slot(#[case] engine: Engine) {
    let backend = engine.open().await;
    let one = instance(&backend, 1);
    one.register("forever", |_, _| Box::pin(std::future::pending()));
    released(&backend, "forever", 2).await;
    until(|| one.running_task_count() == 1).await;
    let working = register_work(&one, Duration::from_millis(50));
    let mut task_ids = Vec::new();
    for _ in 0..5 {
        let task = one.spawn_registered(&alice(), "work", Value::Null, TaskOptions::new()).await.unwrap();
        task_ids.push(task.task_id);
    }
    all_complete(&one, &task_ids).await;
    assert_eq!(working.total(), 5);
    // A poll can see an outcome before the engine has acknowledged its write.
    until(|| one.running_task_count() == 1).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_that_waits_for_two_answers_at_once_needs_one_slot(#[case] engine: Engine) {
    let backend = engine.open().await;
    let one = instance(&backend, 1);
    one.register("ask", |context: TaskContext, _| -> TaskFuture {
        Box::pin(async move {
            let ask = |key: &'static str| context.request_input(key, elicitation("?"));
            let (a, b) = tokio::join!(ask("a"), ask("b"));
            Ok(text(format!("{} {}", a?, b?)))
        })
    });
    let asking = released(&backend, "ask", 1).await;
    polled(&one, &asking[0], |task| match &task.payload {
        TaskPayload::InputRequired { input_requests } => input_requests.len() == 2,
        _ => false,
    })
    .await;
    let ends = Arc::<tokio::sync::Notify>::default();
    let end = Arc::clone(&ends);
    one.register("work", move |_, _| {
        let ends = Arc::clone(&ends);
        Box::pin(async move {
            ends.notified().await;
            Ok(text("done"))
        })
    });
    let working = released(&backend, "work", 1).await;
    until(|| one.running_task_count() == 2).await;
    let answers = ["a", "b"].map(|key| (key.to_owned(), json!(1)));
    one.update_task(&alice(), &asking[0], answers).await.unwrap();
    // Both waits have their answers and wait for the only slot.
    tokio::time::sleep(Duration::from_millis(200)).await;
    end.notify_one();
    all_complete(&one, &working).await;
    all_complete(&one, &asking).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_context_that_outlives_its_operation_holds_no_slot(#[case] engine: Engine) {
    let backend = engine.open().await;
    let one = instance(&backend, 1);
    let (keep, mut kept) = tokio::sync::mpsc::unbounded_channel();
    one.register("leak", move |context: TaskContext, _| -> TaskFuture {
        let keep = keep.clone();
        Box::pin(async move {
            let (asking, asked) = (context.clone(), Arc::<tokio::sync::Notify>::default());
            let asks = Arc::clone(&asked);
            // This Tokio task waits for longer than the operation runs.
            tokio::spawn(async move {
                {
                    let mut request = Box::pin(asking.request_input("a", elicitation("A?")));
                    let _ = tokio::time::timeout(Duration::from_millis(100), &mut request).await;
                    asks.notify_one();
                    let _ = request.await;
                }
                keep.send(asking).unwrap();
            });
            asked.notified().await;
            Ok(text("done"))
        })
    });
    let leaking = released(&backend, "leak", 1).await;
    // The operation has ended although the request is open.
    assert_eq!(said(&ended(&one, &leaking[0]).await), "done");
    let _context = within(kept.recv()).await.unwrap();
    let at_work = register_work(&one, Duration::ZERO);
    let working = released(&backend, "work", 1).await;
    all_complete(&one, &working).await;
    assert_eq!(at_work.total(), 1);
}
