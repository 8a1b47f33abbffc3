//! `lua/audit.lua`: compares records with the members of their index, and repairs the index.

use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Reply, Script};
use crate::backend::TaskId;

pub(crate) static AUDIT: Lazy<Script<Audit, Audited>> =
    Lazy::new(|| Script::new(include_str!("../../lua/audit.lua")));

#[derive(Debug)]
pub(crate) struct Audit {
    pub(crate) idx: String,
    pub(crate) repair: bool,
    /// Each task with the key of its hash.
    pub(crate) tasks: Vec<(TaskId, String)>,
}

/// How a record and the members of its index agreed before the script repaired them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordState {
    Agrees,
    Gone,
    MemberWithoutRecord,
    RecordWithoutMember,
    Damaged,
}

/// The state of each task, in the order of the arguments.
#[derive(Debug)]
pub(crate) struct Audited(pub(crate) Vec<RecordState>);

impl Arguments for Audit {
    fn key_count(&self) -> usize {
        1 + self.tasks.len()
    }

    fn encode(&self, to: &mut impl Encoder) {
        to.key("idx", &self.idx);
        for (_, key) in &self.tasks {
            to.key("tasks", key);
        }
        to.arg("repair", if self.repair { "1" } else { "" });
        for (id, _) in &self.tasks {
            to.arg("ids", id.as_str());
        }
    }
}

impl Reply for Audited {
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        let ([], Ok([Value::Array(states)])) = (words, <[Value; 1]>::try_from(lists)) else { return None };
        let state = |value: Value| {
            let Value::BulkString(text) = value else { return None };
            Some(match &text[..] {
                b"ok" => RecordState::Agrees,
                b"gone" => RecordState::Gone,
                b"member" => RecordState::MemberWithoutRecord,
                b"record" => RecordState::RecordWithoutMember,
                b"damaged" => RecordState::Damaged,
                _ => return None,
            })
        };
        states.into_iter().map(state).collect::<Option<_>>().map(Self)
    }
}
