//! Notifications of timers that became the earliest of their queue.

use std::sync::Arc;
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::stream::{self, Stream, StreamExt, select_all};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::backend::Queue;
use crate::backend::engine::{Change, Subscription};
use crate::printable::Chain;
use crate::redis::RedisBackend;
use crate::redis::subscriptions::{State, Subscribed};

/// The interval of items while this process receives no messages.
const POLLED_EVERY: Duration = Duration::from_secs(1);
/// How many items that are ready at the same time become one item.
const MERGED: usize = 1024;

impl RedisBackend {
    pub(super) fn wakeups_of(&self, queues: Vec<Queue>) -> BoxStream<'static, ()> {
        if queues.is_empty() {
            return Box::pin(stream::pending());
        }
        let Some(subscriptions) = self.0.subscriptions.clone() else {
            return Box::pin(stream::unfold((), |()| async {
                sleep(POLLED_EVERY).await;
                Some(((), ()))
            }));
        };
        let inner = Arc::clone(&self.0);
        // The stream subscribes when it is first polled, because subscribing needs a runtime. Each subscription begins
        // with an item, which covers earlier messages.
        let subscribed = stream::once(async move {
            let mut items: Vec<BoxStream<'static, ()>> = Vec::new();
            for shard in 0..inner.schema.shards() {
                let channel = inner.schema.wake(shard);
                for (place, queue) in queues.iter().enumerate() {
                    let due = inner.schema.due(shard, queue);
                    let Subscribed { subscription, state } = subscriptions.join(&inner, channel.clone(), due);
                    items.push(Box::pin(notified(subscription)));
                    // One subscription serves all queues.
                    if place == 0 {
                        items.push(Box::pin(polled_unless_live(state, channel.clone())));
                    }
                }
            }
            select_all(items)
        });
        Box::pin(subscribed.flatten().ready_chunks(MERGED).map(drop))
    }
}

/// Yields an item for each message that names the key.
fn notified(subscription: Subscription) -> impl Stream<Item = ()> + Send {
    stream::unfold(subscription, |mut subscription| async move {
        loop {
            // `None` means that the runtime of the subscription was shut down. `polled_unless_live` polls from then on.
            let change = subscription.changed().await?;
            if !matches!(change, Change::Failed(_)) {
                return Some(((), subscription));
            }
        }
    })
}

/// Yields an item when the subscription becomes live, because earlier messages may have been missed. Yields an item
/// each second while it is not live.
fn polled_unless_live(state: watch::Receiver<State>, channel: String) -> impl Stream<Item = ()> + Send {
    let polling = Polling { state, channel, was_live: false, is_reported: false, next: first_poll() };
    stream::unfold(polling, |mut polling| async {
        polling.item().await;
        Some(((), polling))
    })
}

struct Polling {
    state: watch::Receiver<State>,
    channel: String,
    was_live: bool,
    is_reported: bool,
    next: Instant,
}

fn first_poll() -> Instant {
    Instant::now() + POLLED_EVERY
}

impl Polling {
    async fn item(&mut self) {
        loop {
            let state = self.state.borrow_and_update().clone();
            if state.is_live() && !self.was_live {
                (self.was_live, self.is_reported) = (true, false);
                return;
            }
            if self.was_live && !state.is_live() {
                (self.was_live, self.next) = (false, first_poll());
            }
            let is_over = if self.was_live {
                let is_over = self.state.changed().await.is_err();
                self.next = first_poll();
                is_over
            } else {
                matches!(timeout_at(self.next, self.state.changed()).await, Ok(Err(_)))
            };
            if is_over {
                // The runtime of the subscription was shut down.
                sleep_until(self.next).await;
            }
            if is_over || !self.was_live && Instant::now() >= self.next {
                self.report(&state);
                self.next = first_poll();
                return;
            }
        }
    }

    /// Logs each outage once.
    fn report(&mut self, state: &State) {
        if let (State::Failed(error), false) = (state, self.is_reported) {
            let (channel, error) = (&self.channel, error());
            // If the server is down, calls report that. If only the subscription fails, no call reports it, and an
            // operator must act.
            const WHAT: &str =
                "the subscription for timers failed; workers poll each second until it succeeds";
            match error.is_retryable() {
                true => tracing::debug!(channel, error = %Chain(&error), "{WHAT}"),
                false => tracing::warn!(channel, error = %Chain(&error), "{WHAT}"),
            }
            self.is_reported = true;
        }
    }
}
