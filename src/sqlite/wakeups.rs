//! The subscribers of wakeups, and the earliest timer that they know of each queue.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_core::stream::BoxStream;

use crate::backend::Queue;
use crate::backend::engine::Wakers;

#[derive(Default)]
pub(super) struct Wakeups(Mutex<State>);

#[derive(Default)]
struct State {
    wakers: Wakers,
    /// When the earliest timer of a queue fires; `u64::MAX` for no timer. A queue without an entry counts as one
    /// without timers: then an item may come too often, but none is missing.
    firsts: HashMap<Queue, u64>,
}

impl State {
    /// Removes the subscribers that have left, and what only they needed.
    fn clean(&mut self) {
        if self.wakers.remove_left() {
            let wakers = &self.wakers;
            self.firsts.retain(|queue, _| wakers.queues().any(|subscribed| subscribed == queue));
        }
    }

    fn is_subscribed(&self, queue: &Queue) -> bool {
        self.wakers.queues().any(|subscribed| subscribed == queue)
    }
}

impl Wakeups {
    /// Locks the state. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.state().wakers.subscribe(queues)
    }

    pub(super) fn is_empty(&self) -> bool {
        let mut state = self.state();
        state.clean();
        state.wakers.is_empty()
    }

    pub(super) fn is_subscribed(&self, queue: &Queue) -> bool {
        self.state().is_subscribed(queue)
    }

    /// Returns the queues that have subscribers.
    pub(super) fn queues(&self) -> Vec<Queue> {
        let mut queues: Vec<Queue> = self.state().wakers.queues().cloned().collect();
        queues.sort();
        queues.dedup();
        queues
    }

    /// Records when the earliest timer of a queue fires, as of the latest transaction. Wakes the subscribers if this is
    /// sooner than they know.
    pub(super) fn found(&self, queue: &Queue, first: Option<u64>) {
        let mut state = self.state();
        state.clean();
        if !state.is_subscribed(queue) {
            return;
        }
        let first = first.unwrap_or(u64::MAX);
        let known = state.firsts.insert(queue.clone(), first).unwrap_or(u64::MAX);
        if first < known {
            state.wakers.wake(queue);
        }
    }

    pub(super) fn wake_all(&self) {
        self.state().wakers.wake_all();
    }
}
