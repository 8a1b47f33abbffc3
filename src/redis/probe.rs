//! Detects, when the backend connects, which commands the server lacks and which permissions the user lacks.

use redis::{Cmd, ErrorKind, Pipeline, RedisError, Value};

use super::RedisBackend;
use super::error::{Context, ProbeError, cause, probe_error};
use super::in_flight::CallInFlight;
use super::reply::CommandError;
use super::schema::FIELDS;
use crate::backend::StorageError;
use crate::printable::Chain;
use crate::scripts::{PROBE, Probe};

/// The commands that failed at the probe.
#[derive(Debug, Default)]
struct Lacking {
    /// The user may not run these.
    denied: Vec<String>,
    /// The server does not know these.
    unknown: Vec<String>,
    source: Option<RedisError>,
}

impl Lacking {
    /// Records a failed command. A temporary error, or one that concerns only the key of the probe, is not recorded: calls
    /// report it.
    fn record(&mut self, command: &str, error: RedisError) {
        let list = match probe_error(&error) {
            ProbeError::Denied => &mut self.denied,
            ProbeError::UnknownCommand => &mut self.unknown,
            ProbeError::WrongNode | ProbeError::Temporary | ProbeError::Other => {
                tracing::debug!(command, error = %Chain(&error), "a command of the probe failed");
                return;
            }
        };
        if !list.iter().any(|known| known == command) {
            list.push(command.to_owned());
        }
        self.source.get_or_insert(error);
    }

    fn result(self, address: &str, key: &str, channel: &str) -> Result<(), StorageError> {
        let address = address.to_owned();
        let source = self.source.map(cause);
        if !self.unknown.is_empty() {
            let unknown = self.unknown.join(", ");
            let reason = format!(
                "the server does not know commands that the backend needs, or has them disabled: {unknown}; enable them, or \
                 use Redis 6.2, Valkey 7.2 or newer"
            );
            return Err(StorageError::Backend { address, reason, outcome_unknown: false, source });
        }
        if self.denied.is_empty() {
            return Ok(());
        }
        let denied = self.denied.join(", ");
        let notifies = |command: &String| command.contains("PUBLISH") || command.contains("SUBSCRIBE");
        let without = match self.denied.iter().any(notifies) {
            true => ", or turn notifications off with notifications(false) on the builder",
            false => "",
        };
        let reason = format!(
            "the user lacks the permission to run {denied}, or the permission for the key {key} or the channel {channel}; \
             grant the permissions that docs/operations.md of mcp-task-store lists{without}"
        );
        Err(StorageError::Denied { address, reason, source })
    }
}

/// Returns whether the error does not show what the server lacks: the server is in a temporary state, or no master
/// serves the slot.
fn is_inconclusive(error: &RedisError) -> bool {
    probe_error(error) == ProbeError::Temporary || error.kind() == ErrorKind::ClusterConnectionNotFound
}

impl RedisBackend {
    /// Tries everything that calls need: scripts with each of their commands, plain commands over the connection for pages,
    /// and messages.
    ///
    /// # Errors
    /// `Denied` for missing permissions and `Backend` for missing commands. The error names them. `Unavailable` if a
    /// connection fails. A temporary state of the server is no error, because calls report it.
    pub(super) async fn probe(&self) -> Result<(), StorageError> {
        let backend = &self.0;
        let (key, channel) = (backend.schema.probe(), backend.schema.probe_channel());
        let context = self.reads(&key);
        let mut lacking = Lacking::default();
        self.probe_script(&context, &mut lacking).await?;
        self.probe_reads(&context, &mut lacking).await?;
        if backend.connection.unconfirmed().is_some() {
            // `WAIT` for 0 replicas returns at once.
            let mut wait = redis::cmd("WAIT");
            wait.arg(0).arg(1);
            self.probe_command("WAIT", &wait, &context, &mut lacking).await?;
        }
        if backend.publishes && lacking.source.is_none() {
            self.probe_messages(&channel, &context, &mut lacking).await?;
        }
        lacking.result(&backend.address, &key, &channel)
    }

