//! `lua/put.lua`: every write except the compare-and-swap that keeps expiry and parts.

use bytes::Bytes;
use once_cell::sync::Lazy;
use redis::{RedisWrite, ToRedisArgs, Value};

use super::insert::Insert;
use super::{Arguments, Encoder, Notice, RecordKeys, Reply, Script, encode_notice, expiry};
use crate::backend::engine::WriteMode;
use crate::backend::{PartChange, PartChanges, TaskId, Written};

pub(crate) static PUT: Lazy<Script<Put, Written>> =
    Lazy::new(|| Script::new(include_str!("../../lua/put.lua")));

#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) keys: RecordKeys,
    pub(crate) id: TaskId,
    pub(crate) data: Bytes,
    pub(crate) expiry: ExpiryArgument,
    pub(crate) quota: Option<u64>,
    pub(crate) mode: WriteMode,
    /// `None` sends no notification.
    pub(crate) notice: Option<Notice>,
    pub(crate) parts: PartChanges,
}

/// An expiry that has been checked, as the scripts take it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ExpiryArgument {
    Keep,
    Never,
    AfterMillis(u64),
}

impl ToRedisArgs for ExpiryArgument {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        match self {
            Self::Keep => "keep".write_redis_args(out),
            Self::Never => "never".write_redis_args(out),
            Self::AfterMillis(millis) => millis.write_redis_args(out),
        }
    }
}

impl redis::ToSingleRedisArg for ExpiryArgument {}

impl From<Insert> for Put {
    /// Returns the put that creates the record.
    fn from(Insert { keys, id, data, expiry_ms, quota, timer: _ }: Insert) -> Self {
        let (expiry, mode) = (ExpiryArgument::AfterMillis(expiry_ms), WriteMode::Create);
        // The record is new, so it has no subscribers.
        Self { keys, id, data, expiry, quota, mode, notice: None, parts: PartChanges::default() }
    }
}

impl Arguments for Put {
    fn key_count(&self) -> usize {
        2
    }

    fn payload(&self) -> usize {
        let set = |change: &PartChange| match change {
            PartChange::Set(bytes) => bytes.len(),
            PartChange::Clear => 0,
        };
        self.data.len() + self.parts.values().map(set).sum::<usize>()
    }

    fn encode(&self, to: &mut impl Encoder) {
        self.keys.encode(to);
        to.arg("id", self.id.as_str());
        to.arg("data", &self.data[..]);
        to.arg("expiry", self.expiry);
        to.arg("quota", self.quota.map(|quota| quota.to_string()).unwrap_or_default());
        match self.mode {
            WriteMode::Upsert => to.arg("mode", "upsert"),
            WriteMode::Create => to.arg("mode", "create"),
            WriteMode::Update(version) => to.arg("mode", version.get()),
        }
        encode_notice(self.notice.as_ref(), to);
        for (name, change) in &self.parts {
            let (change, bytes) = match change {
                PartChange::Set(bytes) => ("set", &bytes[..]),
                PartChange::Clear => ("clear", &[][..]),
            };
            to.arg("parts", name.as_str());
            to.arg("parts", change);
            to.arg("parts", bytes);
        }
    }
}

impl Reply for Written {
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        let ([version, expires_at], []) = (words, &lists[..]) else { return None };
        Some(Self { version: version.parse::<u64>().ok()?.into(), expires_at: expiry(expires_at)? })
    }
}
