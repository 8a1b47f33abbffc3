//! The actors of a process: creators, workers, claimers and readers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mcp_task_store::{
    Agenda, Attempt, NewTask, Next, OnWorkerLost, OwnerId, Priority, Queue, RpcError, TaskKey,
};
use serde_json::json;

use super::gate::Log;
use super::{OPERATION, Tasks};
use crate::support::Random;

async fn sleep_below(random: &mut Random, millis: u64) {
    tokio::time::sleep(Duration::from_millis(random.below(millis))).await;
}

/// Works on a task for a while, and ends it, releases it, or is lost. Other actors may cause errors, so errors are
/// ignored.
async fn work(attempt: Attempt<Arc<dyn Agenda>>, random: &mut Random) {
    for _ in 0..random.below(5) {
        match random.below(4) {
            0 => sleep_below(random, 300).await,
            1 => drop(attempt.set_status_message("at work").await),
            _ => drop(attempt.renew().await),
        }
    }
    match random.below(16) {
        0..=3 => drop(attempt.release().await),
        4..=5 => drop(attempt.complete(json!("done")).await),
        9..=10 => drop(attempt.retry(RpcError::new(1, "out of paper")).await),
        // The worker hangs.
        6 => std::future::pending().await,
        7..=8 => {
            sleep_below(random, 2_000).await;
            drop(attempt.complete(json!("late")).await);
        }
        // The attempt is dropped.
        _ => {}
    }
}

pub(super) async fn creates(tasks: Tasks, owner: OwnerId, log: Arc<Mutex<Log>>, mut random: Random) {
    loop {
        sleep_below(&mut random, 80).await;
        let mut new = NewTask::new("tools/call");
        if random.below(3) > 0 {
            new = new.operation(OPERATION).on_worker_lost(OnWorkerLost::Resume);
            if random.below(2) == 0 {
                new = new.max_attempts(1 + random.below(2) as u32);
            }
        }
        if let Ok((stored, attempt)) = tasks.start(&owner, new).await {
            log.lock().unwrap().acknowledged.insert(stored.key);
            work(attempt, &mut random).await;
        }
    }
}

/// Returns an acknowledged task at random.
fn any(log: &Mutex<Log>, random: &mut Random) -> Option<TaskKey> {
    let known: Vec<TaskKey> = log.lock().unwrap().acknowledged.iter().cloned().collect();
    (!known.is_empty()).then(|| known[random.below(known.len() as u64) as usize].clone())
}

pub(super) async fn claims(tasks: Tasks, log: Arc<Mutex<Log>>, mut random: Random) {
    let queues = [Queue::work(OPERATION, Priority::Normal).unwrap()];
    let engine = Arc::clone(tasks.backend());
    loop {
        sleep_below(&mut random, 30).await;
        // Timers are hints: a worker may claim a task without taking its timer.
        if random.below(4) == 0
            && let Some(key) = any(&log, &mut random)
        {
            if let Ok(Some((_, attempt))) = tasks.claim(&key).await {
                work(attempt, &mut random).await;
            }
            continue;
        }
        let Ok(taken) = engine.take_due(&queues, 2, Duration::from_secs(1)).await else { continue };
        for due in taken.due {
            let claimed = tasks.claim(&due.key).await;
            let next = if claimed.is_ok() { Next::Remove } else { Next::After(Duration::from_millis(50)) };
            drop(engine.resolve(&due, next).await);
            if let Ok(Some((_, attempt))) = claimed {
                work(attempt, &mut random).await;
            }
        }
    }
}

pub(super) async fn reads(tasks: Tasks, log: Arc<Mutex<Log>>, mut random: Random) {
    loop {
        sleep_below(&mut random, 40).await;
        let Some(key) = any(&log, &mut random) else { continue };
        match random.below(12) {
            0 => drop(tasks.request_cancel(&key).await),
            _ => drop(tasks.get(&key).await),
        }
    }
}
