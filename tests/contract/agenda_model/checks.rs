//! What must hold at the end of a history: each write against the previous one, and the timer of each open task.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use mcp_task_store::{OnWorkerLost, OwnerId, PageRequest, Queue, Task, TaskKey};

use super::{HIDDEN, History, LEASE, LIMIT};
use crate::support::{owner, timers};

/// The number of checked losses after which a task continued, and of checked tasks that failed for good.
pub(super) static LOSSES: AtomicUsize = AtomicUsize::new(0);
pub(super) static GAVE_UP: AtomicUsize = AtomicUsize::new(0);
/// The number of checked open tasks with a lease.
pub(super) static OPEN: AtomicUsize = AtomicUsize::new(0);

impl History {
    pub(super) async fn check(&self) {
        for (key, written) in &self.log.lock().unwrap().written {
            for ((version, before), (next, after)) in written.iter().zip(written.iter().skip(1)) {
                // A write that was dropped on its way to the engine is not in the log.
                if version + 1 == *next {
                    check_step(key, before, after);
                }
            }
        }
        let due: HashMap<TaskKey, DateTime<Utc>> = timers(&*self.engine, &Queue::leases())
            .await
            .into_iter()
            .map(|timer| (timer.key, timer.due_at))
            .collect();
        let dead: HashSet<TaskKey> =
            timers(&*self.engine, &Queue::dead()).await.into_iter().map(|timer| timer.key).collect();
        let after = |duration: Duration| TimeDelta::from_std(duration).unwrap();
        // The clocks of the engine and of the test may differ on a busy machine.
        let slack = TimeDelta::milliseconds(200);
        for owner in [owner("alice"), owner("bob")] {
            for record in self.walk(&owner).await {
                let (key, task) = record;
                assert!(
                    task.gave_up_after.is_none() || dead.contains(&key),
                    "{key} is dead and has no timer"
                );
                let Some(lease) = task.lease.filter(|_| !task.status.is_terminal()) else { continue };
                let now = self.engine.now();
                let log = self.log.lock().unwrap();
                let Some(due_at) = due.get(&key) else {
                    assert!(
                        log.slow.contains(&key) && !log.acknowledged.contains(&key),
                        "{key} is open and has no timer: {lease:?}"
                    );
                    continue;
                };
                let latest = match lease.holder {
                    Some(_) => (lease.deadline + after(LIMIT)).max(now + after(HIDDEN)),
                    None => now + after(LEASE * 10),
                };
                assert!(*due_at <= latest + slack, "{key} is found at {due_at}, not by {latest}: {lease:?}");
                OPEN.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn walk(&self, owner: &OwnerId) -> Vec<(TaskKey, Task)> {
        let mut tasks = Vec::new();
        let mut page = PageRequest::new(256);
        loop {
            let listed = self.engine.list(owner, page).await.unwrap();
            for record in listed.records {
                let key = TaskKey { owner: owner.clone(), task: record.task };
                tasks.push((key, serde_json::from_slice(&record.data).unwrap()));
            }
            match listed.next {
                Some(next) => page = PageRequest::new(256).after(next),
                None => return tasks,
            }
        }
    }
}

/// Checks one write against the previous one.
fn check_step(key: &TaskKey, before: &Task, after: &Task) {
    let bound = after.max_attempts.unwrap_or(3);
    let Some(lease) = &before.lease else { return assert_eq!(before.status, after.status, "{key}") };
    let step = || format!("{key}, bound {bound}: {lease:?} to {:?}, {:?}", after.lease, after.status_message);
    let message = after.status_message.as_deref().unwrap_or_default();
    match &after.lease {
        // A renewal, a note or an observation.
        Some(next) if next.holder.is_some() == lease.holder.is_some() => {
            assert_eq!((next.attempt, next.losses), (lease.attempt, lease.losses), "{}", step());
        }
        // A claim.
        Some(next) if next.holder.is_some() => {
            assert_eq!((next.attempt, next.losses), (lease.attempt + 1, lease.losses), "{}", step());
            // The clock of the process that claims may be ahead of the engine's by this much.
            let earliest = lease.deadline - TimeDelta::milliseconds(200);
            assert!(after.last_updated_at >= earliest, "claimed at {}: {}", after.last_updated_at, step());
        }
        // A loss or a release.
        Some(next) => {
            assert!(next.attempt == lease.attempt && next.losses < bound, "{}", step());
            assert!((lease.losses..=lease.losses + 1).contains(&next.losses), "{}", step());
            LOSSES.fetch_add((next.losses - lease.losses) as usize, Ordering::Relaxed);
        }
        None if message.starts_with("gave up") => {
            assert!(lease.holder.is_some() && lease.losses + 1 == bound, "{}", step());
            assert_eq!(after.gave_up_after, Some(bound), "{}", step());
            assert_eq!(after.on_worker_lost, OnWorkerLost::Resume, "{}", step());
            GAVE_UP.fetch_add(1, Ordering::Relaxed);
        }
        None if message == "the worker of the task was lost" => {
            assert_eq!(after.on_worker_lost, OnWorkerLost::Fail, "{}", step());
        }
        None => {}
    }
}
