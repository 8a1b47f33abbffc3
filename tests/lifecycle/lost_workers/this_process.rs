//! Several stores in one process: each knows the attempts of the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_task_store::{Agenda, Attempt, NewTask, StoredTask, TaskStatus};
use rstest_reuse::apply;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use super::{LONG, SHORT, config, has_ended, open, plain, resumable, until, waits_for_a_worker};
use crate::support::{Engine, Store, on_every_engine, owner};

/// How long a lease of [`SHORT`] is observed.
const OBSERVED: Duration = Duration::from_millis(1016);

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Starts a task in a store of its own, on a runtime of its own.
async fn begin(
    store: &Store,
    runtime: &Runtime,
    lease: Duration,
    new: NewTask,
) -> (StoredTask, Attempt<Arc<dyn Agenda>>) {
    let agenda = Arc::clone(&store.backend);
    let begun = async move { open(&agenda, config(lease)).start(&owner("alice"), new).await.unwrap() };
    runtime.spawn(begun).await.unwrap()
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_store_never_ends_an_attempt_that_its_process_holds_even_if_the_lease_has_lapsed(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let here = open(&store.backend, config(LONG));
    // The runtime of the attempt might be blocked: nothing renews the lease.
    let there = runtime();
    let (stored, attempt) = begin(&store, &there, SHORT, plain()).await;
    let begun = Instant::now();
    while begun.elapsed() < OBSERVED * 4 {
        assert_eq!(here.get(&stored.key).await.unwrap().task.status, TaskStatus::Working);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(attempt.complete(json!("late")).await.unwrap().task.status, TaskStatus::Completed);
    there.shutdown_background();
}

#[apply(on_every_engine)]
#[tokio::test]
async fn an_attempt_whose_runtime_has_ended_is_lost_at_the_next_read_of_any_store_of_its_process(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let here = open(&store.backend, config(LONG));
    let there = runtime();
    let (failing, attempt) = begin(&store, &there, LONG, plain()).await;
    let (resuming, other) = begin(&store, &there, LONG, resumable()).await;
    // Both attempts hold the last clones of their stores.
    there.spawn(async move { drop((std::future::pending::<()>().await, attempt, other)) });
    assert_eq!(here.get(&failing.key).await.unwrap().task.status, TaskStatus::Working);
    there.shutdown_background();
    let begun = Instant::now();
    let read = async {
        while here.get(&failing.key).await.unwrap().task.status != TaskStatus::Failed {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(super::PATIENCE, read).await.expect("the read ends before the lease lapses");
    here.get(&resuming.key).await.unwrap();
    let waiting = until(&*store, &resuming.key, |task| has_ended(task) || waits_for_a_worker(task)).await;
    assert_eq!((waiting.status, waiting.lease.unwrap().losses), (TaskStatus::Working, 1));
    println!(
        "figure | row 6: a runtime has ended on {engine:?}, with leases of an hour | found after {:.1?}",
        begun.elapsed()
    );
}
