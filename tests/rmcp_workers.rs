//! Workers of the durable task manager for rmcp that are lost, hand back or are told to stop; who finds out, and what
//! becomes of their tasks.

#![cfg(feature = "rmcp")]

#[macro_use]
mod support;

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::rmcp::TaskContext;
use mcp_task_store::{
    Agenda, MAX_PAGE_LIMIT, NewTask, OnWorkerLost, StoreConfig, StoredTask, TaskError, TaskStore,
};
use rmcp::model::{TaskPayload, TaskStatus};
use rmcp::task_manager::{TaskExit, TaskFuture, TaskOptions};
use rstest_reuse::apply;
use serde_json::{Value, json};
use support::rmcp::*;
use support::{Engine, Store, on_every_engine, owner};
use tokio::sync::{mpsc, oneshot};

#[apply(on_every_engine)]
#[tokio::test]
async fn a_registered_operation_whose_worker_is_lost_is_resumed_by_an_instance_that_only_sweeps(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let first = Mortal::start(&store, SHORT);
    register(&first.manager);
    let begun = first.manager.clone();
    let arguments = json!({ "frames": 3 });
    let spawned = arguments.clone();
    let task = first.spawn(async move { begun.spawn_registered(&alice(), "wait", spawned, resume()).await });
    let task_id = task.await.unwrap().task_id;
    let other = manager(&store.backend, SHORT);
    let mut told = register(&other);
    other.sweep([alice()]);
    first.kill();
    assert_eq!(within(told.recv()).await.unwrap(), (2, arguments));
    assert_eq!(said(&ended(&other, &task_id).await), "attempt 2");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn owners_that_are_named_late_are_looked_at_at_once(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    register(&one);
    let mut told = register(&other);
    one.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap();
    within(one.shutdown()).await;
    // Its first sweep is over, and the next one is an hour away.
    other.sweep([owner("bob")]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    other.sweep([alice()]);
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn whoever_reads_an_orphan_resumes_it_if_it_knows_the_operation(#[case] engine: Engine) {
    let store = engine.open().await;
    let first = Mortal::start(&store, SHORT);
    register(&first.manager);
    let begun = first.manager.clone();
    let task =
        first.spawn(async move { begun.spawn_registered(&alice(), "wait", Value::Null, resume()).await });
    let task_id = task.await.unwrap().task_id;
    let ignorant = manager(&store.backend, SHORT);
    let knowing = manager(&store.backend, SHORT);
    let mut told = register(&knowing);
    first.kill();
    let orphaned = async {
        loop {
            let stored = ignorant.store().get(&key(&task_id)).await.unwrap();
            if ignorant.store().is_orphaned(&stored) {
                return stored;
            }
            ignorant.get_task(&alice(), &task_id).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(within(orphaned).await.task.lease.unwrap().attempt, 1, "who does not know it leaves it alone");
    assert_eq!(ignorant.running_task_count(), 0);
    assert_eq!(said(&ended(&knowing, &task_id).await), "attempt 2");
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_closure_whose_worker_is_lost_fails_and_so_does_a_registered_one_unless_it_is_to_resume(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let first = Mortal::start(&store, SHORT);
    register(&first.manager);
    let begun = first.manager.clone();
    let tasks = first.spawn(async move {
        let closure = spawn(&begun, |context| async move {
            context.cancelled().await;
            Err(TaskExit::Cancelled)
        });
        let closure = closure.await;
        let registered =
            begun.spawn_registered(&alice(), "wait", Value::Null, TaskOptions::new()).await.unwrap();
        [closure, registered.task_id]
    });
    let tasks = tasks.await;
    first.kill();
    let other = manager(&store.backend, SHORT);
    let mut told = register(&other);
    for task_id in tasks {
        let TaskPayload::Failed { error } = ended(&other, &task_id).await else { panic!("it failed") };
        assert_eq!(error["code"], -32603);
        assert!(error["message"].as_str().unwrap().contains("worker"), "{error:?}");
    }
    assert!(told.try_recv().is_err(), "nothing was run again");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_lease_is_renewed_for_as_long_as_the_operation_runs(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, SHORT).await;
    let task_id = spawn(&one, |context| async move {
        // Many times a lease, and longer than two looks a second apart.
        tokio::time::sleep(SHORT * 8).await;
        Ok(text(format!("attempt {}", context.attempt())))
    })
    .await;
    let created = other.get_task(&alice(), &task_id).await.unwrap().task;
    let done = polled(&other, &task_id, |task| {
        assert!(task.status() == TaskStatus::Completed || task.task == created, "a renewal is not seen");
        task.status().is_terminal()
    });
    assert_eq!(said(&done.await.payload), "attempt 1");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_resumed_operation_finds_its_questions_asked_and_its_answers_given(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    for manager in [&one, &other] {
        manager.register("ask", |context, _| {
            Box::pin(async move {
                let a = context.request_input("a", elicitation("A?")).await?;
                let b = context.request_input("b", elicitation("B?")).await?;
                Ok(text(format!("{a} {b} in attempt {}", context.attempt())))
            })
        });
    }
    let task_id = one.spawn_registered(&alice(), "ask", Value::Null, resume()).await.unwrap().task_id;
    asks(&other, &task_id).await;
    other.update_task(&alice(), &task_id, [("a".to_owned(), json!(1))]).await.unwrap();
    polled(&other, &task_id, |task| match &task.payload {
        TaskPayload::InputRequired { input_requests } => input_requests.contains_key("b"),
        _ => false,
    })
    .await;
    within(one.shutdown()).await;
    // The question is still there for the client, and its answer is for whoever asks it again.
    asks(&other, &task_id).await;
    other.update_task(&alice(), &task_id, [("b".to_owned(), json!(2))]).await.unwrap();
    assert_eq!(said(&ended(&other, &task_id).await), "1 2 in attempt 2");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn another_question_under_a_used_key_fails_a_resumed_operation(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    for manager in [&one, &other] {
        manager.register("ask", |context, _| {
            Box::pin(async move {
                let question = elicitation(&format!("in attempt {}?", context.attempt()));
                Ok(text(context.request_input("a", question).await?.to_string()))
            })
        });
    }
    let task_id = one.spawn_registered(&alice(), "ask", Value::Null, resume()).await.unwrap().task_id;
    asks(&other, &task_id).await;
    within(one.shutdown()).await;
    assert!(said(&ended(&other, &task_id).await).contains("input key"));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn shutdown_stops_what_runs_here_hands_it_over_and_deletes_nothing(#[case] engine: Engine) {
    let (store, one, other) = open(engine, LONG).await;
    register(&one);
    let mut told = register(&other);
    let resumable = one.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap().task_id;
    let closure = spawn(&one, |context| async move {
        context.cancelled().await;
        Ok(text("not stopped but cancelled"))
    })
    .await;
    let done = spawn(&one, |_| async { Ok(text("done")) }).await;
    ended(&one, &done).await;
    within(one.shutdown()).await;
    assert_eq!(one.running_task_count(), 0);
    assert_eq!(store.ids("alice").await.len(), 3);
    let handed_back = one.store().get(&key(&resumable)).await.unwrap().task.lease.unwrap();
    assert_eq!((handed_back.holder, handed_back.attempt), (None, 1));
    let again = one.spawn(&alice(), TaskOptions::new(), |_| Box::pin(async { Ok(text("late")) })).await;
    assert_refused!(again, TaskError::ShuttingDown);
    one.get_task(&alice(), &resumable).await.unwrap();
    assert_eq!(one.running_task_count(), 0, "it does not take up again what it has handed back");

    // No lease has to lapse first.
    assert_eq!(said(&ended(&other, &resumable).await), "attempt 2");
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
    assert!(said(&ended(&other, &closure).await).contains("worker"));
    assert_eq!(said(&ended(&other, &done).await), "done");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_task_that_nobody_works_on_is_cancelled_at_once(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    register(&one);
    let task_id = one.spawn_registered(&alice(), "wait", Value::Null, resume()).await.unwrap().task_id;
    within(one.shutdown()).await;
    other.cancel_task(&alice(), &task_id).await.unwrap();
    assert_eq!(other.get_task(&alice(), &task_id).await.unwrap().status(), TaskStatus::Cancelled);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_operation_is_told_to_stop_when_its_ttl_has_passed_or_its_record_is_gone(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let operation = |context: TaskContext| -> TaskFuture {
        let tell = tell.clone();
        Box::pin(async move {
            context.cancelled().await;
            tell.send(context.task_id().to_owned()).unwrap();
            Ok(text("too late"))
        })
    };
    let options = TaskOptions::new().with_ttl_ms(200);
    let task_id = one.spawn(&alice(), options, operation).await.unwrap().task_id;
    assert_eq!(within(told.recv()).await.unwrap(), task_id);
    assert!(said(&ended(&other, &task_id).await).contains("TTL"));

    let task_id = one.spawn(&alice(), TaskOptions::new(), operation).await.unwrap().task_id;
    other.store().delete(&key(&task_id)).await.unwrap();
    assert_eq!(within(told.recv()).await.unwrap(), task_id);
    assert_refused!(other.get_task(&alice(), &task_id).await, TaskError::NotFound { .. });
}

// Looking for lost workers

/// Begins a task under a short lease that is not renewed, as if its worker were lost at once.
async fn abandoned(store: &Store) -> StoredTask {
    let worker = TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().lease(SHORT));
    let new = NewTask::new("tools/call").operation("wait").on_worker_lost(OnWorkerLost::Resume);
    let (stored, _attempt) = worker.start(&alice(), new).await.unwrap();
    stored
}

/// How an instance comes to serve an owner.
#[derive(Clone, Copy, Debug)]
enum Serves {
    Spawn,
    Get,
}

#[apply(on_every_engine)]
fn an_instance_made_outside_of_a_runtime_looks_after_the_owners_that_it_serves(
    #[case] engine: Engine,
    #[values(Serves::Spawn, Serves::Get)] serves: Serves,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(engine.open());
    let other = manager(&store.backend, SHORT);
    let mut told = register(&other);
    runtime.block_on(async {
        let orphan = abandoned(&store).await;
        match serves {
            Serves::Spawn => drop(spawn(&other, |_| std::future::pending()).await),
            // Its lease is live, so that this is not what resumes it.
            Serves::Get => drop(other.get_task(&alice(), orphan.key.task.as_str()).await.unwrap()),
        }
        assert_eq!(within(told.recv()).await.unwrap().0, 2);
    });
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_owner_is_looked_after_until_none_of_its_tasks_is_open(#[case] engine: Engine) {
    let store = engine.open().await;
    let gate = Gate::new(&store);
    let one = manager(&(Arc::clone(&gate) as Arc<dyn Agenda>), SHORT);
    let (bob, named) = (owner("bob"), owner("named"));
    one.sweep([named.clone()]);
    let (finish, finished) = oneshot::channel::<()>();
    let done = spawn(&one, |_| async move {
        finished.await.unwrap();
        Ok(text("done"))
    })
    .await;
    one.spawn(&bob, TaskOptions::new(), |_| Box::pin(std::future::pending())).await.unwrap();
    until(|| gate.listed(&alice()) > 2 && gate.listed(&bob) > 2 && gate.listed(&named) > 2).await;
    finish.send(()).unwrap();
    until(|| one.running_task_count() == 1).await;
    assert!(store.get(&key(&done)).await.is_ok());
    // The round that is on its way may not know yet, and the next one finds out.
    let (of_alice, of_bob, of_named) = (gate.listed(&alice()), gate.listed(&bob), gate.listed(&named));
    until(|| gate.listed(&bob) > of_bob + 4 && gate.listed(&named) > of_named + 4).await;
    assert!(gate.listed(&alice()) <= of_alice + 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_lapsed_lease_is_looked_at_again_soon_however_long_the_own_leases_are(#[case] engine: Engine) {
    let store = engine.open().await;
    let orphan = abandoned(&store).await;
    store.until(orphan.task.lease.unwrap().deadline).await;
    let other = manager(&store.backend, LONG);
    let mut told = register(&other);
    other.sweep([alice()]);
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_orphan_behind_a_full_page_is_found(#[case] engine: Engine) {
    let store = engine.open().await;
    let orphan = abandoned(&store).await;
    let many =
        TaskStore::with_config(Arc::clone(&store.backend), StoreConfig::new().max_tasks_per_owner(None));
    for _ in 0..MAX_PAGE_LIMIT {
        many.create(&alice(), NewTask::new("tools/call")).await.unwrap();
    }
    let other = manager(&store.backend, SHORT);
    let mut told = register(&other);
    other.sweep([alice()]);
    assert_eq!(within(told.recv()).await.unwrap().0, 2);
    assert_eq!(said(&ended(&other, orphan.key.task.as_str()).await), "attempt 2");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_answer_that_finds_nobody_at_work_resumes_the_operation(#[case] engine: Engine) {
    let (_store, one, other) = open(engine, LONG).await;
    for manager in [&one, &other] {
        manager.register("ask", |context, _| {
            Box::pin(
                async move { Ok(text(context.request_input("a", elicitation("A?")).await?.to_string())) },
            )
        });
    }
    let task_id = one.spawn_registered(&alice(), "ask", Value::Null, resume()).await.unwrap().task_id;
    asks(&one, &task_id).await;
    within(one.shutdown()).await;
    other.update_task(&alice(), &task_id, [("a".to_owned(), json!(1))]).await.unwrap();
    // Nobody polls.
    let done = within(other.store().wait(&key(&task_id))).await.unwrap();
    assert_eq!(done.task.result.unwrap().as_inline().unwrap()["content"][0]["text"], "1");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn only_what_is_registered_can_be_spawned_by_name(#[case] engine: Engine) {
    let (store, one, _) = open(engine, LONG).await;
    let refused = one.spawn_registered(&alice(), "nothing", Value::Null, resume()).await;
    assert_refused!(refused, TaskError::InvalidArgument { .. });
    assert!(store.ids("alice").await.is_empty());
}
