//! `lua/cas_put.lua`: replaces a live record at an expected version and keeps its expiry.

use bytes::Bytes;
use once_cell::sync::Lazy;

use super::{Arguments, Encoder, Script, Timed};
use crate::{Version, Written};

pub(crate) static CAS_PUT: Lazy<Script<CasPut, Timed<Written>>> =
    Lazy::new(|| Script::new(include_str!("../../lua/cas_put.lua")));

#[derive(Debug)]
pub(crate) struct CasPut {
    /// The key of the hash.
    pub(crate) task: String,
    pub(crate) data: Bytes,
    pub(crate) expected: Version,
}

impl Arguments for CasPut {
    fn key_count(&self) -> usize {
        1
    }

    fn encode(&self, to: &mut impl Encoder) {
        to.key("task", &self.task);
        to.arg("data", &self.data[..]);
        to.arg("expected", self.expected.get());
    }
}
