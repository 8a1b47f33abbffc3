//! How many claimed tasks run in this process at once: each run holds a place, except while it waits for input.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of one manager. Whoever asks first has the next one.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Semaphore>);

/// The right of one run to be at work.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    /// `None` while the run waits for input.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
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
        Place { places: self.clone(), permit: Mutex::new(Some(permit)) }
    }
}

impl Place {
    /// Nothing panics while it holds the permit.
    fn permit(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the place to others for as long as the run waits.
    pub(super) fn leave(&self) -> Absence<'_> {
        self.permit().take();
        Absence(self)
    }

    fn keep(&self, permit: OwnedSemaphorePermit) {
        // Two waits of one run may end at once; one place is enough.
        self.permit().get_or_insert(permit);
    }
}

/// The place of a run until it ends, whoever holds its context then.
pub(super) struct Occupied(pub(super) Arc<Place>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.permit().take();
    }
}

/// A run without its place. When this is dropped, because the operation has stopped waiting, the run takes a place if one is
/// free, and goes on without otherwise: nobody can wait in a destructor.
pub(super) struct Absence<'a>(&'a Place);

impl Absence<'_> {
    /// Waits until the run has a place again.
    pub(super) async fn end(self) {
        if self.0.permit().is_some() {
            return;
        }
        if let Ok(permit) = Arc::clone(&self.0.places.0).acquire_owned().await {
            self.0.keep(permit);
        }
    }
}

impl Drop for Absence<'_> {
    fn drop(&mut self) {
        if self.0.permit().is_none()
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
        assert!(place.permit().is_some());
        // A wait that is given up takes the place again.
        drop(place.leave());
        assert!(place.permit().is_some());
        drop(place);
        assert_eq!(places.0.available_permits(), 1);
    }
}
