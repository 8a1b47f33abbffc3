//! The ways to a server, and what a failure on the way says about the command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, Value};

use super::error::without_arguments;
use super::master::Master;
use super::notifications::Trials;
use crate::scripts::Pubsub;

/// A way to the servers. No way sends a command again that may have reached a server.
#[async_trait]
pub(super) trait Link: Send + Sync {
    /// Sends a command to the server that keeps `key`; to any server if the key is empty. Marks `sent` before anything
    /// may reach a server.
    async fn send(&self, command: &Cmd, key: &str, sent: &Sent) -> Result<Value, Failure>;

    /// Sends a command that writes, and waits for as many replicas as the way promises: none, unless it says so.
    async fn write(&self, command: &Cmd, key: &str, sent: &Sent) -> Result<Value, Failure> {
        self.send(command, key, sent).await
    }

    /// Sends reads in one go to the server that keeps `key`; each has a reply or an error of its own.
    async fn read_all(&self, reads: &Pipeline, key: &str) -> Result<Vec<Result<Value, Failure>>, Failure>;

    /// What is known of a write that got no reply, where replicas are to confirm it.
    fn unconfirmed(&self) -> Option<Unconfirmed> {
        None
    }

    /// Checks the connection for `key`, as a call over it got no reply within its time limit.
    fn timed_out(&self, _key: &str) {}

    /// The master that keeps `key`, for a connection of its own to it.
    async fn master_of(&self, _key: &str) -> RedisResult<Arc<Master>> {
        Err((ErrorKind::Client, "where the server is, only the caller knows").into())
    }

    /// Returns once another master keeps `key`, as far as is known.
    async fn has_moved(&self, _key: &str, _master: &Arc<Master>) {
        std::future::pending().await
    }

    /// Asks again which master keeps which key, after a sign that this has changed.
    fn look_again(&self) {}

    /// Reacts to this error, with which the master of a key refused a command over a connection outside of this link.
    fn explain(&self, error: RedisError) -> RedisError {
        error
    }

    /// The masters, in the order of the slots that they keep.
    async fn masters(&self) -> Result<Vec<MasterOfSlots>, Failure> {
        Ok(vec![MasterOfSlots::default()])
    }

    /// Whether other keys may be on other masters, so that a lost master affects only some calls.
    fn has_several_masters(&self) -> bool {
        false
    }

    /// Sends a command to one of the [`masters`](Self::masters).
    async fn send_to(&self, _master: &MasterOfSlots, command: &Cmd) -> Result<Value, Failure> {
        self.send(command, "", &Sent::default()).await
    }

    /// Returns the commands by which the server that keeps `key` passes on messages; `None` if it passes on none. Tries them
    /// out if the result is not known.
    async fn pubsub(&self, key: &str) -> Result<Option<Pubsub>, Failure>;

    /// Grows whenever a connection broke or was re-created, and before anything travels over the new one.
    fn generation(&self) -> u64;
}

/// A master of a cluster. There is one that keeps all slots where there is no cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MasterOfSlots {
    /// The lowest slot that it keeps.
    pub(super) slot: u16,
    pub(super) host: String,
    pub(super) port: u16,
}

/// Whether a call has sent something that was not answered. This decides the outcome of a call that times out.
#[derive(Debug, Default)]
pub(super) struct Sent(AtomicBool);

impl Sent {
    pub(super) fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// What was sent has had its reply.
    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_marked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a command has no good reply.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server replied with this error.
    Replied(RedisError),
    /// No server ran the command: it was not sent, or another server was named in reply.
    Unsent(RedisError),
    /// The same, as no connection to this server could be made.
    #[cfg(feature = "redis-cluster")]
    Unreachable(String, RedisError),
    /// The command may have been sent, and no reply came.
    Unanswered(RedisError),
    /// A write that may have been applied, and is not known to be where it was to be; and why.
    TooFewReplicas(Unconfirmed, Option<RedisError>),
}

/// How many replicas confirmed a write that too few of them confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unconfirmed {
    pub(super) wanted: u32,
    pub(super) acknowledged: u32,
    pub(super) within: Duration,
}

impl Failure {
    /// Judges what a connection of the redis crate gave for a command. Only a value is certain to be the reply to
    /// it: an error may be of the connection's own making, or what became of a copy that it sent.
    pub(super) fn judge(reply: RedisResult<Value>) -> Result<Value, Self> {
        replied(reply.map_err(Self::Unanswered)?).map_err(Self::Replied)
    }

    /// The same for a pipeline.
    pub(super) fn judge_all(replies: RedisResult<Vec<Value>>) -> Result<Vec<Result<Value, Self>>, Self> {
        let values = replies.map_err(Self::Unanswered)?;
        Ok(values.into_iter().map(|value| Self::judge(Ok(value))).collect())
    }
}

/// The value, or the error that is the reply.
pub(super) fn replied(reply: Value) -> RedisResult<Value> {
    reply.extract_error().map_err(without_arguments)
}

/// Counts the connections that broke or were re-created.
#[derive(Debug)]
pub(super) struct Generation {
    number: AtomicU64,
    /// Whether nothing re-creates a connection unseen.
    sees_all: bool,
}

impl Generation {
    pub(super) fn new(sees_all: bool) -> Self {
        Self { number: AtomicU64::new(0), sees_all }
    }

    pub(super) fn grow(&self) {
        self.number.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn get(&self) -> u64 {
        if self.sees_all {
            self.number.load(Ordering::SeqCst)
        } else {
            // It may have happened at any time.
            self.number.fetch_add(1, Ordering::SeqCst)
        }
    }
}

/// A connection that the caller made. Some reconnect by themselves, and tell nobody.
pub(super) struct Given<C> {
    connection: C,
    generation: Generation,
    trials: Option<Trials>,
    /// By which commands messages are published, once that was tried out.
    pubsub: tokio::sync::OnceCell<Option<Pubsub>>,
}

impl<C> Given<C> {
    /// `trials`: where to try out how messages are published, if they are.
    pub(super) fn new(connection: C, trials: Option<Trials>) -> Self {
        Self { connection, generation: Generation::new(false), trials, pubsub: tokio::sync::OnceCell::new() }
    }
}

#[async_trait]
impl<C: ConnectionLike + Clone + Send + Sync + 'static> Link for Given<C> {
    async fn send(&self, command: &Cmd, _key: &str, sent: &Sent) -> Result<Value, Failure> {
        sent.mark();
        Failure::judge(self.connection.clone().req_packed_command(command).await)
    }

    async fn read_all(&self, reads: &Pipeline, _key: &str) -> Result<Vec<Result<Value, Failure>>, Failure> {
        Failure::judge_all(self.connection.clone().req_packed_commands(reads, 0, reads.len()).await)
    }

    async fn pubsub(&self, _key: &str) -> Result<Option<Pubsub>, Failure> {
        let Some(trials) = &self.trials else { return Ok(None) };
        let publish = async || {
            let send = |command: Cmd| {
                let mut connection = self.connection.clone();
                async move { Failure::judge(connection.req_packed_command(&command).await) }
            };
            let trial = trials.publish_only(send).await?;
            match trial.denied {
                // Only for now: an administrator may grant the right.
                Some((_, error)) => Err(Failure::Replied(error)),
                None => Ok(trial.pubsub),
            }
        };
        self.pubsub.get_or_try_init(publish).await.copied()
    }

    fn generation(&self) -> u64 {
        self.generation.get()
    }
}
