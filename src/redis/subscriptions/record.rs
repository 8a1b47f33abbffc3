//! The watch of one record.

use std::pin::pin;
use std::sync::Arc;

use futures_core::stream::BoxStream;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::unfold;
use tokio::sync::watch;

use super::{State, Subscribed, Subscriptions};
use crate::backend::engine::{watch_by_notifications, watch_by_polling};
use crate::backend::{StorageError, TaskKey};
use crate::redis::RedisBackend;

impl RedisBackend {
    /// Watches a record by subscription.
    pub(in crate::redis) fn subscribe(
        &self,
        subscriptions: &Arc<Subscriptions>,
        key: &TaskKey,
    ) -> BoxStream<'static, Result<(), StorageError>> {
        let channel = self.0.schema.channel(&key.owner);
        let task = self.0.schema.task(&key.owner, &key.task);
        let Subscribed { subscription, state } = subscriptions.join(&self.0, channel, task);
        let is_live = state.borrow().is_live();
        let notified = watch_by_notifications(self.clone(), key.clone(), subscription, is_live);
        let watch = RecordWatch { backend: self.clone(), key: key.clone(), state, notified, polled: None };
        Box::pin(unfold(watch, |mut watch| async { watch.next().await.map(|item| (item, watch)) }))
    }
}

/// The watch of one record. It receives notifications, and polls while the server delivers no messages.
struct RecordWatch {
    backend: RedisBackend,
    key: TaskKey,
    state: watch::Receiver<State>,
    notified: BoxStream<'static, Result<(), StorageError>>,
    polled: Option<BoxStream<'static, Result<(), StorageError>>>,
}

impl RecordWatch {
    async fn next(&mut self) -> Option<Result<(), StorageError>> {
        loop {
            if !matches!(*self.state.borrow_and_update(), State::Polled) {
                self.polled = None;
            } else if self.polled.is_none() {
                self.polled = Some(watch_by_polling(self.backend.clone(), self.key.clone()));
            }
            let items = self.polled.as_mut().unwrap_or(&mut self.notified);
            let changed = pin!(self.state.changed());
            match select(items.next(), changed).await {
                Either::Left((item, _)) => return item,
                Either::Right((Ok(()), _)) => {}
                // The runtime of the subscription was shut down. The notified stream detects this by itself.
                Either::Right((Err(_), item)) => return item.await,
            }
        }
    }
}
