//! Which commands carry notifications.
//!
//! Publishers and subscribers must use the same ones in every process. Each process makes the same trial: a script publishes a
//! message, and a subscriber receives it. The process repeats the trial after it has reconnected, as the server may be of
//! another version by then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, PushKind, RedisError, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use super::error::{ProbeError, probe_error};
use super::master::Master;
use super::reply::{CommandError, value_or_error};
use crate::printable::Chain;
use crate::scripts::{Notice, PUBLISH, Publish, Pubsub};

/// How much longer a message may take than the reply to a command that was sent after it was published.
const ECHO_LIMIT: Duration = Duration::from_millis(200);
/// The delay before the next trial, after one without a result.
const TRIED_EVERY: Duration = Duration::from_millis(100);

/// The trials of one deployment.
#[derive(Clone, Debug)]
pub(super) struct Trials {
    /// The channel that they publish on.
    pub(super) channel: String,
    /// Whether this process subscribes to anything, and not only publishes.
    pub(super) listens: bool,
}

/// The results of the trials at one master.
pub(super) struct Agreement {
    trials: Trials,
    /// 0 before the first trial; then the master's epoch and the result in one number.
    latest: AtomicU64,
    /// One more than the last epoch in which the trials took too long.
    overdue: AtomicU64,
    /// Whether the latest trials are done. Their sender is gone once they are, or their runtime is.
    done: Mutex<watch::Receiver<bool>>,
}

/// The result of a trial.
#[derive(Debug)]
pub(super) struct Trial {
    /// The commands that work; `None` if no message arrives.
    pub(super) pubsub: Option<Pubsub>,
    /// A command that the user may not run, and what the server said.
    pub(super) denied: Option<(&'static str, RedisError)>,
}

impl Agreement {
    pub(super) fn new(trials: Trials) -> Self {
        let done = Mutex::new(watch::channel(true).1);
        Self { trials, latest: AtomicU64::new(0), overdue: AtomicU64::new(0), done }
    }

    /// The result of the trial in this epoch.
    pub(super) fn of(&self, epoch: u64) -> Option<Option<Pubsub>> {
        let latest = self.latest.load(Ordering::SeqCst);
        if latest / 4 != epoch + 1 { None } else { Some(decode(latest % 4)) }
    }

    /// The assumption while there is no result: the result of the last trial, or the commands of current servers.
    fn presumed(&self) -> Option<Pubsub> {
        match self.latest.load(Ordering::SeqCst) {
            0 => Some(Pubsub::Sharded),
            latest => decode(latest % 4),
        }
    }

    /// Returns the commands for this master; `None` if it passes on no messages. The first call of each epoch starts a trial
    /// over a new connection. Other calls wait for it: subscribers would miss a message that other commands than theirs publish.
    ///
    /// Dropping the future does not end the trial, which other calls may wait for and which may take longer than a call. Calls
    /// do not wait once a trial of the epoch took too long.
    pub(super) async fn reach(&self, master: &Arc<Master>) -> Option<Pubsub> {
        // The runtime may be gone on which they were made before. One that is shut down now makes none.
        for _ in 0..2 {
            let Some(mut done) = self.begin(master) else { break };
            if self.overdue.load(Ordering::SeqCst) == master.epoch() + 1
                || done.wait_for(|done| *done).await.is_ok()
            {
                break;
            }
        }
        self.of(master.epoch()).unwrap_or_else(|| self.presumed())
    }

    /// Starts trials, unless the result is known or they are under way.
    fn begin(&self, master: &Arc<Master>) -> Option<watch::Receiver<bool>> {
        let mut latest = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if self.of(master.epoch()).is_some() {
            return None;
        }
        let is_under_way = !*latest.borrow() && latest.has_changed().is_ok();
        if !is_under_way {
            let runtime = Handle::try_current().ok()?;
            let (report, done) = watch::channel(false);
            let master = Arc::clone(master);
            *latest = done;
            runtime.spawn(async move {
                if let Some(agreement) = master.agreement() {
                    agreement.find_out(&master).await;
                }
                report.send_replace(true);
            });
        }
        Some(latest.clone())
    }

