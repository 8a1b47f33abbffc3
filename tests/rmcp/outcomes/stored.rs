//! Outcomes of operations that end while the engine fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mcp_task_store::MemoryBackend;
use rmcp::task_manager::TaskOptions;
use rstest_reuse::apply;

use super::{agenda, memory};
use crate::support::rmcp::*;
use crate::support::{Engine, Printed, on_every_engine};

#[cfg(feature = "redis-tests")]
mod behind_a_proxy {
    use std::sync::atomic::AtomicUsize;

    use mcp_task_store::Agenda;
    use serde_json::Value;

    use super::*;
    use crate::support::elsewhere::elsewhere;
    use crate::support::redis::{Namespace, Server};
    use crate::support::refusing::Refusing;

    /// The proxy answers every call with this error, from just before the operations end until 1.5 s later. The lease
    /// lasts 3 s.
    async fn assert_outcome_survives(error: &str) {
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
        let other = manager(&elsewhere(&connect(&server.url()).await), LEASE);
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
        // Most of the first lease has passed, and the other instance has read the task.
        tokio::time::sleep(LEASE * 2 / 3).await;
        proxy.answer(Some(error));
        end.send(true).unwrap();
        let refused = proxy.refused();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(proxy.refused() > refused, "the run tried to store the outcome");
        assert_eq!(one.running_task_count(), 2);
        proxy.answer(None);
        for task_id in [&resumable, &closure] {
            assert_eq!(said(&ended(&other, task_id).await), "attempt 1");
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_outcome_survives_a_proxy_without_an_upstream() {
        tokio::join!(
            assert_outcome_survives("-upstream failure"),
            assert_outcome_survives("-no upstream host")
        );
    }

    #[tokio::test]
    async fn an_outcome_survives_a_limit_of_requests() {
        assert_outcome_survives("-ERR max daily request limit exceeded").await;
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_outcome_is_kept_until_it_is_stored_while_the_lease_can_be_renewed(#[case] engine: Engine) {
    let store = engine.open().await;
    for error in [unreachable_error, backend_error, denied_error] {
        let gate = Gate::with(&store, error);
        let one = manager(&agenda(&gate), SHORT);
        let other = manager(&store.backend, SHORT);
        gate.refuses_parts.store(true, Ordering::SeqCst);
        let result = "x".repeat(10_000);
        let returned = result.clone();
        let task_id = spawn(&one, |_| async move { Ok(text(returned)) }).await;
        // The engine fails for many leases.
        until(|| gate.refused.load(Ordering::SeqCst) >= 15).await;
        gate.refuses_parts.store(false, Ordering::SeqCst);
        assert_eq!(said(&ended(&other, &task_id).await), result);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_whose_reply_is_lost_is_stored_once_and_not_reported_as_void() {
    let printed = Printed::default();
    let _subscribed = crate::support::subscribe(&printed, tracing::Level::INFO);
    let gate = Intercept::new(Gate { error: backend_error, ..Gate::of(Arc::new(MemoryBackend::new())) });
    // The run receives no notification of the end of its task.
    gate.watch_hangs.store(true, Ordering::SeqCst);
    let one = manager(&agenda(&gate), LONG);
    let loses = Arc::clone(&gate);
    let task_id = spawn(&one, |_| async move {
        loses.loses_replies.store(true, Ordering::SeqCst);
        Ok(text("done"))
    })
    .await;
    gate.refuses().await;
    gate.set_closed(false);
    until(|| one.running_task_count() == 0).await;
    assert_eq!(said(&ended(&one, &task_id).await), "done");
    let printed = printed.text();
    assert!(!printed.contains("void"), "{printed}");
    assert_eq!(printed.matches(" completed ").count(), 1, "{printed}");
}

#[tokio::test]
async fn an_outcome_that_cannot_be_stored_is_dropped_once_the_ttl_has_elapsed() {
    let gate = memory();
    let one = manager(&agenda(&gate), Duration::from_secs(3));
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
    let one = manager(&agenda(&gate), LONG);
    let (finish, task_id) = spawn_until_finished(&one).await;
    gate.backend.put(&key(&task_id), "{".into(), Default::default()).await.unwrap();
    finish.send(()).unwrap();
    until(|| one.running_task_count() == 0).await;
}
