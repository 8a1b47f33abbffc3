//! Listening to what the write scripts publish.
//!
//! One channel per owner, subscribed to while somebody watches a record of that owner, and one per shard of timers, while
//! somebody waits for one, over one connection per server that calls do not share: a server cuts off a subscriber that
//! lets too much pile up (<https://redis.io/docs/latest/develop/reference/clients/#output-buffer-limits>), and large
//! replies may pile up.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_core::stream::BoxStream;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::unfold;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, PushInfo, PushKind, RedisResult, Value};
use tokio::sync::{Notify, watch};

use super::clock::server_time;
use super::connector::OpenConnection;
use super::error::Context;
use super::master::Master;
use super::notifications::confirms;
use super::reply::{CommandError, value_or_error};
use super::schema::read_message;
use super::{Inner, RedisBackend};
use crate::backend::engine::{
    Change, Subscription, Watchers, on_drop, watch_by_notifications, watch_by_polling,
};
use crate::backend::{StorageError, TaskKey};
use crate::printable::Chain;
use crate::scripts::Pubsub;

/// The delay before another attempt to subscribe, after the first failure and at the most.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LAST_DELAY: Duration = Duration::from_secs(1);
/// For how long a channel that nobody watches is still listened to.
const LINGERS: Duration = Duration::from_secs(1);
/// How often a server that is listened to is asked whether it is there. One that hangs says nothing.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// How long it may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// All that this backend listens to.
pub(super) struct Subscriptions {
    /// How long a server may take for an answer.
    limit: Duration,
    channels: Mutex<HashMap<String, Channel>>,
    /// By the name of the master.
    servers: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Outcome>>>>,
    /// How many connections were made.
    made: AtomicU64,
}

/// What the latest attempt to connect came to, and when. Locked while one is under way, so that there is one at a time.
type Outcome = Option<(Instant, RedisResult<Arc<Server>>)>;

/// One owner or one shard of timers, while somebody watches.
#[derive(Default)]
struct Channel {
    /// By the key that a message names.
    watchers: Watchers<String>,
    state: watch::Sender<State>,
    /// The connection that is subscribed, by its number.
    at: Option<u64>,
    /// The server ended the subscription unasked.
    is_dropped: Arc<Notify>,
    /// Nobody watches any more.
    is_left: Arc<Notify>,
}

/// How the subscription to a channel stands.
#[derive(Clone, Default)]
pub(super) enum State {
    /// It is being made.
    #[default]
    Begun,
    /// The server publishes to this process.
    Live,
    /// The server passes on no messages, so subscribers poll.
    Polled,
    /// The latest attempt failed, and this is why.
    Failed(Arc<dyn Fn() -> StorageError + Send + Sync>),
}

impl State {
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Live)
    }
}

/// The place of one who watches a key.
pub(super) struct Subscribed {
    pub(super) subscription: Subscription,
    /// Its sender is gone once the runtime is that listened.
    pub(super) state: watch::Receiver<State>,
}

/// A connection over which a server publishes.
struct Server {
    number: u64,
    connection: MultiplexedConnection,
    master: Arc<Master>,
    /// The master's epoch that the connection belongs to.
    epoch: u64,
    /// What it published before may have been the last.
    is_lost: watch::Sender<bool>,
}

impl RedisBackend {
    /// Watches a record by subscription.
    pub(super) fn subscribe(
        &self,
        subscriptions: &Arc<Subscriptions>,
        key: &TaskKey,
    ) -> BoxStream<'static, Result<(), StorageError>> {
        let channel = self.0.schema.channel(&key.owner);
        let task = self.0.schema.task(&key.owner, &key.task);
        let Subscribed { subscription, state } = subscriptions.join(&self.0, channel, task);
        let is_live = state.borrow().is_live();
        let notified = watch_by_notifications(self.clone(), key.clone(), subscription, is_live);
        let watching = Watching { backend: self.clone(), key: key.clone(), state, notified, polled: None };
        Box::pin(unfold(watching, |mut watching| async {
            watching.next().await.map(|item| (item, watching))
        }))
    }
}

/// A subscriber of a record. It receives signals, and polls as long as the server passes on no messages.
struct Watching {
    backend: RedisBackend,
    key: TaskKey,
    state: watch::Receiver<State>,
    notified: BoxStream<'static, Result<(), StorageError>>,
    polled: Option<BoxStream<'static, Result<(), StorageError>>>,
}

