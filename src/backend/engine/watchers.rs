//! The subscribers of records, and the changes that an engine notifies them of.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::on_drop::{OnDrop, on_drop};
use crate::backend::error::StorageError;

/// A change of a record, as its subscribers receive it. A subscriber receives only the latest change, so a change
/// must not depend on earlier ones.
#[derive(Clone)]
#[non_exhaustive]
pub enum Change {
    /// A write stored the record, which now expires at this time; `None` for never.
    Written(Option<DateTime<Utc>>),
    /// The record may have changed or may no longer exist. The engine sends this after a delete, and when it may have
    /// missed a change. The subscriber reads the record.
    Unknown,
    /// The engine cannot receive changes at present. The closure creates the error for each subscriber.
    Failed(Arc<dyn Fn() -> StorageError + Send + Sync>),
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(expires_at) => f.debug_tuple("Written").field(expires_at).finish(),
            Self::Unknown => f.write_str("Unknown"),
            Self::Failed(error) => f.debug_tuple("Failed").field(&error()).finish(),
        }
    }
}

/// The subscribers of an engine's records, by key: in the memory engine the [`TaskKey`](crate::TaskKey), in the Redis
/// engine the server's key.
///
/// The engine calls [`subscribe`](Self::subscribe) for each watch and [`notify`](Self::notify) for each change. It must
/// order its notifications as it orders its writes, for example under the lock of the record.
pub struct Watchers<K>(Arc<Mutex<Senders<K>>>);

type Senders<K> = HashMap<K, watch::Sender<Change>>;

impl<K> Default for Watchers<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> fmt::Debug for Watchers<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Watchers<K> {
    /// Subscribes to the changes of one record. The subscription ends when it is dropped.
    pub fn subscribe(&self, key: K) -> Subscription {
        self.subscribe_until(key, || {})
    }

    /// Subscribes to the changes of one record, and runs `ended` after the subscription was dropped and removed.
    pub fn subscribe_until(&self, key: K, ended: impl FnOnce() + Send + 'static) -> Subscription {
        let changes =
            lock(&self.0).entry(key.clone()).or_insert_with(|| watch::channel(Change::Unknown).0).subscribe();
        // A strong reference would keep the senders alive after the engine has dropped them.
        let senders = Arc::downgrade(&self.0);
        let end = move || {
            remove_unused(&senders, &key);
            ended();
        };
        Subscription { changes, _end: on_drop(Box::new(end)) }
    }

    /// Notifies the subscribers of one record.
    pub fn notify<Q: Eq + Hash + ?Sized>(&self, key: &Q, change: Change)
    where
        K: Borrow<Q>,
    {
        if let Some(sender) = lock(&self.0).get(key) {
            sender.send_replace(change);
        }
    }

    /// Notifies all subscribers.
    pub fn notify_all(&self, change: &Change) {
        lock(&self.0).values().for_each(|sender| drop(sender.send_replace(change.clone())));
    }

    /// Returns whether no record has a subscriber.
    pub fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

/// Locks the senders. No code panics while it holds the lock, so the entries behind a poisoned lock are consistent.
fn lock<K>(senders: &Mutex<Senders<K>>) -> MutexGuard<'_, Senders<K>> {
    senders.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the entry of a record without subscribers.
fn remove_unused<K: Eq + Hash>(senders: &Weak<Mutex<Senders<K>>>, key: &K) {
    let Some(senders) = senders.upgrade() else { return };
    let mut senders = lock(&senders);
    if senders.get(key).is_some_and(|sender| sender.receiver_count() == 0) {
        senders.remove(key);
    }
}

/// A subscription to the changes of one record. [`Watchers::subscribe`] creates it.
pub struct Subscription {
    changes: watch::Receiver<Change>,
    /// Must be dropped after `changes`: it removes the entry of the record if no receiver is left.
    _end: OnDrop<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

impl Subscription {
    /// Waits for the next change and returns the latest; `None` once the [`Watchers`] are dropped.
    ///
    /// # Cancellation safety
    /// Dropping the future loses no change.
    pub async fn changed(&mut self) -> Option<Change> {
        self.changes.changed().await.ok()?;
        Some(self.changes.borrow_and_update().clone())
    }

    /// Skips all changes so far. Read the record afterwards, to see their effect.
    pub fn skip(&mut self) {
        self.changes.mark_unchanged();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_subscriber_is_notified_after_another_one_leaves_and_no_entry_remains_after_the_last_one() {
        let watchers = Watchers::default();
        let (mut stays, leaves) = (watchers.subscribe("t1"), watchers.subscribe("t1"));
        drop(leaves);
        watchers.notify("t1", Change::Written(None));
        assert!(matches!(stays.changed().now_or_never(), Some(Some(Change::Written(None)))));
        drop(stays);
        assert!(watchers.is_empty());
    }

    #[test]
    fn a_subscription_ends_with_its_watchers() {
        let watchers = Watchers::default();
        let mut subscription = watchers.subscribe("t1");
        drop(watchers);
        assert!(matches!(subscription.changed().now_or_never(), Some(None)));
    }
}
