//! The records that this process watches, and what it knows of them.
//!
//! The thread that writes notifies the subscribers of each write of this process. For writes of other processes, it
//! compares the versions of the watched records whenever the file has changed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::TaskKey;
use crate::backend::engine::{Change, Subscription, Watchers};

/// Which state of a record a process knows: when it was created, and its version. Both are 0 for no record.
pub(super) type Seen = (u64, u64);

/// The state of a record that does not exist.
pub(super) const ABSENT: Seen = (0, 0);

#[derive(Default)]
pub(super) struct Watched {
    watchers: Watchers<TaskKey>,
    known: Arc<Mutex<HashMap<TaskKey, Known>>>,
}

#[derive(Default)]
struct Known {
    subscribers: usize,
    /// The state that the subscribers were notified of; `None` before the first.
    seen: Option<Seen>,
}

fn lock(known: &Mutex<HashMap<TaskKey, Known>>) -> MutexGuard<'_, HashMap<TaskKey, Known>> {
    // No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    pub(super) fn subscribe(&self, key: &TaskKey) -> Subscription {
        lock(&self.known).entry(key.clone()).or_default().subscribers += 1;
        let (known, ended) = (Arc::clone(&self.known), key.clone());
        self.watchers.subscribe_until(key.clone(), move || {
            if let Entry::Occupied(mut entry) = lock(&known).entry(ended) {
                entry.get_mut().subscribers -= 1;
                if entry.get().subscribers == 0 {
                    entry.remove();
                }
            }
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.known).is_empty()
    }

    pub(super) fn keys(&self) -> Vec<TaskKey> {
        lock(&self.known).keys().cloned().collect()
    }

    /// Records a write of this process. `change` is `None` for a quiet write.
    pub(super) fn wrote(&self, key: &TaskKey, now: Seen, change: Option<Change>) {
        let mut known = lock(&self.known);
        let Some(record) = known.get_mut(key) else { return };
        // A quiet write must not hide the write of another process before it.
        let follows = record.seen == Some((now.0, now.1.saturating_sub(1)));
        if change.is_some() || follows {
            record.seen = Some(now);
        }
        drop(known);
        if let Some(change) = change {
            self.watchers.notify(key, change);
        }
    }

    /// Records the state that is in the file. Notifies the subscribers if they do not know it.
    pub(super) fn found(&self, key: &TaskKey, now: Seen) {
        let mut known = lock(&self.known);
        let Some(record) = known.get_mut(key) else { return };
        if record.seen == Some(now) {
            return;
        }
        record.seen = Some(now);
        drop(known);
        self.watchers.notify(key, Change::Unknown);
    }

    /// Makes every subscriber read its record.
    pub(super) fn notify_all(&self) {
        self.watchers.notify_all(&Change::Unknown);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn key() -> TaskKey {
        TaskKey::new("alice", "t1").unwrap()
    }

    fn is_notified(subscription: &mut Subscription) -> bool {
        subscription.changed().now_or_never().is_some()
    }

    #[test]
    fn a_state_that_the_subscribers_know_is_no_change() {
        let watched = Watched::default();
        let mut subscription = watched.subscribe(&key());
        watched.wrote(&key(), (7, 1), Some(Change::Written(None)));
        assert!(is_notified(&mut subscription));
        watched.wrote(&key(), (7, 2), None);
        watched.found(&key(), (7, 2));
        assert!(!is_notified(&mut subscription), "a quiet write");
        for state in [(7, 3), (9, 3), ABSENT] {
            watched.found(&key(), state);
            assert!(is_notified(&mut subscription), "{state:?}");
        }
        drop(subscription);
        assert!(watched.is_empty());
    }

    #[test]
    fn a_quiet_write_does_not_hide_the_write_of_another_process_before_it() {
        let watched = Watched::default();
        let mut subscription = watched.subscribe(&key());
        watched.found(&key(), (7, 1));
        assert!(is_notified(&mut subscription));
        // Another process wrote version 2.
        watched.wrote(&key(), (7, 3), None);
        assert!(!is_notified(&mut subscription));
        watched.found(&key(), (7, 3));
        assert!(is_notified(&mut subscription));
    }
}
