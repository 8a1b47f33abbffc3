//! The Lua scripts of the Redis engine: each file of `lua/` as a typed [`Script`] in a static.
//!
//! A script is sent as plain `EVAL` with its text every time, so that no server has to remember it; the
//! text is made short once, when the static is built. The type of the arguments
//! knows the keys and their order, so a caller cannot pass them wrongly, and the type of the reply knows
//! how to read it. The headers of the Lua files say the same in words; a test holds the two together.

mod cas_put;
mod delete;
mod list;
mod minify;
mod probe;
mod publish;
mod put;
mod reap;
mod refusal;
mod resolve;
mod schedule;
mod take_due;

use std::marker::PhantomData;

use redis::{Cmd, ToRedisArgs, Value};

use chrono::{DateTime, Utc};

use crate::backend::Version;
use crate::backend::engine::from_millis;

pub(crate) use cas_put::{CAS_PUT, CasPut, Kept};
pub(crate) use delete::{DELETE, Delete};
pub(crate) use list::{LIST, List, Listed};
use minify::minify;
pub(crate) use probe::{PROBE, Probe};
pub(crate) use publish::{PUBLISH, Publish};
pub(crate) use put::{ExpiryArgument, PUT, Put, Replaces};
pub(crate) use reap::{REAP, Reap};
pub(crate) use refusal::{Found, Refusal};
pub(crate) use resolve::{RESOLVE, Resolve, Resolved};
pub(crate) use schedule::{SCHEDULE, Schedule};
pub(crate) use take_due::{FoundTimers, QueueState, TAKE_DUE, TakeDue, score};

/// The pieces that several scripts share, by the name in `-- @include NAME`.
const FRAGMENTS: [(&str, &str); 5] = [
    ("found", include_str!("../../lua/include/found.lua")),
    ("index", include_str!("../../lua/include/index.lua")),
    ("parts", include_str!("../../lua/include/parts.lua")),
    ("score", include_str!("../../lua/include/score.lua")),
    ("wake", include_str!("../../lua/include/wake.lua")),
];

/// A script that takes `A` and replies `R`.
pub(crate) struct Script<A, R> {
    text: String,
    types: PhantomData<fn(A) -> R>,
}

impl<A: Arguments, R: Reply> Script<A, R> {
    fn new(source: &str) -> Self {
        Self { text: minify(&whole(source)), types: PhantomData }
    }

    /// The `EVAL` of this script.
    pub(crate) fn command(&self, arguments: &A) -> Cmd {
        let size = self.text.len() + arguments.payload() + TYPICAL_SIZE;
        let mut command = Cmd::with_capacity(TYPICAL_COUNT, size);
        command.arg("EVAL").arg(&self.text).arg(arguments.key_count());
        arguments.encode(&mut command);
        command
    }

    /// Reads the reply. Scripts that succeed reply with the server's clock as well.
    pub(crate) fn decode(&self, reply: Value) -> Result<R, UnexpectedReply> {
        R::decode(reply).ok_or(UnexpectedReply)
    }
}

/// Room for the arguments of one record's script beside its data, so that a command is not moved as it grows.
const TYPICAL_COUNT: usize = 12;
const TYPICAL_SIZE: usize = 384;

/// The arguments of one script, in the order of its header.
pub(crate) trait Arguments {
    fn key_count(&self) -> usize;
    /// The bytes of data among them.
    fn payload(&self) -> usize {
        0
    }
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

/// The keys of a record: its owner's index, and its hash.
#[derive(Debug)]
pub(crate) struct RecordKeys {
    pub(crate) idx: String,
    pub(crate) task: String,
}

impl RecordKeys {
    fn encode(&self, to: &mut impl Encoder) {
        to.key("idx", &self.idx);
        to.key("task", &self.task);
    }
}

/// The commands with which a server passes on messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pubsub {
    /// Within the shard of the channel; from Redis 7 on.
    Sharded,
    Plain,
}

impl Pubsub {
    pub(crate) const fn publish(self) -> &'static str {
        match self {
            Self::Sharded => "SPUBLISH",
            Self::Plain => "PUBLISH",
        }
    }

    pub(crate) const fn subscribe(self) -> &'static str {
        match self {
            Self::Sharded => "SSUBSCRIBE",
            Self::Plain => "SUBSCRIBE",
        }
    }

    pub(crate) const fn unsubscribe(self) -> &'static str {
        match self {
            Self::Sharded => "SUNSUBSCRIBE",
            Self::Plain => "UNSUBSCRIBE",
        }
    }
}

/// Where a write is published, and with which command.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) channel: String,
    pub(crate) pubsub: Pubsub,
}

/// `None` notifies nobody.
fn encode_notice(notice: Option<&Notice>, to: &mut impl Encoder) {
    let (channel, publish) = match notice {
        Some(Notice { channel, pubsub }) => (&channel[..], pubsub.publish()),
        None => ("", ""),
    };
    to.arg("channel", channel);
    to.arg("publish", publish);
}

/// An integer, as a number or as text.
pub(crate) fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// A decimal integer from 1 to 2^53 - 1 without leading zeros, as the scripts write and accept it.
pub(crate) fn exact(text: &str) -> Option<u64> {
    if !text.starts_with(|c: char| matches!(c, '1'..='9')) {
        return None;
    }
    text.parse().ok().filter(|number| *number <= Version::MAX.get())
}

/// The two parts of a `TIME` reply in microseconds.
pub(crate) fn micros(seconds: &Value, microseconds: &Value) -> Option<u64> {
    integer(seconds)?.checked_mul(1_000_000)?.checked_add(integer(microseconds)?)
}

/// The words of a text that begins with the server's clock, which is given in microseconds.
fn timed_words<const N: usize>(reply: &Value) -> Option<(u64, [&str; N])> {
    let Value::BulkString(text) = reply else { return None };
    let mut words = std::str::from_utf8(text).ok()?.split(' ');
    let (seconds, microseconds) = (words.next()?.parse::<u64>().ok()?, words.next()?.parse().ok()?);
    let server_us = seconds.checked_mul(1_000_000)?.checked_add(microseconds)?;
    let rest: Vec<&str> = words.collect();
    Some((server_us, rest.try_into().ok()?))
}

/// An expiry as the scripts reply it, '' for never.
fn expiry(millis: &str) -> Option<Option<DateTime<Utc>>> {
    match millis {
        "" => Some(None),
        millis => Some(Some(from_millis(millis.parse().ok()?))),
    }
}

/// Puts the included fragments in.
fn whole(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    for line in source.lines() {
        match line.trim_start().strip_prefix("-- @include ") {
            None => text.push_str(line),
            Some(name) => {
                let fragment = FRAGMENTS.iter().filter(|(fragment, _)| *fragment == name);
                fragment.for_each(|(_, fragment)| text.push_str(fragment));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
