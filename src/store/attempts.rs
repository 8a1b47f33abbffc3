//! The attempts that live in this process, and the message that one was dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use once_cell::sync::Lazy;
use tokio::sync::mpsc;

use super::transitions::Gone;
use crate::backend::TaskKey;

/// An attempt by its task and its number.
pub(super) type AttemptId = (TaskKey, u32);

/// How many stores that are gone are remembered.
const MOST_GONE: usize = 1024;

/// The stores of this process by the holder of their leases, those that are gone included.
static STORES: Lazy<Mutex<HashMap<String, Weak<Attempts>>>> = Lazy::new(Mutex::default);

/// Nothing panics while it holds the map.
fn stores() -> MutexGuard<'static, HashMap<String, Weak<Attempts>>> {
    STORES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this process knows of the attempt that a lease is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Somebody in this process holds it.
    Here,
    /// It was one of this process, and nobody holds it any more.
    Gone,
    /// It is, or was, one of another process.
    Elsewhere,
}

impl Run {
    /// That of a holder. Any store of the process may ask: the runtime of one may be blocked while that of another is not.
    pub(super) fn of(holder: &str, attempt: &AttemptId) -> Self {
        let Some(attempts) = stores().get(holder).map(Weak::upgrade) else { return Self::Elsewhere };
        // Every attempt keeps those of its store.
        if attempts.is_some_and(|attempts| attempts.is_live(attempt)) { Self::Here } else { Self::Gone }
    }
}

/// All attempts of one store that somebody in this process still holds.
#[derive(Debug)]
pub(super) struct Attempts {
    /// How many guards an attempt has. More than one only while a claim is under way that another has won.
    live: Mutex<HashMap<AttemptId, usize>>,
    dropped: mpsc::UnboundedSender<Dropped>,
}

/// An attempt that was dropped while its task may still be open.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) id: AttemptId,
    /// One that nobody ever worked on is not lost.
    pub(super) gone: Gone,
}

impl Attempts {
    /// No attempts, and where those are received that were dropped while their task may still be open.
    pub(super) fn new(holder: &str) -> (Arc<Self>, mpsc::UnboundedReceiver<Dropped>) {
        let (dropped, received) = mpsc::unbounded_channel();
        let attempts = Arc::new(Self { live: Mutex::default(), dropped });
        let mut stores = stores();
        if stores.len() >= MOST_GONE {
            stores.retain(|_, attempts| attempts.strong_count() > 0);
        }
        stores.insert(holder.to_owned(), Arc::downgrade(&attempts));
        (attempts, received)
    }

    /// Nothing panics while it holds the map.
    fn live(&self) -> MutexGuard<'_, HashMap<AttemptId, usize>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_live(&self, attempt: &AttemptId) -> bool {
        self.live().contains_key(attempt)
    }

    /// Counts an attempt as live until the guard is dropped.
    pub(super) fn register(self: &Arc<Self>, key: &TaskKey, number: u32) -> Guard {
        let id = (key.clone(), number);
        *self.live().entry(id.clone()).or_default() += 1;
        let (has_begun, is_over, is_gone) = Default::default();
        Guard { attempts: Arc::clone(self), id, has_begun, is_over, is_gone }
    }
}

/// Stands for an attempt that somebody in this process holds. All clones of an attempt share one.
#[derive(Debug)]
pub(super) struct Guard {
    attempts: Arc<Attempts>,
    id: AttemptId,
    /// Somebody was given the attempt to work with.
    has_begun: AtomicBool,
    /// The task has ended, was released, or is another's: nobody needs to act on the drop.
    is_over: AtomicBool,
    /// It does not count as live any more.
    is_gone: AtomicBool,
}

impl Guard {
    pub(super) fn set_begun(&self) {
        self.has_begun.store(true, Ordering::Release);
    }

    pub(super) fn set_over(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Nobody works on the attempt any more, whoever still holds it.
    pub(super) fn set_gone(&self) {
        if self.is_gone.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Entry::Occupied(mut guards) = self.attempts.live().entry(self.id.clone()) {
            *guards.get_mut() -= 1;
            if *guards.get() == 0 {
                guards.remove();
            }
        }
        if !self.is_over.load(Ordering::Acquire) {
            // Nobody receives it once the store is gone. Then other instances find the task.
            let gone = if self.has_begun.load(Ordering::Acquire) { Gone::Lost } else { Gone::Released };
            let _ = self.attempts.dropped.send(Dropped { id: self.id.clone(), gone });
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.set_gone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_live_until_its_last_guard_is_dropped_and_only_one_that_is_not_over_is_reported() {
        let (attempts, mut dropped) = Attempts::new("one");
        let id = (TaskKey::new("alice", "t1").unwrap(), 2);
        assert_eq!(Run::of("one", &id), Run::Gone);
        let (one, other) = (attempts.register(&id.0, id.1), attempts.register(&id.0, id.1));
        other.set_over();
        drop(other);
        assert_eq!((Run::of("one", &id), Run::of("another", &id)), (Run::Here, Run::Elsewhere));
        assert!(dropped.try_recv().is_err());
        one.set_begun();
        drop(one);
        assert_eq!(Run::of("one", &id), Run::Gone);
        assert_eq!(dropped.try_recv(), Ok(Dropped { id: id.clone(), gone: Gone::Lost }));
        drop(attempts.register(&id.0, id.1));
        let released = Dropped { id: id.clone(), gone: Gone::Released };
        assert_eq!(dropped.try_recv(), Ok(released), "nobody has worked on it");
        let held = attempts.register(&id.0, id.1);
        held.set_begun();
        held.set_gone();
        assert_eq!(Run::of("one", &id), Run::Gone, "somebody still holds it");
        assert_eq!(dropped.try_recv(), Ok(Dropped { id: id.clone(), gone: Gone::Lost }));
        let again = attempts.register(&id.0, id.1);
        drop(held);
        assert_eq!(Run::of("one", &id), Run::Here, "it has left once");
        again.set_over();
        drop(again);
        assert!(dropped.try_recv().is_err(), "it was reported once");
        drop(attempts);
        assert_eq!(Run::of("one", &id), Run::Gone, "it is not taken for that of another process");
    }

    #[test]
    fn stores_that_are_gone_are_forgotten_when_there_are_many() {
        let (kept, _received) = Attempts::new("kept");
        for number in 0..MOST_GONE * 2 {
            drop(Attempts::new(&format!("gone {number}")));
        }
        assert!(stores().len() <= MOST_GONE);
        let id = (TaskKey::new("alice", "t1").unwrap(), 1);
        let _guard = kept.register(&id.0, id.1);
        assert_eq!(Run::of("kept", &id), Run::Here);
    }
}
