//! `lua/cas_put.lua` and `lua/cas_put_batch.lua`: replace the data of live records at the expected versions, and keep their
//! expiry and parts.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use once_cell::sync::Lazy;
use redis::{RedisError, Value};

use super::{Arguments, Encoder, Pubsub, Reply, Script, expiry};
use crate::backend::Version;

/// Takes one record.
pub(crate) static CAS_PUT: Lazy<Script<CasPuts<'_>, Kept>> =
    Lazy::new(|| Script::new(include_str!("../../lua/cas_put.lua")));

/// Takes several records.
pub(crate) static CAS_PUT_BATCH: Lazy<Script<CasPuts<'_>, Vec<Result<Kept, RedisError>>>> =
    Lazy::new(|| Script::new(include_str!("../../lua/cas_put_batch.lua")));

#[derive(Debug)]
pub(crate) struct CasPuts<'a> {
    pub(crate) records: &'a [CasPut],
    /// How to notify subscribers; `None` sends no notification.
    pub(crate) pubsub: Option<Pubsub>,
}

#[derive(Debug)]
pub(crate) struct CasPut {
    /// The key of the hash.
    pub(crate) task: String,
    pub(crate) data: Bytes,
    pub(crate) expected: Version,
    pub(crate) next: Version,
    /// The channel of the owner's subscribers; `None` sends no notification.
    pub(crate) channel: Option<String>,
}

/// The expiry that the record keeps; `None` for never.
#[derive(Debug)]
pub(crate) struct Kept(pub(crate) Option<DateTime<Utc>>);

impl Arguments for CasPuts<'_> {
    fn key_count(&self) -> usize {
        self.records.len()
    }

    fn payload(&self) -> usize {
        self.records.iter().map(|record| record.data.len()).sum()
    }

    fn encode(&self, to: &mut impl Encoder) {
        for record in self.records {
            to.key("task", &record.task);
        }
        to.arg("publish", self.pubsub.map_or("", Pubsub::publish));
        for record in self.records {
            let channel = record.channel.as_deref().filter(|_| self.pubsub.is_some());
            to.arg("record", &record.data[..]);
            to.arg("record", record.expected.get());
            to.arg("record", record.next.get());
            to.arg("record", channel.unwrap_or_default());
        }
    }
}

impl Reply for Kept {
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        match (words, &lists[..]) {
            ([expires_at], []) => expiry(expires_at).map(Self),
            _ => None,
        }
    }
}

impl Reply for Vec<Result<Kept, RedisError>> {
    fn decode(words: &[&str], records: Vec<Value>) -> Option<Self> {
        let kept = |record| match record {
            Value::ServerError(error) => Some(Err(error.into())),
            Value::BulkString(expires_at) => Some(Ok(Kept(expiry(std::str::from_utf8(&expires_at).ok()?)?))),
            _ => None,
        };
        if words.is_empty() { records.into_iter().map(kept).collect() } else { None }
    }
}
