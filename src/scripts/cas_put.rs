//! `lua/cas_put.lua`: replaces a live record at an expected version.

use bytes::Bytes;
use once_cell::sync::Lazy;

use super::put::ExpiryArgument;
use super::{Arguments, Encoder, RecordKeys, Script, Timed};
use crate::{TaskId, Version, Written};

pub(crate) static CAS_PUT: Lazy<Script<CasPut, Timed<Written>>> =
    Lazy::new(|| Script::new(include_str!("../../lua/cas_put.lua")));

#[derive(Debug)]
pub(crate) struct CasPut {
    pub(crate) keys: RecordKeys,
    pub(crate) id: TaskId,
    pub(crate) data: Bytes,
    pub(crate) expiry: ExpiryArgument,
    pub(crate) expected: Version,
}

impl Arguments for CasPut {
    fn key_count(&self) -> usize {
        3
    }

    fn encode(&self, to: &mut impl Encoder) {
        self.keys.encode(to);
        to.arg("id", self.id.as_str());
        to.arg("data", &self.data[..]);
        to.arg("expiry", self.expiry);
        to.arg("expected", self.expected.get());
    }
}
