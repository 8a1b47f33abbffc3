//! `lua/publish.lua`: publishes one message.

use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Notice, Reply, Script, encode_notice, integer};

pub(crate) static PUBLISH: Lazy<Script<Publish, Published>> =
    Lazy::new(|| Script::new(include_str!("../../lua/publish.lua")));

#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) notice: Notice,
    pub(crate) message: String,
}

/// The message was published.
#[derive(Debug)]
pub(crate) struct Published;

impl Arguments for Publish {
    fn key_count(&self) -> usize {
        0
    }

    fn encode(&self, to: &mut impl Encoder) {
        encode_notice(Some(&self.notice), to);
        to.arg("message", &self.message);
    }
}

impl Reply for Published {
    fn decode(reply: Value) -> Option<Self> {
        integer(&reply).map(|_| Self)
    }
}
