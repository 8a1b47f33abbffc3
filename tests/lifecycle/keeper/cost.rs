//! What idle stores cost the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mcp_task_store::{Agenda, MemoryBackend};
use tokio::task::JoinHandle;

use super::{open, write_limit};
use crate::common::{Tasks, plain};
use crate::support::elsewhere::elsewhere;
use crate::support::intercept::Intercept;
use crate::support::owner;
use crate::support::spy::Spy;

const WORKERS: usize = 20;

/// Starts [`WORKERS`] Tokio tasks. Together they start `count` tasks in the store `worker`, over a third of the
/// lease, and renew the leases until they are aborted.
async fn start_workers(
    worker: &Tasks,
    count: usize,
    lease: Duration,
) -> (Vec<JoinHandle<()>>, Arc<AtomicUsize>) {
    let renewals = Arc::new(AtomicUsize::new(0));
    let workers = (0..WORKERS).map(|number| {
        let (worker, renewals) = (worker.clone(), Arc::clone(&renewals));
        tokio::spawn(async move {
            let owner = owner(&format!("owner {number}"));
            tokio::time::sleep(lease / 3 * number as u32 / WORKERS as u32).await;
            let mut attempts = Vec::new();
            for _ in 0..count / WORKERS {
                attempts.push(worker.start(&owner, plain()).await.unwrap().1);
            }
            let mut next = tokio::time::Instant::now();
            loop {
                next += lease / 3;
                tokio::time::sleep_until(next).await;
                for attempt in &attempts {
                    attempt.renew().await.unwrap();
                    renewals.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
    });
    (workers.collect(), Arc::clone(&renewals))
}

/// Counts the reads of ten idle stores next to a store that works on `count` tasks.
async fn reads_of_idle_stores(count: usize, lease: Duration, leases: u32) {
    let engine: Arc<dyn Agenda> = Arc::new(MemoryBackend::new());
    let spies: Vec<Arc<Intercept<Spy>>> = (0..10).map(|_| Spy::new(&engine)).collect();
    let own = Spy::new(&engine);
    let worker = open(&elsewhere(&own.agenda()), lease);
    let idle: Vec<Tasks> = spies.iter().map(|spy| open(&spy.agenda(), lease)).collect();
    let (workers, renewals) = start_workers(&worker, count, lease).await;
    // At this time the first timers have fired.
    tokio::time::sleep(lease + write_limit(lease) + lease / 3).await;
    let of_idle = || spies.iter().map(|spy| spy.reads.load(Ordering::SeqCst)).sum::<usize>();
    // Each renewal also reads the task.
    let of_worker = || own.reads.load(Ordering::SeqCst) - renewals.load(Ordering::SeqCst);
    let (before, own_before, begun) = (of_idle(), of_worker(), Instant::now());
    tokio::time::sleep(lease * leases).await;
    let passed = begun.elapsed().as_secs_f64() / lease.as_secs_f64();
    let (of_idle, of_worker) = (of_idle() - before, of_worker() - own_before);
    for worker in workers {
        assert!(!worker.is_finished(), "no task was taken from its worker");
        worker.abort();
    }
    let each = (of_idle + of_worker) as f64 / count as f64 / passed;
    println!("figure | reads a task and lease, ten idle stores over {count} running tasks | {each:.2}");
    assert!(of_idle > 0 && each <= 1.6, "{of_idle} and {of_worker} reads in {passed:.1} leases: {each:.2}");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_idle_stores_read_a_running_task_at_most_1_6_times_per_lease() {
    reads_of_idle_stores(1_000, Duration::from_secs(3), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the long form"]
async fn long_ten_idle_stores_read_a_running_task_at_most_1_6_times_per_lease() {
    reads_of_idle_stores(10_000, Duration::from_secs(30), 4).await;
}
