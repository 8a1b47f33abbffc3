//! A connection that the caller made.

use async_trait::async_trait;
use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, Value};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

use super::connection::Connection;
use super::generation::Generation;
use super::in_flight::InFlight;
use super::notifications::PubsubProbe;
use super::reply::{CommandError, check_replies, check_reply};
use crate::scripts::Pubsub;

/// A connection that the caller made. It may reconnect undetected.
pub(super) struct CallerConnection<C> {
    connection: C,
    /// The runtime on which the caller gave the connection.
    runtime: Option<Handle>,
    generation: Generation,
    /// How to probe the Pub/Sub commands; `None` if nothing is published over this connection.
    probe: Option<PubsubProbe>,
    /// The commands that publish messages, once they are known.
    pubsub: OnceCell<Option<Pubsub>>,
}

impl<C> CallerConnection<C> {
    /// Wraps a connection. `probe`: how to probe the Pub/Sub commands; `None` if nothing is published over this
    /// connection.
    pub(super) fn new(connection: C, probe: Option<PubsubProbe>) -> Self {
        let generation = Generation::of_caller_connections();
        let runtime = Handle::try_current().ok();
        Self { connection, runtime, generation, probe, pubsub: OnceCell::new() }
    }
}

#[async_trait]
impl<C: ConnectionLike + Clone + Send + Sync + 'static> Connection for CallerConnection<C> {
    async fn send(&self, command: &Cmd, _key: &str, in_flight: &dyn InFlight) -> Result<Value, CommandError> {
        if !in_flight.set() {
            return Err(CommandError::given_up());
        }
        check_reply(self.connection.clone().req_packed_command(command).await)
    }

    async fn read_all(
        &self,
        reads: &Pipeline,
        _key: &str,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        check_replies(self.connection.clone().req_packed_commands(reads, 0, reads.len()).await)
    }

    async fn detect_pubsub(&self, _key: &str) -> Result<Option<Pubsub>, CommandError> {
        let Some(probe) = &self.probe else { return Ok(None) };
        let publish = async || {
            let send = |command: Cmd| {
                let mut connection = self.connection.clone();
                async move { check_reply(connection.req_packed_command(&command).await) }
            };
            let outcome = probe.publish_only(send).await?;
            match outcome.denied {
                // The backend does not keep this result, because an administrator may grant the permission later.
                Some((_, error)) => Err(CommandError::ErrorReply(error)),
                None => Ok(outcome.pubsub),
            }
        };
        self.pubsub.get_or_try_init(publish).await.copied()
    }

    fn known_pubsub(&self, _key: &str) -> Option<Option<Pubsub>> {
        self.pubsub.get().copied()
    }

    fn runtime(&self) -> Option<Handle> {
        self.runtime.clone()
    }

    fn generation(&self) -> u64 {
        self.generation.get()
    }
}
