//! The subscription to one channel.

use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};
use redis::{ErrorKind, RedisError, RedisResult};
use tokio::sync::Notify;

use super::connection::{PubsubConnection, wrong_commands};
use super::{FIRST_DELAY, LAST_DELAY, LINGERS, State, Subscriptions};
use crate::backend::StorageError;
use crate::backend::engine::Change;
use crate::printable::Chain;
use crate::redis::Deployment;
use crate::redis::error::Context;
use crate::redis::reply::CommandError;
use crate::scripts::Pubsub;

/// The subscription to one channel, from its first subscriber to its last.
pub(super) struct ChannelSubscription {
    pub(super) deployment: Arc<Deployment>,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) channel: String,
    pub(super) is_left: Arc<Notify>,
    pub(super) is_dropped: Arc<Notify>,
}

/// Why a subscription ends.
enum End {
    /// The connection is lost.
    Lost,
    /// The server ended the subscription by itself.
    Dropped,
    /// Another server serves the channel now.
    Moved,
    /// The server delivers messages only with the other pair of commands.
    WrongCommands,
    /// The channel has had no subscriber for a while.
    Left,
}

impl ChannelSubscription {
    pub(super) async fn run(self) {
        let mut delay = FIRST_DELAY;
        loop {
            match self.subscribe().await {
                Ok((connection, pubsub)) => {
                    delay = FIRST_DELAY;
                    let state = if pubsub.is_some() { State::Live } else { State::Polled };
                    self.set_state(state, &Change::Unknown);
                    let end = self.end(&connection, pubsub).await;
                    // Subscribers receive a notification once this channel is live again.
                    if let Some(held) = self.subscriptions.channels().get_mut(&self.channel) {
                        held.state.send_replace(State::Connecting);
                        held.connection = None;
                    }
                    self.clean_up(&end, connection, pubsub).await;
                    if matches!(end, End::Left) && self.forget_if_left() {
                        return;
                    }
                }
                Err(error) => {
                    self.report(error);
                    tokio::time::sleep(delay).await;
                    if self.forget_if_left() {
                        return;
                    }
                    delay = (delay * 2).min(LAST_DELAY);
                }
            }
        }
    }

    /// Unsubscribes, if the server still has the subscription.
    async fn clean_up(&self, end: &End, connection: Arc<PubsubConnection>, pubsub: Option<Pubsub>) {
        match end {
            End::Lost => {}
            End::Dropped => self.deployment.connection.refresh_topology(),
            End::Moved => {
                let channel = self.channel.clone();
                drop(tokio::spawn(async move {
                    // The old server may be down, and the new subscription must not wait for it.
                    if let Err(error) = connection.unsubscribe(pubsub, &channel).await {
                        tracing::debug!(channel, error = %Chain(&error), "failed to unsubscribe from a channel that moved");
                    }
                }));
            }
            End::WrongCommands | End::Left => {
                if let Err(error) = connection.unsubscribe(pubsub, &self.channel).await {
                    tracing::warn!(channel = self.channel, error = %Chain(&error), "failed to unsubscribe; reconnecting");
                    self.subscriptions.abandon(&connection);
                }
            }
        }
    }

    /// Passes an error on to the subscribers.
    fn report(&self, error: RedisError) {
        let (deployment, channel) = (Arc::clone(&self.deployment), self.channel.clone());
        let error: Arc<dyn Fn() -> StorageError + Send + Sync> = Arc::new(move || {
            Context::reads(&deployment.address, &channel).storage_error(CommandError::NotSent(error.clone()))
        });
        self.set_state(State::Failed(Arc::clone(&error)), &Change::Failed(error));
    }

