//! The limit on how many claimed tasks run in this process at once. Each run holds a slot, except while it waits for input.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as FairMutex, OwnedSemaphorePermit, Semaphore};

/// The slots of one manager. Runs that wait for a slot acquire it in the order of their arrival.
#[derive(Clone, Debug)]
pub(super) struct Slots(Arc<Semaphore>);

/// The slot of one run.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    state: Mutex<SlotState>,
    /// Several waits of one run may end at once. One of them reacquires the slot for all: if each acquired one, the run could
    /// wait for the slot that it holds itself.
    reacquiring: FairMutex<()>,
}

#[derive(Debug)]
enum SlotState {
    /// The run works and holds a slot.
    Held { _permit: OwnedSemaphorePermit },
    /// The run waits for input.
    Yielded,
    /// The run has ended. It acquires no slot again, even if code of the operation still owns the context.
    Closed,
}

impl Slots {
    /// Creates `number` slots, at least one.
    pub(super) fn new(number: usize) -> Self {
        Self(Arc::new(Semaphore::new(number.clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Waits for a free slot, and acquires up to `max` of those that are free.
    pub(super) async fn acquire(&self, max: usize) -> Vec<Slot> {
        let mut acquired = Vec::new();
        // No code closes the semaphore.
        if let Ok(first) = Arc::clone(&self.0).acquire_owned().await {
            acquired.push(self.slot(first));
        }
        while acquired.len() < max
            && let Ok(next) = Arc::clone(&self.0).try_acquire_owned()
        {
            acquired.push(self.slot(next));
        }
        acquired
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Slot {
        let state = Mutex::new(SlotState::Held { _permit: permit });
        Slot { slots: self.clone(), state, reacquiring: FairMutex::default() }
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, SlotState> {
        // No code panics while it holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_yielded(&self) -> bool {
        matches!(*self.state(), SlotState::Yielded)
    }

    /// Frees the slot for other runs while this run waits.
    pub(super) fn yield_slot(&self) -> YieldedSlot<'_> {
        let mut state = self.state();
        if matches!(*state, SlotState::Held { .. }) {
            *state = SlotState::Yielded;
        }
        YieldedSlot(self)
    }

    /// Keeps a permit for the run, unless the run holds one already or has ended.
    fn hold(&self, permit: OwnedSemaphorePermit) {
        let mut state = self.state();
        if matches!(*state, SlotState::Yielded) {
            *state = SlotState::Held { _permit: permit };
        }
    }
}

/// Frees the slot of a run when the run ends, even if code of the operation still owns the context.
pub(super) struct SlotGuard(pub(super) Arc<Slot>);

impl Drop for SlotGuard {
    fn drop(&mut self) {
        *self.0.state() = SlotState::Closed;
    }
}

/// A run that has yielded its slot. If the operation stops its wait, it drops this value. The run then acquires a
/// slot if one is free. Otherwise it continues without a slot, because a destructor cannot wait.
pub(super) struct YieldedSlot<'a>(&'a Slot);

impl YieldedSlot<'_> {
    /// Waits until the run holds a slot again.
    pub(super) async fn reacquire(self) {
        let _reacquiring = self.0.reacquiring.lock().await;
        if !self.0.is_yielded() {
            return;
        }
        if let Ok(permit) = Arc::clone(&self.0.slots.0).acquire_owned().await {
            self.0.hold(permit);
        }
    }
}

impl Drop for YieldedSlot<'_> {
    fn drop(&mut self) {
        if self.0.is_yielded()
            && let Ok(permit) = Arc::clone(&self.0.slots.0).try_acquire_owned()
        {
            self.0.hold(permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_that_waits_yields_its_slot_and_holds_one_again_before_it_continues() {
        let slots = Slots::new(1);
        let slot = slots.acquire(16).await.pop().unwrap();
        assert_eq!(slots.0.available_permits(), 0);
        let yielded = slot.yield_slot();
        let other = slots.acquire(16).await.pop().unwrap();
        {
            let mut reacquired = Box::pin(yielded.reacquire());
            assert!(futures_util::poll!(reacquired.as_mut()).is_pending(), "another run holds the slot");
            drop(other);
            reacquired.await;
        }
        assert!(!slot.is_yielded());
        // A wait that is dropped acquires the slot again.
        drop(slot.yield_slot());
        assert!(!slot.is_yielded());
        drop(slot);
        assert_eq!(slots.0.available_permits(), 1);
    }

    #[tokio::test]
    async fn several_waits_of_one_run_that_end_at_once_acquire_one_slot() {
        let slots = Slots::new(1);
        let slot = slots.acquire(16).await.pop().unwrap();
        let (first, second) = (slot.yield_slot(), slot.yield_slot());
        let other = slots.acquire(16).await.pop().unwrap();
        {
            let mut both = Box::pin(async { tokio::join!(first.reacquire(), second.reacquire()) });
            assert!(futures_util::poll!(both.as_mut()).is_pending(), "another run holds the slot");
            drop(other);
            let waited = tokio::time::timeout(std::time::Duration::from_secs(10), both).await;
            assert!(waited.is_ok(), "neither waits for the slot that the run holds");
        }
        drop(slot);
        assert_eq!(slots.0.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_run_that_has_ended_acquires_no_slot_again() {
        let slots = Slots::new(1);
        let slot = Arc::new(slots.acquire(16).await.pop().unwrap());
        let (dropped, ended) = (slot.yield_slot(), slot.yield_slot());
        drop(SlotGuard(Arc::clone(&slot)));
        drop(dropped);
        ended.reacquire().await;
        drop(slot.yield_slot());
        assert_eq!(slots.0.available_permits(), 1);
    }
}
