//! `lua/schedule.lua`: makes a timer fire no later than requested.

use once_cell::sync::Lazy;

use super::{Arguments, Encoder, Notice, Script, encode_notice};

pub(crate) static SCHEDULE: Lazy<Script<Schedule, ()>> =
    Lazy::new(|| Script::new(include_str!("../../lua/schedule.lua")));

#[derive(Debug)]
pub(crate) struct Schedule {
    /// The key of the queue's timers.
    pub(crate) due: String,
    pub(crate) member: String,
    pub(crate) after_ms: u64,
    /// `None` sends no notification.
    pub(crate) notice: Option<Notice>,
}

impl Arguments for Schedule {
    fn key_count(&self) -> usize {
        1
    }

    fn encode(&self, to: &mut impl Encoder) {
        to.key("due", &self.due);
        to.arg("member", &self.member);
        to.arg("after", self.after_ms);
        encode_notice(self.notice.as_ref(), to);
    }
}
