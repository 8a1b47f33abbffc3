//! The probe of a server's Pub/Sub commands.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, PushKind, RedisError, RedisResult, Value};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use crate::redis::error::{ProbeError, probe_error};
use crate::redis::reply::{CommandError, value_or_error};
use crate::scripts::{Notice, PUBLISH, Publish, Pubsub};

/// How long a message may take to arrive after the reply to a later command.
const ECHO_LIMIT: Duration = Duration::from_millis(200);

/// Probes which Pub/Sub commands the servers of one deployment support.
#[derive(Clone, Debug)]
pub(in crate::redis) struct PubsubProbe {
    /// The channel of the probe's messages.
    pub(in crate::redis) channel: String,
    /// Whether this process subscribes to channels, and does not only publish.
    pub(in crate::redis) subscribes: bool,
}

/// The outcome of a probe.
#[derive(Debug)]
pub(in crate::redis) struct ProbeOutcome {
    /// The commands that work; `None` if no message arrives.
    pub(in crate::redis) pubsub: Option<Pubsub>,
    /// A command that the user may not run, and the error reply of the server.
    pub(in crate::redis) denied: Option<(&'static str, RedisError)>,
}

/// What the probe of one command shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Support {
    Works,
    /// The server knows the command and refuses it: the user lacks the permission, or another node serves the slot of
    /// the channel.
    Refused,
    Unknown,
}

impl PubsubProbe {
    /// Probes a server over a connection that carries nothing else. `received` holds the messages that arrived over it,
    /// including those of other probes.
    pub(super) async fn run(
        &self,
        connection: &MultiplexedConnection,
        received: watch::Receiver<Vec<Vec<u8>>>,
    ) -> RedisResult<ProbeOutcome> {
        let mut denied = None;
        for pubsub in [Pubsub::Sharded, Pubsub::Plain] {
            if self.works(pubsub, connection, received.clone(), &mut denied).await? {
                return Ok(ProbeOutcome { pubsub: Some(pubsub), denied });
            }
        }
        Ok(ProbeOutcome { pubsub: None, denied })
    }

    /// Returns whether this pair of commands delivers messages. A pair that the server refuses counts as working,
    /// because an administrator may grant the permission.
    async fn works(
        &self,
        pubsub: Pubsub,
        connection: &MultiplexedConnection,
        mut received: watch::Receiver<Vec<Vec<u8>>>,
        denied: &mut Option<(&'static str, RedisError)>,
    ) -> RedisResult<bool> {
        let subscribe = match self.subscribes {
            true => self.subscribe(pubsub, connection, denied).await?,
            false => Support::Refused,
        };
        if subscribe == Support::Unknown {
            return Ok(false);
        }
        let message = new_message();
        let reply = send(connection, &self.publish(pubsub, message.clone())).await?;
        if is_unsubscribed(&reply) {
            return Ok(true);
        }
        let publish = support(pubsub.publish(), reply.map(|reply| PUBLISH.decode(reply).is_ok()), denied)?;
        let works = match (subscribe, publish) {
            (_, Support::Unknown) => false,
            (Support::Works, Support::Works) => {
                // The server sends the message before its reply to the next command.
                let _time = send(connection, &redis::cmd("TIME")).await?;
                let echo = received.wait_for(|received| received.iter().any(|one| one == message.as_bytes()));
                timeout(ECHO_LIMIT, echo).await.is_ok_and(|echo| echo.is_ok())
            }
            _ => true,
        };
        if subscribe == Support::Works {
            let unsubscribe = redis::cmd(pubsub.unsubscribe()).arg(&self.channel).clone();
            let reply = send(connection, &unsubscribe).await?;
            support(pubsub.unsubscribe(), reply.map(|_| true), denied)?;
        }
        Ok(works)
    }

    async fn subscribe(
        &self,
        pubsub: Pubsub,
        connection: &MultiplexedConnection,
        denied: &mut Option<(&'static str, RedisError)>,
    ) -> RedisResult<Support> {
        let subscribe = redis::cmd(pubsub.subscribe()).arg(&self.channel).clone();
        let reply = send(connection, &subscribe).await?;
        support(pubsub.subscribe(), reply.map(|reply| confirms(&reply, &self.channel)), denied)
    }

    fn publish(&self, pubsub: Pubsub, message: String) -> Cmd {
        let notice = Notice { channel: self.channel.clone(), pubsub };
        PUBLISH.command(&Publish { notice, message })
    }

    /// Probes the publishing commands over a connection that cannot subscribe. `send` sends a command.
    pub(in crate::redis) async fn publish_only<F>(
        &self,
        send: impl Fn(Cmd) -> F,
    ) -> Result<ProbeOutcome, CommandError>
    where
        F: Future<Output = Result<Value, CommandError>>,
    {
        let mut denied = None;
        for pubsub in [Pubsub::Sharded, Pubsub::Plain] {
            let reply = match send(self.publish(pubsub, new_message())).await {
                Ok(reply) => Ok(PUBLISH.decode(reply).is_ok()),
                Err(CommandError::ErrorReply(error)) => Err(error),
                Err(failure) => return Err(failure),
            };
            let publish = support(pubsub.publish(), reply, &mut denied).map_err(CommandError::ErrorReply)?;
            if publish != Support::Unknown {
                return Ok(ProbeOutcome { pubsub: Some(pubsub), denied });
            }
        }
        Ok(ProbeOutcome { pubsub: None, denied })
    }
}

/// Returns a message that no other probe sends. Subscribers ignore it.
fn new_message() -> String {
    format!("? {}", Uuid::new_v4())
}

/// Returns whether the server ended the subscription by itself, because the slot of the channel has moved to another
/// node. The redis crate takes this message for the reply to the command under way, and then assigns each later reply
/// to the wrong command.
fn is_unsubscribed(reply: &Result<Value, RedisError>) -> bool {
    matches!(reply, Ok(Value::Push { kind: PushKind::SUnsubscribe, .. }))
}

/// Returns the reply, or the error that is the reply.
async fn send(connection: &MultiplexedConnection, command: &Cmd) -> RedisResult<Result<Value, RedisError>> {
    Ok(value_or_error(connection.clone().req_packed_command(command).await?))
}

/// Returns what the reply to a command shows. An `Ok` reply says whether the reply has the form that the command returns.
///
/// # Errors
/// The error reply of a server in a temporary state, in which a probe has no result.
fn support(
    command: &'static str,
    reply: Result<bool, RedisError>,
    denied: &mut Option<(&'static str, RedisError)>,
) -> RedisResult<Support> {
    let error = match reply {
        Ok(true) => return Ok(Support::Works),
        Ok(false) => return Ok(Support::Unknown),
        Err(error) => error,
    };
    match probe_error(&error) {
        ProbeError::Denied => {
            denied.get_or_insert((command, error));
            Ok(Support::Refused)
        }
        ProbeError::WrongNode => Ok(Support::Refused),
        ProbeError::UnknownCommand | ProbeError::Other => Ok(Support::Unknown),
        ProbeError::Temporary => Err(error),
    }
}

/// Returns whether this is the reply to a subscription. The redis crate may take a message for the reply to the command
/// under way.
pub(in crate::redis) fn confirms(reply: &Value, channel: &str) -> bool {
    matches!(reply, Value::Push { kind: PushKind::SSubscribe | PushKind::Subscribe, data }
        if data.first() == Some(&Value::BulkString(channel.as_bytes().to_vec())))
}
