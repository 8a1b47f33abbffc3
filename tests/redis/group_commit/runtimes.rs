//! Runtimes that share one backend. A runtime that nobody drives, or that shuts down, delays and fails no write of another one.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use mcp_task_store::{RedisBackend, StorageBackend};
use rstest::rstest;
use tokio::runtime::{Builder, Handle, Runtime};

use super::{Outcome, Write, send_all};
use crate::support::redis::Namespace;
use crate::support::{in_an_hour, key};

fn creates(name: &str, count: usize) -> Vec<Write> {
    (0..count).map(|task| Write::Create(key("alice", &format!("{name}-{task:02}")))).collect()
}

/// Begins the writes on a runtime.
fn begin<'a>(
    runtime: &Runtime,
    backend: &'a RedisBackend,
    writes: &'a [Write],
) -> Vec<BoxFuture<'a, Outcome>> {
    runtime.block_on(async {
        let mut calls: Vec<_> = writes.iter().map(|write| write.send(backend).boxed()).collect();
        for call in &mut calls {
            poll_once(call.as_mut()).await;
        }
        calls
    })
}

async fn poll_once<T>(mut call: Pin<&mut (impl Future<Output = T> + ?Sized)>) {
    poll_fn(|context| {
        let _ = call.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Its callers wait, and nobody drives it.
    Idle,
    /// Its callers have left, and nobody drives it.
    Abandoned,
    ShutDown,
}

/// Begins writes on a runtime of its own, drives it until the given moment, and returns the outcomes of writes that begin
/// meanwhile on the runtime of the test.
fn outcomes_of_ours(
    backend: &RedisBackend,
    round: usize,
    turns: usize,
    fate: Fate,
) -> (Vec<Outcome>, Option<Runtime>) {
    let (others, ours) = (creates(&format!("other-{round}"), 3), creates(&format!("ours-{round}"), 3));
    let other = Builder::new_current_thread().enable_all().build().unwrap();
    let calls = begin(&other, backend, &others);
    let (began, begun) = std::sync::mpsc::channel();
    let ours = Handle::current().spawn({
        let backend = backend.clone();
        async move {
            let mut writes = ours.iter().map(|write| write.send(&backend).boxed()).collect::<Vec<_>>();
            for write in &mut writes {
                poll_once(write.as_mut()).await;
            }
            began.send(()).unwrap();
            join_all(writes).await
        }
    });
    begun.recv().unwrap();
    other.block_on(async {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    });
    let calls = (fate == Fate::Idle).then_some(calls);
    let other = (fate != Fate::ShutDown).then_some(other);
    let outcomes = Handle::current().block_on(ours).unwrap();
    drop(calls);
    (outcomes, other)
}

/// The others are queued before ours, so that they would send ours too.
#[rstest]
#[case::idle(Fate::Idle)]
#[case::abandoned(Fate::Abandoned)]
#[case::shut_down(Fate::ShutDown)]
#[tokio::test(flavor = "multi_thread")]
async fn writes_succeed_while_a_runtime_that_began_other_writes_is_not_driven(
    #[case] fate: Fate,
    #[values(0, 1, 2, 3)] turns: usize,
) {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    // The connection belongs to the runtime of the test.
    backend.put(&key("alice", "first"), "data".into(), in_an_hour()).await.unwrap();
    let rounds =
        move || (0..5).map(|round| outcomes_of_ours(&backend, round, turns, fate)).collect::<Vec<_>>();
    for (outcomes, other) in tokio::task::spawn_blocking(rounds).await.unwrap() {
        for outcome in outcomes {
            outcome.unwrap();
        }
        if let Some(other) = other {
            other.shutdown_background();
        }
    }
}

/// A task of the same runtime queues writes, and then computes for long without giving its thread a turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_succeed_while_the_thread_of_a_task_that_began_other_writes_is_blocked() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let (began, begun) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let blocking = tokio::spawn({
        let backend = backend.clone();
        async move {
            let writes = creates("blocked", 3);
            let mut calls: Vec<_> = writes.iter().map(|write| write.send(&backend).boxed()).collect();
            for call in &mut calls {
                poll_once(call.as_mut()).await;
            }
            began.send(()).unwrap();
            let is_released = released.recv_timeout(Duration::from_secs(15)).is_ok();
            (is_released, join_all(calls).await)
        }
    });
    begun.await.unwrap();
    for outcome in send_all(&backend, &creates("free", 2)).await {
        outcome.unwrap();
    }
    // An error means that the time is over.
    let _ = release.send(());
    let (is_released, outcomes) = blocking.await.unwrap();
    assert!(is_released, "the writes wait for the blocked thread");
    for outcome in outcomes {
        outcome.unwrap();
    }
}
