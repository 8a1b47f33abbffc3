//! `lua/cas_put.lua`: replaces the data of a live record at the expected version, and keeps its expiry and parts.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Notice, Reply, Script, encode_notice, expiry};
use crate::backend::Version;

pub(crate) static CAS_PUT: Lazy<Script<CasPut, Kept>> =
    Lazy::new(|| Script::new(include_str!("../../lua/cas_put.lua")));

#[derive(Debug)]
pub(crate) struct CasPut {
    /// The key of the hash.
    pub(crate) task: String,
    pub(crate) data: Bytes,
    pub(crate) expected: Version,
    pub(crate) next: Version,
    /// `None` sends no notification.
    pub(crate) notice: Option<Notice>,
}

/// The expiry that the record keeps; `None` for never.
#[derive(Debug)]
pub(crate) struct Kept(pub(crate) Option<DateTime<Utc>>);

impl Arguments for CasPut {
    fn key_count(&self) -> usize {
        1
    }

    fn payload(&self) -> usize {
        self.data.len()
    }

    fn encode(&self, to: &mut impl Encoder) {
        to.key("task", &self.task);
        to.arg("data", &self.data[..]);
        to.arg("expected", self.expected.get());
        to.arg("next", self.next.get());
        encode_notice(self.notice.as_ref(), to);
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
