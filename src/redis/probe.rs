//! Finds out at the start what the server and the rights of the user lack.

use redis::{ErrorKind, Pipeline, RedisError};

use super::RedisBackend;
use super::error::{ProbeError, cause, probe_error};
use super::reply::{CommandError, InFlight};
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
    /// Records a failed command. A temporary error, or one that concerns only the key of the probe, does not fail the connect:
    /// calls report it.
    fn note(&mut self, command: &str, error: RedisError) {
        let list = match probe_error(&error) {
            ProbeError::Denied => &mut self.denied,
            ProbeError::UnknownCommand => &mut self.unknown,
            ProbeError::WrongNode | ProbeError::Temporary | ProbeError::Other => {
                tracing::debug!(command, error = %Chain(&error), "a command failed that was tried out");
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
                "the server does not know commands that are needed, or has them disabled: {unknown}; enable them, or use \
                         Redis 6.2, Valkey 7.2 or newer"
            );
            return Err(StorageError::Backend { address, reason, outcome_unknown: false, source });
        }
        if self.denied.is_empty() {
            return Ok(());
        }
        let denied = self.denied.join(", ");
        let notifies = |command: &String| command.contains("PUBLISH") || command.contains("SUBSCRIBE");
        let without = match self.denied.iter().any(notifies) {
            true => ", or do without notifications by notifications(false) on the builder",
            false => "",
        };
        let reason = format!(
            "the user lacks the right to run {denied}, or lacks the right to the key {key} or to the channel {channel}; grant \
             the rights that docs/operations.md of mcp-task-store lists{without}"
        );
        Err(StorageError::Denied { address, reason, source })
    }
}

/// Whether the error says nothing about what the server lacks: its state is temporary, or no server keeps the slot.
fn is_passing(error: &RedisError) -> bool {
    probe_error(error) == ProbeError::Temporary || error.kind() == ErrorKind::ClusterConnectionNotFound
}

impl RedisBackend {
    /// Tries everything that calls will need: scripts with each of their commands, plain commands over the other connection,
    /// messages.
    ///
    /// # Errors
    /// `Denied` for rights and `Backend` for commands that are missing; the error names them. `Unavailable` if a connection
    /// fails. A temporary state of the server is no error, as calls report it.
    pub(super) async fn probe(&self) -> Result<(), StorageError> {
        let inner = &self.0;
        let (key, channel) = (inner.schema.probe(), inner.schema.probe_channel());
        let context = self.reads(&key);
        let mut lacking = Lacking::default();
        let in_flight = InFlight::default();
        match inner.connection.send(&PROBE.command(&Probe { probe: key.clone() }), &key, &in_flight).await {
            Ok(reply) => {
                let failed = PROBE.decode(reply).map_err(|error| context.unexpected(error))?;
                for (command, words) in failed.value.0 {
                    let (code, detail) = words.split_once(' ').unwrap_or((&words, ""));
                    let error = redis::make_extension_error(code.to_owned(), Some(detail.to_owned()));
                    lacking.note(&command, error);
                }
            }
            Err(CommandError::ErrorReply(error)) => lacking.note("EVAL", error),
            Err(failure) => return Err(context.storage_error(failure)),
        }
        let plain = [("HMGET", &FIELDS[..]), ("HSTRLEN", &FIELDS[..1]), ("EXISTS", &[][..])];
        let mut reads = Pipeline::with_capacity(plain.len());
        for (command, arguments) in plain {
            reads.cmd(command).arg(&key).arg(arguments);
        }
        let replies = match inner.bulk_connection.read_all(&reads, &key).await {
            Ok(replies) => replies,
            Err(CommandError::ErrorReply(error)) => vec![Err(CommandError::ErrorReply(error))],
            Err(failure) => return Err(context.storage_error(failure)),
        };
        for ((command, _), reply) in plain.into_iter().zip(replies) {
            match reply {
                Ok(_) => {}
                Err(CommandError::ErrorReply(error)) => lacking.note(command, error),
                Err(failure) => return Err(context.storage_error(failure)),
            }
        }
        if inner.connection.unconfirmed().is_some() {
            // For no replica, so that it returns at once.
            let mut wait = redis::cmd("WAIT");
            wait.arg(0).arg(1);
            match inner.connection.send(&wait, &key, &in_flight).await {
                Ok(_) => {}
                Err(CommandError::ErrorReply(error)) => lacking.note("WAIT", error),
                Err(failure) => return Err(context.storage_error(failure)),
            }
        }
        if inner.publishes && lacking.source.is_none() {
            self.probe_messages(&key, &channel, &mut lacking).await?;
        }
        lacking.result(&inner.address, &key, &channel)
    }

    async fn probe_messages(
        &self,
        key: &str,
        channel: &str,
        lacking: &mut Lacking,
    ) -> Result<(), StorageError> {
        let context = self.reads(key);
        if !self.0.is_given {
            let tried = async { self.0.connection.master_of(channel).await?.try_pubsub().await };
            match tried.await {
                Ok(trial) => {
                    if let Some((command, error)) = trial.and_then(|trial| trial.denied) {
                        lacking.note(command, error);
                    }
                }
                Err(error) if is_passing(&error) => {
                    tracing::debug!(error = %Chain(&error), "how notifications travel could not be tried out");
                }
                Err(error) => return Err(context.storage_error(CommandError::NotSent(error))),
            }
            return Ok(());
        }
        match self.0.connection.pubsub(key).await {
            Ok(Some(_)) => {}
            Ok(None) => tracing::warn!(
                "the server passes on no messages (SPUBLISH, PUBLISH): watches and workers of other processes poll"
            ),
            Err(CommandError::ErrorReply(error)) => lacking.note("PUBLISH", error),
            Err(failure) => return Err(context.storage_error(failure)),
        }
        Ok(())
    }
}
