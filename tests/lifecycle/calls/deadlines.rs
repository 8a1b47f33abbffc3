//! Every call ends within its time limit, whatever the engine does.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, poll};
use mcp_task_store::{
    NewTask, OnWorkerLost, PageRequest, PayloadKind, RpcError, StorageError, StoreConfig, StoredTask,
    TaskError, TaskStatus, TaskStore,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::double::{Double, Server};
use crate::support::intercept::Intercept;
use crate::support::owner;

type Tasks = TaskStore<Arc<Intercept<Double>>>;

const LIMIT: Duration = Duration::from_secs(10);

async fn created() -> (Arc<Intercept<Double>>, Tasks, StoredTask) {
    let double = Double::new();
    let tasks = TaskStore::with_config(Arc::clone(&double), StoreConfig::new().call_timeout(LIMIT));
    let large = json!("x".repeat(5000));
    let created = tasks.create(&owner("alice"), NewTask::new("tools/call").arguments(large)).await.unwrap();
    (double, tasks, created)
}

/// The name of a call, its target, whether it leaves a write in doubt, and the call.
type Asked<'a> = (&'a str, &'a str, bool, BoxFuture<'a, Result<(), TaskError>>);

/// Asserts that the error states what failed, on what, and what to do.
fn assert_in_time(error: &TaskError, call: &str, subject: &str, is_in_doubt: bool) {
    let TaskError::Storage(StorageError::Unavailable { outcome_unknown, .. }) = error else {
        panic!("{call}: {error:?}");
    };
    assert_eq!((*outcome_unknown, error.outcome_unknown()), (is_in_doubt, is_in_doubt), "{call}");
    assert!(error.is_retryable() && error.code() == -32603);
    let text = error.to_string();
    for part in [call, subject, "did not end within 10s", "check that the server answers"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_ends_within_its_limit_while_the_engine_hangs_and_states_what_to_do() {
    let (double, tasks, created) = created().await;
    let resumable = NewTask::new("tools/call").operation("render").on_worker_lost(OnWorkerLost::Resume);
    let (_, attempt) = tasks.start(&owner("alice"), resumable).await.unwrap();
    double.set(Server::Hangs);
    let (alice, key, none) = (owner("alice"), &created.key, || [("a", json!(1))]);
    let task = key.task.to_string();
    let call = || NewTask::new("tools/call");
    let id = created.key.task.as_str();
    let its = attempt.key().task.as_str();
    let calls: Vec<Asked<'_>> = vec![
        ("create", "task ", true, tasks.create(&alice, call()).map(|done| done.map(drop)).boxed()),
        ("start", "task ", true, tasks.start(&alice, call()).map(|done| done.map(drop)).boxed()),
        ("claim", its, false, tasks.claim(attempt.key()).map(|done| done.map(drop)).boxed()),
        ("get", id, false, tasks.get(key).map(|done| done.map(drop)).boxed()),
        ("get", id, false, tasks.wait(key).map(|done| done.map(drop)).boxed()),
        ("list", "alice", false, tasks.list(&alice, PageRequest::new(9)).map(|done| done.map(drop)).boxed()),
        (
            "payload",
            &task,
            false,
            tasks.payload(&created, PayloadKind::Input).map(|done| done.map(drop)).boxed(),
        ),
        (
            "set_status_message",
            id,
            false,
            tasks.set_status_message(key, "x").map(|done| done.map(drop)).boxed(),
        ),
        ("request_input", id, false, tasks.request_input(key, none()).map(|done| done.map(drop)).boxed()),
        ("deliver_inputs", id, false, tasks.deliver_inputs(key, none()).map(|done| done.map(drop)).boxed()),
        ("complete", id, false, tasks.complete(key, Value::Null).map(|done| done.map(drop)).boxed()),
        ("fail", id, false, tasks.fail(key, RpcError::new(1, "x")).map(|done| done.map(drop)).boxed()),
        ("cancel", id, false, tasks.cancel(key).map(|done| done.map(drop)).boxed()),
        ("request_cancel", id, false, tasks.request_cancel(key).map(|done| done.map(drop)).boxed()),
        ("set_variables", id, false, tasks.set_variables(key, none()).map(|done| done.map(drop)).boxed()),
        ("delete", id, true, tasks.delete(key).map(|done| done.map(drop)).boxed()),
        ("cleanup", "the store", false, tasks.cleanup().map(|done| done.map(drop)).boxed()),
        ("renew", its, false, attempt.renew().map(|done| done.map(drop)).boxed()),
        ("read", its, false, attempt.read().map(|done| done.map(drop)).boxed()),
        ("set_checkpoint", its, false, attempt.set_checkpoint(json!(1)).map(|done| done.map(drop)).boxed()),
        ("release", its, false, attempt.release().map(|done| done.map(drop)).boxed()),
    ];
    let begun = Instant::now();
    let ended = join_all(calls.into_iter().map(async |(name, subject, is_in_doubt, call)| {
        let error = call.await.unwrap_err();
        assert_in_time(&error, name, subject, is_in_doubt);
        begun.elapsed()
    }));
    for took in ended.await {
        assert!(took < LIMIT + Duration::from_millis(10), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_in_the_queue_counts_and_calls_succeed_when_the_engine_answers_again() {
    let (double, tasks, created) = created().await;
    double.set(Server::Hangs);
    let begun = Instant::now();
    let complete = tasks.complete(&created.key, json!("done"));
    let cancels = join_all((0..12).map(async |number: u64| {
        // These calls start one after the other, and wait in the queue behind `complete`.
        tokio::time::sleep(Duration::from_millis(100 * number)).await;
        let begun = Instant::now();
        let error = tasks.request_cancel(&created.key).await.unwrap_err();
        assert_in_time(&error, "request_cancel", created.key.task.as_str(), false);
        begun.elapsed()
    }));
    let (completed, cancelled) = tokio::join!(complete, cancels);
    assert_in_time(&completed.unwrap_err(), "complete", created.key.task.as_str(), false);
    for took in cancelled {
        assert!(took < LIMIT + Duration::from_millis(10), "{took:?}");
    }
    assert!(begun.elapsed() < LIMIT + Duration::from_millis(1200));

    double.set(Server::Answers);
    assert!(tasks.request_cancel(&created.key).await.unwrap().task.cancel_requested);
    let done = tasks.complete(&created.key, json!("done")).await.unwrap();
    assert_eq!(done.task.status, TaskStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_within_the_limit_is_in_doubt() {
    let (double, tasks, created) = created().await;
    let read = tasks.get(&created.key).await.unwrap();
    double.set(Server::AppliesOnly);
    let error = tasks.complete(&read, json!("done")).await.unwrap_err();
    assert_in_time(&error, "complete", created.key.task.as_str(), true);
    assert!(error.to_string().contains("may have been applied"), "{error}");
    double.set(Server::Answers);
    assert_eq!(tasks.get(&created.key).await.unwrap().task.status, TaskStatus::Completed);
}

/// A start or claim schedules the timer, writes the lease, and schedules the timer again, because the write was slow.
/// Each of the three steps takes three seconds.
#[tokio::test(start_paused = true)]
async fn a_written_lease_is_in_doubt_if_its_timer_cannot_be_scheduled_again() {
    for is_claim in [false, true] {
        for (limit, is_refused) in [(Duration::from_secs(20), true), (Duration::from_secs(11), false)] {
            let double = Double::new();
            let config = StoreConfig::new().lease(Duration::from_secs(3)).call_timeout(limit);
            let tasks = TaskStore::with_config(Arc::clone(&double), config);
            let call = || NewTask::new("tools/call").operation("render").on_worker_lost(OnWorkerLost::Resume);
            let (alice, bob) = (owner("alice"), owner("bob"));
            let (waiting, attempt) = tasks.start(&bob, call()).await.unwrap();
            attempt.release().await.unwrap();
            let written = double.counts().1;
            // The claim reads first.
            let takes = if is_refused || is_claim { 3000 } else { 4000 };
            double.takes_ms.store(takes, std::sync::atomic::Ordering::SeqCst);
            let begin = async {
                match is_claim {
                    true => tasks.claim(&waiting.key).await.map(drop).unwrap_err(),
                    false => tasks.start(&alice, call()).await.map(drop).unwrap_err(),
                }
            };
            let refuse = async {
                while double.counts().1 == written {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                tokio::time::sleep(Duration::from_millis(takes + 1000)).await;
                if is_refused {
                    double.set(Server::Refuses);
                }
            };
            let (error, ()) = tokio::join!(begin, refuse);
            double.takes_ms.store(0, std::sync::atomic::Ordering::SeqCst);
            double.set(Server::Answers);
            let case = format!("claim {is_claim}, refused {is_refused}: {error:?}");
            assert!(error.outcome_unknown() && error.is_retryable(), "{case}");
            let task = if is_claim {
                tasks.get(&waiting.key).await.unwrap().task
            } else {
                tasks.list(&alice, PageRequest::new(1)).await.unwrap().tasks.remove(0).task
            };
            assert_eq!(task.lease.as_ref().unwrap().attempt, 1 + u32::from(is_claim), "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_outcome_of_a_write_is_resolved_the_next_writer_continues() {
    let (double, tasks, created) = created().await;
    double.set(Server::HangsOnReads);
    double.loses_writes.store(1, std::sync::atomic::Ordering::SeqCst);
    let mut lost = std::pin::pin!(tasks.set_status_message(&created, "lost"));
    assert!(poll!(lost.as_mut()).is_pending());
    let begun = Instant::now();
    tasks.set_variables(&created, [("next", json!(true))]).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert!(poll!(lost.as_mut()).is_pending());
    double.set(Server::Answers);
    let error = lost.await.unwrap_err();
    assert!(error.outcome_unknown(), "the next write has used the version: {error:?}");
    let task = tasks.get(&created.key).await.unwrap().task;
    assert_eq!((&task.status_message, &task.variables["next"]), (&None, &json!(true)));
}

#[cfg(feature = "redis-tests")]
#[tokio::test]
async fn a_redis_server_that_hangs_delays_no_call_beyond_its_limit() {
    use mcp_task_store::RedisBackend;

    const LIMIT: Duration = Duration::from_secs(1);
    let server = crate::support::redis::Server::start(&[]);
    let patient = RedisBackend::builder().response_timeout(Duration::from_secs(60));
    let backend = patient.connect(&server.url()).await.unwrap();
    let tasks = TaskStore::with_config(backend, StoreConfig::new().call_timeout(LIMIT));
    let created = tasks.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
    server.signal("STOP");
    let begun = Instant::now();
    let cancels = join_all((0..12).map(|_| tasks.request_cancel(&created.key)));
    let (completed, cancelled) = tokio::join!(tasks.complete(&created.key, json!("done")), cancels);
    let took = begun.elapsed();
    server.signal("CONT");
    // In sequence these calls would take thirteen times the limit.
    assert!(took < 10 * LIMIT, "{took:?}");
    for error in cancelled.into_iter().chain([completed]).map(Result::unwrap_err) {
        assert!(error.is_retryable() && !error.outcome_unknown(), "{error:?}");
    }
    loop {
        match tasks.complete(&created.key, json!("done")).await {
            Ok(done) => break assert_eq!(done.task.status, TaskStatus::Completed),
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
}
