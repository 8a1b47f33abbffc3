//! `lua/resolve.lua`: moves or removes a timer that was taken.

use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Notice, Reply, Script, encode_notice};

pub(crate) static RESOLVE: Lazy<Script<Resolve, Resolved>> =
    Lazy::new(|| Script::new(include_str!("../../lua/resolve.lua")));

#[derive(Debug)]
pub(crate) struct Resolve {
    /// The key of the queue's timers.
    pub(crate) due: String,
    pub(crate) member: String,
    pub(crate) token: String,
    /// `None` removes the timer.
    pub(crate) after_ms: Option<u64>,
    /// `None` sends no notification.
    pub(crate) notice: Option<Notice>,
}

/// Whether the token was valid.
#[derive(Debug)]
pub(crate) struct Resolved(pub(crate) bool);

impl Arguments for Resolve {
    fn key_count(&self) -> usize {
        1
    }

    fn encode(&self, to: &mut impl Encoder) {
        to.key("due", &self.due);
        to.arg("member", &self.member);
        to.arg("token", &self.token);
        match self.after_ms {
            Some(after) => to.arg("after", after),
            None => to.arg("after", ""),
        }
        encode_notice(self.notice.as_ref(), to);
    }
}

impl Reply for Resolved {
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        match (words, &lists[..]) {
            (["0"], []) => Some(Self(false)),
            (["1"], []) => Some(Self(true)),
            _ => None,
        }
    }
}