impl Watching {
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
                // The runtime of the listener was shut down. Subscribers detect that by their signals.
                Either::Right((Err(_), item)) => return item.await,
            }
        }
    }
}

impl Subscriptions {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, channels: Mutex::default(), servers: Mutex::default(), made: AtomicU64::new(0) }
    }

    /// Watches a key that messages of this channel name. Subscribes to the channel unless somebody has.
    pub(super) fn join(self: &Arc<Self>, inner: &Arc<Inner>, channel: String, key: String) -> Subscribed {
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
            let begun = is_new.then(|| Listening {
                inner: Arc::clone(inner),
                subscriptions: Arc::clone(self),
                channel: channel.clone(),
                is_left: Arc::clone(&held.is_left),
                is_dropped: Arc::clone(&held.is_dropped),
            });
            (subscription, held.state.subscribe(), begun)
        };
        // Not under the lock, which is taken to drop it, as a runtime that is gone does at once.
        if let Some(listening) = begun {
            tokio::spawn(listening.run());
        }
        Subscribed { subscription, state }
    }

    /// Nothing panics while it holds the channels.
    fn channels(&self) -> MutexGuard<'_, HashMap<String, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes on what the connection of this number receives; `false` if it was closed.
    fn hear(&self, number: u64, push: &PushInfo) -> bool {
        let [Value::BulkString(channel), rest @ ..] = &push.data[..] else {
            return push.kind != PushKind::Disconnection;
        };
        let Ok(channel) = std::str::from_utf8(channel) else { return true };
        let channels = self.channels();
        let Some(held) = channels.get(channel) else { return true };
        match (&push.kind, rest) {
            (PushKind::Message | PushKind::SMessage, [Value::BulkString(message)]) => {
                if let Some((key, signal)) = read_message(message) {
                    held.watchers.notify(key, signal);
                }
            }
            // Unasked: the slot has moved to another server. If the subscription was replaced already, this is the reply.
            (PushKind::Unsubscribe | PushKind::SUnsubscribe, _) if held.at == Some(number) => {
                held.is_dropped.notify_one();
            }
            _ => {}
        }
        true
    }

    /// Makes every channel of this connection subscribe again over another one.
    fn give_up(&self, server: &Arc<Server>) {
        server.master.epochs().report_broken(server.epoch);
        server.is_lost.send_replace(true);
        let (mut servers, name) = (self.servers(), server.master.name());
        // Another channel may have connected anew by now. The connection that it shares must stay.
        let is_latest =
            |latest: &Outcome| matches!(latest, Some((_, Ok(latest))) if Arc::ptr_eq(latest, server));
        if servers.get(&name).is_some_and(|place| place.try_lock().is_ok_and(|latest| is_latest(&latest))) {
            servers.remove(&name);
        }
    }

    /// Nothing panics while it holds the servers.
    fn servers(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<Outcome>>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to a master, shared by all channels that it keeps.
    async fn server(self: &Arc<Self>, inner: &Arc<Inner>, master: Arc<Master>) -> RedisResult<Arc<Server>> {
        let asked = Instant::now();
        let place = Arc::clone(self.servers().entry(master.name()).or_default());
        let mut latest = place.lock().await;
        match &*latest {
            Some((_, Ok(server))) if *server.is_lost.borrow() => {
                server.master.epochs().report_broken(server.epoch)
            }
            Some((_, Ok(server))) => return Ok(Arc::clone(server)),
            // It was tried while this waited.
            Some((at, Err(error))) if *at > asked => return Err(error.clone()),
            _ => {}
        }
        let made = self.connect(inner, master).await;
        *latest = Some((Instant::now(), made.clone()));
        made
    }

    async fn connect(self: &Arc<Self>, inner: &Arc<Inner>, master: Arc<Master>) -> RedisResult<Arc<Server>> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let is_lost = watch::Sender::new(false);
        let (this, lost) = (Arc::downgrade(self), is_lost.clone());
        // Goes with the task that reads from the connection, of which nobody is told that its runtime is gone.
        let gone = on_drop({
            let lost = lost.clone();
            move || {
                lost.send_replace(true);
            }
        });
        let on_push = move |push: PushInfo| {
            let _goes_with_it = &gone;
            if !this.upgrade().is_some_and(|subscriptions| subscriptions.hear(number, &push)) {
                lost.send_replace(true);
            }
        };
        let OpenConnection { connection, epoch, .. } =
            master.open(Some(self.limit.min(ANSWER_LIMIT)), on_push).await?;
        let server = Arc::new(Server { number, connection, master, epoch, is_lost });
        tokio::spawn(keep_asking(Arc::downgrade(&server), Arc::downgrade(inner)));
        Ok(server)
    }
}

