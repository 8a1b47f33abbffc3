//! The attempts of this process, and the notification that an attempt was dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use once_cell::sync::Lazy;
use serde_json::Map;
use tokio::sync::mpsc;

use super::durations::millis;
use super::machine::exit::WorkerExit;
use crate::backend::TaskKey;
use crate::task::Lease;
use crate::telemetry::RunningAttempt;

/// An attempt by its task and its number.
pub(super) type AttemptId = (TaskKey, u32);

/// How many stores the registry may have, including dropped stores, before it removes the dropped stores.
const MAX_STORES: usize = 1024;

/// The attempts of each store of this process, by the holder id that the store writes into its leases. A dropped
/// store stays in the registry for a while. Without its entry, its leases would look like leases of another process.
static BY_HOLDER: Lazy<Mutex<HashMap<String, Weak<LocalAttempts>>>> = Lazy::new(Mutex::default);

/// No code panics while it holds the lock.
fn by_holder() -> MutexGuard<'static, HashMap<String, Weak<LocalAttempts>>> {
    BY_HOLDER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this process knows about the attempt of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttemptState {
    /// This process holds the attempt.
    Held,
    /// The attempt belonged to this process, which no longer holds it.
    Dropped,
    /// The attempt belongs, or belonged, to another process.
    Foreign,
}

impl AttemptState {
    fn of(holder: &str, attempt: &AttemptId) -> Self {
        let Some(attempts) = by_holder().get(holder).map(Weak::upgrade) else { return Self::Foreign };
        // Every attempt keeps the `LocalAttempts` of its store alive.
        if attempts.is_some_and(|attempts| attempts.is_held(attempt)) { Self::Held } else { Self::Dropped }
    }

    /// Returns the state of the attempt that holds a lease. The attempt may belong to any store of this process. The
    /// runtime of that store may be blocked while the keeper of another store runs.
    pub(super) fn of_lease(key: &TaskKey, lease: &Lease) -> Self {
        let holder = lease.holder.as_ref();
        holder.map_or(Self::Foreign, |holder| Self::of(holder, &(key.clone(), lease.attempt)))
    }
}

/// The attempts of one store that this process holds.
#[derive(Debug)]
pub(super) struct LocalAttempts {
    /// The random id that the store writes into its leases.
    pub(super) holder: String,
    /// How many guards an attempt has. It has more than one only while several claims of this store race for the
    /// task.
    guards: Mutex<HashMap<AttemptId, usize>>,
    dropped: mpsc::UnboundedSender<DroppedAttempt>,
}

/// An attempt that was dropped while its task may still be open.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DroppedAttempt {
    pub(super) id: AttemptId,
    /// `Released` if no worker has received the attempt, so that it does not count as lost.
    pub(super) exit: WorkerExit,
}

impl LocalAttempts {
    /// Returns the empty registry of a new store, and the receiver of its dropped attempts.
    pub(super) fn new(holder: &str) -> (Arc<Self>, mpsc::UnboundedReceiver<DroppedAttempt>) {
        let (dropped, received) = mpsc::unbounded_channel();
        let attempts = Arc::new(Self { holder: holder.to_owned(), guards: Mutex::default(), dropped });
        let mut by_holder = by_holder();
        if by_holder.len() >= MAX_STORES {
            by_holder.retain(|_, attempts| attempts.strong_count() > 0);
        }
        by_holder.insert(holder.to_owned(), Arc::downgrade(&attempts));
        (attempts, received)
    }

    /// No code panics while it holds the lock.
    fn guards(&self) -> MutexGuard<'_, HashMap<AttemptId, usize>> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_held(&self, attempt: &AttemptId) -> bool {
        self.guards().contains_key(attempt)
    }

    /// Returns some attempts that this process holds, and how many there are.
    #[cfg(feature = "rmcp")]
    pub(super) fn held(&self, most: usize) -> (Vec<AttemptId>, usize) {
        let guards = self.guards();
        (guards.keys().take(most).cloned().collect(), guards.len())
    }

    /// Counts an attempt as held until the guard is dropped.
    pub(super) fn register(self: &Arc<Self>, key: &TaskKey, number: u32) -> AttemptGuard {
        let id = (key.clone(), number);
        *self.guards().entry(id.clone()).or_default() += 1;
        let (has_begun, running, is_over, has_left) = Default::default();
        AttemptGuard { attempts: Arc::clone(self), id, has_begun, running, is_over, has_left }
    }

    /// Returns a lease of this store that begins now.
    pub(super) fn new_lease(
        &self,
        attempt: u32,
        losses: u32,
        duration: Duration,
        now: DateTime<Utc>,
    ) -> Lease {
        Lease {
            holder: Some(self.holder.clone()),
            attempt,
            losses,
            renewals: 0,
            duration_ms: millis(duration),
            deadline: now + duration,
            delay_ms: None,
            traceparent: None,
            extra: Map::new(),
        }
    }

    /// Returns whether this store wrote the lease.
    pub(super) fn is_own(&self, lease: &Lease) -> bool {
        lease.holder.as_ref() == Some(&self.holder)
    }
}

