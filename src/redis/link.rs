//! The ways to a server, and what a failure on the way says about the command.

use async_trait::async_trait;
use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};

use crate::TooFewReplicas;

/// A way to the servers. No way sends a command again that may have reached a server.
#[async_trait]
pub(super) trait Link: Send + Sync {
    /// Sends a command to the server that keeps `key`.
    async fn send(&self, command: &Cmd, key: &str) -> Result<Value, Failure>;

    /// Sends a command that writes, and waits for as many replicas as the way promises: none, unless it says so.
    async fn write(&self, command: &Cmd, key: &str) -> Result<Value, Failure> {
        self.send(command, key).await
    }

    /// Sends reads in one go to the server that keeps `key`; each has a reply or an error of its own.
    async fn read_all(&self, reads: &Pipeline, key: &str) -> Result<Vec<Result<Value, Failure>>, Failure>;

    /// Is told that a call about `key` got no reply within its time limit.
    fn timed_out(&self, _key: &str) {}
}

/// Why a command has no good reply.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server replied with this error.
    Replied(RedisError),
    /// No server ran the command: it was not sent, or another server was named in reply.
    Unsent(RedisError),
    /// The command may have been sent, and no reply came.
    Unanswered(RedisError),
    /// The command was run, and fewer replicas than wanted have it.
    TooFewReplicas(TooFewReplicas),
}

impl Failure {
    /// Judges what a connection of the redis crate gave for a command.
    ///
    /// Connections that look after several servers give an error of their own in place of a reply, and may
    /// make it of what *another* command was told. So only the replies that no such command gets are taken for
    /// the reply to this one.
    pub(super) fn judge(reply: RedisResult<Value>) -> Result<Value, Self> {
        match reply {
            Ok(value) => value.extract_error().map_err(Self::Replied),
            Err(error) => Err(Self::of(error)),
        }
    }

    /// The same for a pipeline.
    pub(super) fn judge_all(replies: RedisResult<Vec<Value>>) -> Result<Vec<Result<Value, Self>>, Self> {
        let values = replies.map_err(Self::of)?;
        Ok(values.into_iter().map(|value| Self::judge(Ok(value))).collect())
    }

    fn of(error: RedisError) -> Self {
        use ServerErrorKind::{Ask, ClusterDown, CrossSlot, MasterDown, Moved, ReadOnly, TryAgain};
        match error.kind() {
            ErrorKind::Server(Ask | ClusterDown | CrossSlot | MasterDown | Moved | ReadOnly | TryAgain) => {
                Self::Replied(error)
            }
            _ => Self::Unanswered(error),
        }
    }
}

/// A connection that the caller made.
pub(super) struct Given<C>(pub(super) C);

#[async_trait]
impl<C: ConnectionLike + Clone + Send + Sync + 'static> Link for Given<C> {
    async fn send(&self, command: &Cmd, _key: &str) -> Result<Value, Failure> {
        Failure::judge(self.0.clone().req_packed_command(command).await)
    }

    async fn read_all(&self, reads: &Pipeline, _key: &str) -> Result<Vec<Result<Value, Failure>>, Failure> {
        Failure::judge_all(self.0.clone().req_packed_commands(reads, 0, reads.len()).await)
    }
}