impl Server {
    async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        value_or_error(self.connection.clone().send_packed_command(command).await?)
    }

    /// Subscribes by the commands that match those of the scripts.
    async fn subscribe(&self, pubsub: Pubsub, channel: &str) -> RedisResult<()> {
        let reply = self.send(redis::cmd(pubsub.subscribe()).arg(channel)).await?;
        if !confirms(&reply, channel) {
            return Err((ErrorKind::UnexpectedReturnType, "the reply is none to a subscription").into());
        }
        Ok(())
    }

    /// Ends a subscription, if there is one.
    async fn end(&self, pubsub: Option<Pubsub>, channel: &str) -> RedisResult<()> {
        match pubsub {
            Some(pubsub) => self.send(redis::cmd(pubsub.unsubscribe()).arg(channel)).await.map(drop),
            None => Ok(()),
        }
    }
}

/// Detects that the server hangs, or that newer connections lead to another server.
async fn keep_asking(server: Weak<Server>, inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(ASKED_EVERY).await;
        let (Some(server), Some(inner)) = (server.upgrade(), inner.upgrade()) else { return };
        if *server.is_lost.borrow() {
            return;
        }
        let sent = inner.clock.moment();
        // Who only listens keeps up with the server's clock by this.
        match server.send(&redis::cmd("TIME")).await.ok().as_ref().and_then(server_time) {
            Some(server_us) if server.master.epochs().is_current(server.epoch) => {
                inner.clock.observe(server_us, sent);
            }
            _ => inner.subscriptions.iter().for_each(|subscriptions| subscriptions.give_up(&server)),
        }
    }
}

/// Returns once it is known that the server passes on messages by other commands than these, which were presumed while
/// nothing could be tried out.
async fn mistaken(server: &Server, presumed: Option<Pubsub>) {
    loop {
        match server.master.known_pubsub(server.epoch) {
            Some(known) if known == presumed => std::future::pending().await,
            Some(_) => return,
            None => {}
        }
        tokio::time::sleep(ASKED_EVERY).await;
        server.master.pubsub().await;
    }
}

/// The subscription to one channel, from the first subscriber to the last.
struct Listening {
    inner: Arc<Inner>,
    subscriptions: Arc<Subscriptions>,
    channel: String,
    is_left: Arc<Notify>,
    is_dropped: Arc<Notify>,
}

/// Why a subscription ends.
enum End {
    /// The connection is lost.
    Lost,
    /// The server ended it.
    Dropped,
    /// Another server keeps the channel by now.
    Moved,
    /// The server publishes by other commands than those that were presumed.
    Mistaken,
    /// There has been no subscriber for a while.
    Left,
}

impl Listening {
    async fn run(self) {
        let mut delay = FIRST_DELAY;
        loop {
            match self.subscribe().await {
                Ok((server, pubsub)) => {
                    delay = FIRST_DELAY;
                    let state = if pubsub.is_some() { State::Live } else { State::Polled };
                    self.set_state(state, &Change::Unknown);
                    let end = self.end(&server, pubsub).await;
                    // Subscribers receive a notification once this channel is live again.
                    if let Some(held) = self.subscriptions.channels().get_mut(&self.channel) {
                        held.state.send_replace(State::Begun);
                        held.at = None;
                    }
                    match end {
                        End::Lost => {}
                        End::Dropped => self.inner.connection.refresh_topology(),
                        End::Moved => {
                            let channel = self.channel.clone();
                            drop(tokio::spawn(async move {
                                // The old server may be gone, and the new one must not wait for it.
                                if let Err(error) = server.end(pubsub, &channel).await {
                                    tracing::debug!(error = %Chain(&error), "a subscription to a channel that moved could not be ended");
                                }
                            }));
                        }
                        End::Mistaken | End::Left => {
                            if let Err(error) = server.end(pubsub, &self.channel).await {
                                tracing::warn!(channel = self.channel, error = %Chain(&error), "a subscription could not be ended");
                                self.subscriptions.give_up(&server);
                            }
                            if matches!(end, End::Left) && self.forget_if_left() {
                                return;
                            }
                        }
                    }
                }
                Err(error) => {
                    let (inner, channel) = (Arc::clone(&self.inner), self.channel.clone());
                    let error: Arc<dyn Fn() -> StorageError + Send + Sync> = Arc::new(move || {
                        Context::reads(&inner.address, &channel)
                            .storage_error(CommandError::NotSent(error.clone()))
                    });
                    self.set_state(State::Failed(Arc::clone(&error)), &Change::Failed(error));
                    tokio::time::sleep(delay).await;
                    if self.forget_if_left() {
                        return;
                    }
                    delay = (delay * 2).min(LAST_DELAY);
                }
            }
        }
    }

