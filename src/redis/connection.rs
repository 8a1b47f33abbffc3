//! The connection of a backend to its deployment: one server, the master that sentinels elect, or a cluster.

use std::sync::Arc;

use async_trait::async_trait;
use futures_core::future::BoxFuture;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, Value};
use tokio::runtime::Handle;

use super::in_flight::{CallInFlight, InFlight};
use super::master::Master;
use super::reply::{CommandError, Unconfirmed};
use crate::scripts::Pubsub;

/// A connection to a deployment. It finds the server for each command, and reconnects by itself.
///
/// No implementation sends a command again that may have reached a server.
#[async_trait]
pub(super) trait Connection: Send + Sync {
    /// Sends a command to the server that stores `key`, or to any server if the key is empty.
    ///
    /// Sets `in_flight` before the command can reach a server.
    async fn send(&self, command: &Cmd, key: &str, in_flight: &dyn InFlight) -> Result<Value, CommandError>;

    /// Sends a command that writes, and waits until the configured number of replicas has confirmed the write.
    fn write<'a>(
        &'a self,
        command: &'a Cmd,
        key: &'a str,
        in_flight: &'a dyn InFlight,
    ) -> BoxFuture<'a, Result<Value, CommandError>> {
        // An `async fn` would put the future of `send` into a second box.
        self.send(command, key, in_flight)
    }

    /// Sends several reads in one pipeline to the server that stores `key`. Each read has its own reply or error.
    async fn read_all(
        &self,
        reads: &Pipeline,
        key: &str,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError>;

    /// Returns the numbers of replicas for the error of a write without a reply; `None` if writes wait for no replicas.
    fn unconfirmed(&self) -> Option<Unconfirmed> {
        None
    }

    /// Probes the connection to the server of `key` after a call exceeded its time limit.
    fn timed_out(&self, _key: &str) {}

    /// Returns the master that stores `key`, for a further connection to it.
    async fn master_of(&self, _key: &str) -> RedisResult<Arc<Master>> {
        Err((ErrorKind::Client, "the address of the server is known only to the caller").into())
    }

    /// Returns once a master other than this one stores `key`.
    async fn master_changed(&self, _key: &str, _master: &Arc<Master>) {
        std::future::pending().await
    }

    /// Asks the nodes again which master stores which key. Call it when a reply or a message shows that this may have
    /// changed.
    fn refresh_topology(&self) {}

    /// Handles an error reply that arrived over a connection other than this one. Returns the error for the caller.
    fn on_error_reply(&self, error: RedisError) -> RedisError {
        error
    }

    /// Returns the masters, in the order of their slots.
    async fn masters(&self) -> Result<Vec<MasterOfSlots>, CommandError> {
        Ok(vec![MasterOfSlots::default()])
    }

    /// Returns whether keys are spread over several masters, so that the loss of one master affects only some calls.
    fn has_several_masters(&self) -> bool {
        false
    }

    /// Sends a command to one of the [`masters`](Self::masters).
    async fn send_to_master(&self, _master: &MasterOfSlots, command: &Cmd) -> Result<Value, CommandError> {
        self.send(command, "", &CallInFlight::default()).await
    }

    /// Returns the Pub/Sub commands that the server of `key` supports; `None` if it delivers no messages. Probes the server
    /// if they are not known.
    async fn detect_pubsub(&self, key: &str) -> Result<Option<Pubsub>, CommandError>;

    /// Returns what [`detect_pubsub`](Self::detect_pubsub) returns, if it would return at once.
    fn known_pubsub(&self, _key: &str) -> Option<Option<Pubsub>> {
        None
    }

    /// Returns the runtime that receives the replies; `None` if it is unknown.
    fn runtime(&self) -> Option<Handle> {
        None
    }

    /// Returns a number that grows when a connection breaks, and again when it is re-created, before the first command
    /// travels over the new connection.
    fn generation(&self) -> u64;
}

impl dyn Connection {
    /// Returns the Pub/Sub commands that the server of `key` supports; `None` if it delivers no messages.
    pub(super) async fn pubsub(&self, key: &str) -> Result<Option<Pubsub>, CommandError> {
        // Almost every write knows them, and needs no boxed future.
        match self.known_pubsub(key) {
            Some(known) => Ok(known),
            None => self.detect_pubsub(key).await,
        }
    }
}

/// A master of a cluster. Outside of a cluster, the default value stands for the one master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MasterOfSlots {
    /// The lowest slot that it serves.
    pub(super) slot: u16,
    pub(super) host: String,
    pub(super) port: u16,
}
