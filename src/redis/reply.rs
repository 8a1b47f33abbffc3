//! The reply to a command, and the reason why a command got none.

use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult, Value, make_extension_error};

use crate::scripts::UnexpectedReply;

/// Why a command did not succeed.
#[derive(Clone, Debug)]
pub(super) enum CommandError {
    /// The server replied with this error.
    ErrorReply(RedisError),
    /// No server ran the command: it was not sent, or a node replied with a redirection.
    NotSent(RedisError),
    /// No server ran the command, because no connection to this node could be made.
    #[cfg(feature = "redis-cluster")]
    Unreachable(String, RedisError),
    /// The command may have reached a server, and no reply arrived.
    NoReply(RedisError),
    /// The reply has a form that the caller does not expect.
    Unexpected(UnexpectedReply),
    /// The master may have applied the write, and too few replicas confirmed it.
    TooFewReplicas {
        replicas: Unconfirmed,
        /// The reply of the master, if it arrived.
        reply: Option<Value>,
        cause: Option<RedisError>,
    },
}

impl CommandError {
    /// A command that the connection did not send, because a caller has given up.
    pub(super) fn given_up() -> Self {
        Self::NotSent((ErrorKind::Client, "the caller has given up").into())
    }
}

/// How many replicas a write waited for, how many confirmed it, and for how long it waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unconfirmed {
    pub(super) wanted: u32,
    pub(super) acknowledged: u32,
    pub(super) within: Duration,
}

/// Returns the value, or the error that is the reply. The reply to a batch is a value, even if it has errors inside.
pub(super) fn value_or_error(reply: Value) -> RedisResult<Value> {
    match reply {
        Value::ServerError(error) => Err(without_arguments(error.into())),
        value => Ok(value),
    }
}

/// Returns the value with which the server replied to a command, or why there is none.
///
/// Only a value is certain to be the reply of a server. An error may come from the connection itself, so it says nothing
/// about what happened to the command.
pub(super) fn check_reply(reply: RedisResult<Value>) -> Result<Value, CommandError> {
    value_or_error(reply.map_err(CommandError::NoReply)?).map_err(CommandError::ErrorReply)
}

/// Returns the replies to a pipeline: one for each command.
pub(super) fn check_replies(
    replies: RedisResult<Vec<Value>>,
) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
    let values = replies.map_err(CommandError::NoReply)?;
    Ok(values.into_iter().map(|value| check_reply(Ok(value))).collect())
}

/// Returns the error without the arguments of the command. A server that does not know a command quotes them: passwords,
/// whole scripts, data of callers.
pub(super) fn without_arguments(error: RedisError) -> RedisError {
    let short = error.detail().and_then(|detail| Some(detail.split_once(", with args")?.0.to_owned()));
    match (error.code(), short) {
        (Some(code), Some(short)) => make_extension_error(code.to_owned(), Some(short)),
        _ => error,
    }
}

/// Returns whether the reply shows that a master has become a replica. Redis 6.2 wraps the code of an error inside a
/// script into the text of another error.
pub(super) fn is_from_replica(reply: &Value) -> bool {
    let Value::ServerError(error) = reply else { return false };
    error.code() == "READONLY" || error.details().is_some_and(|details| details.contains("READONLY "))
}

/// Returns whether the master refuses writes because it has too few replicas. A master that was cut off and deposed
/// refuses them.
pub(super) fn lacks_replicas(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "NOREPLICAS")
}

/// Returns whether the server no longer knows the user of the connection. A new connection presents its credentials
/// again.
pub(super) fn lacks_authentication(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "NOAUTH")
}