    /// Waits for the end of this subscription.
    async fn end(&self, server: &Server, pubsub: Option<Pubsub>) -> End {
        let mut lost = server.is_lost.subscribe();
        let is_lost = pin!(async { drop(lost.wait_for(|lost| *lost).await) });
        let is_left = pin!(self.abandoned());
        let is_dropped = pin!(self.is_dropped.notified());
        let is_mistaken = pin!(mistaken(server, pubsub));
        let has_moved =
            select(self.inner.connection.master_changed(&self.channel, &server.master), is_mistaken);
        match select(select(is_lost, is_left), select(is_dropped, has_moved)).await {
            Either::Left((Either::Left(_), _)) => End::Lost,
            Either::Left((Either::Right(_), _)) => End::Left,
            Either::Right((Either::Left(_), _)) => End::Dropped,
            Either::Right((Either::Right((Either::Left(_), _)), _)) => End::Moved,
            Either::Right((Either::Right((Either::Right(_), _)), _)) => End::Mistaken,
        }
    }

    /// The connection, and the commands of the subscription; `None` if the server passes on no messages.
    async fn subscribe(&self) -> RedisResult<(Arc<Server>, Option<Pubsub>)> {
        let master = self.inner.connection.master_of(&self.channel).await?;
        let (server, pubsub) = loop {
            let server = self.subscriptions.server(&self.inner, Arc::clone(&master)).await?;
            let pubsub = master.pubsub().await;
            // The result of the trial belongs to the server of this connection.
            if master.epochs().is_current(server.epoch) {
                break (server, pubsub);
            }
            self.subscriptions.give_up(&server);
        };
        if let Some(held) = self.subscriptions.channels().get_mut(&self.channel) {
            held.at = Some(server.number);
        }
        let Some(commands) = pubsub else { return Ok((server, None)) };
        match server.subscribe(commands, &self.channel).await {
            Ok(()) => Ok((server, pubsub)),
            Err(error) => {
                let error = self.inner.connection.on_error_reply(error);
                // What the server refuses is no reason to leave it. Nobody else may notice that the connection is of no
                // use, as when the runtime is gone that it ran on.
                if !matches!(
                    error.kind(),
                    ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::ClusterConnectionNotFound
                ) {
                    self.subscriptions.give_up(&server);
                }
                Err(error)
            }
        }
    }

    fn set_state(&self, state: State, signal: &Change) {
        if let Some(held) = self.subscriptions.channels().get_mut(&self.channel) {
            held.state.send_replace(state);
            held.watchers.notify_all(signal);
        }
    }

    /// Returns when nobody has watched for a while. Who does so from then on waits for the next subscription.
    async fn abandoned(&self) {
        loop {
            if self.is_watched() {
                self.is_left.notified().await;
                continue;
            }
            // Whoever watches next finds it live, and the end of this subscription does not race with the next one.
            tokio::time::sleep(LINGERS).await;
            if let Some(held) = self.subscriptions.channels().get_mut(&self.channel)
                && held.watchers.is_empty()
            {
                held.state.send_replace(State::Begun);
                held.at = None;
                return;
            }
        }
    }

    fn is_watched(&self) -> bool {
        self.subscriptions.channels().get(&self.channel).is_some_and(|held| !held.watchers.is_empty())
    }

    /// Forgets the channel if nobody watches.
    fn forget_if_left(&self) -> bool {
        let mut channels = self.subscriptions.channels();
        let is_left = channels.get(&self.channel).is_none_or(|held| held.watchers.is_empty());
        if is_left {
            channels.remove(&self.channel);
        }
        is_left
    }
}

/// Its runtime may be shut down while somebody watches from another. Who does so polls from then on, and who begins to
/// watch subscribes anew.
impl Drop for Listening {
    fn drop(&mut self) {
        let mut channels = self.subscriptions.channels();
        if channels.get(&self.channel).is_some_and(|held| Arc::ptr_eq(&held.is_left, &self.is_left)) {
            channels.remove(&self.channel);
        }
    }
}
