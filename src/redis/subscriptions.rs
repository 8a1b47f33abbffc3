//! Subscriptions to the messages that scripts publish.
//!
//! There is one channel for each owner, subscribed to while a record of that owner has a subscriber, and one for each shard
//! of timers, while a worker waits for a timer. All channels of a server share one connection, which calls do not use: a
//! server disconnects a subscriber whose unread messages and replies take too much memory
//! (<https://redis.io/docs/latest/develop/reference/clients/#output-buffer-limits>).

mod channel;
mod connection;
mod record;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::sync::{Notify, watch};

use channel::ChannelSubscription;
use connection::{PubsubConnection, keep_asking};

use super::Deployment;
use super::connector::OpenConnection;
use super::master::Master;
use super::schema::read_message;
use crate::backend::StorageError;
use crate::backend::engine::{Subscription, Watchers, on_drop};

/// The delay before the next attempt to subscribe: after the first failure, and its maximum.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LAST_DELAY: Duration = Duration::from_secs(1);
/// How long a subscription stays after its last subscriber has left.
const LINGERS: Duration = Duration::from_secs(1);
/// How often a connection asks its server for the time. A server that hangs sends nothing.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// The time limit of that reply.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// All subscriptions of a backend.
pub(super) struct Subscriptions {
    /// The time limit of each reply.
    limit: Duration,
    channels: Mutex<HashMap<String, Channel>>,
    /// The connections by the name of their master.
    connections: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Outcome>>>>,
    /// How many connections the backend has opened for messages.
    connected: AtomicU64,
}

/// The result of the latest attempt to connect, and its time. An attempt holds the lock, so there is one at a time.
type Outcome = Option<(Instant, RedisResult<Arc<PubsubConnection>>)>;

/// The channel of one owner or of one shard of timers, while it has subscribers.
#[derive(Default)]
struct Channel {
    /// The subscribers by the key that a message names.
    watchers: Watchers<String>,
    state: watch::Sender<State>,
    /// The number of the connection that is subscribed.
    connection: Option<u64>,
    /// Notified when the server ends the subscription by itself.
    is_dropped: Arc<Notify>,
    /// Notified when the last subscriber leaves.
    is_left: Arc<Notify>,
}

/// The state of the subscription to a channel.
#[derive(Clone, Default)]
pub(super) enum State {
    /// The attempt to subscribe is under way.
    #[default]
    Connecting,
    /// This process receives the messages of the channel.
    Live,
    /// The server delivers no messages, so subscribers poll.
    Polled,
    /// The latest attempt failed with this error.
    Failed(Arc<dyn Fn() -> StorageError + Send + Sync>),
}

impl State {
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Live)
    }
}

/// The subscription of one subscriber to one key.
pub(super) struct Subscribed {
    pub(super) subscription: Subscription,
    /// Its sender is dropped when the runtime of the subscription shuts down.
    pub(super) state: watch::Receiver<State>,
}

