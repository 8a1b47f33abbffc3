//! The subscribers of wakeups, and the earliest timer that they know of each queue.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_core::stream::BoxStream;
use futures_util::stream;
use tokio::sync::watch;

use crate::backend::Queue;

#[derive(Default)]
pub(super) struct Wakeups(Mutex<State>);

#[derive(Default)]
struct State {
    subscribers: Vec<(Vec<Queue>, watch::Sender<()>)>,
    /// When the earliest timer of a queue fires; `u64::MAX` for no timer. A queue without an entry counts as one
    /// without timers: then an item may come too often, but none is missing.
    firsts: HashMap<Queue, u64>,
}

impl State {
    /// Removes the subscribers that have left, and what only they needed.
    fn clean(&mut self) {
        let before = self.subscribers.len();
        self.subscribers.retain(|(_, wake)| wake.receiver_count() > 0);
        if self.subscribers.len() < before {
            let subscribers = &self.subscribers;
            self.firsts.retain(|queue, _| subscribers.iter().any(|(queues, _)| queues.contains(queue)));
        }
    }

    fn is_subscribed(&self, queue: &Queue) -> bool {
        self.subscribers.iter().any(|(queues, _)| queues.contains(queue))
    }
}

impl Wakeups {
    /// Locks the state. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        let (wake, woken) = watch::channel(());
        if !queues.is_empty() {
            self.state().subscribers.push((queues.to_vec(), wake));
        }
        Box::pin(stream::unfold(woken, |mut woken| async {
            if woken.changed().await.is_err() {
                // The engine is gone, so no timer can become due.
                std::future::pending::<()>().await;
            }
            Some(((), woken))
        }))
    }

    pub(super) fn is_empty(&self) -> bool {
        let mut state = self.state();
        state.clean();
        state.subscribers.is_empty()
    }

    pub(super) fn is_subscribed(&self, queue: &Queue) -> bool {
        self.state().is_subscribed(queue)
    }

    /// Returns the queues that have subscribers.
    pub(super) fn queues(&self) -> Vec<Queue> {
        let state = self.state();
        let mut queues: Vec<Queue> =
            state.subscribers.iter().flat_map(|(queues, _)| queues.iter().cloned()).collect();
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
            for (_, wake) in state.subscribers.iter().filter(|(queues, _)| queues.contains(queue)) {
                wake.send_replace(());
            }
        }
    }

    pub(super) fn wake_all(&self) {
        self.state().subscribers.iter().for_each(|(_, wake)| wake.send_replace(()));
    }
}