    async fn probe_script(&self, context: &Context<'_>, lacking: &mut Lacking) -> Result<(), StorageError> {
        let script = PROBE.command(&Probe { probe: context.key.to_owned() });
        let Some(reply) = self.probe_command("EVAL", &script, context, lacking).await? else { return Ok(()) };
        let failed = PROBE.decode(reply).map_err(|error| context.unexpected(error))?;
        for (command, error) in failed.value.0 {
            let (code, detail) = error.split_once(' ').unwrap_or((&error, ""));
            let error = redis::make_extension_error(code.to_owned(), Some(detail.to_owned()));
            lacking.record(&command, error);
        }
        Ok(())
    }

    /// Returns the reply to a command; `None` if the server replied with an error, which is recorded.
    async fn probe_command(
        &self,
        name: &str,
        command: &Cmd,
        context: &Context<'_>,
        lacking: &mut Lacking,
    ) -> Result<Option<Value>, StorageError> {
        match self.0.connection.send(command, context.key, &CallInFlight::default()).await {
            Ok(reply) => Ok(Some(reply)),
            Err(CommandError::ErrorReply(error)) => {
                lacking.record(name, error);
                Ok(None)
            }
            Err(failure) => Err(context.storage_error(failure)),
        }
    }

    async fn probe_reads(&self, context: &Context<'_>, lacking: &mut Lacking) -> Result<(), StorageError> {
        let commands = [("HMGET", &FIELDS[..]), ("HSTRLEN", &FIELDS[..1]), ("EXISTS", &[][..])];
        let mut reads = Pipeline::with_capacity(commands.len());
        for (command, arguments) in commands {
            reads.cmd(command).arg(context.key).arg(arguments);
        }
        let replies = match self.0.bulk_connection.read_all(&reads, context.key).await {
            Ok(replies) => replies,
            Err(CommandError::ErrorReply(error)) => vec![Err(CommandError::ErrorReply(error))],
            Err(failure) => return Err(context.storage_error(failure)),
        };
        for ((command, _), reply) in commands.into_iter().zip(replies) {
            match reply {
                Ok(_) => {}
                Err(CommandError::ErrorReply(error)) => lacking.record(command, error),
                Err(failure) => return Err(context.storage_error(failure)),
            }
        }
        Ok(())
    }

    async fn probe_messages(
        &self,
        channel: &str,
        context: &Context<'_>,
        lacking: &mut Lacking,
    ) -> Result<(), StorageError> {
        if self.0.is_given {
            return self.probe_publishing(context, lacking).await;
        }
        let probed = async { self.0.connection.master_of(channel).await?.probe_pubsub().await };
        match probed.await {
            Ok(outcome) => {
                if let Some((command, error)) = outcome.and_then(|outcome| outcome.denied) {
                    lacking.record(command, error);
                }
                Ok(())
            }
            Err(error) if is_inconclusive(&error) => {
                tracing::debug!(error = %Chain(&error), "probing the Pub/Sub commands of the server failed");
                Ok(())
            }
            Err(error) => Err(context.storage_error(CommandError::NotSent(error))),
        }
    }

    /// Tries to publish over a connection of the caller, which cannot subscribe.
    async fn probe_publishing(
        &self,
        context: &Context<'_>,
        lacking: &mut Lacking,
    ) -> Result<(), StorageError> {
        match self.0.connection.pubsub(context.key).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                tracing::warn!(
                    "the server delivers no Pub/Sub messages (SPUBLISH, PUBLISH), so watches and workers of other processes poll"
                );
                Ok(())
            }
            Err(CommandError::ErrorReply(error)) => {
                lacking.record("PUBLISH", error);
                Ok(())
            }
            Err(failure) => Err(context.storage_error(failure)),
        }
    }
}
