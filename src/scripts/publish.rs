//! `lua/publish.lua`: publishes one message.

use once_cell::sync::Lazy;

use super::{Arguments, Encoder, Notice, Script, encode_notice};

pub(crate) static PUBLISH: Lazy<Script<Publish, ()>> =
    Lazy::new(|| Script::new(include_str!("../../lua/publish.lua")));

#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) notice: Notice,
    pub(crate) message: String,
}

impl Arguments for Publish {
    fn key_count(&self) -> usize {
        0
    }

    fn encode(&self, to: &mut impl Encoder) {
        encode_notice(Some(&self.notice), to);
        to.arg("message", &self.message);
    }
}
