//! The limit on how many calls of one tool run in this process at once.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The places of one tool. Calls that wait for a place take it in the order of their arrival. Clones share the places.
#[derive(Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    claimers: Arc<Claimers>,
}

/// The claimers that claim tasks only while a place is free.
#[derive(Default)]
struct Claimers(Mutex<Vec<Weak<Notify>>>);

impl Claimers {
    /// Adds a claimer, unless it is here already, and removes claimers that no longer exist.
    fn add(&self, claimer: &Arc<Notify>) {
        let mut claimers = self.lock();
        claimers.retain(|known| known.upgrade().is_some_and(|known| !Arc::ptr_eq(&known, claimer)));
        claimers.push(Arc::downgrade(claimer));
    }

    fn notify(&self) {
        self.lock().iter().filter_map(Weak::upgrade).for_each(|claimer| claimer.notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Notify>>> {
        // No code panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").field("free", &self.free()).finish_non_exhaustive()
    }
}

impl Places {
    pub(super) const MAX: usize = Semaphore::MAX_PERMITS;

    /// Creates `number` places; `None` if that is zero, or over the maximum.
    pub(super) fn new(number: usize) -> Option<Self> {
        let is_possible = (1..=Self::MAX).contains(&number);
        is_possible.then(|| Self { free: Arc::new(Semaphore::new(number)), claimers: Arc::default() })
    }

    /// Returns how many places are free, and nobody waits for them.
    pub(super) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// Notifies a claimer from now on each time that a place becomes free.
    pub(super) fn notify(&self, claimer: &Arc<Notify>) {
        self.claimers.add(claimer);
    }

    /// Takes a place if one is free.
    pub(super) fn try_take(&self) -> Option<Place> {
        Arc::clone(&self.free).try_acquire_owned().ok().map(|permit| self.place(permit))
    }

    /// Waits for a place.
    pub(super) async fn take(&self) -> Option<Place> {
        // No code closes the semaphore.
        Arc::clone(&self.free).acquire_owned().await.ok().map(|permit| self.place(permit))
    }

    fn place(&self, permit: OwnedSemaphorePermit) -> Place {
        Place { permit: Some(permit), claimers: Arc::clone(&self.claimers) }
    }
}

/// The place of one call, which is free again when this value is dropped.
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    claimers: Arc<Claimers>,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.claimers.notify();
    }
}

/// No place is free.
pub(super) struct Full;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_take_places_in_the_order_of_their_arrival_and_a_freed_place_notifies_the_claimer() {
        let places = Places::new(1).unwrap();
        let claimer = Arc::new(Notify::new());
        places.notify(&claimer);
        let first = places.try_take().unwrap();
        let (mut second, mut third) = (Box::pin(places.take()), Box::pin(places.take()));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        assert!(futures_util::poll!(Box::pin(claimer.notified())).is_pending());
        drop(first);
        assert!(futures_util::poll!(Box::pin(claimer.notified())).is_ready());
        assert_eq!(
            (places.free(), places.try_take().is_none()),
            (0, true),
            "the place is for the second call"
        );
        drop(second.await);
        drop(third.await);
        assert_eq!(places.free(), 1);
    }

    #[test]
    fn a_tool_has_at_least_one_place_and_at_most_as_many_as_a_semaphore() {
        assert!(Places::new(0).is_none() && Places::new(Places::MAX + 1).is_none());
        assert_eq!(Places::new(Places::MAX).unwrap().free(), Places::MAX);
    }
}
