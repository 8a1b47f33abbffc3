//! The subscribers of wakeups, by their queues.

use futures_core::stream::BoxStream;
use futures_util::stream;
use tokio::sync::watch;

use crate::backend::queue::Queue;

#[derive(Debug, Default)]
pub(crate) struct Wakers(Vec<(Vec<Queue>, watch::Sender<()>)>);

impl Wakers {
    /// Returns a stream with an item after each wake of one of these queues. It never ends.
    pub(crate) fn subscribe(&mut self, queues: &[Queue]) -> BoxStream<'static, ()> {
        let (wake, woken) = watch::channel(());
        if !queues.is_empty() {
            self.0.push((queues.to_vec(), wake));
        }
        Box::pin(stream::unfold(woken, |mut woken| async {
            if woken.changed().await.is_err() {
                // The engine is gone, so no timer can become due.
                std::future::pending::<()>().await;
            }
            Some(((), woken))
        }))
    }

    /// Removes the subscribers that have left. Returns whether there were any.
    pub(crate) fn remove_left(&mut self) -> bool {
        let before = self.0.len();
        self.0.retain(|(_, wake)| wake.receiver_count() > 0);
        self.0.len() < before
    }

    pub(crate) fn wake(&self, queue: &Queue) {
        for (_, wake) in self.0.iter().filter(|(queues, _)| queues.contains(queue)) {
            wake.send_replace(());
        }
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn wake_all(&self) {
        self.0.iter().for_each(|(_, wake)| wake.send_replace(()));
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the queues that have subscribers. Those of several subscribers occur several times.
    #[cfg(feature = "sqlite")]
    pub(crate) fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.0.iter().flat_map(|(queues, _)| queues)
    }
}