    /// Makes trials until one has a result, for as long as two connections may take.
    async fn find_out(&self, master: &Arc<Master>) {
        let until = Instant::now() + 2 * master.limit();
        while self.of(master.epoch()).is_none() {
            match timeout_at(until, self.try_out(master)).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => {
                    tracing::debug!(error = %Chain(&error), "how notifications travel could not be tried out");
                    // In this state the server accepts no write either.
                    if probe_error(&error) == ProbeError::Temporary {
                        return;
                    }
                }
                Err(_) => tracing::debug!("how notifications travel could not be tried out in time"),
            }
            if Instant::now() + TRIED_EVERY >= until {
                self.overdue.store(master.epoch() + 1, Ordering::SeqCst);
                return;
            }
            sleep(TRIED_EVERY).await;
        }
    }

    /// Makes the trial.
    pub(super) async fn try_out(&self, master: &Arc<Master>) -> RedisResult<Trial> {
        let (echo, received) = watch::channel(Vec::new());
        let opened = master.open(Some(master.limit()), move |push| {
            if let (PushKind::Message | PushKind::SMessage, [_, Value::BulkString(message)]) =
                (&push.kind, &push.data[..])
            {
                echo.send_modify(|received| received.push(message.clone()));
            }
        });
        let opened = opened.await?;
        let trial = self.trials.run(&opened.connection, received).await?;
        let before = self.latest.swap((opened.epoch + 1) * 4 + encode(trial.pubsub), Ordering::SeqCst);
        if trial.pubsub.is_none() && (before == 0 || decode(before % 4).is_some()) {
            tracing::warn!(
                address = opened.address,
                "the server passes on no messages (SPUBLISH and SSUBSCRIBE, or PUBLISH and SUBSCRIBE): watches and workers \
                 poll; if this is intended, set notifications(false) on the builder of every instance"
            );
        }
        Ok(trial)
    }
}

fn encode(pubsub: Option<Pubsub>) -> u64 {
    match pubsub {
        None => 1,
        Some(Pubsub::Sharded) => 2,
        Some(Pubsub::Plain) => 3,
    }
}

fn decode(code: u64) -> Option<Pubsub> {
    match code {
        2 => Some(Pubsub::Sharded),
        3 => Some(Pubsub::Plain),
        _ => None,
    }
}

/// What one command of a trial shows.
enum Shown {
    Works,
    /// The server knows it, and refuses it: the user lacks the right, or the server does not keep the slot of the channel.
    IsKnown,
    IsUnknown,
}

impl Trials {
    /// Makes the trial over a connection that is used for nothing else. `received` has the messages that it received, those of
    /// other trials included.
    async fn run(
        &self,
        connection: &MultiplexedConnection,
        mut received: watch::Receiver<Vec<Vec<u8>>>,
    ) -> RedisResult<Trial> {
        let mut denied = None;
        for pubsub in [Pubsub::Sharded, Pubsub::Plain] {
            let subscribed = if self.listens {
                let subscribe = redis::cmd(pubsub.subscribe()).arg(&self.channel).clone();
                let reply = send(connection, &subscribe).await?;
                let reply = reply.map(|reply| confirms(&reply, &self.channel));
                shown(pubsub.subscribe(), reply, &mut denied)?
            } else {
                Shown::IsKnown
            };
            let message = format!("? {}", Uuid::new_v4());
            let published = match subscribed {
                Shown::IsUnknown => Shown::IsUnknown,
                _ => {
                    let publish = self.publish(pubsub, message.clone());
                    let reply = send(connection, &publish).await?;
                    if is_dropped(&reply) {
                        return Ok(Trial { pubsub: Some(pubsub), denied });
                    }
                    let reply = reply.map(|reply| PUBLISH.decode(reply).is_ok());
                    shown(pubsub.publish(), reply, &mut denied)?
                }
            };
            let works = match (&subscribed, &published) {
                (Shown::IsUnknown, _) | (_, Shown::IsUnknown) => false,
                (Shown::Works, Shown::Works) => {
                    // A message from the same server is there before the reply to the next command.
                    let _time = send(connection, &redis::cmd("TIME")).await?;
                    let echo =
                        received.wait_for(|received| received.iter().any(|one| one == message.as_bytes()));
                    timeout(ECHO_LIMIT, echo).await.is_ok_and(|echo| echo.is_ok())
                }
                _ => true,
            };
            if matches!(subscribed, Shown::Works) {
                let unsubscribe = redis::cmd(pubsub.unsubscribe()).arg(&self.channel).clone();
                let reply = send(connection, &unsubscribe).await?;
                shown(pubsub.unsubscribe(), reply.map(|_| true), &mut denied)?;
            }
            if works {
                return Ok(Trial { pubsub: Some(pubsub), denied });
            }
        }
        Ok(Trial { pubsub: None, denied })
    }