impl Subscriptions {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            channels: Mutex::default(),
            connections: Mutex::default(),
            connected: AtomicU64::new(0),
        }
    }

    /// Subscribes to a key that messages of this channel name. The first subscriber starts the subscription to the channel.
    pub(super) fn join(
        self: &Arc<Self>,
        deployment: &Arc<Deployment>,
        channel: String,
        key: String,
    ) -> Subscribed {
        let leave = {
            let (of, channel) = (Arc::clone(self), channel.clone());
            move || {
                if let Some(held) = of.channels().get(&channel)
                    && held.watchers.is_empty()
                {
                    held.is_left.notify_one();
                }
            }
        };
        let (subscription, state, begun) = {
            let mut channels = self.channels();
            let entry = channels.entry(channel.clone());
            let is_new = matches!(entry, std::collections::hash_map::Entry::Vacant(_));
            let held = entry.or_default();
            let subscription = held.watchers.subscribe_until(key, leave);
            let begun = is_new.then(|| ChannelSubscription {
                deployment: Arc::clone(deployment),
                subscriptions: Arc::clone(self),
                channel: channel.clone(),
                is_left: Arc::clone(&held.is_left),
                is_dropped: Arc::clone(&held.is_dropped),
            });
            (subscription, held.state.subscribe(), begun)
        };
        // The lock must not be held here: dropping a `ChannelSubscription` takes it, and a runtime that shuts down
        // drops the task at once.
        if let Some(subscription) = begun {
            tokio::spawn(subscription.run());
        }
        Subscribed { subscription, state }
    }

    /// Locks the channels. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn channels(&self) -> MutexGuard<'_, HashMap<String, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies subscribers of a message that the connection of this number received. Returns `false` if the connection was
    /// closed.
    fn receive(&self, number: u64, push: &PushInfo) -> bool {
        let [Value::BulkString(channel), rest @ ..] = &push.data[..] else {
            return push.kind != PushKind::Disconnection;
        };
        let Ok(channel) = std::str::from_utf8(channel) else { return true };
        let channels = self.channels();
        let Some(held) = channels.get(channel) else { return true };
        match (&push.kind, rest) {
            (PushKind::Message | PushKind::SMessage, [Value::BulkString(message)]) => {
                if let Some((key, change)) = read_message(message) {
                    held.watchers.notify(key, change);
                }
            }
            // The server ended the subscription by itself, because the slot has moved to another server. If the channel
            // no longer uses this connection, the message is the reply to an `UNSUBSCRIBE` of this process.
            (PushKind::Unsubscribe | PushKind::SUnsubscribe, _) if held.connection == Some(number) => {
                held.is_dropped.notify_one();
            }
            _ => {}
        }
        true
    }

    /// Makes every channel of this connection subscribe again over another connection.
    fn abandon(&self, connection: &Arc<PubsubConnection>) {
        connection.master.epochs().report_broken(connection.epoch);
        connection.is_lost.send_replace(true);
        let (mut connections, name) = (self.connections(), connection.master.name());
        // Another channel may have reconnected in the meantime. Its new connection must stay.
        let is_latest =
            |latest: &Outcome| matches!(latest, Some((_, Ok(latest))) if Arc::ptr_eq(latest, connection));
        if connections.get(&name).is_some_and(|place| place.try_lock().is_ok_and(|latest| is_latest(&latest)))
        {
            connections.remove(&name);
        }
    }

    /// Locks the connections. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn connections(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<Outcome>>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connection to a master. All channels of that master share it.
    async fn connection(
        self: &Arc<Self>,
        deployment: &Arc<Deployment>,
        master: Arc<Master>,
    ) -> RedisResult<Arc<PubsubConnection>> {
        let asked = Instant::now();
        let place = Arc::clone(self.connections().entry(master.name()).or_default());
        let mut latest = place.lock().await;
        match &*latest {
            Some((_, Ok(server))) if *server.is_lost.borrow() => {
                server.master.epochs().report_broken(server.epoch)
            }
            Some((_, Ok(server))) => return Ok(Arc::clone(server)),
            // Another caller made an attempt while this one waited for the lock.
            Some((at, Err(error))) if *at > asked => return Err(error.clone()),
            _ => {}
        }
        let made = self.connect(deployment, master).await;
        *latest = Some((Instant::now(), made.clone()));
        made
    }

    async fn connect(
        self: &Arc<Self>,
        deployment: &Arc<Deployment>,
        master: Arc<Master>,
    ) -> RedisResult<Arc<PubsubConnection>> {
        let number = self.connected.fetch_add(1, Ordering::Relaxed);
        let is_lost = watch::Sender::new(false);
        let (this, lost) = (Arc::downgrade(self), is_lost.clone());
        // Dropped with the task that reads from the connection. If the runtime of that task shuts down, nothing else
        // reports that the connection is lost.
        let gone = on_drop({
            let lost = lost.clone();
            move || {
                lost.send_replace(true);
            }
        });
        let on_push = move |push: PushInfo| {
            let _moved_into_the_callback = &gone;
            if !this.upgrade().is_some_and(|subscriptions| subscriptions.receive(number, &push)) {
                lost.send_replace(true);
            }
        };
        let OpenConnection { connection, epoch, .. } =
            master.open(Some(self.limit.min(ANSWER_LIMIT)), on_push).await?;
        let server = Arc::new(PubsubConnection { number, connection, master, epoch, is_lost });
        tokio::spawn(keep_asking(Arc::downgrade(&server), Arc::downgrade(deployment)));
        Ok(server)
    }
}
