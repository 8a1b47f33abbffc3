//! `lua/reap.lua`: removes index members whose hash is gone.

use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Reply, Script, Timed, integer, micros};
use crate::backend::TaskId;

pub(crate) static REAP: Lazy<Script<Reap, Timed<Removed>>> =
    Lazy::new(|| Script::new(include_str!("../../lua/reap.lua")));

#[derive(Debug)]
pub(crate) struct Reap {
    pub(crate) idx: String,
    /// Each task with the key of its hash.
    pub(crate) tasks: Vec<(TaskId, String)>,
}

/// How many were removed.
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

impl Reply for Timed<Removed> {
    fn decode(reply: Value) -> Option<Self> {
        let Value::Array(parts) = reply else { return None };
        let [removed, seconds, microseconds] = parts.as_slice() else { return None };
        Some(Self { value: Removed(integer(removed)?), server_us: micros(seconds, microseconds)? })
    }
}
