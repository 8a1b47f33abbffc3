//! `lua/probe.lua`: runs each command of the other scripts once.

use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Reply, Script};

pub(crate) static PROBE: Lazy<Script<Probe, Failed>> =
    Lazy::new(|| Script::new(include_str!("../../lua/probe.lua")));

#[derive(Debug)]
pub(crate) struct Probe {
    /// A key of its own.
    pub(crate) probe: String,
}

/// The commands that failed, each with what the server said.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) Vec<(String, String)>);

impl Arguments for Probe {
    fn key_count(&self) -> usize {
        1
    }

    fn encode(&self, to: &mut impl Encoder) {
        to.key("probe", &self.probe);
    }
}

impl Reply for Failed {
    fn decode(reply: Value) -> Option<Self> {
        let words: Vec<String> = match reply {
            Value::Array(_) => redis::from_redis_value(reply).ok()?,
            _ => return None,
        };
        let (pairs, []) = words.as_chunks::<2>() else { return None };
        Some(Self(pairs.iter().map(|[command, error]| (command.clone(), error.clone())).collect()))
    }
}