    fn publish(&self, pubsub: Pubsub, message: String) -> Cmd {
        let notice = Notice { channel: self.channel.clone(), pubsub };
        PUBLISH.command(&Publish { notice, message })
    }

    /// Finds the command that publishes, over a connection that cannot subscribe. `send` sends a command.
    pub(super) async fn publish_only<F>(&self, send: impl Fn(Cmd) -> F) -> Result<Trial, CommandError>
    where
        F: Future<Output = Result<Value, CommandError>>,
    {
        let mut denied = None;
        for pubsub in [Pubsub::Sharded, Pubsub::Plain] {
            let reply = match send(self.publish(pubsub, format!("? {}", Uuid::new_v4()))).await {
                Ok(reply) => Ok(PUBLISH.decode(reply).is_ok()),
                Err(CommandError::ErrorReply(error)) => Err(error),
                Err(failure) => return Err(failure),
            };
            let published = shown(pubsub.publish(), reply, &mut denied).map_err(CommandError::ErrorReply)?;
            if !matches!(published, Shown::IsUnknown) {
                return Ok(Trial { pubsub: Some(pubsub), denied });
            }
        }
        Ok(Trial { pubsub: None, denied })
    }
}

/// Whether the server ended the subscription unasked, because the slot of the channel has moved to another server. The redis
/// crate takes this message for the reply to the command under way, and the replies after it for those of other commands.
fn is_dropped(reply: &Result<Value, RedisError>) -> bool {
    matches!(reply, Ok(Value::Push { kind: PushKind::SUnsubscribe, .. }))
}

/// The reply, or the error that is the reply.
async fn send(connection: &MultiplexedConnection, command: &Cmd) -> RedisResult<Result<Value, RedisError>> {
    Ok(value_or_error(connection.clone().req_packed_command(command).await?))
}

/// Returns what the reply shows. An `Ok` reply says whether it has the form that the command replies with.
///
/// # Errors
/// The server is in a temporary state, in which the trial has no result.
fn shown(
    command: &'static str,
    reply: Result<bool, RedisError>,
    denied: &mut Option<(&'static str, RedisError)>,
) -> RedisResult<Shown> {
    let error = match reply {
        Ok(true) => return Ok(Shown::Works),
        Ok(false) => return Ok(Shown::IsUnknown),
        Err(error) => error,
    };
    match probe_error(&error) {
        ProbeError::Denied => {
            denied.get_or_insert((command, error));
            Ok(Shown::IsKnown)
        }
        ProbeError::WrongNode => Ok(Shown::IsKnown),
        ProbeError::UnknownCommand | ProbeError::Other => Ok(Shown::IsUnknown),
        ProbeError::Temporary => Err(error),
    }
}

/// Whether this is the reply to a subscription. The redis crate may take an unasked message for the reply to the command
/// under way.
pub(super) fn confirms(reply: &Value, channel: &str) -> bool {
    matches!(reply, Value::Push { kind: PushKind::SSubscribe | PushKind::Subscribe, data }
        if data.first() == Some(&Value::BulkString(channel.as_bytes().to_vec())))
}