/// Keeps an attempt registered as held by this process. All clones of an attempt share one guard.
#[derive(Debug)]
pub(super) struct AttemptGuard {
    attempts: Arc<LocalAttempts>,
    id: AttemptId,
    /// The caller received the attempt and can work.
    has_begun: AtomicBool,
    /// Counts the attempt while it runs.
    running: Mutex<Option<RunningAttempt>>,
    /// The task has ended, was released, or belongs to another attempt. The keeper need not act on the drop.
    is_over: AtomicBool,
    /// The attempt no longer counts as held.
    has_left: AtomicBool,
}

impl AttemptGuard {
    pub(super) fn set_begun(&self) {
        if !self.has_begun.swap(true, Ordering::AcqRel) {
            *self.running() = Some(RunningAttempt::begin());
        }
    }

    /// No code panics while it holds the lock.
    fn running(&self) -> MutexGuard<'_, Option<RunningAttempt>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_over(&self) {
        self.is_over.store(true, Ordering::Release);
        *self.running() = None;
    }

    /// Ends the attempt in this process, even if a clone of it still exists.
    pub(super) fn leave(&self) {
        if self.has_left.swap(true, Ordering::AcqRel) {
            return;
        }
        *self.running() = None;
        if let Entry::Occupied(mut guards) = self.attempts.guards().entry(self.id.clone()) {
            *guards.get_mut() -= 1;
            if *guards.get() == 0 {
                guards.remove();
            }
        }
        if !self.is_over.load(Ordering::Acquire) {
            let has_begun = self.has_begun.load(Ordering::Acquire);
            let exit = if has_begun { WorkerExit::Lost } else { WorkerExit::Released };
            // If there is no receiver, the store was dropped. Other instances then find the task.
            let _ = self.attempts.dropped.send(DroppedAttempt { id: self.id.clone(), exit });
        }
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_held_until_its_last_guard_is_dropped_and_is_reported_unless_it_is_over() {
        let (attempts, mut dropped) = LocalAttempts::new("one");
        let id = (TaskKey::new("alice", "t1").unwrap(), 2);
        let state = |holder| AttemptState::of(holder, &id);
        assert_eq!(state("one"), AttemptState::Dropped);
        let (one, other) = (attempts.register(&id.0, id.1), attempts.register(&id.0, id.1));
        other.set_over();
        drop(other);
        assert_eq!((state("one"), state("another")), (AttemptState::Held, AttemptState::Foreign));
        assert!(dropped.try_recv().is_err());
        one.set_begun();
        drop(one);
        assert_eq!(state("one"), AttemptState::Dropped);
        let lost = || Ok(DroppedAttempt { id: id.clone(), exit: WorkerExit::Lost });
        assert_eq!(dropped.try_recv(), lost());
        drop(attempts.register(&id.0, id.1));
        let released = DroppedAttempt { id: id.clone(), exit: WorkerExit::Released };
        assert_eq!(dropped.try_recv(), Ok(released), "no worker has received the attempt");
        let held = attempts.register(&id.0, id.1);
        held.set_begun();
        held.leave();
        assert_eq!(state("one"), AttemptState::Dropped, "the attempt has left, although its guard exists");
        assert_eq!(dropped.try_recv(), lost());
        let again = attempts.register(&id.0, id.1);
        drop(held);
        assert_eq!(state("one"), AttemptState::Held, "the other guard has left once");
        again.set_over();
        drop(again);
        assert!(dropped.try_recv().is_err(), "the attempt was reported once");
        drop(attempts);
        assert_eq!(state("one"), AttemptState::Dropped, "a dropped store does not make the attempt foreign");
    }

    #[test]
    fn dropped_stores_are_forgotten_when_there_are_many() {
        let (kept, _received) = LocalAttempts::new("kept");
        for number in 0..MAX_STORES * 2 {
            drop(LocalAttempts::new(&format!("dropped {number}")));
        }
        assert!(by_holder().len() <= MAX_STORES);
        let id = (TaskKey::new("alice", "t1").unwrap(), 1);
        let _guard = kept.register(&id.0, id.1);
        assert_eq!(AttemptState::of("kept", &id), AttemptState::Held);
    }
}
