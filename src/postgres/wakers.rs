//! The subscribers of wakeups.

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_core::stream::BoxStream;
use futures_util::stream;
use tokio::sync::watch;

use crate::backend::Queue;

#[derive(Default)]
pub(super) struct Wakers(Mutex<Vec<(Vec<Queue>, watch::Sender<()>)>>);

impl Wakers {
    /// Locks the subscribers. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn subscribers(&self) -> MutexGuard<'_, Vec<(Vec<Queue>, watch::Sender<()>)>> {
        let mut subscribers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|(_, wake)| wake.receiver_count() > 0);
        subscribers
    }

    pub(super) fn subscribe(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        let (wake, woken) = watch::channel(());
        if !queues.is_empty() {
            self.subscribers().push((queues.to_vec(), wake));
        }
        Box::pin(stream::unfold(woken, |mut woken| async {
            if woken.changed().await.is_err() {
                // The engine is gone, so no timer can become due.
                std::future::pending::<()>().await;
            }
            Some(((), woken))
        }))
    }

    pub(super) fn wake(&self, queue: &Queue) {
        for (_, wake) in self.subscribers().iter().filter(|(queues, _)| queues.contains(queue)) {
            wake.send_replace(());
        }
    }

    pub(super) fn wake_all(&self) {
        self.subscribers().iter().for_each(|(_, wake)| wake.send_replace(()));
    }
}
