//! The connections that receive messages.

use std::sync::{Arc, Weak};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, RedisResult, Value};
use tokio::sync::watch;

use super::ASKED_EVERY;
use crate::redis::Deployment;
use crate::redis::clock::server_time;
use crate::redis::master::Master;
use crate::redis::notifications::confirms;
use crate::redis::reply::value_or_error;
use crate::scripts::Pubsub;

/// A connection to one server that receives the messages of all its channels.
pub(super) struct PubsubConnection {
    pub(super) number: u64,
    pub(super) connection: MultiplexedConnection,
    pub(super) master: Arc<Master>,
    /// The master's epoch that the connection belongs to.
    pub(super) epoch: u64,
    /// Whether the connection may receive no more messages.
    pub(super) is_lost: watch::Sender<bool>,
}

impl PubsubConnection {
    pub(super) async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        value_or_error(self.connection.clone().send_packed_command(command).await?)
    }

    /// Subscribes with the commands that match those of the scripts.
    pub(super) async fn subscribe(&self, pubsub: Pubsub, channel: &str) -> RedisResult<()> {
        let reply = self.send(redis::cmd(pubsub.subscribe()).arg(channel)).await?;
        if !confirms(&reply, channel) {
            return Err((ErrorKind::UnexpectedReturnType, "the reply does not confirm a subscription").into());
        }
        Ok(())
    }

    /// Ends a subscription, if there is one.
    pub(super) async fn unsubscribe(&self, pubsub: Option<Pubsub>, channel: &str) -> RedisResult<()> {
        match pubsub {
            Some(pubsub) => self.send(redis::cmd(pubsub.unsubscribe()).arg(channel)).await.map(drop),
            None => Ok(()),
        }
    }
}

/// Detects a server that hangs, and newer connections that lead to another server.
pub(super) async fn keep_asking(connection: Weak<PubsubConnection>, deployment: Weak<Deployment>) {
    loop {
        tokio::time::sleep(ASKED_EVERY).await;
        let (Some(connection), Some(deployment)) = (connection.upgrade(), deployment.upgrade()) else {
            return;
        };
        if *connection.is_lost.borrow() {
            return;
        }
        let sent = deployment.clock.moment();
        // A process that sends no calls observes the server's clock here.
        match connection.send(&redis::cmd("TIME")).await.ok().as_ref().and_then(server_time) {
            Some(server_us) if connection.master.epochs().is_current(connection.epoch) => {
                deployment.clock.observe(server_us, sent);
            }
            _ => deployment.subscriptions.iter().for_each(|subscriptions| subscriptions.abandon(&connection)),
        }
    }
}

/// Returns once a probe shows that the server delivers messages with other commands than `assumed`. The process assumed
/// these commands while no probe was possible.
pub(super) async fn wrong_commands(connection: &PubsubConnection, assumed: Option<Pubsub>) {
    loop {
        match connection.master.known_pubsub(connection.epoch) {
            Some(known) if known == assumed => std::future::pending().await,
            Some(_) => return,
            None => {}
        }
        tokio::time::sleep(ASKED_EVERY).await;
        connection.master.pubsub().await;
    }
}
