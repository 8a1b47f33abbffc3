//! `lua/probe.lua`: runs each command of the other scripts once.

use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Reply, Script};

pub(crate) static PROBE: Lazy<Script<Probe, Failed>> =
    Lazy::new(|| Script::new(include_str!("../../lua/probe.lua")));

#[derive(Debug)]
pub(crate) struct Probe {
    /// A key that nothing else uses.
    pub(crate) probe: String,
}

/// The commands that failed, each with the text of the server.
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
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        let ([], Ok([failed @ Value::Array(_)])) = (words, <[Value; 1]>::try_from(lists)) else {
            return None;
        };
        let words: Vec<String> = redis::from_redis_value(failed).ok()?;
        let (pairs, []) = words.as_chunks::<2>() else { return None };
        Some(Self(pairs.iter().map(|[command, error]| (command.clone(), error.clone())).collect()))
    }
}
