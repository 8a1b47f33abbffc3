//! `lua/delete.lua`: removes a record, readable or damaged.

use once_cell::sync::Lazy;

use super::reap::Removed;
use super::{Arguments, Encoder, Notice, RecordKeys, Script, encode_notice};
use crate::backend::TaskId;

pub(crate) static DELETE: Lazy<Script<Delete, Removed>> =
    Lazy::new(|| Script::new(include_str!("../../lua/delete.lua")));

#[derive(Debug)]
pub(crate) struct Delete {
    pub(crate) keys: RecordKeys,
    pub(crate) id: TaskId,
    /// `None` sends no notification.
    pub(crate) notice: Option<Notice>,
}

impl Arguments for Delete {
    fn key_count(&self) -> usize {
        2
    }

    fn encode(&self, to: &mut impl Encoder) {
        self.keys.encode(to);
        to.arg("id", self.id.as_str());
        encode_notice(self.notice.as_ref(), to);
    }
}
