//! The Lua scripts of the Redis engine: each file of `lua/` as a typed [`Script`] in a static.
//!
//! Each call sends the text of the script with plain `EVAL`, so the server does not have to store it. The text is
//! minified once, when the static is built. The Rust type of the arguments defines the keys and their order. The header
//! of each Lua file documents them, and a test compares the two.
//!
//! All scripts reply in one form: a line of words. The first two words are the server's clock. A script whose reply has
//! lists returns an array of that line and the lists. A refusal is an error reply, `CODE detail`.

mod audit;
mod cas_put;
mod delete;
mod inline;
mod insert;
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
mod words;

use std::marker::PhantomData;

use chrono::{DateTime, Utc};
use redis::{Cmd, ToRedisArgs, Value};
use smallvec::SmallVec;

use crate::backend::Version;
use crate::backend::engine::from_millis;

pub(crate) use audit::{AUDIT, Audit, Audited, RecordState};
pub(crate) use cas_put::{CAS_PUT, CAS_PUT_BATCH, CasPut, CasPuts, Kept};
pub(crate) use delete::{DELETE, Delete};
pub(crate) use insert::{CREATE, Create, INSERT, Insert, InsertTimer, Inserted, Inserts};
pub(crate) use list::{LIST, List, Listed};
use minify::minify;
pub(crate) use probe::{PROBE, Probe};
pub(crate) use publish::{PUBLISH, Publish};
pub(crate) use put::{ExpiryArgument, PUT, Put};
pub(crate) use reap::{REAP, Reap};
pub(crate) use refusal::{Found, Refusal};
pub(crate) use resolve::{RESOLVE, Resolve, Resolved};
pub(crate) use schedule::{SCHEDULE, Schedule};
pub(crate) use take_due::{FoundTimers, QueueState, TAKE_DUE, TakeDue, score};

/// The functions that several scripts share, by the name in `-- @include NAME`.
const INCLUDES: [(&str, &str); 11] = [
    ("begin_index", include_str!("../../lua/include/begin_index.lua")),
    ("digits", include_str!("../../lua/include/digits.lua")),
    ("expiry", include_str!("../../lua/include/expiry.lua")),
    ("extend", include_str!("../../lua/include/extend.lua")),
    ("found", include_str!("../../lua/include/found.lua")),
    ("index", include_str!("../../lua/include/index.lua")),
    ("notify", include_str!("../../lua/include/notify.lua")),
    ("other", include_str!("../../lua/include/other.lua")),
    ("purge", include_str!("../../lua/include/purge.lua")),
    ("score", include_str!("../../lua/include/score.lua")),
    ("wake", include_str!("../../lua/include/wake.lua")),
];

/// A script that takes `A` and replies `R`.
pub(crate) struct Script<A, R> {
    text: String,
    types: PhantomData<(A, R)>,
}

impl<A: Arguments, R: Reply> Script<A, R> {
    fn new(source: &str) -> Self {
        Self { text: minify(&whole(source)), types: PhantomData }
    }

    /// Returns the `EVAL` command of this script.
    pub(crate) fn command(&self, arguments: &A) -> Cmd {
        let size = self.text.len() + arguments.payload() + TYPICAL_SIZE;
        let mut command = Cmd::with_capacity(TYPICAL_COUNT, size);
        command.arg("EVAL").arg(&self.text).arg(arguments.key_count());
        arguments.encode(&mut command);
        command
    }

    /// Decodes the reply.
    pub(crate) fn decode(&self, reply: Value) -> Result<Timed<R>, UnexpectedReply> {
        Timed::decode(reply).ok_or(UnexpectedReply)
    }
}

/// Capacity for the arguments of one record's script without its data, so that the command is not reallocated as it
/// grows.
const TYPICAL_COUNT: usize = 12;
const TYPICAL_SIZE: usize = 384;

/// The arguments of one script, in the order of its header.
pub(crate) trait Arguments {
    fn key_count(&self) -> usize;
    /// Returns how many bytes of data the arguments contain.
    fn payload(&self) -> usize {
        0
    }
    /// Writes all keys, then all other arguments, each with its name in the header.
    fn encode(&self, to: &mut impl Encoder);
}

/// Receives the arguments of a script: the command to send or, in a test, a list of the names.
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

/// The reply of a script, decoded.
pub(crate) trait Reply: Sized {
    /// Decodes the words that follow the server's clock, and the lists; `None` if they do not have the form that the
    /// header documents.
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self>;
}

impl Reply for () {
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        (words.is_empty() && lists.is_empty()).then_some(())
    }
}

/// The reply of the server has a form that no script of this crate returns.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the reply does not have the form that the script replies with")]
pub(crate) struct UnexpectedReply;

/// A reply with the server's clock, in microseconds since the epoch.
#[derive(Debug)]
pub(crate) struct Timed<T> {
    pub(crate) value: T,
    pub(crate) server_us: u64,
}

impl<R: Reply> Timed<R> {
    fn decode(reply: Value) -> Option<Self> {
        let (line, lists) = match reply {
            Value::Array(mut values) if !values.is_empty() => (values.remove(0), values),
            line => (line, Vec::new()),
        };
        let Value::BulkString(line) = line else { return None };
        // The reply for one record has only a few words.
        let words: SmallVec<[&str; 8]> = std::str::from_utf8(&line).ok()?.split(' ').collect();
        let [seconds, microseconds, words @ ..] = &words[..] else { return None };
        let server_us = micros(seconds.parse().ok()?, microseconds.parse().ok()?)?;
        Some(Self { value: R::decode(words, lists)?, server_us })
    }
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

/// The Pub/Sub commands that a server supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pubsub {
    /// Messages stay within the shard of the channel. Redis 7 and later.
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

/// The channel that a write is published to, and the commands for it.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) channel: String,
    pub(crate) pubsub: Pubsub,
}

/// Writes the channel and the publishing command. `None` sends no notification.
fn encode_notice(notice: Option<&Notice>, to: &mut impl Encoder) {
    let (channel, publish) = match notice {
        Some(Notice { channel, pubsub }) => (&channel[..], pubsub.publish()),
        None => ("", ""),
    };
    to.arg("channel", channel);
    to.arg("publish", publish);
}

/// Reads an integer, which may be a number or text.
pub(crate) fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// Reads a decimal integer from 1 to 2^53 - 1 without leading zeros, as the scripts write and accept it.
pub(crate) fn exact(text: &str) -> Option<u64> {
    if !text.starts_with(|c: char| matches!(c, '1'..='9')) {
        return None;
    }
    text.parse().ok().filter(|number| *number <= Version::MAX.get())
}

/// Reads the values of a `TIME` reply, in microseconds.
pub(crate) fn clock(time: &[Value]) -> Option<u64> {
    let [seconds, microseconds] = time else { return None };
    micros(integer(seconds)?, integer(microseconds)?)
}

fn micros(seconds: u64, microseconds: u64) -> Option<u64> {
    seconds.checked_mul(1_000_000)?.checked_add(microseconds)
}

/// Reads the word `expires_at` of a reply, '' for never.
fn expiry(millis: &str) -> Option<Option<DateTime<Utc>>> {
    match millis {
        "" => Some(None),
        millis => Some(Some(from_millis(millis.parse().ok()?))),
    }
}

/// Returns the script with the text of the files that it includes. `scripts/lua-check.sh` does the same for the linter.
fn whole(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    for line in source.lines() {
        match line.strip_prefix("-- @include ") {
            Some(name) => {
                let included = INCLUDES.iter().filter(|(include, _)| *include == name);
                included.for_each(|(_, include)| text.push_str(&whole(include)));
            }
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
