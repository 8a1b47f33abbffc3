//! `lua/reap.lua`: removes index members whose hash no longer exists.

use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Reply, Script};
use crate::backend::TaskId;

pub(crate) static REAP: Lazy<Script<Reap, Removed>> =
    Lazy::new(|| Script::new(include_str!("../../lua/reap.lua")));

#[derive(Debug)]
pub(crate) struct Reap {
    pub(crate) idx: String,
    /// Each task with the key of its hash.
    pub(crate) tasks: Vec<(TaskId, String)>,
}

/// How many records the script removed.
#[derive(Debug)]
pub(crate) struct Removed(pub(crate) u64);

impl Arguments for Reap {
    fn key_count(&self) -> usize {
        1 + self.tasks.len()
    }

    fn encode(&self, to: &mut impl Encoder) {
        to.key("idx", &self.idx);
        for (_, key) in &self.tasks {
            to.key("tasks", key);
        }
        for (id, _) in &self.tasks {
            to.arg("ids", id.as_str());
        }
    }
}

impl Reply for Removed {
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        let ([removed], []) = (words, &lists[..]) else { return None };
        removed.parse().ok().map(Self)
    }
}
