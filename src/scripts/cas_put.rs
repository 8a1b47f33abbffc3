//! `lua/cas_put.lua`: replaces a live record at an expected version and keeps its expiry and parts.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Notice, Reply, Script, Timed, encode_notice, expiry, timed_words};
use crate::backend::Version;

pub(crate) static CAS_PUT: Lazy<Script<CasPut, Timed<Kept>>> =
    Lazy::new(|| Script::new(include_str!("../../lua/cas_put.lua")));

#[derive(Debug)]
pub(crate) struct CasPut {
    /// The key of the hash.
    pub(crate) task: String,
    pub(crate) data: Bytes,
    pub(crate) expected: Version,
    pub(crate) next: Version,
    /// `None` notifies nobody.
    pub(crate) notice: Option<Notice>,
}

/// The expiry that the record has kept; `None` for never.
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

impl Reply for Timed<Kept> {
    fn decode(reply: Value) -> Option<Self> {
        let (server_us, [expires_at]) = timed_words(&reply)?;
        Some(Self { value: Kept(expiry(expires_at)?), server_us })
    }
}
