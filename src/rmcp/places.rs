//! How many claimed tasks run in this process at once: each run holds a place, except while it waits for input.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as Queue, OwnedSemaphorePermit, Semaphore};

/// The places of one manager, first come, first served.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Semaphore>);

/// The right of one run to be at work.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    hold: Mutex<Hold>,
    /// Several waits of one run may end at once. One of them takes a place for all: if each took one, the run could wait for
    /// the place that it holds itself.
    returning: Queue<()>,
}

/// What a run has of its place.
#[derive(Debug)]
enum Hold {
    /// It is at work.
    Taken { _permit: OwnedSemaphorePermit },
    /// It waits for input.
    Left,
    /// It has ended, and takes no place again, whoever still has its context.
    Ended,
}

impl Places {
    /// At least one.
    pub(super) fn new(number: usize) -> Self {
        Self(Arc::new(Semaphore::new(number.clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Waits for a free place, and takes up to `most` of those that are free.
    pub(super) async fn take(&self, most: usize) -> Vec<Place> {
        let mut taken = Vec::new();
        // Nobody closes the semaphore.
        if let Ok(first) = Arc::clone(&self.0).acquire_owned().await {
            taken.push(self.place(first));
        }
        while taken.len() < most
            && let Ok(next) = Arc::clone(&self.0).try_acquire_owned()
        {
            taken.push(self.place(next));
        }
        taken
    }

    fn place(&self, permit: OwnedSemaphorePermit) -> Place {
        let hold = Mutex::new(Hold::Taken { _permit: permit });
        Place { places: self.clone(), hold, returning: Queue::default() }
    }
}

impl Place {
    /// Nothing panics while it holds this.
    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_left(&self) -> bool {
        matches!(*self.hold(), Hold::Left)
    }

    /// Leaves the place to others for as long as the run waits.
    pub(super) fn leave(&self) -> Absence<'_> {
        let mut hold = self.hold();
        if matches!(*hold, Hold::Taken { .. }) {
            *hold = Hold::Left;
        }
        Absence(self)
    }

    /// Takes the place again, unless the run has one or has ended.
    fn keep(&self, permit: OwnedSemaphorePermit) {
        let mut hold = self.hold();
        if matches!(*hold, Hold::Left) {
            *hold = Hold::Taken { _permit: permit };
        }
    }
}

/// The place of a run until it ends, whoever holds its context then.
pub(super) struct Occupied(pub(super) Arc<Place>);

impl Drop for Occupied {
    fn drop(&mut self) {
        *self.0.hold() = Hold::Ended;
    }
}

/// A run without its place. When this is dropped, because the operation has stopped waiting, the run takes a place if one is
/// free, and goes on without otherwise: nobody can wait in a destructor.
pub(super) struct Absence<'a>(&'a Place);

impl Absence<'_> {
    /// Waits until the run has a place again.
    pub(super) async fn end(self) {
        let _returning = self.0.returning.lock().await;
        if !self.0.is_left() {
            return;
        }
        if let Ok(permit) = Arc::clone(&self.0.places.0).acquire_owned().await {
            self.0.keep(permit);
        }
    }
}

impl Drop for Absence<'_> {
    fn drop(&mut self) {
        if self.0.is_left()
            && let Ok(permit) = Arc::clone(&self.0.places.0).try_acquire_owned()
        {
            self.0.keep(permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_that_waits_leaves_its_place_and_has_one_again_before_it_goes_on() {
        let places = Places::new(1);
        let place = places.take(16).await.pop().unwrap();
        assert_eq!(places.0.available_permits(), 0);
        let absence = place.leave();
        let other = places.take(16).await.pop().unwrap();
        {
            let mut back = std::pin::pin!(absence.end());
            let is_back =
                std::future::poll_fn(|cx| std::task::Poll::Ready(back.as_mut().poll(cx).is_ready()));
            assert!(!is_back.await, "the place is another's");
            drop(other);
            back.await;
        }
        assert!(!place.is_left());
        // A wait that is given up takes the place again.
        drop(place.leave());
        assert!(!place.is_left());
        drop(place);
        assert_eq!(places.0.available_permits(), 1);
    }

    #[tokio::test]
    async fn several_waits_of_one_run_that_end_at_once_take_one_place() {
        let places = Places::new(1);
        let place = places.take(16).await.pop().unwrap();
        let (first, second) = (place.leave(), place.leave());
        let other = places.take(16).await.pop().unwrap();
        {
            let mut both = Box::pin(async { tokio::join!(first.end(), second.end()) });
            assert!(futures_util::poll!(both.as_mut()).is_pending(), "the place is another's");
            drop(other);
            let waited = tokio::time::timeout(std::time::Duration::from_secs(10), both).await;
            assert!(waited.is_ok(), "none waits for the place that the run has");
        }
        drop(place);
        assert_eq!(places.0.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_run_that_has_ended_takes_no_place_again() {
        let places = Places::new(1);
        let place = Arc::new(places.take(16).await.pop().unwrap());
        let (dropped, ended) = (place.leave(), place.leave());
        drop(Occupied(Arc::clone(&place)));
        drop(dropped);
        ended.end().await;
        drop(place.leave());
        assert_eq!(places.0.available_permits(), 1);
    }
}
