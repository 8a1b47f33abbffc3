//! The attempts that live in this process, and the message that an attempt was dropped.

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
use super::machine::WorkerExit;
use crate::backend::TaskKey;
use crate::task::Lease;

/// An attempt by its task and its number.
pub(super) type AttemptId = (TaskKey, u32);

/// How many stores the process remembers, dropped ones included, before it forgets the dropped ones.
const MAX_STORES: usize = 1024;

/// The attempts of each store of this process, by the holder that the store writes into its leases. Dropped stores stay for a
/// while, so that their leases are not taken for those of another process.
static BY_HOLDER: Lazy<Mutex<HashMap<String, Weak<LocalAttempts>>>> = Lazy::new(Mutex::default);

/// Nothing panics while it holds the lock.
fn by_holder() -> MutexGuard<'static, HashMap<String, Weak<LocalAttempts>>> {
    BY_HOLDER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this process knows about the attempt of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttemptState {
    /// Somebody in this process holds the attempt.
    Held,
    /// The attempt belonged to this process, and nobody holds it any more.
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

    /// Returns the state of the attempt that holds a lease. Any store of the process answers for all of them: the runtime of
    /// one store may be blocked while the runtime of another is not.
    pub(super) fn of_lease(key: &TaskKey, lease: &Lease) -> Self {
        let holder = lease.holder.as_ref();
        holder.map_or(Self::Foreign, |holder| Self::of(holder, &(key.clone(), lease.attempt)))
    }
}

/// The attempts of one store that somebody in this process holds.
#[derive(Debug)]
pub(super) struct LocalAttempts {
    /// The random id that the store writes into its leases.
    holder: String,
    /// How many guards an attempt has. It has more than one only during a claim that another claim has won.
    guards: Mutex<HashMap<AttemptId, usize>>,
    dropped: mpsc::UnboundedSender<DroppedAttempt>,
}

/// An attempt that was dropped while its task may still be open.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DroppedAttempt {
    pub(super) id: AttemptId,
    /// `Released` if nobody ever worked on the attempt, so that it does not count as lost.
    pub(super) exit: WorkerExit,
}

impl LocalAttempts {
    /// Returns the attempts of a new store, of which there are none, and the receiver of those that are dropped.
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

    /// Nothing panics while it holds the lock.
    fn guards(&self) -> MutexGuard<'_, HashMap<AttemptId, usize>> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_held(&self, attempt: &AttemptId) -> bool {
        self.guards().contains_key(attempt)
    }

    /// Counts an attempt as held until the guard is dropped.
    pub(super) fn register(self: &Arc<Self>, key: &TaskKey, number: u32) -> AttemptGuard {
        let id = (key.clone(), number);
        *self.guards().entry(id.clone()).or_default() += 1;
        let (has_begun, is_over, has_left) = Default::default();
        AttemptGuard { attempts: Arc::clone(self), id, has_begun, is_over, has_left }
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
            extra: Map::new(),
        }
    }

    /// Returns whether this store wrote the lease.
    pub(super) fn is_own(&self, lease: &Lease) -> bool {
        lease.holder.as_ref() == Some(&self.holder)
    }
}

/// Stands for an attempt that somebody in this process holds. All clones of an attempt share one guard.
#[derive(Debug)]
pub(super) struct AttemptGuard {
    attempts: Arc<LocalAttempts>,
    id: AttemptId,
    /// The caller received the attempt and can work.
    has_begun: AtomicBool,
    /// The task has ended, was released, or belongs to another attempt. Nobody needs to act on the drop.
    is_over: AtomicBool,
    /// The attempt no longer counts as held.
    has_left: AtomicBool,
}

impl AttemptGuard {
    pub(super) fn set_begun(&self) {
        self.has_begun.store(true, Ordering::Release);
    }

    pub(super) fn set_over(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Ends the attempt in this process, even while somebody holds a clone of it.
    pub(super) fn leave(&self) {
        if self.has_left.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Entry::Occupied(mut guards) = self.attempts.guards().entry(self.id.clone()) {
            *guards.get_mut() -= 1;
            if *guards.get() == 0 {
                guards.remove();
            }
        }
        if !self.is_over.load(Ordering::Acquire) {
            let has_begun = self.has_begun.load(Ordering::Acquire);
            let exit = if has_begun { WorkerExit::Lost } else { WorkerExit::Released };
            // Without a receiver the store is gone. Then other instances find the task.
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
        assert_eq!(dropped.try_recv(), Ok(released), "nobody has worked on it");
        let held = attempts.register(&id.0, id.1);
        held.set_begun();
        held.leave();
        assert_eq!(state("one"), AttemptState::Dropped, "somebody still holds a clone");
        assert_eq!(dropped.try_recv(), lost());
        let again = attempts.register(&id.0, id.1);
        drop(held);
        assert_eq!(state("one"), AttemptState::Held, "the other guard has left once");
        again.set_over();
        drop(again);
        assert!(dropped.try_recv().is_err(), "the attempt was reported once");
        drop(attempts);
        assert_eq!(state("one"), AttemptState::Dropped, "it is not taken for that of another process");
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