    /// Waits for the end of this subscription.
    async fn end(&self, connection: &PubsubConnection, pubsub: Option<Pubsub>) -> End {
        let mut lost = connection.is_lost.subscribe();
        let is_lost = pin!(async { drop(lost.wait_for(|lost| *lost).await) });
        let is_left = pin!(self.abandoned());
        let is_dropped = pin!(self.is_dropped.notified());
        let is_wrong = pin!(wrong_commands(connection, pubsub));
        let has_moved =
            select(self.deployment.connection.master_changed(&self.channel, &connection.master), is_wrong);
        match select(select(is_lost, is_left), select(is_dropped, has_moved)).await {
            Either::Left((Either::Left(_), _)) => End::Lost,
            Either::Left((Either::Right(_), _)) => End::Left,
            Either::Right((Either::Left(_), _)) => End::Dropped,
            Either::Right((Either::Right((Either::Left(_), _)), _)) => End::Moved,
            Either::Right((Either::Right((Either::Right(_), _)), _)) => End::WrongCommands,
        }
    }

    /// Subscribes. Returns the connection, and the commands of the subscription; `None` if the server delivers no
    /// messages.
    async fn subscribe(&self) -> RedisResult<(Arc<PubsubConnection>, Option<Pubsub>)> {
        let master = self.deployment.connection.master_of(&self.channel).await?;
        let (connection, pubsub) = loop {
            let connection = self.subscriptions.connection(&self.deployment, Arc::clone(&master)).await?;
            let pubsub = master.pubsub().await;
            // The result of the probe must come from the server of this connection.
            if master.epochs().is_current(connection.epoch) {
                break (connection, pubsub);
            }
            self.subscriptions.abandon(&connection);
        };
        if let Some(held) = self.subscriptions.channels().get_mut(&self.channel) {
            held.connection = Some(connection.number);
        }
        let Some(commands) = pubsub else { return Ok((connection, None)) };
        match connection.subscribe(commands, &self.channel).await {
            Ok(()) => Ok((connection, pubsub)),
            Err(error) => {
                let error = self.deployment.connection.on_error_reply(error);
                // An error reply is no reason to reconnect. Any other error is: nothing else may detect that the connection
                // is useless, for example because its runtime was shut down.
                if !matches!(
                    error.kind(),
                    ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::ClusterConnectionNotFound
                ) {
                    self.subscriptions.abandon(&connection);
                }
                Err(error)
            }
        }
    }

    fn set_state(&self, state: State, change: &Change) {
        if let Some(held) = self.subscriptions.channels().get_mut(&self.channel) {
            held.state.send_replace(state);
            held.watchers.notify_all(change);
        }
    }

    /// Returns once the channel has had no subscriber for a while. Later subscribers wait for the next subscription.
    async fn abandoned(&self) {
        loop {
            if self.is_watched() {
                self.is_left.notified().await;
                continue;
            }
            // A subscriber that joins in the meantime finds the channel live. The delay also prevents a race between
            // the end of this subscription and the start of the next one.
            tokio::time::sleep(LINGERS).await;
            if let Some(held) = self.subscriptions.channels().get_mut(&self.channel)
                && held.watchers.is_empty()
            {
                held.state.send_replace(State::Connecting);
                held.connection = None;
                return;
            }
        }
    }

    fn is_watched(&self) -> bool {
        self.subscriptions.channels().get(&self.channel).is_some_and(|held| !held.watchers.is_empty())
    }

    /// Removes the channel if it has no subscribers. Returns whether it removed the channel.
    fn forget_if_left(&self) -> bool {
        let mut channels = self.subscriptions.channels();
        let is_left = channels.get(&self.channel).is_none_or(|held| held.watchers.is_empty());
        if is_left {
            channels.remove(&self.channel);
        }
        is_left
    }
}

/// The runtime of a subscription may be shut down while it has subscribers on other runtimes. They poll from then on, and
/// the next subscriber starts a new subscription.
impl Drop for ChannelSubscription {
    fn drop(&mut self) {
        let mut channels = self.subscriptions.channels();
        if channels.get(&self.channel).is_some_and(|held| Arc::ptr_eq(&held.is_left, &self.is_left)) {
            channels.remove(&self.channel);
        }
    }
}
