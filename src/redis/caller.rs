//! A connection that the caller made.

use async_trait::async_trait;
use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, Value};
use tokio::sync::OnceCell;

use super::connection::Connection;
use super::generation::Generation;
use super::notifications::Trials;
use super::reply::{CommandError, InFlight, check_replies, check_reply};
use crate::scripts::Pubsub;

/// A connection that the caller made. It may reconnect undetected.
pub(super) struct CallerConnection<C> {
    connection: C,
    generation: Generation,
    /// `None` if writes are not published over this connection.
    trials: Option<Trials>,
    /// The commands that publish messages, once they are known.
    pubsub: OnceCell<Option<Pubsub>>,
}

impl<C> CallerConnection<C> {
    /// `trials`: where to try out how messages are published, if they are.
    pub(super) fn new(connection: C, trials: Option<Trials>) -> Self {
        let generation = Generation::of_caller_connections();
        Self { connection, generation, trials, pubsub: OnceCell::new() }
    }
}

#[async_trait]
impl<C: ConnectionLike + Clone + Send + Sync + 'static> Connection for CallerConnection<C> {
    async fn send(&self, command: &Cmd, _key: &str, in_flight: &InFlight) -> Result<Value, CommandError> {
        in_flight.set();
        check_reply(self.connection.clone().req_packed_command(command).await)
    }

    async fn read_all(
        &self,
        reads: &Pipeline,
        _key: &str,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        check_replies(self.connection.clone().req_packed_commands(reads, 0, reads.len()).await)
    }

    async fn pubsub(&self, _key: &str) -> Result<Option<Pubsub>, CommandError> {
        let Some(trials) = &self.trials else { return Ok(None) };
        let publish = async || {
            let send = |command: Cmd| {
                let mut connection = self.connection.clone();
                async move { check_reply(connection.req_packed_command(&command).await) }
            };
            let trial = trials.publish_only(send).await?;
            match trial.denied {
                // The result is not kept, because an administrator may grant the right later.
                Some((_, error)) => Err(CommandError::ErrorReply(error)),
                None => Ok(trial.pubsub),
            }
        };
        self.pubsub.get_or_try_init(publish).await.copied()
    }

    fn generation(&self) -> u64 {
        self.generation.get()
    }
}
