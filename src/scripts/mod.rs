//! The Lua scripts of the Redis engine: each file of `lua/` as a typed [`Script`] in a static.
//!
//! A script is sent as plain `EVAL` with its text every time, so that no server has to remember it; the
//! text is stripped of comments and indentation once, when the static is built. The type of the arguments
//! knows the keys and their order, so a caller cannot pass them wrongly, and the type of the reply knows
//! how to read it. The headers of the Lua files say the same in words; a test holds the two together.

mod cas_put;
mod delete;
mod list;
mod put;
mod reap;
mod refusal;

use std::marker::PhantomData;

use redis::{Cmd, ToRedisArgs, Value};

pub(crate) use cas_put::{CAS_PUT, CasPut};
pub(crate) use delete::{DELETE, Delete};
pub(crate) use list::{LIST, List, Listed};
pub(crate) use put::{ExpiryArgument, PUT, Put, Replaces};
pub(crate) use reap::{REAP, Reap};
pub(crate) use refusal::Refusal;

/// The pieces that several scripts share, by the name in `-- @include NAME`.
const FRAGMENTS: [(&str, &str); 3] = [
    ("number", include_str!("../../lua/include/number.lua")),
    ("index", include_str!("../../lua/include/index.lua")),
    ("record", include_str!("../../lua/include/record.lua")),
];

/// A script that takes `A` and replies `R`.
pub(crate) struct Script<A, R> {
    text: String,
    types: PhantomData<fn(A) -> R>,
}

impl<A: Arguments, R: Reply> Script<A, R> {
    fn new(source: &str) -> Self {
        Self { text: strip(source), types: PhantomData }
    }

    /// The `EVAL` of this script.
    pub(crate) fn command(&self, arguments: &A) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(&self.text).arg(arguments.key_count());
        arguments.encode(&mut command);
        command
    }

    /// Reads the reply. Scripts that succeed reply with the server's clock as well.
    pub(crate) fn decode(&self, reply: Value) -> Result<R, UnexpectedReply> {
        R::decode(reply).ok_or(UnexpectedReply)
    }
}

/// The arguments of one script, in the order of its header.
pub(crate) trait Arguments {
    fn key_count(&self) -> usize;
    /// Names each value as the header of the script does: all keys, then all others.
    fn encode(&self, to: &mut impl Encoder);
}

/// Where arguments go: to the command, or in a test to the list of their names.
pub(crate) trait Encoder {
    fn key(&mut self, name: &'static str, key: &str);
    fn arg(&mut self, name: &'static str, value: impl ToRedisArgs);
}

impl Encoder for Cmd {
    fn key(&mut self, _name: &'static str, key: &str) {
        Cmd::arg(self, key);
    }

    fn arg(&mut self, _name: &'static str, value: impl ToRedisArgs) {
        Cmd::arg(self, value);
    }
}

/// The reply of one script; `None` if it is not of the form that the header promises.
pub(crate) trait Reply: Sized {
    fn decode(reply: Value) -> Option<Self>;
}

/// The server replied something that no script of ours replies.
#[derive(Debug, thiserror::Error)]
#[error("the reply is not of the form that the script gives")]
pub(crate) struct UnexpectedReply;

/// A reply that came with the server's clock, in microseconds since the epoch.
#[derive(Debug)]
pub(crate) struct Timed<T> {
    pub(crate) value: T,
    pub(crate) server_us: u64,
}

/// The three keys of a record: those of its owner's index, and its hash.
#[derive(Debug)]
pub(crate) struct RecordKeys {
    pub(crate) idx: String,
    pub(crate) exp: String,
    pub(crate) task: String,
}

impl RecordKeys {
    fn encode(&self, to: &mut impl Encoder) {
        to.key("idx", &self.idx);
        to.key("exp", &self.exp);
        to.key("task", &self.task);
    }
}

/// An integer, as a number or as text.
pub(crate) fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// The two parts of a `TIME` reply in microseconds.
pub(crate) fn micros(seconds: &Value, microseconds: &Value) -> Option<u64> {
    integer(seconds)?.checked_mul(1_000_000)?.checked_add(integer(microseconds)?)
}

/// Puts the included fragments in, and drops what the server need not read: comments on lines of their
/// own, indentation, empty lines.
fn strip(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    for line in source.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("-- @include ") {
            for (_, fragment) in FRAGMENTS.iter().filter(|(fragment, _)| *fragment == name) {
                text.push_str(&strip(fragment));
            }
        } else if !line.is_empty() && !line.starts_with("--") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests;
