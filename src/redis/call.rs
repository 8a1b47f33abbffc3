//! One call: its time limit, its connection, and the server's clock in its reply.

use std::future::Future;
use std::pin::Pin;

use chrono::{DateTime, Utc};
use redis::{Cmd, Value};
use tracing::{Instrument, Span};

use super::RedisBackend;
use super::clock::server_time;
use super::connection::Connection;
use super::error::Context;
use super::in_flight::InFlight;
use super::reply::{CommandError, Unconfirmed};
use crate::backend::engine::from_micros;
use crate::backend::{OwnerId, StorageBackend, StorageError};
use crate::scripts::{Arguments, Notice, Pubsub, Reply, Script, Timed, UnexpectedReply};
use crate::spans;

impl RedisBackend {
    pub(super) fn reads<'a>(&'a self, key: &'a str) -> Context<'a> {
        Context::reads(&self.0.address, key)
    }

    /// Returns the connection for a call.
    pub(super) fn connection(&self, context: &Context<'_>) -> &dyn Connection {
        if context.is_bulk { &*self.0.bulk_connection } else { &*self.0.connection }
    }

    pub(super) fn writes<'a>(&'a self, key: &'a str) -> Context<'a> {
        Context { writes: true, ..self.reads(key) }
    }

    /// Runs a whole call in its span and under one time limit.
    ///
    /// The caller pins the future. Passed by value, it would add its size to the future of every function that passes
    /// it on.
    pub(super) async fn limited<T>(
        &self,
        span: Span,
        context: &Context<'_>,
        call: Pin<&mut (dyn Future<Output = Result<T, StorageError>> + Send)>,
    ) -> Result<T, StorageError> {
        let limit = self.0.limit;
        spans::engine_call(&span, &self.0.database);
        let in_time = tokio::time::timeout(limit, call.instrument(span.clone())).await;
        let answer = in_time.unwrap_or_else(|_| {
            self.connection(context).timed_out(context.key);
            Err(match self.unconfirmed(context) {
                Some(replicas) if context.in_flight.give_up() => {
                    context.storage_error(CommandError::TooFewReplicas { replicas, reply: None, cause: None })
                }
                _ => context.timed_out(limit),
            })
        });
        spans::engine_answered(&span, &answer);
        answer
    }

    pub(super) async fn send(&self, command: &Cmd, context: &Context<'_>) -> Result<Value, StorageError> {
        let reply = if context.writes {
            self.connection(context).write(command, context.key, &context.in_flight).await
        } else {
            self.connection(context).send(command, context.key, &context.in_flight).await
        };
        context.in_flight.clear();
        reply.map_err(|failure| self.failed(failure, context))
    }

    /// Returns the error of a command that did not succeed.
    pub(super) fn failed(&self, failure: CommandError, context: &Context<'_>) -> StorageError {
        context.storage_error(match (failure, self.unconfirmed(context)) {
            (CommandError::NoReply(error), Some(replicas)) => {
                CommandError::TooFewReplicas { replicas, reply: None, cause: Some(error) }
            }
            (failure, _) => failure,
        })
    }

    /// Returns the numbers of replicas for the error of a write without a reply; `None` if the write waits for no
    /// replicas.
    fn unconfirmed(&self, context: &Context<'_>) -> Option<Unconfirmed> {
        self.0.connection.unconfirmed().filter(|_| context.writes)
    }

    /// Runs a script and observes the server's clock in its reply.
    pub(super) async fn run<A, T>(
        &self,
        script: &Script<A, T>,
        arguments: &A,
        context: &Context<'_>,
    ) -> Result<T, StorageError>
    where
        A: Arguments,
        T: Reply,
    {
        let sent = self.0.clock.moment();
        let reply = self.send(&script.command(arguments), context).await?;
        let reply = script.decode(reply).map_err(|error| context.unexpected(error))?;
        self.0.clock.observe(reply.server_us, sent);
        Ok(reply.value)
    }

    /// Runs a script without waiting for replicas. Returns the server's clock too.
    pub(super) async fn run_on_master<A, T>(
        &self,
        script: &Script<A, T>,
        arguments: &A,
        context: &Context<'_>,
    ) -> Result<Timed<T>, StorageError>
    where
        A: Arguments,
        T: Reply,
    {
        let sent = self.0.clock.moment();
        let reply = self.0.connection.send(&script.command(arguments), context.key, &context.in_flight).await;
        let reply = reply.map_err(|failure| context.storage_error(failure))?;
        let reply = script.decode(reply).map_err(|error| context.unexpected(error))?;
        self.0.clock.observe(reply.server_us, sent);
        Ok(reply)
    }

    /// Reads the clock of the server that stores `key`, in microseconds.
    pub(super) async fn read_clock(&self, key: &str) -> Result<u64, StorageError> {
        let context = self.reads(key);
        let sent = self.0.clock.moment();
        let time = self.send(&redis::cmd("TIME"), &context).await?;
        let server_us = server_time(&time).ok_or_else(|| context.unexpected(UnexpectedReply))?;
        self.0.clock.observe(server_us, sent);
        Ok(server_us)
    }

    /// Returns whether a record that the server returned has expired. This is rare, because the server removes expired
    /// records itself. It happens after somebody removed the expiry by hand, or after the clock stepped back. The
    /// server's clock decides. This method reads it only if the record may have expired.
    pub(super) async fn has_expired(
        &self,
        key: &str,
        expires_at: Option<DateTime<Utc>>,
    ) -> Result<bool, StorageError> {
        let Some(at) = expires_at.filter(|at| *at <= self.now()) else {
            return Ok(false);
        };
        Ok(at <= from_micros(self.read_clock(key).await?))
    }

    /// Returns the channel of this owner's subscribers; `None` if the write sends no notification.
    pub(super) fn channel(&self, owner: &OwnerId, notifies: bool) -> Option<String> {
        (self.0.publishes && notifies).then(|| self.0.schema.channel(owner))
    }

    /// Returns how a script notifies the subscribers of this channel.
    pub(super) async fn notice(
        &self,
        channel: Option<String>,
        context: &Context<'_>,
    ) -> Result<Option<Notice>, StorageError> {
        let Some(channel) = channel else { return Ok(None) };
        let pubsub = self.pubsub(true, context).await?;
        Ok(pubsub.map(|pubsub| Notice { channel, pubsub }))
    }

    /// Returns the Pub/Sub commands of the server; `None` if the write sends no notification.
    pub(super) async fn pubsub(
        &self,
        notifies: bool,
        context: &Context<'_>,
    ) -> Result<Option<Pubsub>, StorageError> {
        if !notifies {
            return Ok(None);
        }
        let pubsub = self.0.connection.pubsub(context.key).await;
        pubsub.map_err(|failure| context.storage_error(failure))
    }
}
